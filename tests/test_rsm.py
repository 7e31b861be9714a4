"""The weights of reweighted score matching, and its loss by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from burnish.errors import BurnishError
from burnish.finetune.losses import rsm
from burnish.finetune.losses.rsm import (
    RSMConfig,
    Weighting,
    Weights,
    kl_from_uniform,
    paper_temperature,
    resample,
    weighted_denoising_loss,
)

CPU = torch.device("cpu")


def weighting(weights: str, **kwargs) -> Weighting:
    return Weighting(RSMConfig(weights=weights, **kwargs), CPU)


def random_q(scale=1.0, states=256, draws=16, seed=0) -> torch.Tensor:
    return scale * torch.randn(states, draws, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["kl", "fixed", "constant"])
def test_weights_sum_to_one_and_follow_q(kind):
    q = random_q()
    weights = weighting(kind)(q, 0).weights
    torch.testing.assert_close(weights.sum(1), torch.ones(len(q)))
    if kind == "constant":
        assert torch.equal(weights, torch.full_like(q, 1 / 16))
    else:
        assert torch.equal(weights.argsort(1), q.argsort(1))


@pytest.mark.parametrize("shift", [-100.0, 1e3, -1e5])
@pytest.mark.parametrize("kind", ["kl", "fixed", "constant", "paper"])
def test_a_constant_added_to_q_changes_nothing(kind, shift):
    """Q in 64ths, so that the sum is exact in float32 and the weights must be too."""
    q = (64 * random_q()).round() / 64
    settings = {"temperature": 0.05} if kind == "fixed" else {}
    plain, shifted = weighting(kind, **settings), weighting(kind, **settings)
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if kind == "paper" else {"rtol": 1e-4, "atol": 1e-6}
    for _ in range(3):  # the paper's averages begin at the first
        torch.testing.assert_close(shifted(q + shift, 0).weights, plain(q, 0).weights, **tolerance)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e2, 1e4])
@pytest.mark.parametrize(("draws", "kl_target"), [(2, 0.3), (16, 0.1), (16, 1.0), (16, 2.5), (64, 1.0), (64, 3.0)])
def test_kl_target_is_hit(scale, draws, kl_target):
    q = random_q(scale, draws=draws) - 5 * scale
    weights, temperature = weighting("kl", kl_target=kl_target)(q, 0)
    kl = stats.entropy(weights.double().numpy(), np.full((1, draws), 1 / draws), axis=1).mean()
    assert kl == pytest.approx(kl_target, rel=0.01)
    assert float(kl_from_uniform(q, temperature)) == pytest.approx(kl_target, rel=0.01)


def test_kl_target_is_hit_by_states_of_different_scales():
    q = random_q() * torch.logspace(-2, 2, 256)[:, None]
    assert float(kl_from_uniform(q, weighting("kl", kl_target=1.0)(q, 0).temperature)) == pytest.approx(1.0, rel=0.01)


def test_kl_target_is_hit_beside_one_extreme_state():
    q = random_q()
    q[0] *= 1e5
    assert float(kl_from_uniform(q, weighting("kl", kl_target=1.0)(q, 0).temperature)) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e6])
def test_equal_q_gives_equal_weights(value):
    weights = weighting("kl")(torch.full((4, 8), value), 0).weights
    torch.testing.assert_close(weights, torch.full((4, 8), 1 / 8))


def test_ties_do_not_break_the_kl_target():
    """Two best of eight: KL <= log 4, whatever lambda is."""
    q = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0]]).repeat(4, 1)
    weights = weighting("kl", kl_target=2.0)(q, 0).weights
    torch.testing.assert_close(weights, (q / 2))


@pytest.mark.parametrize("kind", ["kl", "fixed", "paper", "constant"])
def test_no_nan_for_extreme_q(kind):
    q = random_q(1e6)
    for sign in (1, -1):
        weights = weighting(kind)(sign * q.abs(), 0).weights
        assert bool(torch.isfinite(weights).all()) and bool((weights >= 0).all())


def test_effective_sample_size_and_entropy_by_hand():
    # lambda = 1 and Q = log of (1/2, 1/4, 1/4); and all weight on one
    q = torch.tensor([[0.5, 0.25, 0.25]]).log()
    metrics = weighting("fixed")(torch.cat([q, torch.tensor([[200.0, 0, 0]])]), 0).metrics()
    assert float(metrics["ess"]) == pytest.approx((1 / (1 / 4 + 1 / 16 + 1 / 16) + 1) / 2, rel=1e-6)
    assert float(metrics["weight_entropy"]) == pytest.approx((1.5 * math.log(2) + 0) / 2, rel=1e-6)
    assert float(metrics["temperature"]) == 1.0


def test_paper_weights_by_hand():
    ours = weighting("paper")
    assert paper_temperature(0) == pytest.approx(5.0)
    # the first batch: mean 2, standard deviation 1
    first = ours(torch.tensor([[1.0], [3.0]]), 0).weights
    torch.testing.assert_close(first, torch.tensor([[-1 / 5], [1 / 5]]).exp())
    # the second: mean 6, deviation 4, of which a thousandth counts; 8 deviations are clipped to 3
    second = ours(torch.tensor([[10.0], [2.0]]), 0).weights
    low = (2 - 2.004) / 1.003
    torch.testing.assert_close(second, torch.tensor([[3 / 5], [low / 5]]).exp())


@pytest.mark.parametrize("alpha_updates", [1, 50, 100, 200, 232, 300, 400, 1000])
def test_paper_temperature_is_what_adam_does(alpha_updates):
    """Adam (7e-3) on log alpha, every 250 updates, whose gradient is H - target: H of N(0, (0.1 alpha)^2) in d dims."""
    d, log_alpha = 6, torch.tensor(math.log(5.0), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([log_alpha], lr=7e-3)
    for _ in range(alpha_updates):
        entropy = 0.5 * d * torch.log(2 * math.pi * math.e * (0.1 * log_alpha.detach().exp()) ** 2)
        adam.zero_grad()
        (-log_alpha * (-entropy - 0.9 * d)).backward()
        adam.step()
    assert paper_temperature(250 * alpha_updates) == pytest.approx(float(log_alpha.detach().exp()), rel=1e-6)


def test_what_cannot_be_weighed():
    with pytest.raises(BurnishError, match=r"kl_target=2.8 nats: expected less than log\(draws\) = 2.773"):
        RSMConfig(kl_target=2.8).check_number(16, "draws")
    with pytest.raises(BurnishError, match=r"stage.draws=1: expected at least 2"):
        RSMConfig(kl_target=0.1).check_number(1, "draws")
    with pytest.raises(BurnishError, match=r"temperature=0: expected more than 0"):
        RSMConfig(temperature=0)
    RSMConfig(weights="constant", kl_target=2.8).check_number(1, "draws")


def test_weighted_loss_by_hand():
    output = torch.zeros(2, 1, 2, 1)
    target = torch.tensor([1.0, 1, 2, 2, 3, 3, 4, 4]).view(2, 2, 2, 1)
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.25]])
    # ((1 + 4) / 2 + 9 + 16 / 4) / 2
    assert float(weighted_denoising_loss(output, target, weights)) == pytest.approx((2.5 + 13) / 2)


def test_draws_are_drawn_again_by_weight(monkeypatch):
    """Each state by its own weights, which need not sum to one; with replacement."""
    weights = torch.tensor([[0.5, 0.25, 0.0, 0.25], [0.0, 4.0, 4.0, 0.0]])
    drawn = resample(weights, 4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 4000)
    frequencies = torch.stack([row.bincount(minlength=4) / 4000 for row in drawn])
    torch.testing.assert_close(frequencies, weights / weights.sum(1, keepdim=True), atol=0.03, rtol=0)
    # the sum of all may round to less than a number that was drawn
    monkeypatch.setattr(rsm.torch, "rand", lambda shape, **_: torch.full(shape, 1.001))
    assert resample(weights, 1, torch.Generator())[:, 0].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("kind", "gradient_steps", "temperature"),
    [("fixed", 10**6, 0.3), ("paper", 0, 5.0 / 5), ("paper", 10**6, paper_temperature(10**6) / 5)],
)
def test_self_normalised_weights_by_hand(kind, gradient_steps, temperature):
    """exp(Q / lambda) over their sum; the paper's SDAC has 5 Q in place of Q."""
    q = random_q(states=3, draws=4)
    weights, used = weighting(kind, temperature=0.3)(q, gradient_steps)
    e = (q / temperature).exp()
    torch.testing.assert_close(weights, e / e.sum(1, keepdim=True))
    assert float(used) == pytest.approx(temperature)


def test_metrics_of_one_draw_each_are_those_of_the_batch():
    """The paper's weights do not sum to one."""
    metrics = Weights(torch.tensor([[2.0], [1.0], [1.0]]), torch.tensor(0.7)).metrics()
    assert float(metrics["ess"]) == pytest.approx(1 / (1 / 4 + 1 / 16 + 1 / 16))
    assert float(metrics["weight_entropy"]) == pytest.approx(1.5 * math.log(2))
    assert float(metrics["temperature"]) == pytest.approx(0.7)


def test_the_paper_s_averages_are_restored():
    ours, again = weighting("paper"), weighting("paper")
    ours(random_q(scale=3.0, draws=1) + 5, 0)
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(random_q(draws=1, seed=1), 0).weights, ours(random_q(draws=1, seed=1), 0).weights)
