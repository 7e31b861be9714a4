"""Residual: an edit of zero is the base, an edit is bounded, the best of both is taken, the loss is what it says."""

from __future__ import annotations

import copy
import json

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
    demonstrations,
    learns_from,
    make_policy,
    observations,
    play,
    score,
)
from stopped import assert_same_run, untimed_metrics
from test_offline import signal_at, two_phases
from test_training import dataset, pretrained  # noqa: F401 - fixtures

from burnish.commands.policy import set_policy
from burnish.errors import BurnishError, Stopped
from burnish.evaluation.evaluate import evaluate
from burnish.finetune.algorithms.residual import Residual, ResidualConfig
from burnish.finetune.stage import Setting
from burnish.finetune.start import finetune
from burnish.finetune.storage.replay import Transitions
from burnish.networks import CriticConfig
from burnish.networks.squashed import SquashedConfig
from burnish.policies.edited import EditedConfig, EditedPolicy
from burnish.policies.load import load_policy
from burnish.runs.evaluation_file import BEFORE, EvaluationFile

SMALL = {"hidden_dim": 32, "n_layers": 2}


def make_residual(weights=None, policy=None, seed=0, has_base=True, **kwargs) -> Residual:
    policy = policy or make_policy()
    if weights is not None:
        policy.load_state_dict(weights)
    settings = {
        **LITTLE,
        "actor": SquashedConfig(**SMALL),
        "critic_warmup_updates": 60,
        "actor_lr": 3e-3,
        "demo_ratio": 0.0,
        "n_step": 1,
    }
    return Residual(policy, ResidualConfig(**(settings | kwargs)), Setting(TASK, E, seed, has_base))


def residual(base=None, moved=True, critic=True, **own) -> EditedPolicy:
    torch.manual_seed(3)
    base = base or make_policy(horizon=TA + 1)
    made = EditedConfig.around(base, actor=SquashedConfig(**SMALL), **own)
    policy = EditedPolicy(made, base).eval().requires_grad_(False)
    if moved:
        torch.nn.init.normal_(policy.actor.out.weight, std=0.5)
    if critic:
        policy.add_critic(CriticConfig(**SMALL)).requires_grad_(False)
    return policy


# -- the policy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executes", ["best", "edited"])
@pytest.mark.parametrize("per_step", [False, True])
def test_an_edit_of_zero_is_the_base_bit_for_bit(executes, per_step):
    policy = residual(moved=False, executes=executes, per_step=per_step)
    obs, n = observations(np.random.default_rng(0), 9), len(policy.base.sampler)
    noise = torch.randn(n + 1, 9, TA + 1, DA)
    assert policy.noise_shape() == policy.base.noise_shape() == (n + 1, TA + 1, DA)
    expected = policy.base.act(obs, noise=noise)
    np.testing.assert_array_equal(policy.act(obs, noise=noise), expected)
    torch.nn.init.normal_(policy.actor.out.weight)
    changed = (policy.act(obs, noise=noise) != expected).any((1, 2)).mean()
    assert changed == 1 if executes == "edited" else 0 < changed < 1  # where Q of the edit is larger


@pytest.mark.parametrize("per_step", [False, True])
def test_an_edit_is_bounded_and_of_the_executed_steps_alone(per_step):
    policy, obs, x = residual(scale=0.2, per_step=per_step), torch.randn(40, 2), torch.randn(40, 3, TA + 1, DA)
    z = 5 * torch.randn(40, 3, TA, DA)
    edited, e, log_prob = policy.edit(obs, x, z)
    torch.testing.assert_close(edited[..., :TA, :], x[..., :TA, :] + 0.2 * e.view(40, 3, TA, DA))
    assert torch.equal(edited[..., TA:, :], x[..., TA:, :]) and 0.9 < float(e.abs().max()) <= 1
    assert e.shape == (40, 3, TA * DA) and log_prob.shape == (40, 3)
    mean, log_std = policy._network(obs, x[..., :TA, :].clamp(-1, 1))
    torch.testing.assert_close(e, (mean + log_std.exp() * z.flatten(2)).tanh())
    policy.actor.out.weight.mul_(0.1)  # whose tanh is not rounded to 1
    mean, log_std = (each.double() for each in policy._network(obs, x[..., :TA, :].clamp(-1, 1)))
    normal = torch.distributions.Normal(mean, log_std.exp())
    of_tanh = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    _, e, log_prob = policy.edit(obs, x, torch.randn(40, 3, TA, DA).clamp(-2, 2))
    torch.testing.assert_close(log_prob.double(), of_tanh.log_prob(e.double()).sum(-1), rtol=1e-3, atol=1e-3)


