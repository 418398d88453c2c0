#!/usr/bin/env python3
"""Measure Microscale and llama.cpp side by side, turn about.

    compare.py --microscale target/release/microscale --models PREFIX --llama native=DIR [--llama noamx=DIR] --out NAME

writes NAME.json (every sample) and NAME.md (the table). PREFIX is that of make_gguf.py's files (PREFIX-q6_k.gguf ...),
DIR the folder of llama-bench. The programs run in turn, so that a minute in which the machine is busy with something else
falls on both:

- prefill: in each of --rounds every program runs once, odd rounds in the opposite order;
- decode, whose pace is that of the memory, which others use too and which changes within seconds: of each pair ours stays
  loaded and waits (`bench --step`) while theirs runs, --turns times.

The table has the median (least–most) of the rounds or turns, the ratio of the medians, and the median of the ratios of each.

What llama-bench calls a prompt test computes the logits of the last token only. With --logits all it is run with its
-embd 1, which makes it compute those of every token. Choose what `microscale bench` does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

# What is compared with what: of `rivals` (variants of make_gguf.py, and bf16) the fastest counts.
Pair = namedtuple("Pair", "phase tokens recipe rivals")
W4A8_HEAD6 = "proj=fp4/fp8,mlp=fp4/fp8,head=fp6/fp8"
W4A4_HEAD6 = "proj=fp4/fp4,mlp=fp4/fp4,head=fp6/fp8"
DECODE = 32
PAIRS = [
    Pair("decode", DECODE, "w6a8", ("q6_k",)),
    Pair("decode", DECODE, W4A8_HEAD6, ("mxfp4-head6",)),
    Pair("decode", DECODE, W4A4_HEAD6, ("mxfp4-head6",)),
    Pair("decode", DECODE, "w8a8", ("q8_0",)),
    Pair("decode", DECODE, "int8", ("q8_0",)),
    *(Pair("prefill", tokens, recipe, rivals)
      for tokens in (512, 128)
      for recipe, rivals in (
          ("w6a8", ("bf16", "q6_k")),
          ("w6a6", ("mxfp4", "q8_0")),
          ("w4a4", ("mxfp4", "q8_0")),
          ("int8", ("mxfp4", "q8_0")),
      )),
]

# Names for the table.
LABELS = {
    W4A8_HEAD6: "w4a8, head w6a8", W4A4_HEAD6: "w4a4, head w6a8",
    "bf16": "BF16", "q8_0": "Q8_0", "q6_k": "Q6_K", "mxfp4": "MXFP4", "mxfp4-head6": "MXFP4, head Q6_K",
}


def label(name):
    return LABELS.get(name, name)


def run(command):
    """What the command prints, as JSON."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        sys.exit(f"{' '.join(command)}\nprinted no JSON ({error}):\n{done.stdout[:2000]}")


# ---- programs: each is run once a round, and yields {(phase, tokens): sample} ---------------------------------------


class Ours:
    """`microscale bench` of one recipe: one process, and so one quantizing of the weights, for each prompt length."""

    def __init__(self, options, recipe, tests):
        self.name, self.options, self.recipe, self.tests = f"microscale {label(recipe)}", options, recipe, tests

    def run(self):
        samples = {}
        for _, prompt in self.tests:
            document = run([
                str(self.options.microscale), "bench", "--shape", "llama-3.2-1b", "--recipe", self.recipe,
                "--prefill", str(prompt), "--threads", str(self.options.threads), "--repetitions", "1", "--format", "json",
            ])
            for result in document["results"]:
                test = result["phase"], result["tokens"]
                if test in self.tests:
                    samples[test] = sample_of(result, document["machine"])
        return samples


