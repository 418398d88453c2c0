"""Writes conventions.txt: what other tools make of some blocks. Run by hand, with whichever of the packages are there:

    python conventions.py torchao modelopt quark compressed_tensors mlx gguf > conventions.txt

A line is: convention, format, 32 bf16 values, byte of the scale, 32 codes (all hexadecimal; no codes where only the scale
was to be had). The conventions of MLX up to 0.31 come from a run with that version.
"""

import sys
import importlib.util
import types

import numpy as np


def blocks():
    """Gaussian blocks of several magnitudes, and one of ties: k/16 of a power of two under a power of two."""
    generator = np.random.default_rng(4)
    rows = [generator.standard_normal(32) * 2.0**e for e in (-20, -6, 0, 3, 10)]
    rows.append(generator.standard_t(3, 32))
    for largest in (4.0, 6.0, 7.0):
        ties = generator.integers(-28, 29, 32) / 8.0
        ties[5] = largest
        rows.append(ties)
    bits = np.asarray(rows, np.float32).view(np.uint32)
    bits += 0x7FFF + (bits >> 16 & 1)  # round to bf16
    return (bits & 0xFFFF0000).view(np.float32)


def emit(convention, element, values, scales, codes=None):
    for i, row in enumerate(values):
        words = "".join(f"{x:04x}" for x in row.view(np.uint32) >> 16)
        found = "-" if codes is None else bytes(codes[i]).hex()
        print(convention, element, words, f"{int(scales[i]):02x}", found)


def nibbles(packed):
    return np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)


def torchao(values):
    import torch
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    elements = {
        "fp8_e5m2": torch.float8_e5m2,
        "fp8_e4m3": torch.float8_e4m3fn,
        "fp6_e3m2": "fp6_e3m2",
        "fp6_e2m3": "fp6_e2m3",
        "fp4_e2m1": torch.float4_e2m1fn_x2,
    }
    for mode in ("floor", "ceil", "rceil", "even"):
        for name, element in elements.items():
            scales, codes = to_mx(torch.from_numpy(values), element, 32, ScaleCalculationMode[mode.upper()])
            codes = codes.view(torch.uint8).numpy()
            codes = nibbles(codes) if name == "fp4_e2m1" else codes
            emit(f"torchao-{mode}", name, values, scales.view(torch.uint8).numpy()[:, 0], codes)


def lone_module(package, file, name):
    """A file of a package without the rest of it, which wants much more."""
    root = importlib.util.find_spec(package).submodule_search_locations[0]
    base = types.ModuleType(f"lone.{name}.base_qtensor")
    base.BaseQuantizedTensor = type("BaseQuantizedTensor", (), {"__init__": lambda self, *a: setattr(self, "held", a)})
    parents = {"lone": None, "lone.qtensor": None, "lone.qtensor.base_qtensor": base}
    for parent, module in parents.items():
        sys.modules[parent] = module or types.ModuleType(parent)
        sys.modules[parent].__path__ = []
    spec = importlib.util.spec_from_file_location(f"lone.qtensor.{name}", f"{root}/{file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def modelopt(values):
    import torch

    tensor = lone_module("modelopt", "torch/quantization/qtensor/mxfp4_tensor.py", "mxfp4_tensor").MXFP4QTensor
    made, scales = tensor.quantize(torch.from_numpy(values), 32)
    emit("modelopt", "fp4_e2m1", values, scales.numpy()[:, 0], nibbles(made.held[2].numpy()))


def quark(values):
    import ast
    import torch

    root = importlib.util.find_spec("quark").submodule_search_locations[0]
    tree = ast.parse(open(f"{root}/torch/quantization/utils.py").read())
    function = next(f for f in tree.body if getattr(f, "name", "") == "even_round")
    function.args.args[1].annotation = None
    widths = {"fp8_e4m3": (4, 3, 8), "fp6_e3m2": (3, 2, 4), "fp6_e2m3": (2, 3, 2), "fp4": (2, 1, 2)}
    scope = {"torch": torch, "get_dtype_params": widths.__getitem__}
    exec(compile(ast.Module([function], []), "quark", "exec"), scope)
    for name in widths:
        scales = scope["even_round"](torch.from_numpy(np.abs(values).max(-1)), name).log2().numpy() + 127
        emit("quark", "fp4_e2m1" if name == "fp4" else name, values, scales)


def compressed_tensors(values):
    import torch
    from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA, FP6_E2M3_DATA
    from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales

    for name, bits, cast, step in (
        ("fp4_e2m1", 4, FP4_E2M1_DATA.cast_to_fp4, 1),
        ("fp6_e2m3", 6, FP6_E2M3_DATA.cast_to_fp6, 3),
    ):
        scales = generate_mx_scales(torch.from_numpy(np.abs(values).max(-1)), bits).numpy()
        scaled = torch.from_numpy(values / 2.0 ** (scales[:, None] - 127)).clamp(-8 + 2 * 0.5**step, 8 - 2 * 0.5**step)
        made = cast(scaled.float()).numpy()
        half = 1 << step
        numbers = [k / half for k in range(half)] + [(1 + k / half) * 2**e for e in range(3) for k in range(half)]
        codes = [[numbers.index(abs(x)) | int(np.signbit(x)) << (bits - 1) for x in row] for row in made]
        emit("compressed-tensors", name, values, scales, codes)


def mlx(values):
    import mlx.core as mx

    old = "-0.31" if tuple(map(int, mx.__version__.split(".")[:2])) < (0, 32) else ""
    for mode, bits in (("mxfp4", 4), ("mxfp8", 8)):
        with mx.stream(mx.cpu):
            codes, scales = mx.quantize(mx.array(values), group_size=32, bits=bits, mode=mode)[:2]
        codes = np.array(codes).view(np.uint8)
        if bits == 4:
            emit(f"mlx{old}-cpu", "fp4_e2m1", values, np.array(scales)[:, 0], nibbles(codes))
        else:
            emit(f"mlx{old}", "fp8_e4m3", values, np.array(scales)[:, 0], codes)


def gguf(values):
    from gguf.quants import MXFP4

    made = MXFP4.quantize_blocks(values)
    codes = np.concatenate([made[:, 1:] & 15, made[:, 1:] >> 4], -1)
    emit("ggml", "fp4_e2m1", values, made[:, 0], codes)


if __name__ == "__main__":
    print("# What other tools make of the same blocks: conventions.py wrote it.")
    for name in sys.argv[1:]:
        globals()[name](blocks())
