"""Our transitions, log-probabilities and PPO loss against numbers of DPPO's own code.

The files hold a stub network's weights and what the authors' code made of them; see their README. Every
`dppo_*.npz` in $BURNISH_PARITY_DIR (default: ../shared/data/parity) is tried.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.diffusion import NoiseProcess, Sampler, StdBounds, betas, gaussian_log_prob
from burnish.finetune.ppo_loss import (
    chunk_log_prob,
    clip_range,
    clipped_surrogate,
    denoising_discount,
    normalize_advantages,
)

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("BURNISH_PARITY_DIR", ROOT.parent / "shared" / "data" / "parity"))
FILES = sorted(FOLDER.glob("dppo_*.npz"))
WEIGHTS = ("Wx", "Ws", "v", "b")

pytestmark = pytest.mark.skipif(not FILES, reason=f"no dppo_*.npz in {FOLDER} (set BURNISH_PARITY_DIR)")


class Case:
    """One file: its numbers as tensors, the sampler it describes, and the stub network."""

    def __init__(self, path: Path):
        with np.load(path, allow_pickle=False) as file:
            self.data = {
                key: torch.from_numpy(np.atleast_1d(file[key])) for key in file.files if file[key].dtype.kind in "fi"
            }
        ddim_steps = int(self["ddim_steps"])
        self.sampler = Sampler(
            NoiseProcess(betas("cosine", int(self["K"]))),
            "ddim" if ddim_steps > 0 else "ddpm",
            ddim_steps=ddim_steps,
            eta=float(self["eta"]),
        )
        self.n_finetuned, self.Ta = int(self["K_ft"]), int(self["Ta"])
        self.first_finetuned = len(self.sampler) - self.n_finetuned

    def __getitem__(self, key):
        return self.data[key]

    def weights(self, which):
        return {name: self[f"{which}_{name}"].clone() for name in WEIGHTS}

    def eps(self, weights, x, t):
        """eps(x, t, s) = tanh(flat(x) @ Wx + flat(s) @ Ws + t v + b); t (B,)"""
        s = self["obs"].flatten(1)
        flat = x.flatten(1) @ weights["Wx"] + s @ weights["Ws"] + t[:, None] * weights["v"] + weights["b"]
        return torch.tanh(flat).view_as(x)

    def mean(self, weights, x, i):
        t = self.sampler.timesteps[i].float().expand(len(x))
        return self.sampler.mean(self.eps(weights, x, t), x, torch.full((len(x),), i))

    def log_probs(self, weights):
        """Element-wise, of the stored chain (B, K', Tp, Da)."""
        std = self.sampler.bounded_std(StdBounds(floor=float(self["std_floor_logprob"])))
        chain = self["chain"]
        steps = []
        for j in range(self.n_finetuned):
            i = self.first_finetuned + j
            steps.append(gaussian_log_prob(chain[:, j + 1], self.mean(weights, chain[:, j], i), std[i]))
        return torch.stack(steps, dim=1)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request):
    return Case(request.param)


def test_transitions(case):
    assert case.sampler.timesteps.tolist() == case["timesteps"].tolist()
    for i in range(len(case.sampler)):
        which = "base" if i < case.first_finetuned else "ft"
        mean = case.mean(case.weights(which), case["x_in"][i], i)
        torch.testing.assert_close(mean, case["mean"][i], atol=1e-5, rtol=1e-5)
        std = case.sampler.std[i].expand_as(case["std"][i])
        torch.testing.assert_close(std, case["std"][i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("which", "key"), [("ft", "logprob_old"), ("moved", "logprob_moved")])
def test_log_probabilities(case, which, key):
    torch.testing.assert_close(case.log_probs(case.weights(which)), case[key], atol=1e-3, rtol=1e-5)


def test_ppo_loss_and_gradient(case):
    K = case.n_finetuned
    moved = {name: weight.requires_grad_() for name, weight in case.weights("moved").items()}
    log_prob = chunk_log_prob(case.log_probs(moved), case.Ta)  # (B, K')
    old_log_prob = chunk_log_prob(case["logprob_old"], case.Ta)
    low, high = case["adv_quantiles"].tolist()
    advantages = normalize_advantages(case["advantages"], (low, high))[:, None]  # (B, 1)
    advantages = advantages * denoising_discount(K, float(case["gamma_denoising"]))  # (B, K')
    eps = clip_range(K, *(float(case[f"clip_coef{suffix}"]) for suffix in ("", "_base", "_rate")))
    result = clipped_surrogate(
        log_prob.flatten(), old_log_prob.flatten(), advantages.flatten(), eps.expand_as(log_prob).flatten()
    )
    for ours, key in (
        (result.loss.detach(), "pg_loss"),
        (result.clip_fraction, "clip_fraction"),
        (result.ratio.mean(), "ratio_mean"),
    ):
        assert float(ours) == pytest.approx(float(case[key]), rel=1e-4)
    assert float(result.approx_kl) == pytest.approx(float(case["approx_kl"]), rel=1e-2, abs=1e-7)
    result.loss.backward()
    for name in WEIGHTS:
        theirs = case[f"grad_{name}"]
        difference = (moved[name].grad - theirs).norm() / theirs.norm()
        assert difference < 1e-4, f"gradient of {name}: relative difference {difference:.2e}"


def test_value_loss(case):
    value = (case["obs"].flatten(1) @ case["critic_w"]).squeeze(-1)
    assert float(0.5 * (value - case["returns"]).square().mean()) == pytest.approx(float(case["v_loss"]), rel=1e-4)
