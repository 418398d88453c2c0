"""Writes q8_0.txt with the library gguf: on each line 32 values in bf16, and ggml's block of them, in hexadecimal."""

from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

random = np.random.default_rng(0)
ties = np.concatenate([[127], np.arange(-15, 16) + 0.5])  # halfway between integers: the scale is 1
blocks = [np.zeros(32), ties, -ties, np.full(32, 1e-40), np.full(32, 1e-7), np.linspace(-8e6, 8e6, 32)]
blocks += [random.standard_normal(32) * scale for scale in (1e-6, 1e-3, 0.02, 1, 30, 1e5)]
lines = []
for block in blocks:
    bits = (block.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        quants = quantize(values[None], GGMLQuantizationType.Q8_0)
    lines.append(f"{bits.tobytes().hex()} {quants.tobytes().hex()}\n")
Path(__file__).with_name("q8_0.txt").write_text("".join(lines))
