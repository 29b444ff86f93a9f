#!/usr/bin/env python3
"""Writes prompts.jsonl and heldout.jsonl: short writing tasks with two verifiable constraints each, in the manner of
IFEval (arXiv 2311.07911). The pairs of constraint kinds in heldout.jsonl do not occur in prompts.jsonl, though each kind
does. No topic of one file occurs in the other either.

usage: make_data.py [FOLDER]
"""

import hashlib
import itertools
import json
import pathlib
import sys

TRAIN_ROWS = 480
HELDOUT_ROWS = 240

TASKS = [
    "Write two sentences about {}.",
    "Say something short about {}.",
    "Explain {} to a child in a few words.",
    "Give a short tip about {}.",
    "Describe {} briefly.",
]
TOPICS = """the sea; coffee; winter; a garden; the moon; bicycles; bread; a library; rain; cats; trains; a violin; honey; maps;
dreams; a bridge; the desert; tea; a lighthouse; football; snow; an old clock; mushrooms; a market; chess; the forest; a river;
paper; autumn; a kite; bees; a mountain; soup; windows; a castle; letters; the wind; gold; a teacher; stars; a harbor; painting;
salt; horses; a festival; silence; birds; glass; a village; the sun; apples; robots; shoes; a ladder; music; volcanoes; a mirror;
rice; the night; clouds""".replace("\n", " ").split("; ")
PHRASES = ["That is all.", "Thank you!", "The end.", "See you soon.", "Have a nice day!"]
WORDS = ["Well", "Today", "Listen", "Perhaps", "Clearly", "Once"]
KEYWORDS = ["bright", "quiet", "simple", "river", "morning", "friend", "light", "story", "warm", "blue"]
KINDS = ["lowercase", "uppercase", "quoted", "ends_with", "starts_with", "bullets", "title", "contains", "no_commas"]
# Pairs that exclude each other, or of which one holds by itself where the other does.
NEVER = {
    frozenset(pair)
    for pair in [
        ("lowercase", "uppercase"),
        ("quoted", "ends_with"),
        ("quoted", "bullets"),
        ("quoted", "title"),
        ("bullets", "starts_with"),
        ("title", "starts_with"),
        ("uppercase", "title"),
    ]
}
HELDOUT_PAIRS = {
    frozenset(pair)
    for pair in [
        ("lowercase", "ends_with"),
        ("uppercase", "starts_with"),
        ("quoted", "lowercase"),
        ("bullets", "contains"),
        ("title", "ends_with"),
        ("no_commas", "quoted"),
        ("starts_with", "contains"),
        ("bullets", "no_commas"),
    ]
}


def draw(*key, n):
    """A number below n that depends on the key alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") % n


def pick(choices, *key):
    return choices[draw(*key, n=len(choices))]


def cased(text, other):
    """The text as the other constraint of the pair demands it."""
    return {"lowercase": text.lower(), "uppercase": text.upper()}.get(other, text)


def constraint(kind, other, key):
    """A constraint and the sentence that asks for it."""
    if kind == "lowercase":
        return {"kind": kind}, "Use only lowercase letters, no capital letters at all."
    if kind == "uppercase":
        return {"kind": kind}, "Use only CAPITAL LETTERS."
    if kind == "quoted":
        return {"kind": kind}, "Put your whole answer in double quotation marks."
    if kind == "no_commas":
        return {"kind": kind}, "Do not use any commas."
    if kind == "title":
        return {"kind": kind}, "Begin with a title in double angular brackets, such as <<my title>>."
    if kind == "bullets":
        count = 2 + draw(key, "bullets", n=2)
        return {"kind": kind, "min": count, "max": count}, f'Use exactly {count} bullet points that start with "* ".'
    if kind == "starts_with":
        word = cased(pick(WORDS, key, "word"), other)
        return {"kind": kind, "word": word}, f"The first word must be {word}."
    if kind == "contains":
        first = draw(key, "keyword", n=len(KEYWORDS))
        second = (first + 1 + draw(key, "second", n=len(KEYWORDS) - 1)) % len(KEYWORDS)
        words = [KEYWORDS[first], KEYWORDS[second]]
        return {"kind": kind, "keywords": words}, f"Use the words {words[0]} and {words[1]}."
    phrase = cased(pick(PHRASES, key, "phrase"), other)
    return {"kind": "ends_with", "phrase": phrase}, f"Finish with exactly these words: {phrase}"


def rows(name, pairs, topics, count):
    combinations = list(itertools.product(range(len(pairs)), range(len(topics)), range(len(TASKS))))
    combinations.sort(key=lambda c: hashlib.sha256(repr((name, c)).encode()).digest())
    # Every pair equally often.
    queues = [[c for c in combinations if c[0] == pair] for pair in range(len(pairs))]
    for i in range(count):
        pair_ix, topic, task = queues[i % len(pairs)].pop()
        pair = sorted(pairs[pair_ix], key=KINDS.index)
        if draw(name, i, "order", n=2):
            pair.reverse()
        parts = [constraint(kind, pair[1 - k], (name, i)) for k, kind in enumerate(pair)]
        prompt = " ".join([TASKS[task].format(topics[topic])] + [sentence for _, sentence in parts])
        yield {"prompt": prompt, "constraints": [c for c, _ in parts], "combination": "+".join(sorted(pair))}


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    pairs = [frozenset(p) for p in itertools.combinations(KINDS, 2) if frozenset(p) not in NEVER]
    train = [p for p in pairs if p not in HELDOUT_PAIRS]
    heldout = [p for p in pairs if p in HELDOUT_PAIRS]
    assert len(heldout) == len(HELDOUT_PAIRS)
    assert set().union(*train) == set().union(*heldout) == set(KINDS)
    split = len(TOPICS) * 2 // 3
    for name, chosen, topics, count in [
        ("prompts", train, TOPICS[:split], TRAIN_ROWS),
        ("heldout", heldout, TOPICS[split:], HELDOUT_ROWS),
    ]:
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8", newline="\n") as out:
            for row in rows(name, chosen, topics, count):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
