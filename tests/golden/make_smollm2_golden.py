"""Golden numbers of SmolLM2-135M-Instruct: transformers' own GGUF loader, float32, CPU.

    python3 tests/golden/make_smollm2_golden.py       # needs torch, transformers, gguf and models/ (scripts/fetch_model.sh)

Writes tests/golden/smollm2_logits.json: for each prompt its token ids, the log-prob of every token after the first, the 16
highest logits after the last token, and (for the first) the token ids of a greedy completion.
"""

import json
import pathlib

import torch
import transformers
from smollm2_reference import FILE, PATH, read, tokenizer

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
PROMPTS = [
    SYSTEM + "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "The quick brown fox jumps over 13 lazy dogs; it's 2026. ",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + ",
    "日本の首都は東京です。 🙂\n\n\t— et l'été",
    "a",
    "<|im_start|>",
    " ".join(str(i * i) for i in range(40)),
]


def main():
    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(PATH.parent, gguf_file=FILE, dtype=torch.float32).eval()
    encoder = tokenizer(read())
    prompts = []
    with torch.no_grad():
        for i, text in enumerate(PROMPTS):
            ids = encoder.encode(text, add_special_tokens=False).ids
            logits = model(torch.tensor([ids])).logits[0].float()
            logp = torch.log_softmax(logits.double(), -1)
            top = logits[-1].topk(16)
            row = {
                "text": text,
                "ids": ids,
                "logp": [round(logp[t, n].item(), 6) for t, n in enumerate(ids[1:])],
                "top_ids": top.indices.tolist(),
                "top_logits": [round(x, 6) for x in top.values.tolist()],
            }
            if i == 0:
                context = list(ids)
                while len(context) - len(ids) < 24 and context[-1] != 2:
                    context.append(int(model(torch.tensor([context])).logits[0, -1].argmax()))
                row["greedy"] = context[len(ids):]
                print(repr(encoder.decode(row["greedy"])))
            prompts.append(row)
    head = f"transformers {transformers.__version__}, torch {torch.__version__}, gguf_file={FILE}, float32, CPU"
    path = pathlib.Path(__file__).parent / "smollm2_logits.json"
    lines = ",\n".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in prompts)
    path.write_text('{"reference":' + json.dumps(head) + ',"prompts":[\n' + lines + "\n]}\n")
    print(len(prompts), "prompts,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
