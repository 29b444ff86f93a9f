"""Ours beside the peers on one machine: the same work in turn, medians over the rounds, as a table and one JSON object.

usage: compare.py --python VENV/bin/python --gguf FILE [--rounds 5] [--works decode:16,train,grpo] [--threads 2] [--dtype f32|bf16]

Ours is target/release/xtask (cargo build --release --package xtask). Each round runs ours and then the peer; each run is
itself a median of at least 5. A round's ratio compares neighbours in time, so that what else the machine does weighs on
both alike. Needs nothing but Python's standard library; VENV has bench/peers/requirements.txt.
"""
import argparse, json, pathlib, statistics, subprocess, sys

here = pathlib.Path(__file__).resolve().parent
parser = argparse.ArgumentParser()
parser.add_argument("--python", required=True)
parser.add_argument("--gguf", required=True)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
parser.add_argument("--works", default="decode:1,decode:8,decode:16,decode:32,prefill,train,grpo")
args = parser.parse_args()


def last_json(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(work, batch):
    only = ["--only", work, *(["--batch", batch] if batch else [])]
    command = [here.parent.parent / "target/release/xtask", "bench", "--json", "--model", args.gguf,
               "--threads", str(args.threads), "--runs", str(args.runs), "--dtype", args.dtype, *only]
    report = last_json(command)
    figures = report[work]
    return figures[f"batch_{batch}"] if batch else figures, report["ceilings"]


def peer(work, batch):
    only = ["--batch", batch] if batch else []
    command = [args.python, here / "peer.py", work, "--gguf", args.gguf, "--threads", str(args.threads),
               "--runs", str(args.runs), "--dtype", args.dtype, *only]
    return last_json(command)[work]


rows, ceilings = [], []
for name in args.works.split(","):
    work, _, batch = name.partition(":")
    units = ["step_s", "start_to_first_step_s"] if work == "grpo" else ["tokens_per_s"]
    own = [{"work": name, "unit": unit, "ours": [], "peer": [], "ratio": [], "ours_mib": None, "peer_mib": None} for unit in units]
    for _ in range(args.rounds):
        (mine, ceiling), theirs = ours(work, batch), peer(work, batch)
        ceilings.append(ceiling)
        for row in own:
            a, b = mine[row["unit"]], theirs[row["unit"]]
            row["ours"].append(a)
            row["peer"].append(b)
            row["ratio"].append(b / a if work == "grpo" else a / b)
            row["ours_mib"], row["peer_mib"] = mine.get("peak_mib"), theirs.get("peak_mib")
            print(f"{name}: ours {a:.4g}, peer {b:.4g} {row['unit']}", file=sys.stderr, flush=True)
    rows += own

print("| work | ours | peer | ratio, median (least to most) | peak memory, ours | peer |")
print("|---|---|---|---|---|---|")
for row in rows:
    unit = {"step_s": "s", "start_to_first_step_s": "s to the first step's end", "tokens_per_s": "tokens/s"}[row["unit"]]
    ratio = f"{statistics.median(row['ratio']):.2f} ({min(row['ratio']):.2f} to {max(row['ratio']):.2f})"
    memory = [f"{m:.0f} MiB" if m else "-" for m in (row["ours_mib"], row["peer_mib"])]
    print(f"| {row['work']} | {statistics.median(row['ours']):.4g} {unit} | {statistics.median(row['peer']):.4g} {unit} "
          f"| {ratio} | {memory[0]} | {memory[1]} |")
print(json.dumps({"rows": rows, "ceilings": ceilings, "dtype": args.dtype, "rounds": args.rounds, "threads": args.threads}))
