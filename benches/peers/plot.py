#!/usr/bin/env python3
"""Draw compare.py's result, and torch_peers.py's, as one SVG.

    plot.py COMPARE.json [TORCH.json ...] --out FILE.svg

On the left, decoding: tokens per second against bits per weight, and the line that reading every weight once per token
at the measured bandwidth allows. On the right, prefill of 512 tokens. Points and bars are medians of the rounds, thin
lines go from the least to the most.
"""

import argparse
import json
import math
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1160, 560
TOP, BOTTOM = 108, HEIGHT - 62
FONT = "font-family=\"'Helvetica Neue', Arial, sans-serif\""
INK, GREY, GRID, PAPER = "#1f2933", "#5f6b76", "#e3e7eb", "#fcfcfb"
# (how a system's name begins, its family, colour, marker)
FAMILIES = [
    ("Microscale", "Microscale", "#c2410c", "circle"),
    ("llama.cpp noamx", "llama.cpp without AMX", "#60a5fa", "triangle"),
    ("llama.cpp", "llama.cpp", "#1d4ed8", "square"),
    ("", "PyTorch", "#6b7280", "diamond"),
]
LABEL_SIZE = 12


def family(system):
    """A system's (prefix, name, colour, marker)."""
    return next(entry for entry in FAMILIES if system.startswith(entry[0]))


def short(system):
    """A system's name in the drawing, where colour and marker already tell the family."""
    for prefix, *_ in FAMILIES:
        if prefix and system.startswith(prefix):
            rest = system.removeprefix(prefix).strip()
            return rest.removeprefix("native").strip() or system
    return system


def width(text, size=LABEL_SIZE):
    """About how wide a text is drawn."""
    return 0.6 * size * len(text)


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def step(span, parts):
    """A round distance of grid lines, at most `parts` of them."""
    raw = span / parts
    power = 10 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)


class Drawing:
    def __init__(self):
        self.parts = []

    def text(self, x, y, content, size=LABEL_SIZE, anchor="start", colour=INK, weight="normal", turn=None):
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
                          f'font-weight="{weight}"{turned}>{escape(content)}</text>')

    def line(self, x1, y1, x2, y2, colour=GRID, thickness=1.0, dash=""):
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
                          f'stroke-width="{thickness}"{dashed}/>')

    def rectangle(self, x, y, w, h, colour):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{colour}"/>')

    def path(self, points, colour, thickness=1.5, dash=""):
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{thickness}"{dashed}/>')

    def marker(self, x, y, shape, colour, r=5.5):
        corners = {
            "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
            "triangle": [(0, -1.15), (1.1, 0.9), (-1.1, 0.9)],
            "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        }.get(shape)
        outline = f'fill="{colour}" stroke="{PAPER}" stroke-width="1.2"'
        if corners is None:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {outline}/>')
        else:
            places = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners)
            self.parts.append(f'<polygon points="{places}" {outline}/>')

    def svg(self):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
                f'height="{HEIGHT}" {FONT}>\n<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>\n'
                + "\n".join(self.parts) + "\n</svg>\n")


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def place_labels(drawing, points, bounds, taken):
    """Writes each point's label at the free place nearest to it, with a leader where that is not beside it."""
    left, top, right, bottom = bounds
    taken = taken + [(x - 7, y - 7, x + 7, y + 7) for x, y, _, _ in points]
    for x, y, label, colour in sorted(points, key=lambda p: p[1]):
        w, h = width(label), LABEL_SIZE + 3
        candidates = []
        for distance in range(10, 260, 7):
            for angle in range(0, 360, 15):
                dx, dy = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
                # The side of the label that faces the point lies at that distance.
                x0 = x + dx if dx > 3 else x + dx - w if dx < -3 else x - w / 2
                candidates.append((distance + (0.5 if dx < 0 else 0) + abs(dy) / 50, x0, y + dy - h / 2))
        for _, x0, y0 in sorted(candidates):
            box = (x0 - 2, y0, x0 + w + 2, y0 + h)
            inside = box[0] >= left and box[2] <= right and box[1] >= top and box[3] <= bottom
            if inside and not any(overlap(box, other) for other in taken):
                break
        taken.append(box)
        end_x, end_y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        if math.hypot(end_x - x, end_y - y) > 14:
            drawing.line(x, y, end_x, end_y, colour, 0.8)
        drawing.text(box[0] + 2, box[3] - 4, label, colour=colour)