class Theirs:
    """llama-bench of one file: a process for the prompts, another for decoding."""

    def __init__(self, options, build, variant, tests):
        self.name, self.options, self.tests = f"llama.cpp {build} {label(variant)}", options, tests
        self.program = options.llama[build] / "llama-bench"
        self.model = f"{options.models}-{variant}.gguf"

    def run(self):
        prompts = ",".join(str(n) for phase, n in self.tests if phase == "prefill")
        decode = ",".join(str(n) for phase, n in self.tests if phase == "decode")
        samples = {}
        for prompt, generate in ((prompts, "0"), ("0", decode)):
            if not prompt or not generate:
                continue
            every = "1" if generate == "0" and self.options.logits == "all" else "0"
            results = run([
                str(self.program), "-m", self.model, "-p", prompt, "-n", generate, "-t", str(self.options.threads),
                "-r", "1", "-embd", every, "-o", "json",
            ])
            for result in results:
                test = ("decode", result["n_gen"]) if result["n_gen"] else ("prefill", result["n_prompt"])
                samples[test] = {
                    "tokens_per_s": result["avg_ts"],
                    "bytes": result["model_size"],
                    "bits_per_weight": 8 * result["model_size"] / result["model_n_params"],
                    "machine": {"cpu": result["cpu_info"], "build": result["build_commit"]},
                }
        return samples