def test_each_step_for_itself_or_the_chunk_as_a_whole():
    obs, x = torch.randn(7, 2), 0.5 * torch.randn(7, 1, TA + 1, DA).clamp(-1, 1)
    other = x.clone()
    other[..., 1, :] += 0.3
    for per_step in (True, False):
        policy = residual(per_step=per_step)
        ours, theirs = (policy.edit(obs, each).e.view(7, TA, DA) for each in (x, other))
        assert torch.equal(ours[:, 0], theirs[:, 0]) == per_step and not torch.equal(ours[:, 1], theirs[:, 1])
    same = x.clone()
    same[..., 1, :] = same[..., 0, :]
    of_same = residual(per_step=True).edit(obs, same).e.view(7, TA, DA)
    assert not torch.allclose(of_same[:, 0], of_same[:, 1])  # it is told which step it is


@pytest.mark.parametrize(("executes", "n"), [("best", 1), ("best", 4), ("edited", 4), ("edited", 1)])
def test_the_best_of_chunks_and_their_edits_is_executed(monkeypatch, executes, n):
    policy, obs = residual(executes=executes), torch.randn(60, 2)
    monkeypatch.setattr(policy.critic, "forward", lambda obs, x: x.sum(-1)[None])
    noise = torch.randn(len(policy.base.sampler) + 1, 60, *([n] if n > 1 else []), TA + 1, DA)
    x = policy.base.sample(obs, noise)[0].view(60, n, TA + 1, DA)
    edited = policy.edit(obs, x).x
    options = torch.cat([x, edited], 1) if executes == "best" else edited
    best = options[:, :, :TA].clamp(-1, 1).sum((2, 3)).argmax(1)
    torch.testing.assert_close(policy.predict(obs, noise, candidates=n), options[torch.arange(60), best])
    assert executes == "edited" or 0 < int((best < n).sum()) < 60


def test_a_saved_one_evaluates_alone_and_its_temperature_is_the_base_s(tmp_path):
    policy = residual(make_policy(horizon=TA + 1, temperature=0.5), scale=0.3, temperature=0.5, per_step=True)
    policy.save(tmp_path / "policy")
    obs, noise = observations(np.random.default_rng(0), 8), torch.randn(11, 8, TA + 1, DA)
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, EditedPolicy) and loaded.config == policy.config
    np.testing.assert_array_equal(loaded.act(obs, noise=noise), policy.act(obs, noise=noise))
    several = torch.randn(11, 8, 3, TA + 1, DA)
    np.testing.assert_array_equal(
        loaded.act(obs, noise=several, candidates=3), policy.act(obs, noise=several, candidates=3)
    )
    set_policy(str(tmp_path / "policy"), ["temperature=0"])
    cold = load_policy(tmp_path / "policy")
    expected = make_policy(horizon=TA + 1, temperature=0.0)
    expected.load_state_dict(policy.base.state_dict())
    torch.testing.assert_close(
        cold.base.sample(torch.zeros(8, 2), noise)[0], expected.sample(torch.zeros(8, 2), noise)[0]
    )
    with policy.sampling(temperature=0.0):
        np.testing.assert_array_equal(policy.act(obs, noise=noise), cold.act(obs, noise=noise))
    assert policy.base.config.temperature == 0.5
    with pytest.raises(BurnishError, match="mean_of=2: expected 1, a policy of kind edited acts by one chunk"):
        policy.set_sampling(mean_of=2)


