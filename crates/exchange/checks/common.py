"""What the checks share: running microscale, and its own values of a quantized model."""

import json
import subprocess
from pathlib import Path

import numpy as np


class Tool:
    """The microscale binary, and a folder to work in."""

    def __init__(self, binary, folder):
        self.binary, self.folder = str(Path(binary).resolve()), Path(folder)

    def run(self, *arguments):
        subprocess.run([self.binary, *map(str, arguments)], check=True, stderr=subprocess.DEVNULL)

    def quantized(self, recipe):
        """The demo model by a recipe, in the native layout."""
        output = self.folder / f"native-{recipe.replace('/', '-')}"
        if not output.exists():
            self.run("quantize", "demo", "--recipe", recipe, "-o", output)
        return output

    def converted(self, source, kind):
        output = self.folder / f"{source.name}-{kind}{'.gguf' if kind == 'gguf' else ''}"
        self.run("convert", source, "--to", kind, "-o", output)
        return output

    def values(self, source):
        """Every tensor of a native model, dequantized, as f32."""
        output = self.folder / f"{source.name}-values"
        if not output.exists():
            self.run("dequantize", source, "--dtype", "f32", "-o", output)
        return {name: floats for name, (_, floats) in tensors(output).items()}


def tensors(folder):
    """Type and content of every tensor of a model.safetensors; bf16 widened to f32, f32 as it is, others as bytes."""
    data = (Path(folder) / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, data = json.loads(data[8 : 8 + length]), data[8 + length :]
    result = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        raw = np.frombuffer(data[start:end], dtype=np.uint8)
        if entry["dtype"] == "BF16":
            raw = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] == "F32":
            raw = raw.view(np.float32)
        last = entry["shape"]
        result[name] = (entry["dtype"], raw.reshape(last) if raw.size == int(np.prod(last)) else raw)
    return result


def same(check, expected, found):
    """Compares all tensors in every bit and says how many values there were."""
    assert expected.keys() == found.keys(), (check, sorted(expected.keys() ^ found.keys()))
    for name, values in expected.items():
        other = np.asarray(found[name], dtype=np.float32)
        assert values.shape == other.shape, (check, name, values.shape, other.shape)
        wrong = np.flatnonzero(values.view(np.uint32).ravel() != other.view(np.uint32).ravel())
        wrong = [i for i in wrong if values.ravel()[i] != 0 or other.ravel()[i] != 0]  # some tools lose the sign of 0
        assert not wrong, (check, name, len(wrong), values.ravel()[wrong[0]], other.ravel()[wrong[0]])
    print(f"{check}: {sum(values.size for values in expected.values())} values of {len(expected)} tensors equal")
