"""Compares llama.cpp's tokens with those of tokenizer.json, by way of `microscale convert --to gguf`.

Usage: check_tokenizers.py MICROSCALE TOKENIZER_JSON...
"""

import json
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
from llama_cpp import Llama
from tokenizers import Tokenizer

from common import Tool

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "  Two spaces, a tab\tand\n\nlines \n ends ",
    "I've seen it's 12345 times: 3.14159, don't you'LL WE'RE?",
    "def f(x):\n    return {x: [1, 2, 3]}  # comment\n",
    "Größe, naïve, 你好世界, こんにちは, привет, 🚀🦙 e\u0301",
    "http://example.org/a?b=c&d=%20 <tag attr='v'/> $$$ ----====",
    "",
    "a",
    "ＦＵＬＬ ｗｉｄｔｈ \u00a0nbsp \u200b zero",
]


def model(folder, tokenizer, hidden=32):
    """A model of one layer and random weights, with as many rows as the tokenizer has tokens."""
    vocabulary = max(max(tokenizer.get_vocab().values()) + 1, 64)
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]}
    for name in ["input_layernorm", "post_attention_layernorm"]:
        shapes[f"model.layers.0.{name}.weight"] = [hidden]
    for name in [*(f"self_attn.{part}_proj" for part in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]:
        shapes[f"model.layers.0.{name}.weight"] = [hidden, hidden]
    header, data, random = {}, [], np.random.default_rng(0)
    for name, shape in sorted(shapes.items()):
        start = sum(map(len, data))
        data.append((random.standard_normal(shape, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + len(data[-1])]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "num_attention_heads": 1}
    config |= {"intermediate_size": hidden, "num_hidden_layers": 1, "vocab_size": vocabulary, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))


def main(binary, paths):
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            tool, tokenizer = Tool(binary, folder), Tokenizer.from_file(path)
            source = tool.folder / "model"
            source.mkdir()
            shutil.copyfile(path, source / "tokenizer.json")
            model(source, tokenizer)
            tool.run("convert", source, "--to", "gguf", "-o", tool.folder / "model.gguf")
            llama = Llama(str(tool.folder / "model.gguf"), vocab_only=True, verbose=False)
            equal = 0
            for text in TEXTS:
                expected = tokenizer.encode(text, add_special_tokens=False).ids
                found = llama.tokenize(text.encode(), add_bos=False, special=False)
                equal += expected == found
                if expected != found:
                    print(f"{text!r}\n  tokenizer.json {expected}\n  llama.cpp      {found}")
            print(f"{Path(path).parent.name}: {equal} of {len(TEXTS)} texts have the same tokens")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