# -- the stage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executes", ["best", "edited"])
def test_a_bandit_is_learned_by_edits_alone(pretrained_weights, executes):
    stage = make_residual(pretrained_weights, executes=executes, scale=0.4, n_candidates=1)
    base = copy.deepcopy(stage.policy.base.state_dict())
    assert abs(score(stage.policy)) < 0.05
    play(stage, np.random.default_rng(0), 30)
    assert score(stage.policy) > 0.2
    assert all(torch.equal(each, base[name]) for name, each in stage.policy.base.state_dict().items())


@pytest.mark.parametrize("executes", ["best", "edited"])
def test_acting_and_the_target_take_the_same_candidates(pretrained_weights, executes, monkeypatch):
    """The base alone until the edit has begun to learn; then chunks and edits with their noise."""
    stage = make_residual(pretrained_weights, executes=executes, target_candidates=3, critic_warmup_updates=4)
    torch.nn.init.normal_(stage.policy.actor.out.weight)
    obs, x = torch.randn(6, 2), 0.3 * torch.randn(6, 3, TA, DA)
    monkeypatch.setattr(stage, "of_base", lambda obs, n: x[:, :n])
    z = torch.randn(6, 3, TA, DA)
    monkeypatch.setattr(stage, "normal", lambda x: z[:, : x.shape[1]])
    batch = Transitions(obs + 1, x[:, 0].flatten(1), torch.zeros(6), torch.ones(6), obs)
    with torch.no_grad():
        next(stage.critic.target.parameters()).add_(0.3)
    with torch.no_grad():
        edited = stage.policy.edit(obs, x, z).x
        for steps, both in ((4, x), (5, torch.cat([x, edited], 1) if executes == "best" else edited)):
            stage.gradient_steps = steps
            torch.testing.assert_close(stage.candidates(obs, 3), both)
            expected = stage.critic.target(obs, both.clamp(-1, 1).flatten(2))
            torch.testing.assert_close(stage.next_values(batch), expected)
    chosen = stage._select(obs, 3)
    best = stage.policy.values(obs, both).argmax(1)
    torch.testing.assert_close(chosen, both[torch.arange(6), best])


