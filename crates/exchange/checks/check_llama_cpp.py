"""Runs the demo model in llama.cpp. Usage: check_llama_cpp.py MICROSCALE [MODEL] [--golden FILE]

Needs llama-cpp-python (LLAMA_CPP_LIB_PATH names the folder of llama.cpp's libraries if they are built apart) and numpy.

- BF16: greedy texts, which must be the same where the choice is clear. llama.cpp has most activations and the logits in f32
  where they are rounded to bf16 here, so that near the largest logit another may be the largest there. A text is clear if
  at each of its tokens the largest logit here is more than CLEAR steps of bf16 above the second. CLEAR is such that 99 of
  100 distances between these two differ by less between the programs, which is printed; whether texts are the same has no
  part in it.
- MXFP4 (the demo model): over the documents of a task the share of positions with the same most likely token, and
  perplexity. llama.cpp quantizes activations to Q8_0 there; here they are bf16.

With --golden writes what the files hash to, the texts' tokens, and most likely tokens in MXFP4. `cargo test` compares clear
texts with them, and all texts with a forward pass that rounds as llama.cpp does.
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import Llama

from common import Tool, tensors

DEMO = Path(__file__).parents[3] / "demo"
PROMPTS = 250  # of each of two tasks
TOKENS = 32
CLEAR = 7
MXFP4 = "proj=fp4/bf16,mlp=fp4/bf16"
GOLDEN_DOCUMENTS = 80

STORIES = """Once upon a time|Lily and Tom|One day, a little girl|The big dog|There was a cat|Tim had a red ball|Mom said|\
In the park|A boy named Ben|The sun was|Sara went to|It was a cold day|The bird sang|Max and his friend|Anna likes to|\
One morning|The old man|She was very happy|He wanted to play|They went home""".split("|")


def prompts(model):
    """Questions and beginnings of the demo's tasks, as they are asked there; of another model beginnings of stories."""
    if model != "demo":
        return STORIES
    lines = [json.loads(line) for line in (DEMO / "tasks/arc/ARC-Easy-Test.jsonl").read_text().splitlines()[:PROMPTS]]
    asked = [f"Question: {line['question']['stem']}\nAnswer:" for line in lines]
    lines = (DEMO / "tasks/hellaswag/hellaswag_val.jsonl").read_text().splitlines()[:PROMPTS]
    return asked + [json.loads(line)["ctx"] for line in lines]


def documents(model):
    """Right answers of a task, as it asks for them: tokens of each."""
    texts = []
    for line in (DEMO / "tasks/arc/ARC-Easy-Test.jsonl").read_text().splitlines():
        question = json.loads(line)
        answer = next(c["text"] for c in question["question"]["choices"] if c["label"] == question["answerKey"])
        texts.append(f"Question: {question['question']['stem']}\nAnswer: {answer}")
    return [model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]


def greedy(model, tokens, count):
    """The tokens that follow in llama.cpp."""
    tokens, start = list(tokens), len(tokens)
    model.reset()
    model.eval(tokens)
    while len(tokens) < start + count:
        tokens.append(int(np.argmax(model.scores[len(tokens) - 1])))
        model.eval(tokens[-1:])
    return tokens[start:]


def greedy_here(tool, name, model, prompt, guess):
    """The tokens that follow here, and the logits that each was chosen by. What is not as guessed is guessed anew from there
    on, so that few runs do."""
    while True:
        here = logits(tool, name, prompt + guess, "logits")[len(prompt) - 1 : -1]
        best = here.argmax(axis=1).tolist()
        if best == guess:
            return guess, here
        same = next(i for i, (a, b) in enumerate(zip(best, guess)) if a != b)
        guess = best[: same + 1]
        guess += greedy(model, prompt + guess, TOKENS - len(guess))


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


def fingerprint(path):
    """SHA-256 of a GGUF file of ours without the program's version."""
    data, key = path.read_bytes(), b"microscale.version"
    at = data.index(key) + len(key) + 4  # a number for the type lies between
    length = 8 + int.from_bytes(data[at : at + 8], "little")
    return hashlib.sha256(data[:at] + data[at + length :]).hexdigest()


def load(path):
    return Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=2)


