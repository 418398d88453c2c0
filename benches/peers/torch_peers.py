#!/usr/bin/env python3
"""Time PyTorch programs on a model of random weights in the shape of LLaMA 3.2 1B.

    torch_peers.py transformers [--out FILE]     # Hugging Face transformers, bf16
    torch_peers.py torchmx [--out FILE]          # TorchMX: w6a8, query, key, value and attention weights FP6

Prefill computes the logits of every token (which is what model(ids) does); decode goes token by token with the KV cache,
after a prompt of --context tokens. One JSON object goes to standard output, or to --out. Quantizing takes TorchMX a
minute, each of its tokens many seconds. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 keeps bf16 products off AMX.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import no_init_weights

FP8, FP6 = "float8_e4m3", "float6_e3m2"
# What TorchMX keeps in memory: a byte a code, and a byte a block for the scale.
BITS_PER_WEIGHT = {"transformers": 16.0, "torchmx": 8.25}
SYSTEM = {"transformers": "transformers bf16", "torchmx": "TorchMX w6a8-attn6"}


def note(text):
    print(text, file=sys.stderr, flush=True)


def model_of_random_weights(layers):
    """LLaMA 3.2 1B with normal weights of standard deviation 0.02."""
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072, rope_theta=500000.0,
        rms_norm_eps=1e-5, tie_word_embeddings=True, initializer_range=0.02, bos_token_id=128000, eos_token_id=128001,
        torch_dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    with no_init_weights():  # its own way to the same weights takes minutes
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
            else:
                weight.copy_(torch.empty(weight.shape).normal_(std=0.02))
    model.tie_weights()
    return model


def quantize(model):
    """TorchMX's layers in place of the linear ones and of attention; the head follows the MLP."""
    from torchmx.config import MXConfig, QAttentionConfig, QLinearConfig
    from torchmx.quant_api import quantize_llm_

    def linear():
        return QLinearConfig(
            weights_config=MXConfig(elem_dtype_name=FP6, block_size=32),
            activations_config=MXConfig(elem_dtype_name=FP8, block_size=32),
        )

    roles = ("query_config", "key_config", "value_config", "attention_weights_config")
    attention = {role: MXConfig(elem_dtype_name=FP6, block_size=32) for role in roles}
    quantize_llm_(
        model, qattention_config=QAttentionConfig(projection_config=linear(), **attention), qmlp_config=linear()
    )


def prefill(model, tokens):
    ids = torch.randint(0, 128000, (1, tokens))
    start = time.perf_counter()
    logits = model(ids, use_cache=False).logits
    seconds = time.perf_counter() - start
    assert logits.shape == (1, tokens, 128256)
    return tokens / seconds


def decode(model, tokens, context):
    """The rate of `tokens` tokens, each put in alone, after a prompt that is not timed."""
    cache = DynamicCache()
    model(torch.randint(0, 128000, (1, context)), past_key_values=cache, use_cache=True)
    start = time.perf_counter()
    for _ in range(tokens):
        model(torch.randint(0, 128000, (1, 1)), past_key_values=cache, use_cache=True)
    return tokens / (time.perf_counter() - start)


def result(options, phase, tokens, context, rates):
    rates = {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "all": rates}
    note(f"{SYSTEM[options.system]}: {phase} of {tokens}: {rates['median']:.3f} tokens/s of {rates['all']}")
    return {
        "system": SYSTEM[options.system], "bits_per_weight": BITS_PER_WEIGHT[options.system], "phase": phase,
        "tokens": tokens, "context": context, "threads": options.threads, "logits": "all", "tokens_per_s": rates,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=list(SYSTEM))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, action="append", help="tokens (may be repeated; default 128 and 512)")
    parser.add_argument("--decode", type=int, help="tokens (default 32, for TorchMX 2)")
    parser.add_argument("--context", type=int, default=1, help="tokens before the decoded ones")
    parser.add_argument("--repetitions", type=int, help="default 5, for TorchMX 1")
    parser.add_argument("--layers", type=int, default=16, help="fewer are for trying this script")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    slow = options.system == "torchmx"
    prefills = options.prefill or [128, 512]
    tokens = options.decode or (2 if slow else 32)
    repetitions = options.repetitions or (1 if slow else 5)
    torch.set_num_threads(options.threads)
    logging.disable(logging.INFO)

    start = time.perf_counter()
    model = model_of_random_weights(options.layers)
    note(f"built in {time.perf_counter() - start:.0f} s")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    quantizing = None
    with torch.no_grad():
        if slow:
            from importlib.metadata import version

            versions |= {"torchmx": version("torchmx"), "torchao": version("torchao")}
            start = time.perf_counter()
            quantize(model)
            quantizing = time.perf_counter() - start
            note(f"quantized in {quantizing:.0f} s")
        else:
            prefill(model, 8)  # warms up: the first call lays the weights out
        results = [result(options, "decode", tokens, options.context,
                          [decode(model, tokens, options.context) for _ in range(repetitions)])]
        for length in prefills:
            results.append(result(options, "prefill", length, 0,
                                  [prefill(model, length) for _ in range(repetitions)]))

    document = {
        "versions": versions, "layers": options.layers, "quantizing_s": quantizing,
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "amx": torch._C._cpu._is_amx_tile_supported(), "results": results,
    }
    text = json.dumps(document, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
