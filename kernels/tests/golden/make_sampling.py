"""What may be drawn after penalties and truncation, by transformers.

    python3 kernels/tests/golden/make_sampling.py     # needs torch and transformers

Writes kernels/tests/golden/sampling.json: rows of logits, and for each case its settings and the log-probs (null where a token
may not be drawn). Repetition penalty, top-k, top-p and min-p are transformers' own logits processors, in the order of its
generation, in f64. It has no presence and frequency penalty: those are vLLM's definition, written out below.
"""

import json
import pathlib

import torch
import transformers
from transformers.generation import logits_process as processors

VOCAB = 97
OFF = {"repetition": 1.0, "presence": 0.0, "frequency": 0.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
CASES = [
    {},
    {"repetition": 1.3},
    {"repetition": 0.8},
    {"presence": 0.75},
    {"frequency": 0.5},
    {"repetition": 1.2, "presence": -0.5, "frequency": 0.25},
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 96},
    {"top_k": 500},
    {"top_p": 0.05},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"min_p": 0.02},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"temperature": 1.7, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.8},
    {"top_p": 0.95, "min_p": 0.1},
    {"repetition": 1.1, "presence": 0.4, "frequency": 0.2, "temperature": 0.9, "top_k": 30, "top_p": 0.92, "min_p": 0.04},
]


def penalise(logits, context, made, case):
    """OpenAI's penalties as vLLM has them: only the completion counts, frequency before presence."""
    counts = torch.bincount(torch.tensor(context[len(context) - made :], dtype=torch.long), minlength=VOCAB)
    logits = logits - case["frequency"] * counts
    return logits - case["presence"] * (counts > 0)


def log_probs(row, case):
    context = torch.tensor([row["context"]])
    logits = torch.tensor([row["logits"]], dtype=torch.float64)
    if case["repetition"] != 1.0:
        logits = processors.RepetitionPenaltyLogitsProcessor(case["repetition"])(context, logits)
    logits = penalise(logits[0], row["context"], row["made"], case)[None] / case["temperature"]
    if case["top_k"] > 0:
        logits = processors.TopKLogitsWarper(case["top_k"])(context, logits)
    if case["top_p"] < 1.0:
        logits = processors.TopPLogitsWarper(case["top_p"])(context, logits)
    if case["min_p"] > 0.0:
        logits = processors.MinPLogitsWarper(case["min_p"])(context, logits)
    return [None if v == float("-inf") else round(v, 6) for v in torch.log_softmax(logits, -1)[0].tolist()]


def main():
    torch.manual_seed(3)
    rows = []
    for scale in [0.3, 2.0, 6.0]:
        logits = [round(v, 4) for v in (scale * torch.randn(VOCAB)).tolist()]
        context = torch.randint(0, VOCAB, (40,)).tolist()
        # The most likely tokens are in the context and twice in the completion, so that penalties matter.
        best = torch.tensor(logits).topk(3).indices.tolist()
        rows.append({"logits": logits, "context": best + context + best[:2] + best, "made": 12})
    cases = []
    for case in CASES:
        case = OFF | case
        cases.append(case | {"log_probs": [log_probs(row, case) for row in rows]})
    out = {"reference": f"transformers {transformers.__version__}, torch {torch.__version__}", "rows": rows, "cases": cases}
    path = pathlib.Path(__file__).with_name("sampling.json")
    path.write_text(json.dumps(out) + "\n")


main()