def decode_panel(drawing, entries, bandwidth, weights, x0, x1):
    drawing.text(x0, TOP - 22, "Decode: tokens/s by bits per weight", 15, weight="bold")
    bits = max(17.0, max(e["bits_per_weight"] for e in entries) + 1)
    most = 1.12 * max(e["tokens_per_s"]["max"] for e in entries)

    def at(b, rate):
        return x0 + (x1 - x0) * (b - 3) / (bits - 3), BOTTOM - (BOTTOM - TOP) * rate / most

    distance = step(most, 7)
    for i in range(int(most / distance) + 1):
        _, y = at(3, i * distance)
        drawing.line(x0, y, x1, y)
        drawing.text(x0 - 8, y + 4, f"{i * distance:g}", 11, "end", GREY)
    for b in range(4, int(bits) + 1, 2):
        x, _ = at(b, 0)
        drawing.line(x, TOP, x, BOTTOM)
        drawing.text(x, BOTTOM + 18, str(b), 11, "middle", GREY)
    drawing.text((x0 + x1) / 2, BOTTOM + 40, "bits per weight", 12, "middle", GREY)

    taken = []
    if bandwidth:
        curve = [(3 + i * (bits - 3) / 200, 0) for i in range(201)]
        curve = [(b, 8e9 * bandwidth / (b * weights)) for b, _ in curve]
        line = [at(b, rate) for b, rate in curve if rate <= most]
        drawing.path(line, GREY, 1.3, "5 4")
        taken += [(x - 2, y - 3, x + 2, y + 3) for x, y in line]
        limit = f"read bandwidth, {bandwidth:.1f} GB/s"
        x = x1 - width(limit, 11)
        y = min(y for place, y in line if place >= x) - 6  # above the curve all along
        drawing.text(x, y, limit, 11, colour=GREY)
        taken.append((x, y - 12, x1, y + 4))
    points = []
    for entry in entries:
        _, _, colour, shape = family(entry["system"])
        x, y = at(entry["bits_per_weight"], entry["tokens_per_s"]["median"])
        _, low = at(0, entry["tokens_per_s"]["min"])
        _, high = at(0, entry["tokens_per_s"]["max"])
        drawing.line(x, low, x, high, colour, 1.3)
        taken.append((x - 1, min(low, high), x + 1, max(low, high)))
        points.append((x, y, f"{short(entry['system'])}: {number(entry['tokens_per_s']['median'])}", colour))
    for entry, (x, y, _, colour) in zip(entries, points):
        drawing.marker(x, y, family(entry["system"])[3], colour)
    place_labels(drawing, points, (x0 + 2, TOP, x1 + 6, BOTTOM - 2), taken)


def prefill_panel(drawing, entries, tokens, x0, x1):
    drawing.text(x0, TOP - 22, f"Prefill ({tokens} tokens): tokens/s", 15, weight="bold")
    entries = sorted(entries, key=lambda e: -e["tokens_per_s"]["median"])
    names = [short(e["system"]) for e in entries]
    start = x0 + max(width(name) for name in names) + 30
    most = max(e["tokens_per_s"]["max"] for e in entries)
    scale = (x1 - 44 - start) / most
    distance = step(most, 6)
    for i in range(int(most / distance) + 1):
        x = start + i * distance * scale
        drawing.line(x, TOP, x, BOTTOM)
        drawing.text(x, BOTTOM + 18, f"{i * distance:g}", 11, "middle", GREY)
    drawing.text((start + x1 - 44) / 2, BOTTOM + 40, "tokens per second", 12, "middle", GREY)
    pitch = (BOTTOM - TOP) / len(entries)
    bar = min(22.0, 0.66 * pitch)
    for i, (entry, name) in enumerate(zip(entries, names)):
        y = TOP + (i + 0.5) * pitch
        _, _, colour, shape = family(entry["system"])
        rates = entry["tokens_per_s"]
        drawing.marker(x0 + 7, y, shape, colour, 5)
        drawing.text(start - 7, y + 4, name, anchor="end")
        drawing.rectangle(start, y - bar / 2, max(1.0, rates["median"] * scale), bar, colour)
        drawing.line(start + rates["min"] * scale, y, start + rates["max"] * scale, y, INK, 1.2)
        drawing.text(start + rates["max"] * scale + 6, y + 4, number(rates["median"]))


def legend(drawing, systems, subtitle):
    drawing.text(30, 30, "LLaMA 3.2 1B shape, random weights", 17, weight="bold")
    drawing.text(30, 49, subtitle, 12, colour=GREY)
    x = WIDTH - 30
    for entry in reversed([f for f in FAMILIES if any(family(s) is f for s in systems)]):
        _, name, colour, shape = entry
        x -= width(name)
        drawing.text(x, 30, name)
        drawing.marker(x - 12, 26, shape, colour)
        x -= 36


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compare", type=Path, help="compare.py's JSON")
    parser.add_argument("torch", type=Path, nargs="*", help="torch_peers.py's JSON")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the right panel")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    document = json.loads(options.compare.read_text(encoding="utf-8"))
    entries = list(document["systems"])
    for path in options.torch:
        entries += json.loads(path.read_text(encoding="utf-8"))["results"]
    decode = [e for e in entries if e["phase"] == "decode"]
    prefill = [e for e in entries if e["phase"] == "prefill" and e["tokens"] == options.prefill]
    if not decode or not prefill:
        parser.error(f"no decode, or no prefill of {options.prefill} tokens, in {options.compare}")
    machine = document["machine"]
    drawing = Drawing()
    legend(drawing, {e["system"] for e in decode + prefill},
           f"{machine.get('cpu', 'unknown CPU')}, {document['threads']} threads, medians of {document['rounds']} rounds "
           "in turn (PyTorch apart)")
    known = next(e for e in document["systems"] if e["phase"] == "decode")
    weights = 8 * known["bytes_per_token"] / known["bits_per_weight"]
    decode_panel(drawing, decode, document["read_gb_s"]["median"], weights, 66, 600)
    prefill_panel(drawing, prefill, options.prefill, 650, WIDTH - 20)
    options.out.write_text(drawing.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
