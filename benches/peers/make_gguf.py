#!/usr/bin/env python3
"""Write a GGUF of random weights in the shape of LLaMA 3.2 1B, and quantize it with llama.cpp.

    make_gguf.py write FILE [--seed 1]                    # 1 236 M weights in bf16, embedding tied to the head
    make_gguf.py quantize BF16 PREFIX --llama DIR         # PREFIX-q8_0.gguf and so on, by DIR/llama-quantize
    make_gguf.py sizes FILE...                            # bytes and bits per weight of each

How fast a model is does not depend on what its weights are, so random ones (normal, standard deviation 0.02) will do.
The vocabulary has the right size and nothing in it: bytes, then dummies. `write` and `sizes` need the packages `gguf`
and `numpy`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

# LLaMA 3.2 1B.
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 2048, 8192, 16, 32, 8, 64, 128256
CONTEXT, ROPE_THETA, NORM_EPS = 131072, 500000.0, 1e-5
BOS, EOS = 128000, 128001
DEVIATION = 0.02

# What llama-quantize is told, by the name of the variant. The base type of the MXFP4 ones decides no tensor that is
# not named, and the norms stay f32. The head is the embedding: the tied tensor is both.
LAYERS_IN_MXFP4 = ["--tensor-type", "attn_(q|k|v|output)=mxfp4", "--tensor-type", "ffn_(gate|up|down)=mxfp4"]
VARIANTS = {
    "q8_0": (["--pure"], "Q8_0"),
    "q6_k": (["--pure"], "Q6_K"),
    "mxfp4": ([*LAYERS_IN_MXFP4, "--token-embedding-type", "mxfp4"], "MXFP4_MOE"),
    "mxfp4-head6": ([*LAYERS_IN_MXFP4, "--token-embedding-type", "q6_K"], "MXFP4_MOE"),
}


def tensors():
    """Every tensor's name and shape, rows first, in the order of the file."""
    yield "token_embd.weight", (VOCABULARY, HIDDEN)
    yield "output_norm.weight", (HIDDEN,)
    for layer in range(LAYERS):
        for name, shape in (
            ("attn_norm", (HIDDEN,)),
            ("attn_q", (HEADS * HEAD_DIM, HIDDEN)),
            ("attn_k", (KV_HEADS * HEAD_DIM, HIDDEN)),
            ("attn_v", (KV_HEADS * HEAD_DIM, HIDDEN)),
            ("attn_output", (HIDDEN, HEADS * HEAD_DIM)),
            ("ffn_norm", (HIDDEN,)),
            ("ffn_gate", (INTERMEDIATE, HIDDEN)),
            ("ffn_up", (INTERMEDIATE, HIDDEN)),
            ("ffn_down", (HIDDEN, INTERMEDIATE)),
        ):
            yield f"blk.{layer}.{name}.weight", shape


def byte_tokens():
    """GPT-2's printable character for each of the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]


def add_tokenizer(writer):
    """A byte-level tokenizer in which only the bytes mean something."""
    import gguf

    tokens = byte_tokens()
    space = tokens[ord(" ")]
    tokens.append(space + "a")  # the one merge: a file without any is refused
    tokens += [f"<|dummy_{i}|>" for i in range(len(tokens), VOCABULARY)]
    types = [gguf.TokenType.NORMAL] * VOCABULARY
    types[BOS] = types[EOS] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{space} a"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)


def random_bf16(rng, shape):
    """Normal values, rounded to the nearest bf16, as their bits."""
    import numpy as np

    bits = (rng.standard_normal(shape, dtype=np.float32) * np.float32(DEVIATION)).view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(np.uint16)


def write(path, seed):
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random-llama-3.2-1b")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    add_tokenizer(writer)

    for name, shape in tensors():
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            bf16 = gguf.GGMLQuantizationType.BF16
            writer.add_tensor_info(name, shape, np.dtype(np.uint16), 2 * shape[0] * shape[1], raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for _, shape in tensors():
        writer.write_tensor_data(np.ones(shape, np.float32) if len(shape) == 1 else random_bf16(rng, shape))
    writer.close()


def quantize(source, prefix, llama, variants, threads):
    for variant in variants:
        flags, base = VARIANTS[variant]
        target = f"{prefix}-{variant}.gguf"
        command = [str(llama / "llama-quantize"), *flags, str(source), target, base, str(threads)]
        print("$", " ".join(command), file=sys.stderr)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def sizes(paths):
    from collections import Counter

    import gguf

    print("file\tbytes of tensors\tweights\tbits per weight\ttypes")
    for path in paths:
        reader = gguf.GGUFReader(path)
        size = sum(int(t.n_bytes) for t in reader.tensors)
        weights = sum(int(t.n_elements) for t in reader.tensors)
        types = Counter(t.tensor_type.name for t in reader.tensors)
        types = ", ".join(f"{name} × {count}" for name, count in types.items())
        print(f"{path.name}\t{size}\t{weights}\t{8 * size / weights:.4f}\t{types}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("write", help="write the bf16 file")
    command.add_argument("file", type=Path)
    command.add_argument("--seed", type=int, default=1)
    command = commands.add_parser("quantize", help="quantize it in every variant")
    command.add_argument("source", type=Path)
    command.add_argument("prefix", help="of the files to write: PREFIX-q8_0.gguf")
    command.add_argument("--llama", type=Path, required=True, help="the folder of llama-quantize")
    command.add_argument("--variant", action="append", choices=list(VARIANTS), help="only this one (may be repeated)")
    command.add_argument("--threads", type=int, default=2)
    command = commands.add_parser("sizes", help="print bytes and bits per weight")
    command.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "write":
        write(options.file, options.seed)
    elif options.command == "quantize":
        quantize(options.source, options.prefix, options.llama, options.variant or VARIANTS, options.threads)
    else:
        sizes(options.files)


if __name__ == "__main__":
    main()
