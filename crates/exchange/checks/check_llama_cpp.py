"""Runs the demo model in llama.cpp. Usage: check_llama_cpp.py MICROSCALE [MODEL]

Needs llama-cpp-python (LLAMA_CPP_LIB_PATH names the folder of llama.cpp's libraries if they are built apart) and numpy.

- BF16: greedy continuations of 20 prompts, against `microscale generate`. Where they part, both tokens' logits here: they
  are rounded to bf16, and of equals each program takes another.
- MXFP4 (the demo model): over the documents of a task the share of positions with the same most likely token, and
  perplexity. llama.cpp quantizes activations to Q8_0 there; here they are bf16.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from llama_cpp import Llama

from common import Tool, tensors

DEMO = Path(__file__).parents[3] / "demo"
TOKENS = 40


STORIES = """Once upon a time|Lily and Tom|One day, a little girl|The big dog|There was a cat|Tim had a red ball|Mom said|\
In the park|A boy named Ben|The sun was|Sara went to|It was a cold day|The bird sang|Max and his friend|Anna likes to|\
One morning|The old man|She was very happy|He wanted to play|They went home""".split("|")


def prompts(model):
    """Questions of the demo's tasks, as they are asked there; of another model beginnings of stories."""
    if model != "demo":
        return STORIES
    lines = [json.loads(line) for line in (DEMO / "tasks/arc/ARC-Easy-Test.jsonl").read_text().splitlines()[:12]]
    asked = [f"Question: {line['question']['stem']}\nAnswer:" for line in lines]
    lines = [json.loads(line) for line in (DEMO / "tasks/hellaswag/hellaswag_val.jsonl").read_text().splitlines()[:8]]
    return asked + [line["ctx"] for line in lines]


def documents(model):
    """Right answers of a task, as it asks for them: tokens of each."""
    texts = []
    for line in (DEMO / "tasks/arc/ARC-Easy-Test.jsonl").read_text().splitlines():
        question = json.loads(line)
        answer = next(c["text"] for c in question["question"]["choices"] if c["label"] == question["answerKey"])
        texts.append(f"Question: {question['question']['stem']}\nAnswer: {answer}")
    return [model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]


def greedy(model, prompt, count):
    """The text that follows, and the tokens of prompt and text."""
    tokens = model.tokenize(prompt.encode(), add_bos=True, special=False)
    model.reset()
    model.eval(tokens)
    start = len(tokens)
    while len(tokens) < start + count:
        tokens.append(int(np.argmax(model.scores[len(tokens) - 1])))
        model.eval(tokens[-1:])
    return model.detokenize(tokens[start:], prev_tokens=tokens[:start]).decode(errors="replace"), tokens


def logits(tool, model, tokens, name):
    output = tool.folder / name
    output.mkdir(exist_ok=True)
    tool.run("logits", model, "--tokens", ",".join(map(str, tokens)), "--output", output / "model.safetensors")
    return tensors(output)["logits"][1]


def losses(values, tokens):
    """-log p of every next token."""
    values = values[: len(tokens) - 1].astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return -values[np.arange(len(tokens) - 1), tokens[1:]]


def load(path):
    return Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("microscale")
    parser.add_argument("model", nargs="?", default="demo")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(arguments.microscale, folder)
        tool.run("convert", arguments.model, "--to", "gguf", "-o", tool.folder / "plain.gguf")
        model, equal, asked = load(tool.folder / "plain.gguf"), 0, prompts(arguments.model)
        for prompt in asked:
            text, tokens = greedy(model, prompt, TOKENS)
            command = [tool.binary, "generate", arguments.model, "--prompt", prompt, "--max-tokens", str(TOKENS), "--ignore-eos"]
            ours = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            equal += ours.rstrip("\n") == text.rstrip("\n")
            if ours.rstrip("\n") != text.rstrip("\n"):
                here = logits(tool, arguments.model, tokens, "logits")
                first = next(i for i in range(len(tokens) - TOKENS, len(tokens)) if here[i - 1].argmax() != tokens[i])
                best, other = here[first - 1].max(), here[first - 1][tokens[first]]
                print(f"{prompt!r}: token {first - len(tokens) + TOKENS} differs; logits here {best:.5g} and {other:.5g}")
        print(f"BF16: {equal} of {len(asked)} greedy texts of {TOKENS} tokens equal")

        if arguments.model != "demo":
            return
        native = tool.folder / "native"
        tool.run("quantize", arguments.model, "--recipe", "proj=fp4/bf16,mlp=fp4/bf16", "-o", native)
        tool.run("convert", native, "--to", "gguf", "-o", tool.folder / "mxfp4.gguf")
        compare(tool, "BF16", arguments.model, model)
        compare(tool, "MXFP4", native, load(tool.folder / "mxfp4.gguf"))


def compare(tool, name, native, model):
    """Most likely tokens and perplexity over documents."""
    same, count, ours, theirs = 0, 0, [], []
    for tokens in documents(model):
        here = logits(tool, native, tokens, "logits")
        model.reset()
        model.eval(tokens)
        there = np.array(model.scores[: len(tokens)])
        same += int((here.argmax(axis=1) == there.argmax(axis=1)).sum())
        count += len(tokens)
        ours.append(losses(here, tokens))
        theirs.append(losses(there, tokens))
    here, there = (float(np.exp(np.concatenate(all_losses).mean())) for all_losses in (ours, theirs))
    print(f"{name}: most likely token the same in {same} of {count} positions ({100 * same / count:.2f} %)")
    print(f"{name}: perplexity {here:.4f} here, {there:.4f} in llama.cpp ({100 * (there / here - 1):+.3f} %)")


if __name__ == "__main__":
    main()
