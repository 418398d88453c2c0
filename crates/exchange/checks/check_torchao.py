"""Makes torchao MXTensors of what `microscale convert --to torchao` writes.

Usage: check_torchao.py MICROSCALE [--golden FILE]

With torchao 0.18.0 (torch 2.15.0), and with 0.6.1 (torch 2.5.1), which takes scales as a flat U8 tensor and has the even
one of two FP4 codes high, where later versions have it low.

With --golden also writes SHA-256s by recipe: of the bytes that torchao was given (all codes and scales in the order of
their names) and, by tensor, of the values that it computed (f32, little-endian, 0 for -0). A file that has the same from
another version gets this one's name added.
"""

import argparse
import hashlib
import inspect
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from torchao.prototype.mx_formats import mx_tensor

from common import Tool, same

OLD = "data_bits" in inspect.signature(mx_tensor.MXTensor.__new__).parameters
TYPES = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
TYPES["float4_e2m1fn_x2"] = "fp4_e2m1" if OLD else getattr(torch, "float4_e2m1fn_x2", None)

RECIPES = ["w4a4", "w8a8", "proj=fp8_e5m2,mlp=fp4", "w6a6", "proj=fp6_e2m3,mlp=fp6_e2m3"]


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


def restored(output):
    """The values of every quantized tensor, by torchao, and of all others as they are; the hash of what it was given."""
    given = hashlib.sha256()
    types = json.loads((output / "config.json").read_text())["quantization_config"]["quant_type"]
    quantized, plain = {}, {}
    with safe_open(output / "model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            if name.endswith(("_qdata", "_scale")):
                given.update(file.get_tensor(name).view(torch.uint8).numpy().tobytes())
            if name.endswith("_qdata"):
                name = name.removesuffix("_qdata")
                about = types["modules"].get(name.removesuffix(".weight"), types["default"])
                parts = [file.get_tensor(f"{name}_{part}") for part in ["qdata", "scale"]]
                mx = tensor(*parts, about["elem_dtype"], about["block_size"])
                quantized[name] = (mx.to_dtype(torch.float32) if OLD else mx.dequantize(torch.float32)).numpy()
            elif not name.endswith("_scale"):
                plain[name] = file.get_tensor(name).to(torch.float32).numpy()
    return quantized, plain, given.hexdigest()


def write(path, recipes):
    """Writes the golden, or adds this version to it."""
    golden = json.loads(path.read_text()) if path.exists() else {"torchao": [], "recipes": recipes}
    assert golden["recipes"] == recipes, f"{path}: torchao {golden['torchao']} had other values"
    golden["torchao"] = sorted({*golden["torchao"], version("torchao")})
    path.write_text(json.dumps(golden, indent=0) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("microscale")
    parser.add_argument("--golden", type=Path)
    arguments = parser.parse_args()
    recipes = {}
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(arguments.microscale, folder)
        for recipe in RECIPES:
            native = tool.quantized(recipe)
            quantized, plain, given = restored(tool.converted(native, "torchao"))
            same(f"torchao {recipe}", tool.values(native), quantized | plain)
            digest = {name: hashlib.sha256((values + 0.0).astype("<f4").tobytes()) for name, values in quantized.items()}
            recipes[recipe] = {"given": given, "values": {name: found.hexdigest() for name, found in digest.items()}}
    if arguments.golden:
        write(arguments.golden, recipes)


if __name__ == "__main__":
    main()
