"""Score the demo tasks with the published reference, and compare two sets of scores.

    python compare_torchmx.py --out FILE [--recipe w6a8-attn6]      # TorchMX 0.1.0 on model/ and tasks/
    python compare_torchmx.py --out FILE --recipe bf16              # transformers alone, no TorchMX
    python compare_torchmx.py --against OTHER FILE                  # compares two such files, runs no model

A file has one JSON object per line and request: {"task", "doc", "choice", "loglikelihood", "greedy"}, documents in the
order of their files. Every request is scored alone (batch size 1, no padding), with BOS as the tokenizer adds it; the
log-softmax is taken in float32 over the bf16 logits and summed in float64.
"""

import argparse
import json
import math
import os
import re
import sys
from pathlib import Path

# oneDNN adds the products of a bf16 matrix multiplication in another order on CPUs with AMX: there only two thirds of the
# bf16 log-likelihoods lie within 1e-3 of what the same program computes on other CPUs. The order that Microscale has
# made its own is that of AVX-512-BF16. Must be set before torch is imported.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

HERE = Path(__file__).resolve().parent
TASKS = ["piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande"]

# Element formats by role: projection weight and activation, MLP weight and activation, then query, key, value and
# attention weights, or None where attention stays in bf16. lm_head follows the MLP.
FP8, FP6, FP4 = "float8_e4m3", "float6_e3m2", "float4_e2m1"
RECIPES = {
    "bf16": None,
    "int8": (("int8",) * 4, None),
    "w6a8": ((FP6, FP8, FP6, FP8), None),
    "w6a6": ((FP6,) * 4, None),
    "w6a8-attn6": ((FP6, FP8, FP6, FP8), (FP6,) * 4),
    "w6a6-attn6": ((FP6,) * 4, (FP6,) * 4),
    "w4a4": ((FP4,) * 4, None),
}


# ---- the five tasks as requests ------------------------------------------------------------------------------------


