"""DACER: the chain's gradient, the measured entropy and what follows from it, Gaussian mixtures, what it refuses."""

import math

import numpy as np
import pytest
import torch
from bandit import DA, TA, assert_resumes_bitwise, make_policy, make_stage, play, score
from scipy import stats

from burnish.errors import BurnishError
from burnish.finetune.algorithms.dacer import DACERConfig
from burnish.finetune.losses.mixture import LEAST_VARIANCE, fit_mixture, mixture_entropy

FEW = {"initial_alpha": 1.0, "entropy_every": 50, "entropy_draws": 50}


def test_a_bandit_is_learned(pretrained_weights):
    stage = make_stage("dacer", pretrained_weights, batch_size=64, critic_warmup_updates=50, **FEW)
    play(stage, np.random.default_rng(0), 25)
    assert score(stage.policy) > 0.5


def test_resumes_bitwise(pretrained_weights):
    assert_resumes_bitwise("dacer", pretrained_weights, initial_alpha=1.0, entropy_every=4, entropy_draws=20)


def test_the_slope_of_q_goes_back_through_the_whole_chain(pretrained_weights, monkeypatch):
    """Against differences of the loss, with the same noise, and the critic gets none of it."""
    stage = make_stage("dacer", pretrained_weights, batch_size=8, **FEW)
    play(stage, np.random.default_rng(0), 2, learn=False)
    stage.gradient_steps, batch = 2, stage._batch()
    stage.actor.double(), stage.critic.network.double()
    state, draw_noise = stage.generator.get_state(), stage.policy.draw_noise
    monkeypatch.setattr(stage.policy, "draw_noise", lambda *shape, **given: draw_noise(*shape, **given).double())

    def loss():
        stage.generator.set_state(state)
        return stage.actor_loss(batch._replace(obs=batch.obs.double()))[0]

    weight = stage.actor.trunk[1].weight
    (gradient,) = torch.autograd.grad(loss(), weight)
    direction, h = torch.randn_like(weight), 1e-6
    with torch.no_grad():
        weight.add_(h * direction)
        above = loss()
        weight.sub_(2 * h * direction)
        below = loss()
    assert float((gradient * direction).sum()) == pytest.approx(float(above - below) / (2 * h), rel=1e-3)


def test_the_critic_gets_no_gradient_of_the_actors_loss(pretrained_weights):
    stage = make_stage("dacer", pretrained_weights, batch_size=8, critic_warmup_updates=0, **FEW)
    play(stage, np.random.default_rng(0), 2, learn=False)
    stage.update_actor(stage._batch())
    assert all(p.grad is None for p in stage.critic.network.parameters())
    assert all(p.grad is not None for p in stage.actor.parameters())


def test_alpha_follows_the_entropy(pretrained_weights):
    """Too wide: the noise falls; too narrow: it grows; by alpha_lr at first, in log alpha."""
    for target, sign in ((-5.0, -1), (5.0, 1)):
        settings = FEW | {"initial_alpha": 2.0, "target_entropy": target, "alpha_lr": 0.1, "entropy_every": 4}
        stage = make_stage("dacer", pretrained_weights, critic_warmup_updates=0, **settings)
        play(stage, np.random.default_rng(0), 2, learn=False)
        assert stage.noise_scale == pytest.approx(2.0)
        assert "entropy" in stage._gradient_step()
        assert stage.noise_scale == pytest.approx(2.0 * math.exp(sign * 0.1), rel=1e-3)
        for _ in range(3):
            assert "entropy" not in stage._gradient_step()
        assert stage.gradient_steps == 4 and "entropy" in stage._gradient_step()


def test_alpha_s_noise_is_on_every_action(pretrained_weights):
    stage = make_stage("dacer", pretrained_weights, exploration_noise=0.05, **(FEW | {"initial_alpha": 4.0}))
    x, obs = torch.zeros(3000, 1, TA, DA), torch.zeros(3000, 2)
    stage.draw = lambda obs, n, network: x.requires_grad_(network is stage.actor)
    seen = {}
    stage.critic.values = lambda obs, x: seen.setdefault("actor", x).sum((2, 3))
    stage.gradient_steps = 2
    stage.actor_loss(type("Batch", (), {"obs": obs}))
    stage.act(obs[:, None].numpy())
    for each in (stage.target_chunks(obs), seen["actor"], stage.pending[1]):
        assert float(each.detach().std()) == pytest.approx(0.2, rel=0.05)


