"""Selects the committed vectors from the reference files: python vectors.py REFERENCE_FOLDER > vectors.txt

One line per block: format, scale rule, 32 bf16 bit patterns, scale byte, 32 codes, in hexadecimal. Made by TorchMX 0.1.0
(rule floor) and torchao 0.18.0 (rceil, ceil, even); TorchMX's MXINT8 scale bytes are stored as OCP's, 6 higher.
"""
import json, struct, sys


def read(path):
    raw = open(path, "rb").read()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    return {n: raw[8 + size :][m["data_offsets"][0] : m["data_offsets"][1]] for n, m in header.items()}


def lines(tensors, rule, step):
    words = struct.unpack(f"<{len(tensors['input']) // 2}H", tensors["input"])
    for name in sorted(n for n in tensors if n.endswith(".scale")):
        format, *rules = name.split(".")[:-1]
        stem = name[: -len(".scale")]
        for block in range(0, len(words) // 32, step):
            part = words[block * 32 : block * 32 + 32]
            scale = tensors[name][block]
            if format == "int8":
                if max(w & 0x7FFF for w in part) >> 7 < 6:
                    continue
                scale = scale if scale == 255 else scale + 6
            codes = tensors[f"{stem}.codes"][block * 32 : block * 32 + 32]
            yield f"{format} {rules[0] if rules else rule} {''.join(f'{w:04x}' for w in part)} {scale:02x} {codes.hex()}"


folder = sys.argv[1]
print("# made by vectors.py: format, scale rule, bf16 bits, scale byte, codes")
for line in lines(read(f"{folder}/format_vectors.safetensors"), "floor", 97):
    print(line)
for line in lines(read(f"{folder}/scale_rule_vectors.safetensors"), None, 139):
    print(line)
