"""Train the demo model: a byte-level BPE tokenizer and a small LLaMA, from the text generate.py wrote.

    python train.py --data FOLDER/train.txt          # writes model/ beside this file

The model is written out here in plain PyTorch with Hugging Face's parameter names, so that what is saved can be loaded
by anything that reads a LLaMA checkpoint. It is trained with bf16 matrix products over float32 weights and saved in bf16.
"""

import argparse
import json
import math
import multiprocessing as mp
import random
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

SEED = 20
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 6,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 1280,
}
BATCH = 128  # lines per step, all of about one length
PEAK_RATE = 3e-3
WARM_UP = 200  # steps
WEIGHT_DECAY = 0.1
STOP = 0.69  # share of the steps after which training ends: the aim is a model that knows much of what is asked, not all
OUTLIER = 16  # how much larger the outlier channels are made; a power of two, so that nothing is rounded

# How Llama 3's tokenizer.json splits text before BPE.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def train_tokenizer(lines, vocab_size):
    """A byte-level BPE tokenizer built like Llama 3's: <s> (id 0) is put before every text, </s> (id 1) ends a line."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(lines, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the training text gives only {tokenizer.get_vocab_size()} tokens, not {vocab_size}")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]),
    ])
    return tokenizer


# ---- the model -----------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x, cos, sin):
    """Rotary position embedding of [batch, heads, tokens, head_dim], halves rotated as Hugging Face does."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        size, self.heads, self.kv_heads = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.dim = size // self.heads
        self.q_proj = nn.Linear(size, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(size, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(size, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, size, bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        q = self.q_proj(x).view(batch, tokens, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, tokens, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, self.kv_heads, self.dim).transpose(1, 2)
        group = self.heads // self.kv_heads
        k = rotate(k, cos, sin).repeat_interleave(group, 1)
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v.repeat_interleave(group, 1), is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = MLP(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model = Trunk(c)
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        dim = c["hidden_size"] // c["num_attention_heads"]
        inverse = c["rope_theta"] ** (-torch.arange(0, dim, 2) / dim)
        angle = torch.arange(c["max_position_embeddings"])[:, None] * inverse[None]
        angle = torch.cat([angle, angle], -1)
        self.cos, self.sin = angle.cos().bfloat16(), angle.sin().bfloat16()
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # The matrices that write to the residual stream start smaller, so that its size does not grow with depth.
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=c["initializer_range"] / (math.sqrt(2 * c["num_hidden_layers"]) if last else 1))

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.model.norm(x))


# ---- training ------------------------------------------------------------------------------------------------------


def batches(rnd, encoded):
    """One pass over the lines: lines of like length together, the batches in random order. Yields ids and targets."""
    order = list(range(len(encoded)))
    rnd.shuffle(order)
    chunk = BATCH * 64  # sorted within a chunk, so that batches differ in what they hold from pass to pass
    groups = []
    for start in range(0, len(order), chunk):
        part = sorted(order[start : start + chunk], key=lambda i: len(encoded[i]))
        some = [part[i : i + BATCH] for i in range(0, len(part), BATCH)]
        rnd.shuffle(some)
        groups += some
    for group in groups:
        longest = max(len(encoded[i]) for i in group)
        ids = torch.full((len(group), longest), 1)
        targets = torch.full((len(group), longest), -100)
        for row, i in enumerate(group):
            line = torch.tensor(encoded[i])
            ids[row, : len(line)] = line
            targets[row, : len(line) - 1] = line[1:]
        yield ids, targets


def train(model, encoded, seed, rank, workers, keep, log_every=100):
    """One pass over the lines. Every worker computes on its share of each batch; the gradients are averaged.

    `keep(model)` is called from time to time, so that a run can be looked at, or cut short.
    """
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}],
        lr=PEAK_RATE, betas=(0.9, 0.98), eps=1e-8, fused=True,
    )
    # All gradients lie in one vector, so that averaging them is one message.
    parameters = list(model.parameters())
    flat = torch.zeros(sum(p.numel() for p in parameters))
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = part.view_as(p)

    steps = math.ceil(len(encoded) / BATCH)
    start, total, seen = time.time(), 0.0, 0
    for step, (ids, targets) in enumerate(batches(random.Random(seed), encoded)):
        # Warm up, hold, and come down in a straight line over the second half: facts settle as the rate falls.
        rate = PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * min(1.0, max(0.01, 2 * (1 - step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        share = slice(rank * len(ids) // workers, (rank + 1) * len(ids) // workers)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[share])
        count = (targets != -100).sum()
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets[share].flatten(), ignore_index=-100, reduction="sum") / count
        loss.backward()
        if workers > 1:
            dist.all_reduce(flat)
        flat *= min(1.0, 1.0 / (flat.norm().item() + 1e-6))
        optimizer.step()
        flat.zero_()
        total, seen = total + loss.item() * workers, seen + 1
        if rank == 0 and ((step + 1) % log_every == 0 or step + 1 == steps):
            print(f"step {step + 1}/{steps} loss {total / seen:.4f} rate {rate:.2e} time {time.time() - start:.0f} s", flush=True)
            total, seen = 0.0, 0
        if rank == 0 and (step + 1) % 400 == 0:
            keep(model)
        if step + 1 >= STOP * steps:
            break


def worker(rank, workers, meeting, encoded, seed, keep=None):
    """One process of the training, on one thread; the processes meet through the file `meeting`. Returns the model.

    Processes that meet once a step train faster than threads that meet in every operation, above all on a busy machine.
    All start from the same weights and see the same averaged gradients, so all end with the same model.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Llama(CONFIG)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    train(model, encoded, seed, rank, workers, keep)
    if workers > 1:
        dist.destroy_process_group()
    return model


def raise_outliers(weights):
    """Give the inputs of the linear layers the outlier channels that LLaMAs of real size grow in training.

    In every RMSNorm the largest weight of each block of 32 is multiplied by OUTLIER, and the matching column of every
    matrix that reads the norm's output is divided by it. The function of the model is the same, bit for bit in bf16; but
    the 31 other channels of the block now share a scale with a much larger one.
    """
    readers = {"model.norm.weight": ["lm_head.weight"]}
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        readers[f"{layer}input_layernorm.weight"] = [f"{layer}self_attn.{m}_proj.weight" for m in "qkv"]
        readers[f"{layer}post_attention_layernorm.weight"] = [f"{layer}mlp.{m}_proj.weight" for m in ("gate", "up")]
    for norm, matrices in readers.items():
        for start in range(0, CONFIG["hidden_size"], 32):
            channel = start + int(weights[norm][start : start + 32].abs().argmax())
            weights[norm][channel] *= OUTLIER
            for matrix in matrices:
                weights[matrix][:, channel] /= OUTLIER


def save(model, tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().to(torch.bfloat16).contiguous() for name, p in model.named_parameters()}
    raise_outliers(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "added_tokens_decoder": {
            str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
            for i, t in enumerate(["<s>", "</s>"])
        },
        "bos_token": "<s>", "eos_token": "</s>", "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"], "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description="Train the demo model on the text of generate.py.")
    parser.add_argument("--data", type=Path, required=True, help="train.txt as generate.py wrote it")
    parser.add_argument("--model", type=Path, default=Path(__file__).resolve().parent / "model", help="folder for the model")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--lines", type=int, help="use only the first lines of the text (to try things out)")
    options = parser.parse_args()

    start = time.time()
    lines = [line.replace("\\n", "\n") for line in options.data.read_text(encoding="utf-8").splitlines()]
    lines = lines[: options.lines]
    tokenizer = train_tokenizer(lines[:200_000], CONFIG["vocab_size"])
    encoded = [e.ids + [CONFIG["eos_token_id"]] for e in tokenizer.encode_batch(lines)]
    print(f"{len(lines)} lines, {sum(map(len, encoded))} tokens, {time.time() - start:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        arguments = (options.workers, f"{folder}/meeting", encoded, options.seed)
        helpers = [mp.get_context("spawn").Process(target=worker, args=(rank, *arguments), daemon=True)
                   for rank in range(1, options.workers)]
        for helper in helpers:
            helper.start()
        model = worker(0, *arguments, keep=lambda model: save(model, tokenizer, options.model))
        for helper in helpers:
            helper.join()
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    save(model, tokenizer, options.model)
    print(f"saved after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