def greedy_texts(tool, name, model):
    """Compares greedy texts; answers llama.cpp's tokens, and of each text here its margin: how far the largest logit is above
    the second, in steps of bf16 at the largest, where that is least."""
    theirs, margins, equal, errors, tokens = [], [], [], [], []
    for text in prompts(name):
        prompt = model.tokenize(text.encode(), add_bos=True, special=False)
        theirs.append(greedy(model, prompt, TOKENS))
        ours, here = greedy_here(tool, name, model, prompt, theirs[-1])
        first, second = np.argsort(-here, axis=1, kind="stable")[:, :2].T
        there = predictions(model, prompt + ours)[len(prompt) - 1 : -1]
        rows = np.arange(TOKENS)
        step = np.exp2(np.floor(np.log2(np.abs(here[rows, first]))) - 7)
        above, above_there = ((values[rows, first] - values[rows, second]) / step for values in (here, there))
        margins.append(above.min())
        equal.append(ours == theirs[-1])
        errors.append(np.abs(above - above_there))
        tokens.append(np.stack([above, there.argmax(axis=1) == ours]))
    errors, margins, equal = np.concatenate(errors), np.array(margins), np.array(equal)
    above, chosen = np.concatenate(tokens, axis=1)
    print(f"BF16: distances of the two largest logits differ by {np.median(errors):.2f} steps (median), 99 % by less than"
          f" {np.quantile(errors, 0.99):.2f}, all by less than {errors.max():.2f}")
    for margin in range(0, 9):
        clear = margins > margin
        print(f"BF16: margin > {margin}: {equal[clear].sum()} of {clear.sum()} texts of {TOKENS} tokens equal;"
              f" others {equal[~clear].sum()} of {(~clear).sum()}; after our text {chosen[above > margin].sum():.0f} of"
              f" {(above > margin).sum()} tokens, others {chosen[above <= margin].sum():.0f} of {(above <= margin).sum()}")
    assert np.quantile(errors, 0.99) < CLEAR
    return theirs, margins, equal


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("microscale")
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--golden", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(arguments.microscale, folder)
        tool.run("convert", arguments.model, "--to", "gguf", "-o", tool.folder / "plain.gguf")
        model = load(tool.folder / "plain.gguf")
        theirs, margins, equal = greedy_texts(tool, arguments.model, model)
        clear = margins > CLEAR
        print(f"BF16: {equal[clear].sum()} of {clear.sum()} clear texts equal, {equal[~clear].sum()} of {(~clear).sum()} others")
        assert equal[clear].all()
        if arguments.model != "demo":
            return
        assert clear.sum() >= 20, f"only {clear.sum()} texts are clear"
        native = tool.folder / "native"
        tool.run("quantize", arguments.model, "--recipe", MXFP4, "-o", native)
        tool.run("convert", native, "--to", "gguf", "-o", tool.folder / "mxfp4.gguf")
        compare(tool, "BF16", arguments.model, model)
        quantized = load(tool.folder / "mxfp4.gguf")
        compare(tool, "MXFP4", native, quantized)
        if arguments.golden:
            asked = documents(quantized)[:GOLDEN_DOCUMENTS]
            likely = [predictions(quantized, tokens).argmax(axis=1).tolist() for tokens in asked]
            golden = {"llama_cpp_python": llama_cpp.__version__, "prompts": PROMPTS, "margin": CLEAR, "greedy": theirs}
            golden |= {"recipe": MXFP4, "documents": asked, "likely": likely}
            golden |= {name: fingerprint(tool.folder / name) for name in ("plain.gguf", "mxfp4.gguf")}
            lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in golden.items()]
            arguments.golden.write_text("{" + ",\n".join(lines) + "}\n")


def predictions(model, tokens):
    model.reset()
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def compare(tool, name, native, model):
    """Most likely tokens and perplexity over documents."""
    same, count, ours, theirs = 0, 0, [], []
    for tokens in documents(model):
        here = logits(tool, native, tokens, "logits")
        there = predictions(model, tokens)
        same += int((here.argmax(axis=1) == there.argmax(axis=1)).sum())
        count += len(tokens)
        ours.append(losses(here, tokens))
        theirs.append(losses(there, tokens))
    here, there = (float(np.exp(np.concatenate(all_losses).mean())) for all_losses in (ours, theirs))
    print(f"{name}: most likely token the same in {same} of {count} positions ({100 * same / count:.2f} %)")
    print(f"{name}: perplexity {here:.4f} here, {there:.4f} in llama.cpp ({100 * (there / here - 1):+.3f} %)")


if __name__ == "__main__":
    main()
