#!/usr/bin/env python3
"""Time lm-eval on stories260K, in bf16 with transformers and quantized by TorchMX, on requests of a run of Microscale.

    microscale eval stories260K --data tasks --max-length 2048 --samples --output run
    stories.py stories260K run [--every 100] [--threads 2]

Every so-manyth request of the five tasks is taken; lm-eval's own Hugging Face model scores them, as it sorts and batches
them (batches of one, its default). Beside it stands what the run says of its own speed. TorchMX quantizes as in
torch_peers.py: w6a8, and attention in FP6.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from torch_peers import quantize


def requests(run, every):
    """Context and continuation of every so-manyth request."""
    pairs = []
    for path in sorted(Path(run).rglob("samples_*.jsonl")):
        for line in path.read_text().splitlines():
            arguments = json.loads(line)["arguments"]
            arguments = arguments.values() if isinstance(arguments, dict) else arguments
            for pair in arguments:
                pair = list(pair.values()) if isinstance(pair, dict) else pair
                pairs.append((pair[0], pair[1]))
    return len(pairs), pairs[::every]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("run", type=Path)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    count, pairs = requests(options.run, options.every)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    for name in ("transformers bf16", "TorchMX w6a8-attn6"):
        model = AutoModelForCausalLM.from_pretrained(
            options.model, torch_dtype=torch.bfloat16, attn_implementation="eager"
        ).eval()
        if name.startswith("TorchMX"):
            quantize(model)
        scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=2048, device="cpu")
        every = 1 if name.startswith("transformers") else max(1, len(pairs) // 150)
        some = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs[::every])]
        scorer.loglikelihood(some[:4], disable_tqdm=True)  # warms up
        start = time.perf_counter()
        scorer.loglikelihood(some, disable_tqdm=True)
        seconds = time.perf_counter() - start
        rate = len(some) / seconds
        print(f"{name}: {len(some)} of {count} requests in {seconds:.1f} s: {rate:.1f} a second, {count / rate:.0f} s for all")


if __name__ == "__main__":
    main()
