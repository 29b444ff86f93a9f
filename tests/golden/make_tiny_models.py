"""Golden numbers of tiny random models, one or two of each family, from PyTorch and transformers on the CPU in float32.

    python3 tests/golden/make_tiny_models.py [name ..]       # all of them without a name

Writes into tests/golden/tiny_<name>/: config.json and model.safetensors as save_pretrained writes them, and
golden.safetensors with
  tokens.<i>      f32 [T]     sequence i (small whole numbers)
  logits.<i>      f32 [T, V]  at every position
  logp.<i>        f32 [T-1]   log-softmax(logits / temperature) of the token that follows
  entropy.<i>     f32 [T-1]   of the same distributions
  weight.<i>      f32 [T-1]   what the loss gives each log-prob
  weight_h.<i>    f32 [T-1]   what the loss gives each entropy
  grad.<name>     f32         dL/dparameter of L = sum(weight * logp + weight_h * entropy) over all sequences
  temperature.<i> f32 [1]     of sequence i
Sizes are odd on purpose: nothing is a multiple of a vector's width.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

HERE = pathlib.Path(__file__).parent
TEMPERATURES = [1.0, 0.7, 1.3]
LENGTHS = [11, 1, 6]


def rotary(config, tied, **own):
    sizes = dict(
        hidden_size=18,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2 if tied else 3,
        intermediate_size=27,
        vocab_size=37,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=1000.0 if tied else 10000.0,
        tie_word_embeddings=tied,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
    )
    return config(**(sizes | own))


def gpt2(**own):
    sizes = dict(
        n_embd=18,
        n_layer=2,
        n_head=6,
        n_inner=27,
        vocab_size=37,
        n_positions=64,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2Config(**(sizes | own))


# Head widths apart from hidden / heads wherever the family allows it.
MODELS = {
    "llama_tied": lambda: (1, rotary(LlamaConfig, True, head_dim=6)),
    "llama_untied": lambda: (2, rotary(LlamaConfig, False, head_dim=6)),
    "mistral": lambda: (3, rotary(MistralConfig, False, head_dim=4, sliding_window=16)),
    "qwen2": lambda: (4, rotary(Qwen2Config, True, hidden_size=24)),
    "qwen3": lambda: (5, rotary(Qwen3Config, False, head_dim=10)),
    "qwen3_tied": lambda: (6, rotary(Qwen3Config, True, head_dim=6)),
    "gpt2": lambda: (7, gpt2()),
    "gpt2_untied": lambda: (8, gpt2(n_head=2, n_inner=None, tie_word_embeddings=False)),
}


def fill(key, p):
    """Far enough from the initial values that norms, biases, rotation and softmax all matter."""
    if key.endswith(".bias"):
        return 0.5 * torch.randn_like(p)
    return 1.0 + 0.3 * torch.randn_like(p) if p.dim() == 1 else 0.35 * torch.randn_like(p)


def make(name):
    seed, config = MODELS[name]()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(fill(key, p))
    out = HERE / f"tiny_{name}"
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    golden, loss = {}, 0.0
    for i, (length, temperature) in enumerate(zip(LENGTHS, TEMPERATURES)):
        tokens = torch.randint(0, config.vocab_size, (length,))
        logits = model(tokens[None]).logits[0]
        logp_all = torch.log_softmax(logits[:-1] / temperature, dim=-1)
        logp = logp_all.gather(1, tokens[1:, None])[:, 0]
        entropy = -(logp_all.exp() * logp_all).sum(-1)
        weight, weight_h = torch.randn(length - 1), 0.3 * torch.randn(length - 1)
        loss = loss + (weight * logp).sum() + (weight_h * entropy).sum()
        golden |= {
            f"tokens.{i}": tokens.float(),
            f"logits.{i}": logits.detach(),
            f"logp.{i}": logp.detach(),
            f"entropy.{i}": entropy.detach(),
            f"weight.{i}": weight,
            f"weight_h.{i}": weight_h,
            f"temperature.{i}": torch.tensor([temperature]),
        }
    loss.backward()
    for key, p in model.named_parameters():
        golden[f"grad.{key}"] = p.grad
    save_file({k: v.contiguous() for k, v in golden.items()}, out / "golden.safetensors")
    for file in out.iterdir():
        file.chmod(0o644)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    print(name, {k: tuple(v.shape) for k, v in list(golden.items())[:6]}, f"loss {loss.item():.6f}")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        make(name)
    print(json.dumps({"torch": torch.__version__}))
