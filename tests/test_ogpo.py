"""OGPO: its first ratio is 1, with an exact critic its gradient is that of PPO over denoising steps, and it resumes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from bandit import (
    DA,
    LITTLE,
    TA,
    TASK,
    E,
    assert_goes_on_bitwise,
    chunk_step,
    demonstrations,
    learns_from,
    make_policy,
    observations,
    play,
    reward_of,
    score,
)
from stopped import assert_same_run, untimed_metrics
from test_offline import bandit_demonstrations, signal_at, two_phases
from test_training import dataset, pretrained  # noqa: F401 - fixtures

from burnish.errors import BurnishError, Stopped
from burnish.finetune import on_policy
from burnish.finetune.algorithms import ogpo
from burnish.finetune.algorithms.dppo import DPPO, DPPOConfig
from burnish.finetune.algorithms.ogpo import OGPO, OGPOConfig
from burnish.finetune.critics import ExpectileCriticConfig
from burnish.finetune.losses.group import centred
from burnish.finetune.stage import Setting
from burnish.finetune.start import finetune
from burnish.finetune.storage.replay import Batch
from burnish.networks import CriticConfig, DenoiserConfig

SMALL = {"hidden_dim": 32, "n_layers": 2}


def make_ogpo(weights=None, policy=None, seed=0, n_envs=E, **kwargs) -> OGPO:
    policy = policy or make_policy()
    if weights is not None:
        policy.load_state_dict(weights)
    settings = {
        **LITTLE,
        "critic_warmup_updates": 60,
        "actor_lr": 1e-3,
        "actor_every": 5,
        "states": 16,
        "group_size": 16,
        "actor_batch_size": 800,
        "ft_denoising_steps": 5,
        "clip_coef": 0.05,
        "clip_coef_base": 0.05,
        "n_step": 1,
        "bc_coef": 0.0,
    }
    return OGPO(policy, OGPOConfig(**(settings | kwargs)), Setting(TASK, n_envs, seed))


def batch_at(obs: torch.Tensor) -> Batch:
    zeros = torch.zeros(len(obs))
    return Batch(obs, torch.zeros(len(obs), TA * DA), zeros, zeros, obs, {}, ())


def watched(monkeypatch, module) -> list[torch.Tensor]:
    """Gradients that `clipped_step` of the module is given, in place of what it does."""
    seen = []

    def step(optimizer, loss, most):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))

    monkeypatch.setattr(module, "clipped_step", step)
    return seen


@pytest.mark.parametrize("log_prob", ["mean", "joint"])
def test_with_an_exact_critic_its_gradient_is_that_of_ppo_over_denoising_steps(
    pretrained_weights, monkeypatch, log_prob
):
    """32 episodes of the bandit from one state, and a group of 32 draws there, whose Q is the reward: of the same
    random numbers the same chains, and one direction, but for the scale of the advantages."""
    G, state = 32, np.full((1, 1, 2), 0.7, np.float32)
    shared = {"ft_denoising_steps": 5, "log_prob": log_prob, "update_epochs": 1, "gamma_denoising": 0.9}
    shared |= {"clip_coef_base": 0.01, "clip_coef": 0.05}
    policy = make_policy()
    policy.load_state_dict(pretrained_weights)
    config = DPPOConfig(n_steps=1, batch_size=G * 5, critic_warmup_iterations=0, reward_scaling=False, **shared)
    theirs = DPPO(policy, config, Setting(TASK, G, 0))
    monkeypatch.setattr(theirs, "update_critic", lambda returns: torch.tensor(0.0))
    obs = state.repeat(G, 0)
    chunk_reward = reward_of(theirs.act(obs), obs)
    theirs.observe(chunk_step(obs, chunk_reward, terminated=True))
    their_gradient = watched(monkeypatch, on_policy)
    theirs.update()

    ours = make_ogpo(pretrained_weights, states=1, group_size=G, actor_batch_size=G * 5, **shared)
    monkeypatch.setattr(ours, "_permutation", torch.arange)
    exact = []

    def values(obs, x):
        exact.append(x.clamp(-1, 1)[..., 0].mean(2) * obs[:, :1].sign())
        return exact[-1]

    monkeypatch.setattr(ours.critic, "values", values)
    our_gradient = watched(monkeypatch, ogpo)
    metrics = ours._improve(batch_at(torch.from_numpy(state[0])))
    np.testing.assert_allclose(exact[0][0].numpy(), chunk_reward, atol=1e-5)  # the same chunks
    a, b = their_gradient[0], our_gradient[0]
    assert float(torch.cosine_similarity(a, b, 0)) > 0.9999 and float(a.norm()) > 1e-4
    # of sample standard deviation there, of the population here
    assert float(b.norm() / a.norm()) == pytest.approx((G / (G - 1)) ** 0.5, rel=1e-3)
    assert float(metrics["first_ratio_error"]) < 1e-5 * (TA * DA if log_prob == "joint" else 1)


def test_advantages_are_centred_in_their_group():
    q = torch.tensor([[1.0, 2.0, 3.0], [10.0, 10.0, 10.0], [0.0, 0.0, 6.0]])
    A = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [-2.0, -2.0, 4.0]])
    torch.testing.assert_close(centred(q, "nothing"), A)
    torch.testing.assert_close(centred(q, "batch"), A / (26 / 9) ** 0.5)
    expected = A / torch.tensor([[(2 / 3) ** 0.5], [1.0], [8**0.5]])
    torch.testing.assert_close(centred(q, "group"), expected)
    assert not centred(torch.ones(2, 3), "batch").any()


@pytest.mark.parametrize(
    ("policy", "settings"),
    [({}, {"log_prob": "joint"}), ({}, {"ft_denoising_steps": 10}), ({}, {"sampler": "ddim", "ddim_steps": 5})]
    + [({"horizon": TA + 2}, {"ft_denoising_steps": 1})],
)
def test_the_first_ratio_is_one_and_is_checked(policy, settings, monkeypatch):
    torch.manual_seed(0)
    stage = make_ogpo(policy=make_policy(**policy), **settings)
    for parameter in stage.actor.parameters():  # it differs from the pretrained one
        torch.nn.init.normal_(parameter, std=0.1)
    obs = torch.randn(40, 2)
    metrics = stage._improve(batch_at(obs))
    assert float(metrics["first_ratio_error"]) <= stage.inner.ratio_tolerance
    assert {"actor_loss", "approx_kl", "clip_fraction", "q_spread"} <= set(metrics)
    monkeypatch.setattr(stage.inner, "logprob_std", 1.5 * stage.inner.logprob_std)
    new = stage.inner.new_log_prob
    monkeypatch.setattr(stage.inner, "new_log_prob", lambda *given: new(*given) + 1e-3)
    with pytest.raises(RuntimeError, match="stage=ogpo: before the update the likelihood ratio differs from 1 by"):
        stage._improve(batch_at(obs))


def test_a_minibatch_is_of_triples_with_their_own_numbers(monkeypatch):
    """The surrogate's log-probabilities, advantages, clip ranges, against each triple written out."""
    torch.manual_seed(0)
    stage = make_ogpo(policy=make_policy(denoiser=DenoiserConfig(**SMALL)), states=3, group_size=4, update_epochs=1)
    stage.inner.discount, stage.inner.eps = torch.linspace(0.5, 1, 5), torch.linspace(0.1, 0.2, 5)
    seen, drawn, surrogate, draw = [], [], ogpo.clipped_surrogate, stage.draw
    monkeypatch.setattr(ogpo, "clipped_surrogate", lambda *given: seen.append(given) or surrogate(*given))
    monkeypatch.setattr(stage, "draw", lambda *given, **how: drawn.append((given, draw(*given, **how))) or drawn[-1][1])
    monkeypatch.setattr(stage, "_permutation", lambda n: torch.arange(n).flip(0))
    stage._improve(batch_at(torch.randn(6, 2)))
    ((obs, G), (x, chain)), (new, old, advantages, eps) = drawn[0], seen[0]
    assert G == 4 and chain.x.shape == (3, 6, 4, TA, DA)
    A = centred(stage.critic.values(obs, x).detach(), "batch")
    triples = [(b, i, g) for b in range(3) for i in range(5) for g in range(4)][::-1]
    std = stage.inner.sampler.std.clamp(min=0.05)[-5:]
    for n, (b, i, g) in enumerate(triples):
        normal = torch.distributions.Normal(chain.mean[b, i, g], std[i])
        expected = normal.log_prob(chain.x[b, i + 1, g]).clamp(-5, 2).mean()
        torch.testing.assert_close(old[n], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(new[n].detach(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(advantages[n], A[b, g] * stage.inner.discount[i])
        assert eps[n] == stage.inner.eps[i]


def test_what_is_cloned_are_demonstrations_and_own_successes(pretrained_weights, monkeypatch):
    learns_from(monkeypatch, demonstrations)
    ratios = {"demo_ratio": 0.25, "success_ratio": 0.125, "bc_coef": 0.5}
    stage, rng = make_ogpo(pretrained_weights, demos="demos.hdf5", **ratios), np.random.default_rng(0)
    play(stage, rng, 2, learn=False)
    batch = stage._batch()
    assert stage._imitated(batch).tolist() == list(range(32))  # there is no success yet
    obs = observations(rng)
    stage.act(obs)
    won = np.arange(E) == 3
    stage.observe(chunk_step(obs, 1.0, terminated=True)._replace(success=won))
    batch = stage._batch()
    rows = stage._imitated(batch)
    assert rows.tolist() == [*range(32), *range(112, 128)]
    assert bool((batch.obs[rows[:32]] == 9).all()) and bool((batch.obs[rows[32:]] == torch.from_numpy(obs[3, 0])).all())
    assert stage._imitated(stage.demos.sample(7, stage.generator)).tolist() == list(range(7))  # offline
    stage.generator.manual_seed(3)
    loss = stage._bc_loss(batch, rows)
    clone = make_policy()
    clone.load_state_dict(pretrained_weights)
    output, target = clone.denoise_noised(
        clone.denoiser, batch.obs[rows], batch.chunk[rows].view(48, 1, TA, DA), torch.Generator().manual_seed(3), 5
    )
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(output, target))
    plain, cloning = [], []
    for coef, losses in ((0.0, plain), (0.5, cloning)):
        stage.config = OGPOConfig(**{**vars(stage.config), "bc_coef": coef, "update_epochs": 1})
        state = copy.deepcopy(stage.state_dict())
        monkeypatch.setattr(ogpo, "clipped_step", lambda o, loss, most, losses=losses: losses.append(loss.detach()))
        monkeypatch.setattr(stage, "_bc_loss", lambda batch, rows: torch.tensor(2.0))
        stage._improve(batch)
        stage.load_state_dict(state)
    torch.testing.assert_close(torch.stack(cloning) - torch.stack(plain), torch.ones(len(plain)))


@pytest.mark.parametrize("kind", ["q", "expectile"])
def test_a_bandit_is_learned(pretrained_weights, kind):
    critic = {"q": CriticConfig, "expectile": ExpectileCriticConfig}[kind](hidden_dim=64, n_layers=2)
    stage = make_ogpo(pretrained_weights, critic=critic)
    pretrained_net = copy.deepcopy(stage.policy.denoiser.state_dict())
    assert abs(score(stage.policy)) < 0.05
    metrics = play(stage, np.random.default_rng(0), 36)
    assert score(stage.policy) > 0.15
    assert max(each.get("first_ratio_error", 0.0) for each in metrics) < 1e-5
    for name, each in stage.policy.denoiser.state_dict().items():
        assert torch.equal(each, pretrained_net[name])


def test_a_bandit_is_learned_from_demonstrations_alone(pretrained_weights, monkeypatch):
    learns_from(monkeypatch, bandit_demonstrations)
    stage = make_ogpo(pretrained_weights, demos="demos.hdf5", demo_ratio=0.5)
    for _ in range(4):
        stage.update_offline(75)
    assert score(stage.policy) > 0.1


def test_rounds_come_every_so_many_steps_and_explore_with_noise(pretrained_weights, monkeypatch):
    stage = make_ogpo(pretrained_weights, critic_warmup_updates=4, actor_every=3)
    play(stage, np.random.default_rng(0), 2, learn=False)
    rounds = []
    monkeypatch.setattr(stage, "_improve", lambda batch: rounds.append(stage.gradient_steps) or {})
    for _ in range(12):
        stage._gradient_step()
    assert rounds == [6, 9]
    x = stage.draw(torch.zeros(1, 2), 4000)[0]
    noise = torch.randn(11, 1, 1, TA, DA).expand(-1, 1, 4000, -1, -1).clone()
    noise[-1] = torch.randn_like(noise[-1])
    last = stage.inner.sample(torch.zeros(1, 2), noise)[0]
    assert float(last.detach().std(1).mean()) == pytest.approx(0.05, rel=0.05) and float(x.detach().std()) > 0.2


def test_a_long_step_of_the_policy_ends_a_round(pretrained_weights):
    stage = make_ogpo(pretrained_weights, target_kl=1e-9, update_epochs=5, actor_batch_size=10_000, actor_lr=1e-2)
    stage._improve(batch_at(torch.randn(40, 2)))
    (steps,) = {int(state["step"]) for state in stage.actor_optimizer.state.values()}
    assert steps == 2  # the first ratio of an update is 1, and so no divergence


def test_a_restored_stage_goes_on_bitwise(pretrained_weights):
    settings = {"critic_warmup_updates": 10, "update_every": 2, "success_ratio": 0.2, "bc_coef": 0.3}
    assert_goes_on_bitwise(make_ogpo(pretrained_weights, **settings), make_ogpo(seed=4, **settings))


def test_user_mistakes(pretrained_weights):
    for settings, message in (
        ({"min_sampling_denoising_std": 0.01}, "min_sampling_denoising_std=0.01 is less than min_logprob"),
        ({"states": 300}, "states=300: expected at most batch_size=256"),
        ({"success_ratio": 0.0}, "bc_coef=0.1: expected 0, or a demo_ratio or success_ratio to clone from"),
        ({"group_size": 1}, "group_size=1: expected at least 2"),
    ):
        with pytest.raises(BurnishError, match=message):
            OGPOConfig(**settings)
    with pytest.raises(BurnishError, match=r"ft_denoising_steps=11 \(K'\): expected 1 to 10"):
        make_ogpo(ft_denoising_steps=11)
    stage = make_ogpo(pretrained_weights)
    assert make_ogpo(policy=stage.policy).actor is stage.actor
    with pytest.raises(BurnishError, match=r"stage.ft_denoising_steps=4, but the policy was fine-tuned with 5 before"):
        make_ogpo(policy=stage.policy, ft_denoising_steps=4)
    with pytest.raises(BurnishError, match=r"stage.sampler=inherit: the policy acts with sampler=diffusers:"):
        make_ogpo(policy=make_policy(sampler="diffusers:DPMSolverMultistepScheduler", sampler_steps=5))


def test_a_run_stopped_in_either_phase_goes_on_bitwise(dataset, pretrained, tmp_path, monkeypatch):  # noqa: F811
    few = {"batch_size": 32, "learning_starts": 200, "update_every": 5, "critic_warmup_updates": 6, "actor_every": 3}
    rounds = {"states": 4, "group_size": 4, "actor_batch_size": 100, "demo_ratio": 0.25, "ft_denoising_steps": 5}
    stage = OGPOConfig(demos=str(dataset), critic=CriticConfig(**SMALL), **few, **rounds)
    settings = {"total_env_steps": 400}
    finetune(two_phases(tmp_path / "whole", pretrained, stage, **settings))
    for method, n in (("update_offline", 2), ("update", 2)):
        run = tmp_path / method
        with monkeypatch.context() as patch:
            signal_at(patch, OGPO, method, n)
            with pytest.raises(Stopped, match="go on with: burnish finetune resume="):
                finetune(two_phases(run, pretrained, stage, **settings))
        torch.manual_seed(99)
        finetune(two_phases(run, pretrained, stage, **settings, resume=str(run)))
        assert_same_run(run, tmp_path / "whole")
    lines = untimed_metrics(tmp_path / "whole")
    assert all(line["first_ratio_error"] < 1e-5 for line in lines if "first_ratio_error" in line)
    assert any("actor_loss" in line for line in lines)
