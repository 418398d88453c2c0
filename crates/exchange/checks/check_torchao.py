"""Makes torchao MXTensors of what `microscale convert --to torchao` writes. Usage: check_torchao.py MICROSCALE

With torchao 0.18.0 (torch 2.15.0), and with 0.6.1 (torch 2.5.1), which takes scales as a flat U8 tensor and has the even
one of two FP4 codes high, where later versions have it low.
"""

import inspect
import json
import sys
import tempfile

import torch
from safetensors import safe_open
from torchao.prototype.mx_formats import mx_tensor

from common import Tool, same

OLD = "data_bits" in inspect.signature(mx_tensor.MXTensor.__new__).parameters
TYPES = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
TYPES["float4_e2m1fn_x2"] = "fp4_e2m1" if OLD else getattr(torch, "float4_e2m1fn_x2", None)


def tensor(qdata, scale, elem_dtype, block_size):
    """The MXTensor of codes and scales."""
    if OLD:
        if elem_dtype == "float4_e2m1fn_x2":
            qdata = qdata << 4 | qdata >> 4
        return mx_tensor.MXTensor(scale.flatten(), qdata, TYPES.get(elem_dtype, elem_dtype), block_size, torch.float32)
    scale = scale.view(torch.float8_e8m0fnu)
    names = inspect.signature(mx_tensor.MXTensor.__new__).parameters
    rest = {"kernel_preference": None, "act_quant_kwargs": None, "is_swizzled_scales": False}
    return mx_tensor.MXTensor(qdata, scale, TYPES.get(elem_dtype, elem_dtype), block_size, torch.float32, **{k: v for k, v in rest.items() if k in names})


def main(binary):
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(binary, folder)
        for recipe in ["w4a4", "w8a8", "proj=fp8_e5m2,mlp=fp4", "w6a6", "proj=fp6_e2m3,mlp=fp6_e2m3"]:
            native = tool.quantized(recipe)
            output = tool.converted(native, "torchao")
            types = json.loads((output / "config.json").read_text())["quantization_config"]["quant_type"]
            found = {}
            with safe_open(output / "model.safetensors", "pt") as file:
                for name in file.keys():
                    if name.endswith("_qdata"):
                        name = name.removesuffix("_qdata")
                        about = types["modules"].get(name.removesuffix(".weight"), types["default"])
                        parts = [file.get_tensor(f"{name}_{part}") for part in ["qdata", "scale"]]
                        mx = tensor(*parts, about["elem_dtype"], about["block_size"])
                        values = mx.to_dtype(torch.float32) if OLD else mx.dequantize(torch.float32)
                        found[name] = values.numpy()
                    elif not name.endswith("_scale"):
                        found[name] = file.get_tensor(name).to(torch.float32).numpy()
            same(f"torchao {recipe}", tool.values(native), found)


if __name__ == "__main__":
    main(sys.argv[1])
