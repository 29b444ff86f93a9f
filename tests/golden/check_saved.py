"""Directories that the program wrote, loaded by transformers and PEFT: their log-probs beside the program's own.

    cluster export random://tiny-qwen2?seed=3 DIR          # and so on for every family; a checkpoint with adapters goes as it is
    python3 tests/golden/check_saved.py CLUSTER DIR ..     # CLUSTER: the program

For each directory: AutoModelForCausalLM (or, for an adapter beside a model that transformers can load, PEFT) and
AutoTokenizer load it, and the log-probs of a few token sequences agree with `cluster score` to 1e-4.
"""

import json
import pathlib
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(path):
    settings = path / "adapter_config.json"
    if not settings.exists():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    from peft import PeftModel

    base = json.loads(settings.read_text())["base_model_name_or_path"]
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), path)


def main(program, paths):
    torch.manual_seed(1)
    for path in map(pathlib.Path, paths):
        model = load(path).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        assert tokenizer.decode(tokenizer.encode("a b")) == "a b", path
        rows = [torch.randint(0, 200, (length,)).tolist() for length in (2, 9, 40)]
        text = "".join(json.dumps({"id": i, "prompt_ids": r[:1], "completion_ids": r[1:]}) + "\n" for i, r in enumerate(rows))
        ours = subprocess.run([program, "score", "--model", path, "--input", "-"], input=text, capture_output=True, text=True, check=True)
        ours = [json.loads(line) for line in ours.stdout.splitlines()]
        worst = 0.0
        for row, scored in zip(rows, ours, strict=True):
            with torch.no_grad():
                logp = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
            want = [logp[t, token].item() for t, token in enumerate(row[1:])]
            worst = max([worst, *(abs(a - b) for a, b in zip(want, scored["logprobs"], strict=True))])
        print(f"{path}: {type(model).__name__}, largest difference {worst:.2e}")
        assert worst < 1e-4, path


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
