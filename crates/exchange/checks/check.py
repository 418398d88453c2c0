"""Opens what `microscale convert` writes with the libraries it is written for. Usage: check.py MICROSCALE [CHECK...]"""

import json
import sys
import tempfile

import numpy as np

from common import Tool, same, tensors


def compressed_tensors(tool):
    """With compressed-tensors' decompressors module by module, and through transformers as a model."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_name
    from safetensors import safe_open

    for recipe in ["w4a4", "w8a8", "w4a8", "proj=fp6_e2m3/fp8,mlp=fp4/fp8,head=fp8/fp8", "proj=fp4,mlp=fp4,head=bf16"]:
        native = tool.quantized(recipe)
        folder = tool.converted(native, "compressed-tensors")
        config = json.loads((folder / "config.json").read_text())
        config = QuantizationConfig.model_validate(config["quantization_config"])
        found = {}
        with safe_open(folder / "model.safetensors", "pt") as file:
            names = set(file.keys())
            modules = {name.removesuffix(".weight_scale") for name in names if name.endswith(".weight_scale")}
            for module in modules:
                groups = config.config_groups.values()
                scheme = next(g for g in groups if g.targets == ["Linear"] or any(match_name(module, t) for t in g.targets))
                assert module not in config.ignore, module
                parts = {part: file.get_tensor(f"{module}.{part}") for part in ["weight", "weight_packed", "weight_scale"] if f"{module}.{part}" in names}
                restored = BaseCompressor.get_value_from_registry(scheme.format).decompress(parts, scheme)
                found[f"{module}.weight"] = restored["weight"].to(torch.float32).numpy()
            taken = {f"{m}.{part}" for m in modules for part in ["weight", "weight_packed", "weight_scale"]}
            found |= {name: file.get_tensor(name).to(torch.float32).numpy() for name in names - taken}
        same(f"compressed-tensors {config.format} {recipe}", tool.values(native), found)

    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    for recipe in ["w4a4", "w8a8"]:
        native = tool.quantized(recipe)
        folder = tool.folder / f"{native.name}-compressed-tensors"
        settings = CompressedTensorsConfig(dequantize=True) if "dequantize" in CompressedTensorsConfig.__init__.__code__.co_varnames else CompressedTensorsConfig(run_compressed=False)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.bfloat16)
        state = {name: value.to(torch.float32).numpy() for name, value in model.state_dict().items() if not name.endswith("weight_scale")}
        same(f"transformers with compressed-tensors {recipe}", tool.values(native), state)


def mlx(tool):
    """With mx.dequantize."""
    import mlx.core as mx

    for recipe in ["w4a4", "w8a8", "w4a8", "proj=fp4/fp8,mlp=fp8/fp8"]:
        native = tool.quantized(recipe)
        folder = tool.converted(native, "mlx")
        config = json.loads((folder / "config.json").read_text())["quantization"]
        arrays = mx.load(str(folder / "model.safetensors"))
        found = {}
        for name, array in arrays.items():
            module = name.removesuffix(".weight")
            if name.endswith(".scales"):
                continue
            if f"{module}.scales" in arrays:
                own = config.get(module, config)
                array = mx.dequantize(array, arrays[f"{module}.scales"], None, own["group_size"], own["bits"], mode=own["mode"])
            found[name] = np.array(array.astype(mx.float32))
        same(f"MLX {config['mode']} {recipe}", tool.values(native), found)


def gguf(tool):
    """With gguf-py's reader and dequantizer."""
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize, quantize

    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    }  # fmt: skip

    def restored(name, values, heads):
        pieces = name.split(".")
        if pieces[0] == "blk":
            name = f"model.layers.{pieces[1]}.{parts[pieces[2]]}.{pieces[3]}"
        else:
            name = f"{parts[pieces[0]]}.{pieces[1]}"
        if "q_proj" in name or "k_proj" in name:
            count = heads["q_proj" in name]
            values = values.reshape(count, values.shape[0] // count // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        return name, values

    for recipe in ["w4a4", "int8", "proj=int8,mlp=fp4"]:
        native = tool.quantized(recipe)
        reader = GGUFReader(tool.converted(native, "gguf"))
        heads = [reader.get_field(f"llama.attention.head_count{suffix}").contents() for suffix in ["_kv", ""]]
        found = {}
        for tensor in reader.tensors:
            values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            name, values = restored(tensor.name, values.reshape(tensor.shape[::-1]), heads)
            found[name] = values
        same(f"GGUF {recipe}", tool.values(native), found)

    for recipe in [None, "w4a4"]:
        native = tool.quantized(recipe) if recipe else "demo"
        plain = tool.folder / f"{recipe}-plain.gguf"
        quantized = tool.folder / f"{recipe}-q8_0.gguf"
        tool.run("convert", native, "--to", "gguf", "-o", plain)
        tool.run("convert", native, "--to", "gguf", "--outtype", "q8_0", "-o", quantized)
        blocks = {tensor.name: tensor for tensor in GGUFReader(quantized).tensors}
        count = 0
        for tensor in GGUFReader(plain).tensors:
            other = blocks.pop(tensor.name)
            if tensor.tensor_type == GGMLQuantizationType.BF16:
                assert other.tensor_type == GGMLQuantizationType.Q8_0, tensor.name
                expected = quantize(dequantize(tensor.data, tensor.tensor_type), GGMLQuantizationType.Q8_0)
                count += tensor.n_elements
            else:
                expected = tensor.data
            assert np.array_equal(expected, other.data), tensor.name
        assert not blocks
        print(f"GGUF --outtype q8_0 {recipe or 'of the plain model'}: blocks of {count} values as the library's")


def quark(tool):
    """No library from PyPI reads it without a GPU: by the layout's definition, in numpy."""
    elements = {"w4a4": (4, 2, 1), "w6a6": (6, 3, 2), "proj=fp6_e2m3,mlp=fp6_e2m3": (6, 2, 3)}
    for recipe, (bits, exponent, mantissa) in elements.items():
        native = tool.quantized(recipe)
        found, stored = {}, tensors(tool.converted(native, "quark"))
        for name, (dtype, values) in stored.items():
            if name.endswith("_scale"):
                continue
            if f"{name}_scale" in stored:
                scales = stored[f"{name}_scale"][1].astype(np.int32)
                words = values.reshape(len(values), -1, bits // 2).astype(np.uint32)
                words = sum(words[..., i] << (8 * i) for i in range(bits // 2))
                codes = np.stack([words >> (bits * i) & (2**bits - 1) for i in range(4 if bits == 6 else 2 * bits // 4)], -1) if bits == 6 else np.stack([words >> 4 * i & 15 for i in range(4)], -1)
                codes = codes.reshape(len(values), -1).astype(np.int64)
                e, m = codes >> mantissa & (2**exponent - 1), codes & (2**mantissa - 1)
                bias = 2 ** (exponent - 1) - 1
                magnitude = np.where(e == 0, np.ldexp(m.astype(float), 1 - bias - mantissa), np.ldexp(2.0**mantissa + m, e - bias - mantissa))
                sign = 1 - 2.0 * (codes >> (bits - 1))
                values = np.ldexp(sign * magnitude, np.repeat(scales - 127, 32, axis=1)).astype(np.float32)
            found[name] = values
        same(f"Quark {recipe}", tool.values(native), found)


CHECKS = {"mlx": mlx, "gguf": gguf, "quark": quark, "compressed-tensors": compressed_tensors}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(sys.argv[1], folder)
        for name in sys.argv[2:] or CHECKS:
            CHECKS[name](tool)
