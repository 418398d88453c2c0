#!/usr/bin/env python3
"""Time quantizing a matrix to MX formats in Python: torchao's MXTensor.to_mx, and TorchMX's, which grew out of it.

    torchao_quantize.py [--library torchao|torchmx] [--out FILE]

Prints values per second as JSON. The matrix is bf16, blocks of 32 run along its rows. Both programs keep each FP6 code
in a byte of its own, so less is written than packed codes would ask for.
"""

import argparse
import json
import logging
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

FORMATS = ("fp8_e4m3", "fp6_e3m2", "fp4_e2m1")


def quantizer(library):
    """A function of a matrix and one of FORMATS."""
    if library == "torchao":
        from torchao.prototype.mx_formats.constants import DTYPE_FP4, DTYPE_FP6_E3M2
        from torchao.prototype.mx_formats.mx_tensor import MXTensor

        types = dict(zip(FORMATS, (torch.float8_e4m3fn, DTYPE_FP6_E3M2, DTYPE_FP4)))
    else:
        from torchmx import dtypes
        from torchmx.mx_tensor import MXTensor

        types = dict(zip(FORMATS, (dtypes.float8_e4m3, dtypes.float6_e3m2, dtypes.float4_e2m1)))
    return lambda matrix, name: MXTensor.to_mx(matrix, types[name], 32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=("torchao", "torchmx"), default="torchao")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.INFO)
    torch.manual_seed(1)
    matrix = torch.randn(options.rows, options.columns).mul_(0.02).to(torch.bfloat16)
    to_mx = quantizer(options.library)
    to_mx(matrix[:32].contiguous(), FORMATS[0])

    results = []
    with torch.no_grad():
        for name in FORMATS:
            rates = []
            for _ in range(options.repetitions):
                start = time.perf_counter()
                to_mx(matrix, name)
                rates.append(matrix.numel() / (time.perf_counter() - start))
            rates = {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "all": rates}
            print(f"{options.library} {name}: {rates['median'] / 1e6:.1f} M values/s", file=sys.stderr)
            results.append({"format": name, "values_per_s": rates})
    libraries = dict.fromkeys(("torch", "torchao", options.library))
    document = {
        "library": options.library, "shape": [options.rows, options.columns], "threads": options.threads,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
        "results": results,
    }
    text = json.dumps(document, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
