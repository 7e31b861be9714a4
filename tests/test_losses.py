"""GAE, reward scaling and the pieces of the PPO loss against hand computations."""

import math

import numpy as np
import pytest
import torch

from burnish.diffusion import gaussian_log_prob
from burnish.finetune.losses.gae import RewardScaler, gae
from burnish.finetune.losses.ppo import (
    chain_kl,
    chunk_log_prob,
    clip_range,
    clipped_surrogate,
    denoising_discount,
    normalize_advantages,
)


def test_gae_by_hand():
    """Environment 0 terminates after its second chunk, environment 1 is truncated there; gamma 0.5, lambda 0.5."""
    rewards = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    values = torch.tensor([[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]])
    next_values = torch.tensor([[20.0, 20.0], [99.0, 40.0], [50.0, 50.0]])  # 40: V(final observation)
    ended = torch.tensor([[False, False], [True, False], [False, False]])
    cut = torch.tensor([[False, False], [False, True], [False, False]])
    advantages, returns = gae(rewards, values, next_values, ended, cut, gamma=0.5, gae_lambda=0.5)
    # t = 2: 3 + 0.5 * 50 - 30 = -2
    # t = 1, terminated: 2 - 20 = -18; truncated: 2 + 0.5 * 40 - 20 = 2; neither sees t = 2
    # t = 0: 1 + 0.5 * 20 - 10 = 1, plus 0.25 * A_1: 1 - 4.5 = -3.5 and 1 + 0.5 = 1.5
    expected = torch.tensor([[-3.5, 1.5], [-18.0, 2.0], [-2.0, -2.0]])
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + values)


def test_reward_scaler_is_the_std_of_all_returns():
    """Against numpy on the whole history, over several rollouts with episode ends."""
    gamma, rng = 0.9, np.random.default_rng(0)
    scaler = RewardScaler(3, gamma, torch.device("cpu"))
    running, history = np.zeros(3), []
    for _ in range(4):
        rewards, ended = rng.normal(2, 5, (7, 3)), rng.random((7, 3)) < 0.2
        for t in range(7):
            running = running * gamma + rewards[t]
            history.append(running.copy())
            running = running * ~ended[t]
        scaled = scaler(torch.tensor(rewards), torch.tensor(ended))
        np.testing.assert_allclose(scaled.numpy(), rewards / np.std(history), rtol=1e-5)


def test_reward_scaler_leaves_constant_returns():
    scaler = RewardScaler(2, 0.9, torch.device("cpu"))
    zeros = torch.zeros(5, 2)
    assert torch.equal(scaler(zeros, torch.zeros(5, 2, dtype=torch.bool)), zeros)


def test_chunk_log_prob():
    log_prob = torch.tensor([[[-10.0, 1.0], [3.0, -1.0], [7.0, 7.0]]])  # (1, Tp = 3, Da = 2), Ta = 2
    assert float(chunk_log_prob(log_prob, 2)) == pytest.approx((-5 + 1 + 2 - 1) / 4)
    assert float(chunk_log_prob(log_prob, 2, "joint")) == pytest.approx(-10 + 1 + 3 - 1)


def test_denoising_discount_and_clip_range():
    torch.testing.assert_close(denoising_discount(3, 0.9), torch.tensor([0.81, 0.9, 1.0]))
    eps = clip_range(3, 0.01, 0.001, 3.0)
    middle = 0.001 + 0.009 * (math.exp(1.5) - 1) / (math.exp(3) - 1)
    torch.testing.assert_close(eps, torch.tensor([0.001, middle, 0.01]))


def test_one_finetuned_step_has_the_full_clip_range():
    assert clip_range(1, 0.02, 0.001, 3.0).tolist() == pytest.approx([0.02])
    assert denoising_discount(1, 0.9).tolist() == [1.0]


def test_a_clip_range_that_does_not_grow_is_the_full_one():
    assert clip_range(3, 0.02, 0.001, 0.0).tolist() == pytest.approx([0.02] * 3)


def test_advantages_are_normalised_then_clipped():
    advantages = torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0])
    plain = normalize_advantages(advantages)
    assert float(plain.mean()) == pytest.approx(0, abs=1e-6) and float(plain.std()) == pytest.approx(1, rel=1e-5)
    clipped = normalize_advantages(advantages, (0.25, 0.75))
    torch.testing.assert_close(clipped, plain.clamp(plain[1], plain[3]))


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    result = clipped_surrogate(ratio.log(), torch.zeros(4), advantages, torch.full((4,), 0.2))
    # -min(A r, A clip(r)): -1.2, -0.5, 1.5, 0.8
    assert float(result.loss) == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4)
    assert float(result.clip_fraction) == 1.0


@pytest.mark.parametrize("reduction", ["mean", "joint"])
def test_the_divergence_of_a_chunk_is_that_of_its_gaussians(reduction):
    """Of K' = 5 steps with 6 numbers each, whose means move by 0.02 at std 0.2: 5 * 6 * 0.02^2 / (2 * 0.2^2) nats."""
    K_ft, std, shift = 5, 0.2, 0.02
    x = std * torch.randn(200_000, 1, 6, generator=torch.Generator().manual_seed(0))
    log_probs = [gaussian_log_prob(x, torch.full_like(x, mean), torch.tensor(std)) for mean in (0.0, shift)]
    old, new = (chunk_log_prob(elements, 1, reduction) for elements in log_probs)
    assert float(chain_kl(new - old, K_ft, 6, reduction)) == pytest.approx(K_ft * 6 * shift**2 / (2 * std**2), rel=0.05)