def read_jsonl(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def clean_hellaswag(text):
    """The task's own cleaning, in its own order."""
    text = text.strip().replace(" [title]", ". ")
    text = re.sub(r"\[.*?\]", "", text)
    return text.replace("  ", " ")


def read_documents(folder):
    """Per task, its documents as (contexts, continuations without the leading space, index of the right one)."""
    folder = Path(folder)
    tasks = {}

    labels = (folder / "piqa/valid-labels.lst").read_text(encoding="utf-8").split()
    rows = read_jsonl(folder / "piqa/valid.jsonl")
    if len(labels) != len(rows):
        raise ValueError(f"piqa: {len(rows)} documents but {len(labels)} labels")
    tasks["piqa"] = [([f"Question: {d['goal']}\nAnswer:"] * 2, [d["sol1"], d["sol2"]], int(label))
                     for d, label in zip(rows, labels)]

    for task, name in (("arc_easy", "ARC-Easy-Test"), ("arc_challenge", "ARC-Challenge-Test")):
        tasks[task] = []
        for d in read_jsonl(folder / f"arc/{name}.jsonl"):
            choices = d["question"]["choices"]
            gold = [c["label"] for c in choices].index(d["answerKey"])
            context = f"Question: {d['question']['stem']}\nAnswer:"
            tasks[task].append(([context] * len(choices), [c["text"] for c in choices], gold))

    tasks["hellaswag"] = []
    for d in read_jsonl(folder / "hellaswag/hellaswag_val.jsonl"):
        query = clean_hellaswag(f"{d['activity_label']}: {d['ctx_a']} {d['ctx_b'].capitalize()}")
        endings = [clean_hellaswag(e) for e in d["endings"]]
        tasks["hellaswag"].append(([query] * len(endings), endings, int(d["label"])))

    tasks["winogrande"] = []
    for d in read_jsonl(folder / "winogrande/dev.jsonl"):
        at = d["sentence"].index("_")
        before, after = d["sentence"][:at], d["sentence"][at + 1 :].strip()
        tasks["winogrande"].append(([before + d["option1"], before + d["option2"]], [after] * 2, int(d["answer"]) - 1))
    return tasks


def requests(documents, encode):
    """Yields (task, document, choice, context ids, continuation ids). `encode` adds BOS."""
    for task in TASKS:
        for number, (contexts, continuations, _) in enumerate(documents[task]):
            for choice, (context, continuation) in enumerate(zip(contexts, continuations)):
                # Trailing white space of the context is scored with the continuation.
                trimmed = context.rstrip()
                continuation = context[len(trimmed) :] + " " + continuation
                start = encode(trimmed)
                yield task, number, choice, start, encode(trimmed + continuation)[len(start) :]


def predictions(documents, scores):
    """Per (task, document), the choice with the best score: by length in characters, but for WinoGrande plainly."""
    chosen = {}
    for task in TASKS:
        for number, (_, continuations, _) in enumerate(documents[task]):
            values = [scores[task, number, c] / (1 if task == "winogrande" else len(text))
                      for c, text in enumerate(continuations)]
            chosen[task, number] = values.index(max(values))
    return chosen


def accuracies(documents, chosen):
    """Percent right per task: acc_norm, for WinoGrande acc."""
    return {task: 100 * sum(chosen[task, i] == gold for i, (_, _, gold) in enumerate(documents[task])) / len(documents[task])
            for task in TASKS}


def print_accuracies(documents, chosen):
    result = accuracies(documents, chosen)
    print("  ".join(f"{task} {value:.2f}" for task, value in result.items())
          + f"  average {sum(result.values()) / len(result):.2f}")


# ---- running a model -----------------------------------------------------------------------------------------------


def load_model(folder, recipe):
    """The model as transformers loads it in bf16, its layers replaced by TorchMX's where the recipe says so."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16, attn_implementation="eager").eval()
    if RECIPES[recipe] is None:
        return model
    from torchmx.config import MXConfig, QAttentionConfig, QLinearConfig
    from torchmx.quant_api import quantize_llm_

    (proj_w, proj_a, mlp_w, mlp_a), attention = RECIPES[recipe]
    block = {name: MXConfig(elem_dtype_name=name, block_size=32) for name in (proj_w, proj_a, mlp_w, mlp_a, *(attention or ()))}
    roles = ("query_config", "key_config", "value_config", "attention_weights_config")
    quantize_llm_(
        model,
        qattention_config=QAttentionConfig(
            projection_config=QLinearConfig(weights_config=block[proj_w], activations_config=block[proj_a]),
            **({role: block[name] for role, name in zip(roles, attention)} if attention else {}),
        ),
        qmlp_config=QLinearConfig(weights_config=block[mlp_w], activations_config=block[mlp_a]),
    )
    return model


def score(model, context, continuation):
    """(log-likelihood of the continuation, whether every token of it was the likeliest)."""
    import torch

    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        rows = model(ids[:, :-1], use_cache=False).logits[0, len(context) - 1 :]
    target = ids[0, len(context) :]
    logs = torch.log_softmax(rows.float(), -1)
    picked = logs.gather(-1, target[:, None])[:, 0]
    return picked.double().sum().item(), bool((rows.argmax(-1) == target).all())


def run(options, documents):
    import torch
    from tokenizers import Tokenizer

    torch.set_num_threads(options.threads)
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    model = load_model(options.model, options.recipe)
    scores = {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_name(options.out.name + ".part")
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        for task, number, choice, context, continuation in requests(documents, lambda text: tokenizer.encode(text).ids):
            loglikelihood, greedy = score(model, context, continuation)
            scores[task, number, choice] = loglikelihood
            file.write(json.dumps({"task": task, "doc": number, "choice": choice,
                                   "loglikelihood": round(loglikelihood, 7), "greedy": greedy}) + "\n")
    partial.replace(options.out)
    print_accuracies(documents, predictions(documents, scores))


# ---- comparing -----------------------------------------------------------------------------------------------------


def read_scores(path):
    return {(r["task"], r["doc"], r["choice"]): float(r["loglikelihood"]) for r in read_jsonl(path)}


def mcnemar(one_only, other_only):
    """Exact two-sided McNemar p for documents that only the one, and only the other, has right."""
    n, k = one_only + other_only, min(one_only, other_only)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def compare(options, documents):
    """Prints how two score files agree; the exit status is 1 if fewer than 99% of documents are predicted the same."""
    ours, theirs = read_scores(options.out), read_scores(options.against)
    if ours.keys() != theirs.keys():
        missing = sorted(ours.keys() ^ theirs.keys())
        raise ValueError(f"the files differ in {len(missing)} requests, the first being {missing[0]}")
    off = [abs(ours[k] - theirs[k]) / max(abs(theirs[k]), 1e-9) for k in ours]
    for bound, name in ((1e-3, "1e-3"), (0.02, "2%")):
        print(f"log-likelihoods within relative {name}: {100 * sum(x <= bound for x in off) / len(off):.2f}% of {len(off)}")
    a, b = predictions(documents, ours), predictions(documents, theirs)
    same = sum(a[k] == b[k] for k in a)
    print(f"documents predicted the same: {same} of {len(a)}, {100 * same / len(a):.2f}%")
    gold = {(task, i): d[2] for task in TASKS for i, d in enumerate(documents[task])}
    only_a = sum(a[k] == gold[k] != b[k] for k in a)
    only_b = sum(b[k] == gold[k] != a[k] for k in a)
    print(f"right only in {options.out.name}: {only_a}, only in {options.against.name}: {only_b}, "
          f"exact McNemar p = {mcnemar(only_a, only_b):.3g}")
    for path, chosen in ((options.out, a), (options.against, b)):
        print(f"{path.name}: ", end="")
        print_accuracies(documents, chosen)
    return 0 if same >= 0.99 * len(a) else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="with --against: the score file to compare")
    parser.add_argument("--out", type=Path, help="score file to write")
    parser.add_argument("--against", type=Path, metavar="OTHER", help="compare with this score file instead of running a model")
    parser.add_argument("--recipe", choices=list(RECIPES), default="w6a8-attn6")
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--tasks", type=Path, default=HERE / "tasks")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    documents = read_documents(options.tasks)
    if options.against:
        options.out = options.file or options.out
        if options.out is None:
            parser.error("--against needs the file to compare")
        sys.exit(compare(options, documents))
    if options.out is None:
        parser.error("--out FILE is needed to run a model")
    run(options, documents)


if __name__ == "__main__":
    main()
