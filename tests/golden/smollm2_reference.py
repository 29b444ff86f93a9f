"""SmolLM2's tokenizer as Hugging Face's `tokenizers` library runs it, rebuilt from the GGUF file's vocabulary and merges.

The pipeline is that of the tokenizer.json of HuggingFaceTB/SmolLM2-135M-Instruct: digits one by one, then GPT-2's byte-level
splitting, then BPE; its 17 control tokens are special and not normalised. llama.cpp describes the same vocabulary ("smollm")
by two regular expressions; `independent_encode` is a second implementation from that description, in plain Python, and
make_tokenizer_golden.py requires both to agree on every string.
"""

import json
import os
import pathlib

import regex
from gguf import GGUFReader
from tokenizers import Tokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = pathlib.Path(__file__).resolve().parents[2]
PATH = pathlib.Path(os.environ.get("COHORT_MODELS", ROOT / "models")) / FILE
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def read():
    fields = GGUFReader(PATH).fields
    get = lambda key: fields[key].contents()
    return {
        "tokens": get("tokenizer.ggml.tokens"),
        "merges": [tuple(m.split(" ")) for m in get("tokenizer.ggml.merges")],
        "types": get("tokenizer.ggml.token_type"),
        "template": get("tokenizer.chat_template"),
    }


def tokenizer(vocabulary):
    specials = [(i, t) for i, (t, kind) in enumerate(zip(vocabulary["tokens"], vocabulary["types"])) if kind == 3]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": t, **flags} for i, t in specials],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(vocabulary["tokens"])}, "merges": vocabulary["merges"],
        },
    }))


def byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(rest)}


def independent_encode(vocabulary):
    ids = {t: i for i, t in enumerate(vocabulary["tokens"])}
    ranks = {pair: i for i, pair in enumerate(vocabulary["merges"])}
    specials = [t for t, kind in zip(vocabulary["tokens"], vocabulary["types"]) if kind == 3]
    special = regex.compile("(" + "|".join(regex.escape(t) for t in sorted(specials, key=len, reverse=True)) + ")")
    alphabet = byte_alphabet()

    def bpe(word):
        parts = [alphabet[b] for b in word.encode()]
        while len(parts) > 1:
            ranked = [(ranks.get(pair, 1 << 60), i) for i, pair in enumerate(zip(parts, parts[1:]))]
            rank, i = min(ranked)
            if rank == 1 << 60:
                break
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        return [ids[p] for p in parts]

    def encode(text):
        out = []
        for piece in special.split(text):
            if piece in ids and piece in specials:
                out.append(ids[piece])
                continue
            for stretch in regex.findall(r"\p{N}|\P{N}+", piece):
                for word in regex.findall(GPT2, stretch):
                    out += bpe(word)
        return out

    return encode