@pytest.mark.parametrize("bc_where", ["always", "no_better"])
def test_the_loss_is_that_by_hand(pretrained_weights, monkeypatch, bc_where):
    stage = make_residual(pretrained_weights, bc_coef=0.7, bc_where=bc_where, alpha=0.2, critic_warmup_updates=0)
    torch.nn.init.normal_(stage.policy.actor.out.weight, std=0.5)
    obs, x, z = torch.randn(50, 2), 0.3 * torch.randn(50, 1, TA, DA), torch.randn(50, 1, TA, DA)
    monkeypatch.setattr(stage, "of_base", lambda obs, n: x)
    monkeypatch.setattr(stage, "normal", lambda x: z)
    actor, critic = copy.deepcopy(stage.policy), stage.critic.network
    edits = actor.edit(obs, x, z)
    with torch.no_grad():
        before = critic(obs, x.flatten(2)).min(0).values[:, 0]
    q = critic(obs, edits.x.flatten(2).clamp(-1, 1)).min(0).values[:, 0]
    counts = torch.ones(50) if bc_where == "always" else (q <= before).float()
    assert float(counts.sum()) > 0 and (bc_where == "always" or float(counts.sum()) < 50)
    each = 0.2 * edits.log_prob[:, 0] - q + 0.7 * counts * edits.e[:, 0].square().mean(1)
    loss = each.mean()
    gradient = torch.autograd.grad(loss, list(actor.actor.parameters()))
    metrics = stage.update_actor(Transitions(obs, x[:, 0].flatten(1), torch.zeros(50), torch.ones(50), obs))
    assert float(metrics["actor_loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    for ours, theirs in zip(stage.policy.actor.parameters(), gradient):  # not clipped: shorter than max_grad_norm
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-4, atol=1e-6)
    assert all(each.requires_grad for each in critic.parameters())
    alpha = -(edits.log_prob.detach() - TA * DA).mean()  # of target_entropy = - Ta Da
    torch.testing.assert_close(stage.entropy.log_alpha.grad, alpha, rtol=1e-4, atol=1e-5)


def test_the_share_of_demonstrations_falls(pretrained_weights, monkeypatch):
    learns_from(monkeypatch, demonstrations)
    falling = {"demo_ratio_final": 0.125, "demo_ratio_decay": 10}
    stage = make_residual(pretrained_weights, demos="demos.hdf5", demo_ratio=0.5, **falling)
    play(stage, np.random.default_rng(0), 2, learn=False)
    shares = []
    for steps in (0, 5, 10, 50):
        stage.gradient_steps = steps
        batch = stage._batch()
        assert len(batch.reward) == 128
        shares.append(float((batch.obs == 9).all(1).float().mean()))
    assert shares == [0.5, 40 / 128, 0.125, 0.125]
    stage = make_residual(pretrained_weights, demos="demos.hdf5", demo_ratio=0.5, demo_ratio_final=0.0)
    play(stage, np.random.default_rng(0), 2, learn=False)
    stage.gradient_steps = 10**6
    assert not (stage._batch().obs == 9).all(1).any()


@pytest.mark.parametrize("executes", ["best", "edited"])
def test_a_restored_stage_goes_on_bitwise(pretrained_weights, executes):
    settings = {"executes": executes, "critic_warmup_updates": 10, "update_every": 2, "bc_coef": 0.1}
    assert_goes_on_bitwise(make_residual(pretrained_weights, **settings), make_residual(seed=4, **settings))


def test_user_mistakes(pretrained_weights):
    with pytest.raises(BurnishError, match=r"demo_ratio_final=0.6: expected at most demo_ratio=0.5"):
        ResidualConfig(demo_ratio_final=0.6)
    with pytest.raises(BurnishError, match=r"stage=residual edits a pretrained policy: expected policy=FOLDER"):
        make_residual(has_base=False)
    with pytest.raises(BurnishError, match=r"stage=residual: the policy acts by the mean of 4 chunks"):
        make_residual(policy=make_policy(mean_of=4))
    stage = make_residual(pretrained_weights)
    assert make_residual(policy=stage.policy).policy is stage.policy
    with pytest.raises(BurnishError, match=r"stage.scale=0.3, but the policy was edited with 0.1 before"):
        make_residual(policy=stage.policy, scale=0.3)


@pytest.fixture(scope="module")
def two_phased(dataset, pretrained, tmp_path_factory):  # noqa: F811
    """A run that nobody stopped, and how to make one."""
    few = {"batch_size": 32, "learning_starts": 200, "update_every": 5, "critic_warmup_updates": 14, "n_candidates": 2}
    nets = {"critic": CriticConfig(**SMALL), "actor": SquashedConfig(**SMALL)}
    falling = {"demo_ratio": 0.5, "demo_ratio_final": 0.25, "demo_ratio_decay": 60}
    stage = ResidualConfig(demos=str(dataset), bc_coef=0.1, **falling, **few, **nets)
    folder = tmp_path_factory.mktemp("residual") / "whole"
    finetune(two_phases(folder, pretrained, stage, total_env_steps=400))
    return folder, lambda run, **settings: two_phases(run, pretrained, stage, total_env_steps=400, **settings)


@pytest.mark.parametrize(("method", "n"), [("update_offline", 2), ("update", 2)])
def test_a_run_stopped_in_either_phase_goes_on_bitwise(two_phased, tmp_path, monkeypatch, method, n):
    (whole, make), run = two_phased, tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, Residual, method, n)
        with pytest.raises(Stopped, match="go on with: burnish finetune resume="):
            finetune(make(run))
    torch.manual_seed(99)
    finetune(make(run, resume=str(run)))
    assert_same_run(run, whole)


def test_a_run_begins_with_the_base_and_ends_with_an_edited_policy(two_phased, pretrained):  # noqa: F811
    whole, make = two_phased
    config, base = make(whole), load_policy(pretrained)
    assert (
        EvaluationFile.read(whole / BEFORE).returns == evaluate(base, config.task, config.evaluation).returns.tolist()
    )
    policy, lines = load_policy(whole), untimed_metrics(whole)
    assert policy.config.kind == "edited" and any("edit" in line for line in lines)
    assert json.loads((whole / "summary.json").read_text())["after_selected"]
    for name, each in policy.base.state_dict().items():
        assert torch.equal(each, base.state_dict()[name])
