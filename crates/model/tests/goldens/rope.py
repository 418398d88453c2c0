"""Writes rope.json: rotary frequencies by transformers 4.44.2 on a CPU, as float32 bit patterns.

    pip install 'numpy<2' torch==2.5.1 transformers==4.44.2 && python rope.py > rope.json

`length` is given as an integer tensor, as LlamaRotaryEmbedding gives it (it matters to the roundings of `dynamic`).
"""
import json
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# head_dim, theta, max_position_embeddings, rope_scaling, length
CASES = [
    (8, 10000.0, 512, None, 100),
    (64, 10000.0, 2048, None, 100),
    (128, 500000.0, 8192, None, 100),
    (128, 1000000.0, 32768, None, 100),
    (80, 10000.0, 2048, None, 100),
    (128, 10000.0, 16384, {"type": "linear", "factor": 4.0}, 100),
    (64, 10000.0, 16384, {"type": "linear", "factor": 2.5}, 100),
    (128, 500000.0, 131072, LLAMA3, 100),
    (64, 500000.0, 131072, {**LLAMA3, "factor": 32.0}, 100),
    (64, 500000.0, 4096, {**LLAMA3, "original_max_position_embeddings": 64}, 100),
    (64, 10000.0, 2048, {"type": "dynamic", "factor": 2.0}, 100),
    (64, 10000.0, 2048, {"type": "dynamic", "factor": 2.0}, 2049),
    (128, 10000.0, 4096, {"type": "dynamic", "factor": 4.0}, 10000),
    (128, 10000.0, 4096, {"type": "dynamic", "factor": 1.3}, 5001),
    (128, 1000000.0, 32768, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 100),
    (64, 10000.0, 65536, {"type": "yarn", "factor": 16.0, "attention_factor": 1.25, "beta_fast": 24, "beta_slow": 2}, 100),
    (8, 10000.0, 512, {"type": "yarn", "factor": 2.0}, 100),
    (8, 10000.0, 4096, {"type": "longrope", "factor": 4.0, "long_factor": [1.0, 1.25, 3.7, 9.1], "short_factor": [1, 1, 1.1, 1.2]}, 100),
    (8, 10000.0, 4096, {"type": "longrope", "factor": 1.0, "long_factor": [1.0, 1.25, 3.7, 9.1], "short_factor": [1, 1, 1.1, 1.2]}, 100),
]


def bits(values):
    return torch.as_tensor(values, dtype=torch.float32).view(torch.int32).tolist()


def case(dim, theta, maximum, scaling, length):
    config = LlamaConfig(
        hidden_size=4 * dim, num_attention_heads=4, rope_theta=theta, max_position_embeddings=maximum
    )
    config.rope_scaling = scaling  # afterwards: the constructor's check fails on a longrope without attention_factor
    kind = scaling.get("rope_type", scaling.get("type")) if scaling else "default"
    inverse, attention = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=torch.tensor(length))
    return {
        "head_dim": dim, "rope_theta": theta, "max_position_embeddings": maximum, "rope_scaling": scaling,
        "length": length, "attention_factor": bits([attention])[0], "inverse": bits(inverse),
    }


print("[\n" + ",\n".join(json.dumps(case(*c)) for c in CASES) + "\n]")
