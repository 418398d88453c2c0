"""A quick table of the demo world under the seven recipes, in plain PyTorch: for tuning the world, not for judging it.

    python measure.py [--model FOLDER] [--tasks FOLDER] [RECIPE ...]

Operands are rounded to their element format and back to bf16, and PyTorch multiplies the results; the order of additions
is PyTorch's. Requests of equal length are run together, so none is padded. Seconds per recipe, where TorchMX takes minutes.
"""

import argparse
import collections
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

import compare_torchmx as reference

# Element format: mantissa bits, exponent of the smallest normal number, exponent of the largest, largest number.
FORMATS = {
    "float8_e4m3": (3, -6, 8, 448.0),
    "float6_e3m2": (2, -2, 4, 28.0),
    "float4_e2m1": (1, 0, 2, 6.0),
    "int8": (6, 0, 0, 127 / 64),
}
BLOCK = 32


def rounded(x, name):
    """x in the MX format `name` along its last axis, scale rule floor, as bf16. The name None leaves x as it is."""
    if name is None:
        return x
    mantissa, least, emax, top = FORMATS[name]
    size = x.shape[-1]
    padded = F.pad(x.float(), (0, -size % BLOCK)).unflatten(-1, (-1, BLOCK))
    amax = padded.abs().amax(-1, keepdim=True)
    scale = torch.frexp(amax).exponent - 1 - emax
    element = torch.ldexp(padded, -scale)
    # For int8 every number of a block has the step of the largest: least and emax are the same.
    step = (torch.frexp(element).exponent - 1).clamp(least, emax) - mantissa
    element = torch.ldexp(torch.round(torch.ldexp(element, -step)), step).clamp(-top, top)
    return torch.where(amax == 0, 0.0, torch.ldexp(element, scale)).flatten(-2)[..., :size].bfloat16()


class Model:
    """The LLaMA of a folder under a recipe, every tensor between operations in bf16."""

    def __init__(self, folder, recipe):
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        linear, attention = recipe or ((None,) * 4, None)
        self.projection_weight, self.projection_input, self.mlp_weight, self.mlp_input = linear
        self.query, self.key, self.value, self.attention_weights = attention or (None,) * 4
        self.weights = {}
        for name, w in load_file(folder / "model.safetensors").items():
            w = w.bfloat16()
            if ".self_attn." in name:
                w = rounded(w, self.projection_weight)
            elif ".mlp." in name or name == "lm_head.weight":
                w = rounded(w, self.mlp_weight)
            self.weights[name] = w

    def norm(self, x, name):
        x32 = x.float()
        scaled = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return scaled.bfloat16() * self.weights[name]

    def attention(self, x, layer, cos, sin, mask):
        batch, tokens, _ = x.shape
        heads = self.config["num_attention_heads"]
        dim = self.config["hidden_size"] // heads

        def projected(name):
            return F.linear(x, self.weights[f"{layer}self_attn.{name}_proj.weight"]).view(batch, tokens, -1, dim).transpose(1, 2)

        def turned(y):
            return y * cos + torch.cat([-y[..., dim // 2 :], y[..., : dim // 2]], -1) * sin

        q, k, v = turned(projected("q")), turned(projected("k")), projected("v")
        group = heads // k.shape[1]
        k = rounded(k, self.key).repeat_interleave(group, 1)
        v = rounded(v.transpose(2, 3).contiguous(), self.value).transpose(2, 3).repeat_interleave(group, 1)
        scores = (rounded(q, self.query) @ k.transpose(2, 3)) / math.sqrt(dim) + mask
        weights = torch.softmax(scores.float(), -1).bfloat16()
        out = rounded(weights, self.attention_weights) @ v
        out = rounded(out.transpose(1, 2).reshape(batch, tokens, -1), self.projection_input)
        return F.linear(out, self.weights[f"{layer}self_attn.o_proj.weight"])

    def mlp(self, x, layer):
        gate = F.linear(x, self.weights[f"{layer}mlp.gate_proj.weight"])
        up = F.linear(x, self.weights[f"{layer}mlp.up_proj.weight"])
        return F.linear(rounded(F.silu(gate) * up, self.mlp_input), self.weights[f"{layer}mlp.down_proj.weight"])

    @torch.no_grad()
    def logits(self, ids):
        tokens, dim = ids.shape[1], self.config["hidden_size"] // self.config["num_attention_heads"]
        inverse = 1.0 / self.config["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)
        angle = torch.arange(tokens).float()[:, None] * inverse
        angle = torch.cat([angle, angle], -1)
        cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
        mask = torch.full((tokens, tokens), float("-inf")).triu(1).bfloat16()
        x = self.weights["model.embed_tokens.weight"][ids]
        for i in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{i}."
            h = rounded(self.norm(x, f"{layer}input_layernorm.weight"), self.projection_input)
            x = x + self.attention(h, layer, cos, sin, mask)
            h = rounded(self.norm(x, f"{layer}post_attention_layernorm.weight"), self.mlp_input)
            x = x + self.mlp(h, layer)
        x = rounded(self.norm(x, "model.norm.weight"), self.mlp_input)
        return F.linear(x, self.weights["lm_head.weight"])


def score(model, requests, batch=128):
    """Log-likelihood per (task, document, choice)."""
    by_length = collections.defaultdict(list)
    for request in requests:
        by_length[len(request[3]) + len(request[4])].append(request)
    scores = {}
    for same in by_length.values():
        for start in range(0, len(same), batch):
            part = same[start : start + batch]
            ids = torch.tensor([context + continuation for *_, context, continuation in part])
            logs = torch.log_softmax(model.logits(ids[:, :-1]).float(), -1)
            picked = logs.gather(-1, ids[:, 1:, None])[..., 0].double()
            for (task, number, choice, context, _), row in zip(part, picked):
                scores[task, number, choice] = row[len(context) - 1 :].sum().item()
    return scores


def main():
    parser = argparse.ArgumentParser(description="A quick table of the demo world under the recipes.")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="recipes, bf16 first (all seven if none is named)")
    parser.add_argument("--model", type=Path, default=reference.HERE / "model")
    parser.add_argument("--tasks", type=Path, default=reference.HERE / "tasks")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    documents = reference.read_documents(options.tasks)
    gold = {(task, i): d[2] for task in reference.TASKS for i, d in enumerate(documents[task])}
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    requests = list(reference.requests(documents, lambda text: tokenizer.encode(text).ids))
    mean = sum(len(context) + len(continuation) for *_, context, continuation in requests) / len(requests)
    print(f"{len(gold)} documents, {len(requests)} requests of {mean:.2f} tokens on average")
    first = None
    for name in options.recipes or list(reference.RECIPES):
        start = time.time()
        chosen = reference.predictions(documents, score(Model(options.model, reference.RECIPES[name]), requests))
        first = first or chosen
        lost = sum(first[k] == gold[k] != chosen[k] for k in gold)
        won = sum(chosen[k] == gold[k] != first[k] for k in gold)
        print(f"{name:11} lost {lost:3} won {won:3} p {reference.mcnemar(lost, won):8.2g} {time.time() - start:4.0f} s  ", end="")
        reference.print_accuracies(documents, chosen)


if __name__ == "__main__":
    main()
