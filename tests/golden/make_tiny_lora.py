"""Golden numbers of adapters from PEFT beside two of the tiny models, on the CPU in float32.

    python3 tests/golden/make_tiny_lora.py       # needs torch, transformers, peft and the files of make_tiny_models.py

Writes into tests/golden/tiny_<name>/lora/: adapter_config.json and adapter_model.safetensors as save_pretrained writes them
(the frozen model is named by its directory beside this script), and golden.safetensors with logits.<i>, logp.<i>, weight.<i>
and grad.<name> as make_tiny_models.py has them, over that script's tokens, temperatures and weights. grad.<name> is the
gradient of an adapter, under the adapter's name in its file.
"""

import json
import pathlib

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
MODELS = {
    "llama_untied": (11, dict(r=3, lora_alpha=5, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])),
    "qwen2": (12, dict(r=2, lora_alpha=4, target_modules="all-linear")),
}


def make(name):
    seed, settings = MODELS[name]
    torch.manual_seed(seed)
    directory = HERE / f"tiny_{name}"
    base = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").float()
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in trained.values():
            p.copy_(0.4 * torch.randn_like(p))
    given = load_file(directory / "golden.safetensors")
    golden, loss, i = {}, 0.0, 0
    while f"tokens.{i}" in given:
        tokens = given[f"tokens.{i}"].long()
        logits = model(tokens[None]).logits[0]
        logp = torch.log_softmax(logits[:-1] / given[f"temperature.{i}"], dim=-1).gather(1, tokens[1:, None])[:, 0]
        loss = loss + (given[f"weight.{i}"] * logp).sum()
        golden |= {f"logits.{i}": logits.detach(), f"logp.{i}": logp.detach()}
        i += 1
    loss.backward()
    golden |= {f"grad.{key.replace('.default', '')}": p.grad for key, p in trained.items()}
    out = directory / "lora"
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    config = json.loads((out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"tests/golden/tiny_{name}"
    config["target_modules"] = sorted(config["target_modules"])
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file({k: v.contiguous() for k, v in golden.items()}, out / "golden.safetensors")
    for file in out.iterdir():
        file.chmod(0o644)
    assert all(p.grad.abs().sum() > 0 for p in trained.values())
    print(name, len(trained), f"loss {loss.item():.6f}")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for name in MODELS:
        make(name)
