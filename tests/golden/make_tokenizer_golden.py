"""1,000 hard strings and their SmolLM2 token ids.

    python3 tests/golden/make_tokenizer_golden.py     # needs tokenizers, gguf, regex and models/ (scripts/fetch_model.sh)

Writes tests/golden/smollm2_tokenizer.json: {"reference": "...", "strings": [[text, [ids]], ...]}. The reference is
smollm2_reference.py, whose two implementations must agree.
"""

import json
import pathlib
import random

import tokenizers
from smollm2_reference import independent_encode, read, tokenizer

COUNT = 1000
FIXED = [
    "", " ", "  ", "   a", "a   ", "\n", "\n\n\n", "\t\t", " \n \n", "\r\n", "a\r\nb", "\u00a0", "a\u00a0b", "\u2003x", "\u3000", "\ufeffbom",
    "\u200b", "\u200d", "\u0000", "\u0001\u007f", "\u0085", "\u2028line", "\ufffd", "\U0010ffff", "\U000e0001",
    "Hello, world!", "I'm you're he's we've they'll I'd don't", "I'M YOU'RE", "’s ’t", "'", "''s", "x's'y", "rock'n'roll", " 's",
    "0", "00", "1234567890", "3.14159", "1,000,000", "-5", "1e-9", "0x1F", "v1.2.3", "①②③", "½¼", "Ⅷ", "٣٤٥", "１２３", "௧௨", "x²", "H₂O", "〇一二三",
    "def f(x):\n    return x**2  # it's\n", "for(int i=0;i<10;++i){\n\tprintf(\"%d\\n\", i);\n}", "SELECT * FROM t WHERE a >= 10;",
    "{\"a\": [1, 2.5, null], \"b\": \"\\u00e9\"}", "<div class=\"x\">&nbsp;</div>", "https://example.org/a?b=c&d=%20#e", "a@b.co",
    "$\\frac{1}{2}\\sum_{i=0}^{n} x_i$", "| a | b |\n|---|---|\n| 1 | 2 |", "```python\nprint(1)\n```", "C:\\Users\\x", "~/.bashrc", "a/b//c", "--flag=value",
    "héllo wörld", "he\u0301llo", "ﬁne ﬀ", "İstanbul ıI", "STRASSE straße", "Ǆ ǆ", "naïve café", "Ångström \u212b",
    "价格 12,345.67", "日本語のテキスト", "한국어 텍스트입니다", "\u1112\u1161\u11ab", "Привет, мир!", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "Γειά σου", "გამარჯობა", "ជំរាបសួរ", "ᚠᛇᚻ", "𐍈", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𠮷野家",
    "🙂", "👍🏽", "👨‍👩‍👧‍👦", "🇺🇸🇩🇪", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "a🙂b", "🙂 🙂", "♟️", "©®™",
    "...", "....", "!!!???", "—–-", "«»„“”", "‽", "¿¡", "٪", "§¶", "@#$%^&*()", "_", "__init__", "a_b_c", "#hashtag", "<|", "|>", "<|im", "im_end|>",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>b", "<|im_end|><|im_end|>",
    " <|im_end|> ", "<repo_name>x<reponame>", "<file_sep><filename>a.py", "<gh_stars>", "<jupyter_code>", "<empty_output>", "<|IM_END|>", "<| im_end |>",
    "SolidGoldMagikarp", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abc" * 30, "\n" * 30, " " * 40, "\t" * 9, "9" * 30, "the " * 20, "ĠthereĠ", "Ċ", "ÃĤ",
    "camelCaseAndPascalCase", "SCREAMING_SNAKE", "kebab-case-words", "MixedCASE123abc", "x1y2z3", "٣abc", "10km/h", "5'11\"", "12:34:56", "2026-01-02T03:04:05Z",
]
PIECES = [
    "the", " of", " and", "ing", " tion", "Order", " order", "7", "42", "1999", " 3", "\n", "\n\n", "\t", "  ", "    ", " ", "'s", "'re", "'LL", ".", ",", "?!", " -", "—",
    "é", "ß", "ñ", "ø", "Ж", "я", "漢", "字", "か", "ナ", "한", "글", "ع", "ש", "न", "ม", "🙂", "🏽", "\u200d", "️", "\u0301", "½", "٣", "²", "Ⅳ", "π", "∑", "→", "€", "\u00a0",
    "\u2009", "\r\n", "{", "}", "()", "[0]", "==", "!=", "->", "::", "//", "/*", "#", "\"", "`", "\\n", "\\", "_", "@", "%s", "$x", "&amp;", "<b>", "</b>", "<|im_end|>",
    "<|im_start|>", "<|endoftext|>", "<file_sep>", "http://", "www.", ".com", "def ", "return", "self", "import os", "int main", "AAAA", "zzzz", "Qu", "xX", "I", " a",
]
TEMPLATE_TURNS = ["Hi!", "What does order 4821 come to?", "It's 3 x 12.50 = 37.50.", "Réponds en français.", "1. one\n2. two", "", " spaced ", "🙂", "<tool>lookup(7)</tool>"]
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def strings():
    rng = random.Random(20250607)
    out = dict.fromkeys(FIXED)
    while len(out) < COUNT:
        kind = rng.randrange(4)
        if kind == 0:
            text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))
        elif kind == 1:
            text = "".join(chr(rng.choice([rng.randrange(0x20, 0x7F), rng.randrange(0xA0, 0x250), rng.randrange(0x370, 0x700)])) for _ in range(rng.randint(1, 16)))
        elif kind == 2:
            points = [rng.choice([rng.randrange(0x800, 0xD800), rng.randrange(0xE000, 0x10000), rng.randrange(0x1F300, 0x1FB00), 0x20, 0x0A]) for _ in range(rng.randint(1, 9))]
            text = "".join(map(chr, points))
        else:
            turns = [("system", SYSTEM)] + [(("user", "assistant")[i % 2], rng.choice(TEMPLATE_TURNS)) for i in range(rng.randint(1, 3))]
            text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) + "<|im_start|>assistant\n"
        out[text] = None
    return list(out)[:COUNT]


def main():
    vocabulary = read()
    reference, second = tokenizer(vocabulary), independent_encode(vocabulary)
    rows, differing = [], []
    for text in strings():
        ids = reference.encode(text, add_special_tokens=False).ids
        if ids != second(text):
            differing.append((text, ids, second(text)))
        rows.append([text, ids])
    for row in differing:
        print("differs:", *map(repr, row))
    assert not differing, f"{len(differing)} strings differ between the two references"
    head = f"tokenizers {tokenizers.__version__} on the GGUF's vocabulary; equal to an independent BPE on all {COUNT} strings"
    lines = ",\n".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in rows)
    path = pathlib.Path(__file__).parent / "smollm2_tokenizer.json"
    path.write_text('{"reference":' + json.dumps(head) + ',"strings":[\n' + lines + "\n]}\n")
    print(len(rows), "strings,", sum(len(ids) for _, ids in rows), "tokens,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
