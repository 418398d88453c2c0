#!/usr/bin/env python3
"""Time two builds of the kernels' benchmark in turn, within hundredths of a second of each other.

    cargo bench -p microscale-tensor --no-run        # in each of two trees; the program's path is printed
    in_turn.py BEFORE AFTER [--rows 1] [--turns 100] [--split GB/S] [WEIGHT:ACTIVATION ...]

Where others use the machine too its pace changes within seconds, so runs one after another tell little. Of each pair of
formats both programs stay loaded and take one pass over their weights by turns, every other turn in the opposite order; after
half of them both begin anew, the other one first.
Prints the medians of milliseconds and of the turns' ratios, with the quartiles of the latter. With --split, and with one row,
turns are told apart by the mean of both rates: memory slower than that, and faster.
"""

import argparse
import statistics
import subprocess

PAIRS = (
    "fp6_e3m2:fp8_e4m3", "fp4_e2m1:fp8_e4m3", "fp4_e2m1:fp4_e2m1", "fp6_e2m3:fp6_e2m3", "fp8_e4m3:fp8_e4m3", "int8:int8", "bf16:bf16",
)


class Program:
    def __init__(self, path, rows, pair):
        self.process = subprocess.Popen([path, "in-turn", str(rows), *pair.split(":")], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.read()
        self.turn()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)} ended with {self.process.wait()}")
        return line

    def turn(self):
        """Nanoseconds of a pass, and its bytes."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        nanoseconds, size = self.read().split()
        return float(nanoseconds), float(size)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def quartiles(values):
    if len(values) < 4:
        return f"{statistics.median(values):.3f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def line(name, turns):
    if not turns:
        return f"{name:28} no turns"
    cells = []
    for program in range(2):
        own = [turn[program] for turn in turns]
        milliseconds = statistics.median(t for t, _ in own) / 1e6
        cells.append(f"{milliseconds:8.2f} ms {statistics.median(size / t for t, size in own):6.1f} GB/s")
    return f"{name:28} {'   '.join(cells)}   speed {quartiles([a[0] / b[0] for a, b in turns])}   {len(turns)} turns"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("pairs", nargs="*", metavar="WEIGHT:ACTIVATION", default=PAIRS)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--split", type=float, metavar="GB/S")
    options = parser.parse_intermixed_args()
    for pair in options.pairs:
        turns = []
        # Which memory a program gets depends on which asks first: each does once.
        for first in (0, 1):
            programs = {}
            for which in (first, 1 - first):
                programs[which] = Program((options.before, options.after)[which], options.rows, pair)
            for turn in range(options.turns // 2):
                order = (0, 1) if turn % 2 == 0 else (1, 0)
                taken = {which: programs[which].turn() for which in order}
                turns.append((taken[0], taken[1]))
            for program in programs.values():
                program.end()
        print(line(pair, turns), flush=True)
        if options.split:
            rates = [sum(size / t for t, size in turn) / 2 for turn in turns]
            print(line("  slower", [turn for turn, rate in zip(turns, rates) if rate < options.split]))
            print(line("  faster", [turn for turn, rate in zip(turns, rates) if rate >= options.split]), flush=True)


if __name__ == "__main__":
    main()