def decode_in_turn(pair, options):
    """{program: [one sample a turn]} of a pair in which tokens are decoded."""
    test = pair.phase, pair.tokens
    key = "microscale", pair.recipe
    rivals = [((build, name), Theirs(options, build, name, [test])) for build in options.llama for name in pair.rivals]
    samples = {rival: [] for rival, _ in rivals}
    ours = subprocess.Popen(
        [str(options.microscale), "bench", "--shape", "llama-3.2-1b", "--recipe", pair.recipe, "--decode",
         str(pair.tokens), "--threads", str(options.threads), "--repetitions", str(options.turns), "--step",
         "--format", "json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    said = [ours.stderr.readline()]  # loaded
    for turn in range(options.turns):
        ours.stdin.write("\n")
        ours.stdin.flush()
        said.append(ours.stderr.readline())
        for rival, program in rivals:
            samples[rival].append(program.run()[test] | {"round": turn, "load": os.getloadavg()[0]})
    document, rest = ours.communicate()
    if ours.returncode:
        sys.exit(f"{' '.join(ours.args)}\nended with {ours.returncode}:\n{''.join(said)}{rest}")
    document = json.loads(document)
    result = document["results"][0]
    samples[key] = [
        sample_of(result, document["machine"], turn) | {"round": turn} for turn in range(options.turns)
    ]
    rates = ", ".join(f"{label(name)} {statistics.median(s['tokens_per_s'] for s in all):.2f}"
                      for (_, name), all in samples.items())
    print(f"decode {pair.tokens} in {options.turns} turns: {rates} tokens/s", file=sys.stderr, flush=True)
    return samples


def sample_of(result, machine, repetition=0):
    """One repetition of what `microscale bench` measured."""
    return {
        "tokens_per_s": result["tokens_per_s"]["all"][repetition],
        "bytes": result["bytes_per_token"],
        "bits_per_weight": result["bits_per_weight"],
        "read_gb_s": result["peaks_beside"]["read_gb_s"][repetition],
        "bf16_gflop_s": result["peaks_beside"]["bf16_gflop_s"][repetition],
        "gflop_s": result["gflop_s"],
        "machine": machine,
    }


def programs(options):
    """The programs that the pairs of prefill need, ours and theirs in turn, and the key of each."""
    ours, theirs = {}, {}
    for pair in options.pairs:
        if pair.phase == "decode":
            continue
        test = pair.phase, pair.tokens
        ours.setdefault(("microscale", pair.recipe), []).append(test)
        for build in options.llama:
            for rival in pair.rivals:
                theirs.setdefault((build, rival), []).append(test)
    ours = [(key, Ours(options, key[1], list(dict.fromkeys(tests)))) for key, tests in ours.items()]
    theirs = [(key, Theirs(options, *key, list(dict.fromkeys(tests)))) for key, tests in theirs.items()]
    turns = []
    while ours or theirs:  # spread the shorter list over the longer
        longer, shorter = (ours, theirs) if len(ours) >= len(theirs) else (theirs, ours)
        turns.append(longer.pop(0))
        if shorter:
            turns.append(shorter.pop(0))
    return turns


def measure(options):
    """{pair: {program: [one sample a round or turn]}}"""
    decoded = {pair: decode_in_turn(pair, options) for pair in options.pairs if pair.phase == "decode"}
    turns = programs(options)
    samples = {key: {} for key, _ in turns}
    for number in range(options.rounds):
        for key, program in turns if number % 2 == 0 else reversed(turns):
            start = time.monotonic()
            result = program.run()
            for test in program.tests:
                if test not in result:
                    sys.exit(f"{program.name}: no result for {test[0]} of {test[1]} tokens")
                samples[key].setdefault(test, []).append(result[test] | {"round": number, "load": os.getloadavg()[0]})
            rates = ", ".join(f"{phase} {n}: {s['tokens_per_s']:.2f}" for (phase, n), s in result.items())
            print(f"round {number + 1}/{options.rounds}  {program.name}: {rates} tokens/s "
                  f"({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
    keys = {
        pair: [("microscale", pair.recipe), *((build, rival) for build in options.llama for rival in pair.rivals)]
        for pair in options.pairs if pair.phase == "prefill"
    }
    return decoded | {pair: {key: samples[key][pair.phase, pair.tokens] for key in keys[pair]} for pair in keys}


# ---- what is made of the samples -------------------------------------------------------------------------------------


def spread(values):
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": values}


def shares(samples, ours):
    """Each sample's part of the bandwidth that was measured beside ours of the same turn."""
    return [s["tokens_per_s"] * s["bytes"] / (1e9 * own["read_gb_s"]) for s, own in zip(samples, ours)]


def system(key):
    return ("Microscale " if key[0] == "microscale" else f"llama.cpp {key[0]} ") + label(key[1])


def summarize(samples, options):
    """The document that goes to NAME.json: every system's results, and every pair's comparison."""
    # What is compared twice has samples of both, but for prefill, where they are the same.
    systems = {}
    for pair, programs_of_pair in samples.items():
        for key, rounds in programs_of_pair.items():
            entry = systems.setdefault((key, pair.phase, pair.tokens), {"samples": [], "shares": []})
            if pair.phase == "decode" or not entry["samples"]:
                entry["samples"] += rounds
                entry["shares"] += shares(rounds, programs_of_pair["microscale", pair.recipe])
    systems = [
        {
            "system": system(key), "program": key[0], "variant": key[1], "phase": phase, "tokens": tokens,
            "bits_per_weight": entry["samples"][0]["bits_per_weight"], "bytes_per_token": entry["samples"][0]["bytes"],
            "tokens_per_s": spread(s["tokens_per_s"] for s in entry["samples"]),
            "share_of_read": spread(entry["shares"]), "samples": entry["samples"],
        }
        for (key, phase, tokens), entry in systems.items()
    ]
    ours = [s for entry in systems if entry["program"] == "microscale" for s in entry["samples"]]
    comparisons = []
    for pair in options.pairs:
        mine = [s["tokens_per_s"] for s in samples[pair]["microscale", pair.recipe]]
        rows = []
        for build in options.llama:
            for rival in pair.rivals:
                other = [s["tokens_per_s"] for s in samples[pair][build, rival]]
                rows.append({
                    "build": build, "variant": rival, "system": system((build, rival)), "tokens_per_s": spread(other),
                    "ratio_of_medians": statistics.median(mine) / statistics.median(other),
                    "ratios": spread(a / b for a, b in zip(mine, other)),
                })
        fastest = max(rows, key=lambda row: row["tokens_per_s"]["median"])
        for row in rows:
            row["fastest"] = row is fastest
        comparisons.append({
            "phase": pair.phase, "tokens": pair.tokens, "recipe": pair.recipe,
            "system": system(("microscale", pair.recipe)), "tokens_per_s": spread(mine), "rivals": rows,
        })
    return {
        "rounds": options.rounds, "turns": options.turns, "threads": options.threads, "prefill_logits": options.logits,
        "machine": ours[0]["machine"], "cores": os.cpu_count(),
        "read_gb_s": spread(s["read_gb_s"] for s in ours), "bf16_gflop_s": spread(s["bf16_gflop_s"] for s in ours),
        "comparisons": comparisons, "systems": systems,
    }


def number(value):
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(rates):
    return f"{number(rates['median'])} ({number(rates['min'])}–{number(rates['max'])})"


def markdown(document):
    """The table: a row for each pair and rival; the fastest rival of a pair is bold, and is the one that counts."""
    rounds, turns, threads, machine = (document[key] for key in ("rounds", "turns", "threads", "machine"))
    logits = {"last": "the last token", "all": "every token"}[document["prefill_logits"]]
    lines = [
        f"Tokens per second: median (least–most), of {turns} turns where tokens are decoded, else of {rounds} rounds; "
        f"{threads} threads, "
        f"{machine.get('cpu', 'unknown CPU')}, {machine.get('isa', 'unknown instruction set')}; prefill with the logits "
        f"of {logits} (llama.cpp); read bandwidth {cell(document['read_gb_s'])} GB/s, bf16 "
        f"{cell(document['bf16_gflop_s'])} GFLOP/s. Bold is the fastest rival.",
        "",
        "| phase | Microscale | tokens/s | rival | tokens/s | ratio of medians | median of ratios |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for pair in document["comparisons"]:
        for row in pair["rivals"]:
            bold = "**" if row["fastest"] else ""
            lines.append(
                f"| {pair['phase']} {pair['tokens']} | {pair['system'].removeprefix('Microscale ')} "
                f"| {cell(pair['tokens_per_s'])} | {bold}{row['system']}{bold} | {cell(row['tokens_per_s'])} "
                f"| {bold}{row['ratio_of_medians']:.2f}{bold} | {bold}{row['ratios']['median']:.2f}{bold} |"
            )
    lines += [
        "",
        "| system | phase | bits per weight | tokens/s | share of the read bandwidth beside |",
        "|---|---|---:|---:|---:|",
    ]
    for entry in document["systems"]:
        share = "–"
        if entry["phase"] == "decode":
            share = "{median:.0%} ({min:.0%}–{max:.0%})".format(**entry["share_of_read"])
        lines.append(
            f"| {entry['system']} | {entry['phase']} {entry['tokens']} | {entry['bits_per_weight']:.2f} "
            f"| {cell(entry['tokens_per_s'])} | {share} |"
        )
    return "\n".join(lines) + "\n"


def named_folder(text):
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, Path(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--microscale", type=Path, required=True, help="the program")
    parser.add_argument("--models", required=True, metavar="PREFIX", help="of the GGUF files")
    parser.add_argument("--llama", type=named_folder, action="append", required=True, metavar="NAME=DIR",
                        help="a build's name and the folder of its llama-bench (may be repeated)")
    parser.add_argument("--out", type=Path, required=True, metavar="NAME", help="writes NAME.json and NAME.md")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=15, help="of each pair that decodes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--logits", choices=("last", "all"), default="last", help="of which tokens prefill computes them")
    parser.add_argument("--only", choices=("decode", "prefill"), help="leave the other phase out")
    parser.add_argument("--prompt", type=int, choices=sorted({p.tokens for p in PAIRS if p.phase == "prefill"}),
                        help="prefill of so many tokens only")
    options = parser.parse_args()
    if options.rounds < 1 or options.turns < 1:
        parser.error("--rounds and --turns are at least 1")
    options.llama = dict(options.llama)
    options.pairs = [
        pair for pair in PAIRS
        if options.only in (None, pair.phase) and (pair.phase == "decode" or options.prompt in (None, pair.tokens))
    ]
    document = summarize(measure(options), options)
    table = markdown(document)
    options.out.with_name(options.out.name + ".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    options.out.with_name(options.out.name + ".md").write_text(table, encoding="utf-8")
    print(table, end="")


if __name__ == "__main__":
    main()
