"""Golden numbers for the losses and advantages of cohort-learner, by PyTorch's autograd in f64.

Written from the papers' formulas with whole-batch tensor operations, so that nothing is shared with the Rust code:
    python learner/tests/golden/make_losses.py > learner/tests/golden/losses.json
Any PyTorch of 2.0 or newer gives the same file to the last 1e-12.
"""
import json
import torch

torch.set_default_dtype(torch.float64)
gen = torch.Generator().manual_seed(20240203)


def draw(*shape):
    return torch.rand(*shape, generator=gen)


def make_inputs(lengths, drift):
    """Ragged sequences as a padded batch: [S, T] with a mask."""
    s, t = len(lengths), max(lengths)
    valid = torch.arange(t)[None, :] < torch.tensor(lengths)[:, None]
    old = -3.0 * draw(s, t) - 0.01
    new = torch.minimum(old + drift * (draw(s, t) - 0.5), torch.tensor(-1e-3))
    ref = torch.minimum(old + 0.6 * (draw(s, t) - 0.5), torch.tensor(-1e-3))
    entropy = 2.0 * draw(s, t)
    mask = valid & (draw(s, t) < 0.8)
    adv = 2.0 * draw(s) - 1.0
    adv[1] = 0.0
    return dict(valid=valid, mask=mask, old=old, new=new, ref=ref, entropy=entropy, adv=adv)


def factor(x, correction):
    """Bounded ratio of the proximal policy (`old`) to the one that sampled."""
    if correction is None:
        return torch.ones_like(x["old"])
    ratio = torch.exp(x["old"] - x["sampled"])
    low, high = correction["min"], correction["max"]
    if correction["type"] == "tis":
        return torch.clamp(ratio, low, high)
    return torch.where((ratio < low) | (ratio > high), torch.zeros_like(ratio), ratio)


def loss_of(x, new, entropy, kind, low, high, beta, ent, aggregation, l_max, totals, correction):
    mask = x["mask"].to(torch.float64)
    sequences, tokens = totals
    if kind == "sft":
        return -(new * mask).sum() / tokens
    ratio = torch.exp(new - x["old"])
    adv = x["adv"][:, None]
    surrogate = torch.minimum(ratio * adv, torch.clamp(ratio, 1 - low, 1 + high) * adv)
    d = x["ref"] - new
    k3 = torch.exp(d) - d - 1
    per_token = factor(x, correction) * (-surrogate + beta * ratio.detach() * k3) - ent * entropy
    lengths = mask.sum(1, keepdim=True)
    if aggregation == "sequence_mean":
        weight = torch.where(lengths > 0, 1 / (sequences * lengths.clamp(min=1)), torch.zeros_like(lengths))
    elif aggregation == "token_mean":
        weight = torch.full_like(lengths, 1 / tokens)
    else:
        weight = torch.full_like(lengths, 1 / (sequences * l_max))
    return (per_token * mask * weight).sum()


def flat(x, tensor):
    return [tensor[i][x["valid"][i]].tolist() for i in range(tensor.shape[0])]


def case(name, lengths, drift, kind, low=0.2, high=0.2, beta=0.0, ent=0.0, aggregation="sequence_mean", l_max=None, extra=(0, 0), correction=None):
    x = make_inputs(lengths, drift)
    if correction is not None:
        x["sampled"] = torch.minimum(x["old"] + 3.0 * (draw(*x["old"].shape) - 0.5), torch.tensor(-1e-3))
    if kind == "dr_grpo":
        aggregation = "constant"
    totals = (len(lengths) + extra[0], int(x["mask"].sum()) + extra[1])
    new = x["new"].clone().requires_grad_(True)
    entropy = x["entropy"].clone().requires_grad_(True)
    loss = loss_of(x, new, entropy, kind, low, high, beta, ent, aggregation, l_max, totals, correction)
    loss.backward()
    d_entropy = None if entropy.grad is None or ent == 0.0 else flat(x, entropy.grad)
    config = {"type": kind}
    if kind == "grpo":
        config |= {"clip_low": low, "clip_high": high, "beta": beta, "entropy_coef": ent, "aggregation": aggregation}
        if l_max is not None:
            config["max_completion_length"] = l_max
    if kind == "dr_grpo":
        config |= {"clip_low": low, "clip_high": high, "beta": beta, "max_completion_length": l_max}
    return {
        "name": name, "config": config, "correction": correction or {"type": "none"}, "totals": totals,
        "logp": flat(x, x["new"]), "logp_old": flat(x, x["old"]), "logp_sampled": flat(x, x.get("sampled", x["old"])),
        "logp_ref": flat(x, x["ref"]), "entropy": flat(x, x["entropy"]),
        "mask": flat(x, x["mask"]), "advantages": x["adv"].tolist(),
        "loss": loss.item(), "d_logp": flat(x, new.grad), "d_entropy": d_entropy,
    }


def advantage_case(rewards):
    r = torch.tensor(rewards)
    g = len(rewards)
    return {
        "rewards": rewards,
        "grpo": ((r - r.mean()) / (r.std(unbiased=False) + 1e-4)).tolist(),
        "grpo_bessel": ((r - r.mean()) / (r.std(unbiased=True) + 1e-4)).tolist(),
        "grpo_no_std": (r - r.mean()).tolist(),
        "rloo": [(r[i] - torch.cat([r[:i], r[i + 1:]]).mean()).item() for i in range(g)],
    }


print(json.dumps({
    "losses": [
        case("on-policy", [5, 3, 7, 1], 0.0, "grpo"),
        case("off-policy", [5, 3, 7, 4], 1.5, "grpo"),
        case("asymmetric clip, token mean", [6, 2, 9, 4], 1.5, "grpo", low=0.2, high=0.28, aggregation="token_mean"),
        case("kl", [6, 2, 5], 1.0, "grpo", beta=0.04),
        case("entropy bonus", [3, 4, 5], 1.0, "grpo", ent=0.01),
        case("constant with kl, a part of a larger step", [3, 8, 2], 1.2, "grpo", beta=0.1, aggregation="constant", l_max=16, extra=(5, 40)),
        case("dr grpo", [5, 2, 8], 1.5, "dr_grpo", l_max=12),
        case("dr grpo with kl", [5, 2, 8], 1.5, "dr_grpo", low=0.1, high=0.3, beta=0.02, l_max=12),
        case("sft", [4, 6, 3], 1.0, "sft"),
        case("sft, a part of a larger step", [4, 6, 3], 1.0, "sft", extra=(2, 11)),
        case("tis", [5, 3, 7, 4], 1.5, "grpo", correction={"type": "tis", "min": 0.0, "max": 2.0}),
        case("tis from both sides, kl, entropy", [6, 2, 9], 1.2, "grpo", beta=0.04, ent=0.01,
             correction={"type": "tis", "min": 0.7, "max": 1.3}),
        case("mis", [5, 3, 7, 4], 1.5, "grpo", aggregation="token_mean", correction={"type": "mis", "min": 0.5, "max": 5.0}),
        case("dr grpo, mis, kl", [5, 2, 8], 1.5, "dr_grpo", beta=0.02, l_max=12,
             correction={"type": "mis", "min": 0.8, "max": 1.5}),
    ],
    "advantages": [
        advantage_case([1.0, 0.0, 0.0, 1.0, 1.0]),
        advantage_case([0.25, -3.5, 2.0, 0.125, 7.0, 7.0]),
        advantage_case([0.0, 1.0]),
    ],
}, indent=None, separators=(",", ":")))