# -- the entropy ------------------------------------------------------------------------------------------------------


def on_the_bounds(stage, n=200):
    """A policy of one action dimension all of whose actions are far beyond a bound, InvertedPendulum's case."""
    stage.draw = lambda obs, n, network: torch.full((len(obs), n, TA, DA), 3.0)
    return stage.entropy(torch.zeros(4, 2))


def test_actions_on_a_bound_have_an_entropy_all_the_same(pretrained_weights):
    """That of the noise, of std 0.1: as released the clipped actions are one point, of entropy minus infinity but for
    what keeps covariances regular, and alpha grows without end."""
    d = TA * DA
    own = on_the_bounds(make_stage("dacer", pretrained_weights, **(FEW | {"entropy_draws": 2000})))
    assert float(own) == pytest.approx(d * stats.norm(0, 0.1).entropy(), abs=1.2)  # a bound: H(w) of three is too much
    released = on_the_bounds(make_stage("dacer", pretrained_weights, entropy_of="executed", **FEW))
    assert float(released) < d * stats.norm(0, math.sqrt(2 * LEAST_VARIANCE)).entropy() + math.log(3)


@pytest.mark.parametrize("d", [1, 3])
def test_a_normal_distribution_s_entropy(d):
    """One component gives its closed form; more of them a bound above it."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 4000, d, generator=generator, dtype=torch.float64) @ root.T
    exact = stats.multivariate_normal(np.zeros(d), root @ root.T).entropy()
    fitted = fit_mixture(x, 1, generator, 2)
    np.testing.assert_allclose(mixture_entropy(fitted.weights, fitted.covariances), exact, atol=0.06)
    fitted = fit_mixture(x, 3, generator)
    entropies = mixture_entropy(fitted.weights, fitted.covariances)
    assert bool((entropies > exact - 0.06).all()) and bool((entropies < exact + math.log(3) + 0.06).all())


def test_a_mixture_is_found():
    """Three clusters far apart: weights, means and covariances, and an entropy that is then exact."""
    generator = torch.Generator().manual_seed(0)
    centres, stds = torch.tensor([[-5.0, 0.0], [0.0, 5.0], [5.0, 0.0]]), torch.tensor([0.1, 0.3, 0.5])
    counts = (800, 400, 400)
    parts = [c + s * torch.randn(n, 2, generator=generator) for c, s, n in zip(centres, stds, counts)]
    x = torch.cat(parts)[None].expand(12, -1, -1)  # it begins at random points: some of the fits find all three
    found = fit_mixture(x, 3, generator, 60)
    order = found.means[..., 0].argsort(1)
    weights = found.weights.gather(1, order)
    close = (weights - torch.tensor([0.5, 0.25, 0.25])).abs().amax(1) < 0.02
    assert int(close.sum()) >= 3
    i = int(close.nonzero()[0])
    torch.testing.assert_close(found.means[i, order[i]], centres.double(), atol=0.05, rtol=0)
    variances = found.covariances[i, order[i]].diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(variances, stds.double().square()[:, None].expand(-1, 2), rtol=0.2, atol=0)
    exact = sum(w * (2 * stats.norm(0, s).entropy() - math.log(w)) for w, s in zip((0.5, 0.25, 0.25), stds.tolist()))
    ours = mixture_entropy(found.weights[i : i + 1], found.covariances[i : i + 1])
    assert float(ours) == pytest.approx(exact, abs=0.05)


def test_points_that_are_all_the_same_have_a_mixture():
    found = fit_mixture(torch.ones(2, 20, 3), 3, torch.Generator().manual_seed(0))
    assert all(bool(torch.isfinite(each).all()) for each in found)
    assert float(found.covariances.diagonal(dim1=-2, dim2=-1).max()) == pytest.approx(LEAST_VARIANCE, rel=1e-6)


# -- what it cannot train ----------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused():
    with pytest.raises(BurnishError, match=r"stage.entropy_draws=14: expected at least 15"):
        make_stage("dacer", entropy_draws=14)  # 3 (4 + 1)
    with pytest.raises(BurnishError, match=r"stage.noise_annealing=true: expected false"):
        DACERConfig(demos=None, demo_ratio=0.0, noise_annealing=True)
    policy = make_policy(sampler="diffusers:DDIMScheduler", sampler_steps=5)
    with pytest.raises(BurnishError, match=r"stage=dacer learns through the policy's own chain, but sampler="):
        make_stage("dacer", policy=policy)
