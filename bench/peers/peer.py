"""The peers of `cargo xtask bench`: the same work in PyTorch, transformers and TRL. One JSON object on the last line.

usage: peer.py decode|prefill|train|grpo --gguf FILE [--threads 2] [--dtype f32|bf16] [--runs 5]

decode: transformers `generate`, batch 16, prompt of 64 tokens, 64 new ones, greedy, end of sequence suppressed;
        the time of the prefill and first token is measured apart and taken off.
prefill: `generate` of one token after 16 prompts of 64.
train:  forward + backward + AdamW of 8 sequences x 128 tokens.
grpo:   one TRL GRPO step with its defaults, 2 prompts x 8 completions of exactly 64 tokens; the time from the start of the process
        to the end of the first step apart.
"""
import argparse, json, os, resource, statistics, time

parser = argparse.ArgumentParser()
parser.add_argument("work", choices=["decode", "prefill", "train", "grpo"])
parser.add_argument("--gguf", required=True)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--batch", type=int, default=16)
args = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(args.threads)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(args.threads)
torch.manual_seed(0)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
folder, name = os.path.split(os.path.abspath(args.gguf))


def load():
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype)


def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def decode():
    model = load().eval()
    ids = torch.randint(100, 40000, (args.batch, 64))
    mask = torch.ones_like(ids)

    def generate(n):
        with torch.inference_mode():
            model.generate(ids, attention_mask=mask, do_sample=False, min_new_tokens=n, max_new_tokens=n, pad_token_id=0)

    generate(4)
    rates = []
    for _ in range(args.runs):
        first, whole = timed(lambda: generate(1)), timed(lambda: generate(64))
        rates.append(args.batch * 63 / (whole - first))
    return {"tokens_per_s": statistics.median(rates), "batch": args.batch}


def prefill():
    model = load().eval()
    ids = torch.randint(100, 40000, (16, 64))
    mask = torch.ones_like(ids)

    def generate():
        with torch.inference_mode():
            model.generate(ids, attention_mask=mask, do_sample=False, min_new_tokens=1, max_new_tokens=1, pad_token_id=0)

    generate()
    return {"tokens_per_s": 16 * 64 / statistics.median(timed(generate) for _ in range(args.runs))}


def age():
    """Seconds since this process was started."""
    started = float(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(open("/proc/uptime").read().split()[0]) - started


def train():
    model = load().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids = torch.randint(100, 40000, (8, 128))

    def step():
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    return {"tokens_per_s": 8 * 128 / statistics.median(timed(step) for _ in range(args.runs))}


def grpo():
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = load()
    # The file's weights were dequantized at loading; the trainer goes by the mark.
    model.is_quantized = False
    question = [{"role": "user", "content": "Write one sentence about the sea, then one about the mountains."}]
    data = Dataset.from_list([{"prompt": question}] * 64)
    stamps, first = [], []

    def reward(completions, **_):
        return [float(i % 2) for i in range(len(completions))]

    config = GRPOConfig(
        output_dir="/tmp/peer-grpo", max_steps=args.runs + 1, per_device_train_batch_size=16, num_generations=8,
        max_completion_length=64, generation_kwargs={"min_new_tokens": 64}, bf16=args.dtype == "bf16",
        report_to=[], logging_strategy="no", save_strategy="no", use_cpu=True,
    )
    trainer = GRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer)
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            stamps.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            stamps[-1] = time.perf_counter() - stamps[-1]
            first.append(age())

    trainer.add_callback(Clock())
    trainer.train()
    return {"step_s": statistics.median(stamps[1:]), "start_to_first_step_s": first[0]}


result = {"decode": decode, "prefill": prefill, "train": train, "grpo": grpo}[args.work]()
result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
result["torch"] = torch.__version__
print(json.dumps({args.work: result}))
