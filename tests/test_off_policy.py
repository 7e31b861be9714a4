"""What off-policy stages share: the critic's target, what is stored, what is learned, and that they resume exactly."""

import copy
import math
from itertools import pairwise
from types import SimpleNamespace

import densities
import numpy as np
import pytest
import torch
from bandit import (
    DA,
    TA,
    E,
    assert_goes_on_bitwise,
    chunk_step,
    demonstrations,
    learns_from,
    make_policy,
    make_stage,
    play,
    score,
)
from by_hand import OffPolicyByHand
from densities import batch_of, values

from burnish.datasets.episodes import Demonstrations, Episode
from burnish.diffusion import Sampler
from burnish.errors import BurnishError
from burnish.finetune import off_policy
from burnish.finetune.algorithms.dpmd import DPMD, DPMDConfig
from burnish.finetune.losses.rsm import RSMConfig
from burnish.networks import CriticConfig, DenoiserConfig
from burnish.networks.compiled import mlp as compiled_mlp


@pytest.mark.parametrize("shift", [0.0, -5.0])
@pytest.mark.parametrize("name", ["dpmd", "sdac"])
def test_a_bandit_is_learned(pretrained_weights, name, shift):
    """Also from rewards that are all negative, QVPO's known failure."""
    stage = make_stage(name, pretrained_weights, batch_size=64)
    assert abs(score(stage.policy)) < 0.05
    play(stage, np.random.default_rng(0), 60, shift=shift)
    assert score(stage.policy) > 0.15  # the controls: within 0.02 of 0


def test_the_actor_waits_for_the_critic(pretrained_weights):
    stage = make_stage("dpmd", pretrained_weights, critic_warmup_updates=30)
    before = copy.deepcopy(stage.actor.state_dict())
    play(stage, np.random.default_rng(0), 2, learn=False)

    def moved():
        return any(not torch.equal(tensor, before[name]) for name, tensor in stage.actor.state_dict().items())

    for _ in range(30):
        assert "actor_loss" not in stage._gradient_step()
    assert not moved()
    metrics = stage._gradient_step()
    assert moved()
    assert {"actor_loss", "ess", "weight_entropy", "temperature", "critic_loss", "q"} <= set(metrics)
    assert "actor_loss" not in stage._gradient_step()  # policy_delay = 2


@pytest.mark.skipif(
    not compiled_mlp.has_float16(), reason="this processor has no arithmetic for float16 (AVX-512 FP16)"
)
def test_draws_in_float16(pretrained_weights):
    """Of the same noise almost the same draws and candidates; evaluation and gradients stay as they are."""
    obs, drawn, acted, evaluated = torch.randn(50, 2), [], [], []
    for precision in ("float32", "float16"):
        stage = make_stage("dpmd", pretrained_weights, draw_precision=precision)
        drawn.append(stage._draw(obs, 8).x)
        acted.append(torch.from_numpy(stage.act(obs[:E, None].numpy())))
        evaluated.append(stage.policy.act(obs[:, None], generator=torch.Generator().manual_seed(0)))
        output, _ = stage.policy.denoise_noised(stage.actor, obs, drawn[0], stage.generator)
        assert output.dtype == torch.float32
    for one, other in (drawn, acted):
        assert not torch.equal(one, other)
        assert float((one - other).square().mean().sqrt()) < 0.02 * float(one.std())
    assert torch.equal(*evaluated)


@pytest.mark.parametrize("why", ["no float16", "no compiler", "width"])
def test_float16_where_it_cannot_be_is_refused(why, monkeypatch):
    if why == "no compiler":
        monkeypatch.setattr(compiled_mlp, "_library", lambda: None)
    if why == "no float16":
        monkeypatch.setattr(compiled_mlp, "_library", lambda: SimpleNamespace(burnish_panel_width=lambda: 32))
        monkeypatch.setattr(compiled_mlp, "has_float16", lambda: False)
    policy = make_policy(denoiser=DenoiserConfig(hidden_dim=40 if why == "width" else 64))
    with pytest.raises(BurnishError, match=r"stage.draw_precision=float16: expected float32 here; on a CPU"):
        make_stage("dpmd", policy=policy, draw_precision="float16")


@pytest.mark.parametrize("name", ["dpmd", "sdac"])
@pytest.mark.parametrize("draw_at", ["next", "current"])
def test_where_the_actor_draws_and_learns(pretrained_weights, name, draw_at, monkeypatch):
    """At next observations the target's draws serve it; at the present ones it draws anew, with their Q."""
    stage = make_stage(name, pretrained_weights, critic_warmup_updates=0, policy_delay=2, draw_at=draw_at)
    play(stage, np.random.default_rng(0), 2, learn=False)
    actor_loss, critic_update, given, targets = stage.actor_loss, stage.critic.update, [], []

    def watch_actor(batch, draws):
        given.append((batch, draws))
        return actor_loss(batch, draws)

    def watch_critic(batch, q):
        targets.append((batch, q))
        return critic_update(batch, q)

    monkeypatch.setattr(stage, "actor_loss", watch_actor)
    monkeypatch.setattr(stage.critic, "update", watch_critic)
    drawn, draw = [], stage._draw
    monkeypatch.setattr(stage, "_draw", lambda obs, n: drawn.append((obs, n, draw(obs, n))) or drawn[-1][2])
    for _ in range(2):
        stage._gradient_step()
    (((batch, draws),), N) = given, stage.config.target_candidates
    assert draws.obs is (batch.next_obs if draw_at == "next" else batch.obs)
    assert len(draws.x) == len(draws.obs)
    n = max(N, stage.draws_for_actor)
    assert [count for _, count, _ in drawn] == ([n, N] if draw_at == "next" else [N, stage.draws_for_actor, N])
    for (batch, q), (obs, _, result) in zip(targets, (drawn[0], drawn[-1])):  # the target's draws, always there
        assert obs is batch.next_obs
        assert torch.equal(q, result.q_each[:, :, :N])
    assert (draws is drawn[0][2]) == (draw_at == "next")


@pytest.mark.parametrize("name", ["dpmd", "sdac"])
def test_the_actor_may_make_several_steps_on_the_same_draws(pretrained_weights, name, monkeypatch):
    stage = make_stage(name, pretrained_weights, critic_warmup_updates=0, actor_steps=3, policy_delay=2)
    play(stage, np.random.default_rng(0), 2, learn=False)
    actor_loss, drawn, generators = stage.actor_loss, [], set()

    def watched(*given):
        drawn.append(given)
        generators.add(stage.generator.get_state().numpy().tobytes())
        return actor_loss(*given)

    monkeypatch.setattr(stage, "actor_loss", watched)
    for _ in range(4):
        stage._gradient_step()
    steps = {int(state["step"]) for state in stage.actor_optimizer.state.values()}
    assert steps == {6}  # two rounds of three
    same = [all(a is b for a, b in zip(first, second)) for first, second in pairwise(drawn)]
    assert same == [True, True, False, True, True]  # batch and draws; the noise on them is new each time
    assert len(generators) == 6


def test_updates_are_counted(pretrained_weights):
    """Two rounds of chunks start learning; then utd_ratio times the stored chunks, whatever falls due at once."""
    stage = make_stage("dpmd", pretrained_weights, utd_ratio=0.2, critic_warmup_updates=10)
    rng, done = np.random.default_rng(0), []
    for _ in range(6):
        play(stage, rng, 1)
        done.append(stage.gradient_steps)
    assert done == [0, 13, 16, 19, 22, 26]  # 10 + floor(3.2 n)
    assert stage.env_steps == 6 * E * TA


def test_critic_target_by_hand(pretrained_weights, monkeypatch):
    """y = r + gamma^h (1 - terminated) max over candidates of the least Q."""
    stage = make_stage("dpmd", pretrained_weights, target_candidates=3, reward_scale=0.1, gamma=0.9)
    monkeypatch.setattr(stage.critic, "target", KnownCritic())
    seen = []
    monkeypatch.setattr(stage.critic, "update", lambda batch, q: seen.append((batch, q)) or {})
    draws = torch.linspace(-1.2, 0.6, 128 * 16 * TA * DA).view(128, 16, TA, DA)
    monkeypatch.setattr(stage, "_sample", lambda obs, n, network, sampler: draws[: len(obs), :n])
    obs = np.random.default_rng(0).normal(size=(E, 1, 2)).astype(np.float32)
    stage.act(obs)
    stage.observe(chunk_step(obs, reward=5.0, terminated=np.arange(E) < 8, final_obs=obs + 1))
    stage._gradient_step()
    ((batch, q),) = seen
    assert torch.equal(batch.reward, torch.full((128,), 0.5))
    first = batch.next_obs[:, 0]
    # members: the sum of the executed, clipped chunk plus the observation, and one more: the least is the first
    sums = draws[:, :3].clamp(-1, 1).sum((2, 3)) + first[:, None]
    torch.testing.assert_close(q[0], sums)
    terminated = torch.isin(batch.obs[:, 0], torch.from_numpy(obs[:8, 0, 0]))
    torch.testing.assert_close(batch.discount, torch.where(terminated, 0.0, 0.81))

    monkeypatch.undo()
    with torch.no_grad():
        executed = batch.chunk.clamp(-1, 1)[:, None]
        y = 0.5 + batch.discount * sums.amax(1)
        expected = (stage.critic.network(batch.obs, executed)[:, :, 0] - y).square().mean()
    metrics = stage.critic.update(batch, q)
    assert float(metrics["critic_loss"]) == pytest.approx(float(expected), rel=1e-5)


class KnownCritic(torch.nn.Module):
    """Two members: the sum of the actions plus the first number of the observation, and one more than that."""

    def outputs(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        q = actions.sum(-1) + obs[:, :1]
        return torch.stack([q, q + 1])

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs


def test_the_critic_learns_the_value_of_a_chain(pretrained_weights):
    """Reward 1 for each chunk of h = 2 steps, never terminated: Q = 1 / (1 - gamma^2)."""
    stage = make_stage("dpmd", pretrained_weights, gamma=0.7, tau=0.05, freeze_actor=True)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(E, 1, 2)).astype(np.float32)
    for _ in range(4):
        stage.act(obs)
        after = rng.normal(size=(E, 1, 2)).astype(np.float32)
        stage.observe(chunk_step(after, reward=1.0, terminated=False))
        obs = after
    for _ in range(250):
        q = stage._gradient_step()["q"]
    assert float(q) == pytest.approx(1 / (1 - 0.7**2), rel=0.05)


def test_target_networks_are_polyak_averages(pretrained_weights):
    stage = make_stage("dpmd", pretrained_weights, tau=0.25, actor_tau=0.5, critic_warmup_updates=0, old_policy_every=2)
    play(stage, np.random.default_rng(0), 2, learn=False)
    modules = {"target": stage.critic.network, "averaged": stage.actor}
    averages = {"target": stage.critic.target, "averaged": stage.averaged}
    before = {name: [p.clone() for p in averages[name].parameters()] for name in modules}
    old = [p.clone() for p in stage.old.parameters()]
    stage._gradient_step()
    for name, tau in (("target", 0.25), ("averaged", 0.5)):
        for p, start, now in zip(averages[name].parameters(), before[name], modules[name].parameters()):
            torch.testing.assert_close(p, (1 - tau) * start + tau * now, rtol=1e-6, atol=1e-7)
    assert all(torch.equal(p, q) for p, q in zip(stage.old.parameters(), old))
    stage._gradient_step()
    assert all(torch.equal(p, q) for p, q in zip(stage.old.parameters(), stage.actor.parameters()))
    assert stage.averaged is stage.policy.finetuned


@pytest.mark.parametrize("name", ["dpmd", "sdac"])
@pytest.mark.parametrize("weights", ["kl", "paper"])
def test_a_restored_stage_goes_on_bitwise(pretrained_weights, name, weights):
    settings = {"rsm": RSMConfig(weights=weights), "critic_warmup_updates": 5, "exploration_noise": 0.1}
    settings["update_every"] = 2  # of which one chunk was stored when it is saved
    if name == "dpmd" and weights == "paper":
        settings["train_on"] = "best"  # which has moving averages
    assert_goes_on_bitwise(make_stage(name, pretrained_weights, **settings), make_stage(name, **settings))


def test_the_actor_s_rate_falls_with_its_own_updates(pretrained_weights):
    """As in the released code, whose schedule does not move while the actor waits: here for 6 gradient steps, then
    in every second one."""
    lr = {"actor_lr": 3e-4, "actor_lr_final": 1e-4, "lr_decay_start": 2, "lr_decay_updates": 4}
    stage = make_stage("dpmd", pretrained_weights, critic_warmup_updates=6, policy_delay=2, **lr)
    play(stage, np.random.default_rng(0), 2, learn=False)
    rates = []
    for _ in range(22):
        stage._gradient_step()
        rates.append(stage.actor_optimizer.param_groups[0]["lr"])
    fall = [3.0, 3.0, 3.0, 2.5, 2.0, 1.5, 1.0, 1.0]  # times 1e-4, of the first eight updates of the actor
    np.testing.assert_allclose(rates[6::2], np.array(fall) * 1e-4, rtol=1e-6)


@pytest.mark.parametrize("annealing", [False, True])
def test_noise_falls_with_the_paper_s_lambda_where_asked_to(pretrained_weights, annealing):
    stage = make_stage("dpmd", pretrained_weights, noise_annealing=annealing)
    assert stage.noise_scale == pytest.approx(5.0 if annealing else 1.0)
    stage.gradient_steps = 10**6
    assert stage.noise_scale == pytest.approx(0.984 if annealing else 1.0, abs=1e-3)


def test_a_diverged_actor_is_told(pretrained_weights):
    stage = make_stage("dpmd", pretrained_weights, critic_warmup_updates=0, policy_delay=1)
    play(stage, np.random.default_rng(0), 2, learn=False)
    with torch.no_grad():
        next(stage.actor.parameters()).fill_(float("nan"))
    with pytest.raises(BurnishError, match=r"the actor diverged .*lower stage.actor_lr"):
        stage.update()


def test_what_is_stored_is_what_is_executed(pretrained_weights):
    """Exploration noise is clipped; the released code's is not."""
    policy = make_policy()
    policy.load_state_dict(pretrained_weights)
    policy.action_normalizer.scale.fill_(0.5)
    policy.action_normalizer.offset.fill_(0.25)
    stage = make_stage("dpmd", policy=policy, exploration_noise=1.0, random_steps=E * TA)
    obs = np.random.default_rng(0).normal(size=(E, 1, 2)).astype(np.float32)
    for i in range(3):
        actions = stage.act(obs)
        stage.observe(chunk_step(obs))
        stored = stage.replay.data.chunk[i * E : (i + 1) * E].view(E, TA, DA)
        assert float(stored.abs().max()) <= 1
        np.testing.assert_allclose(0.5 * stored.numpy() + 0.25, actions, rtol=1e-6, atol=1e-7)
        at_bounds = float((stored.abs() == 1).float().mean())
        assert at_bounds == 0 if i == 0 else at_bounds > 0.1  # at first uniform


@pytest.mark.parametrize("selection", ["argmax", "softmax"])
def test_candidates_are_chosen_by_q(pretrained_weights, monkeypatch, selection):
    stage = make_stage("dpmd", pretrained_weights, selection=selection, selection_temperature=0.2, n_candidates=4)
    policy = stage.policy
    candidates = 0.1 * torch.arange(4.0).view(1, 4, 1, 1).expand(400, 4, TA, DA)
    monkeypatch.setattr(stage, "_sample", lambda obs, n, network, sampler: candidates[: len(obs), :n])
    monkeypatch.setattr(policy, "values", lambda obs, x: 4 * x[..., 0, 0])
    stage.gradient_steps = 1
    chosen = stage.act(np.zeros((400, 1, 2), np.float32))[:, 0, 0]
    if selection == "argmax":
        np.testing.assert_allclose(chosen, 0.3, rtol=1e-6)
    else:
        p = np.exp(4 * 0.1 * np.arange(4) / 0.2)
        frequencies = [np.isclose(chosen, 0.1 * n).mean() for n in range(4)]
        np.testing.assert_allclose(frequencies, p / p.sum(), atol=0.08)
    stage.gradient_steps = 0  # nothing to choose by yet
    np.testing.assert_allclose(stage.act(np.zeros((400, 1, 2), np.float32)), 0)


@pytest.mark.parametrize("demo_ratio", [0.25, 0.5])
def test_so_much_of_a_batch_is_demonstrations(pretrained_weights, monkeypatch, demo_ratio):
    learns_from(monkeypatch, demonstrations)
    stage = make_stage("dpmd", pretrained_weights, demos="demos.hdf5", demo_ratio=demo_ratio, reward_scale=0.5)
    play(stage, np.random.default_rng(0), 1)
    batch = stage._batch()
    assert len(batch.reward) == 128
    assert float((batch.obs == 9).all(1).float().mean()) == demo_ratio
    n = round(128 * demo_ratio)
    assert bool((batch.obs[:n] == 9).all()) and bool((batch.chunk[:n] == 0.5).all())
    assert set(batch.reward[:n].tolist()) <= {0.5 * np.float32(1 + 0.99), 0.5}


def test_bc_term_is_plain_denoising_of_the_demonstrations(pretrained_weights, monkeypatch):
    learns_from(monkeypatch, demonstrations)
    stage = make_stage("dpmd", pretrained_weights, demos="demos.hdf5", demo_ratio=0.5, bc_coef=1.0)
    play(stage, np.random.default_rng(0), 1)
    batch = stage._batch()
    stage.generator.manual_seed(3)
    ours = stage._bc_loss(batch)
    clone = make_policy()
    clone.load_state_dict(pretrained_weights)
    theirs = clone.loss(torch.full((64, 1, 2), 9.0), torch.full((64, TA, DA), 0.5), torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, theirs)
    assert "actor_loss" in [stage._gradient_step() for _ in range(101)][-1]


def test_user_mistakes():
    with pytest.raises(BurnishError, match=r"stage.rsm.kl_target=2.5 nats: expected less than log\(draws\) = 2.079"):
        make_stage(rsm=RSMConfig(kl_target=2.5), draws=8)
    with pytest.raises(BurnishError, match=r"stage.demo_ratio=0.5, but task=bandit names no demonstrations"):
        make_stage(demos="task", demo_ratio=0.5)
    with pytest.raises(BurnishError, match=r"stage.demos=null, but stage.demo_ratio=0.5"):
        make_stage(demos=None, demo_ratio=0.5)
    with pytest.raises(BurnishError, match=r"stage.bc_coef=1.0 needs demonstrations"):
        make_stage(bc_coef=1.0)
    with pytest.raises(BurnishError, match=r"demo_ratio=1.0: expected at least 0 and less than 1"):
        make_stage(demo_ratio=1.0)
    with pytest.raises(BurnishError, match=r"resample=-1: expected at least 0"):
        make_stage(resample=-1)
    with pytest.raises(BurnishError, match=r"stage=sdac: the policy's actions have no bounds"):
        make_stage("sdac", policy=make_policy(clip_sample=None))
    with pytest.raises(BurnishError, match=r"ddim_steps=4: expected a divisor of denoising_steps=10"):
        make_stage(ddim_steps=4)


def test_going_on_with_a_finetuned_policy(pretrained_weights):
    stage = make_stage("dpmd", pretrained_weights)
    with torch.no_grad():
        next(stage.averaged.parameters()).add_(1)
    again = make_stage("sdac", policy=stage.policy)
    assert again.critic.network is stage.critic.network
    for network in (again.actor, again.averaged, again.old):
        assert torch.equal(parameters(network), parameters(stage.averaged))
    with pytest.raises(BurnishError, match=r"stage.ft_denoising_steps=4, but the policy was fine-tuned with 10 before"):
        make_stage(policy=stage.policy, ft_denoising_steps=4)
    with pytest.raises(BurnishError, match=r"but the policy has a critic of"):
        make_stage(policy=stage.policy, critic=CriticConfig(hidden_dim=32))


def test_a_policy_that_was_partly_finetuned_goes_on_so():
    policy = make_policy()
    policy.start_finetuning(4)
    stage = make_stage(policy=policy)
    assert stage.policy.ft_denoising_steps == 4 and stage.config.ft_denoising_steps is None
    play(stage, np.random.default_rng(0), 4)
    assert stage.gradient_steps


@pytest.mark.parametrize(
    ("name", "policy", "settings", "message"),
    [
        ("sdac", {"prediction_type": "sample"}, {"reverse": "clipped"}, "stage.reverse=clipped: .*expected epsilon"),
        ("dpmd", {}, {"ddim_steps": 4}, "stage.ddim_steps=4: expected a divisor of denoising_steps=10"),
        ("dpmd", {}, {"train_on": "best"}, "stage.train_on=best leaves one draw, .*expected weights paper or constant"),
    ],
)
def test_settings_that_do_not_go_together(name, policy, settings, message):
    with pytest.raises(BurnishError, match=message):
        make_stage(name, policy=make_policy(**policy), **settings)


@pytest.mark.parametrize("name", ["dpmd", "sdac"])
def test_a_shift_of_q_does_not_change_the_actor(monkeypatch, name):
    """By -100: the same updates."""
    actors = []
    for shift in (0.0, -100.0):
        torch.manual_seed(0)
        policy = densities.make_policy()
        monkeypatch.setattr(policy, "values", lambda obs, x, critic=None, shift=shift: values(obs, x) + shift)
        extra = {"resample": 0} if name == "dpmd" else {}
        stage = densities.make_stage(name, policy, batch_size=32, critic_warmup_updates=0, policy_delay=1, **extra)
        stage.replay.store(batch_of(64))
        for _ in range(10):
            stage._gradient_step()
        actors.append(torch.cat([p.detach().flatten() for p in stage.actor.parameters()]))
    start = torch.cat([p.detach().flatten() for p in policy.denoiser.parameters()])
    moved = (actors[0] - start).norm()
    assert moved > 0.01
    assert (actors[0] - actors[1]).norm() < 1e-2 * moved


# -- a gradient step, against the same written out (by_hand.py) --------------------------------------------------------

BY_HAND = {
    "batch_size": 24,
    "critic": CriticConfig(n_critics=3, hidden_dim=16, n_layers=2),
    "draws": 6,
    "target_candidates": 2,
    "ft_denoising_steps": 6,
    "critic_warmup_updates": 3,
    "policy_delay": 2,
    "actor_steps": 2,
    "old_policy_every": 4,
    "tau": 0.1,
    "actor_tau": 0.2,
    "critic_lr": 3e-3,
    "actor_lr": 2e-3,
    "actor_lr_final": 5e-4,
    "lr_decay_start": 2,
    "lr_decay_updates": 4,
    "max_grad_norm": 0.5,
    "gamma": 0.9,
    "rsm": RSMConfig(weights="fixed", temperature=0.05),
    "demos": "demos.hdf5",
    "demo_ratio": 0.25,
    "bc_coef": 0.5,
    "draw_width": "narrow",
}
FLAT = {"prior": "flat", "draw_at": "next"}
CONSTANT = RSMConfig(weights="constant")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dpmd", {"resample": 0}),
        ("dpmd", {"resample": 3, "draw_at": "current", "bc_coef": 0.0}),
        ("dpmd", {"resample": 0, "target_candidates": 6, "draws": 4, "policy_delay": 1, "rsm": CONSTANT}),
        ("dpmd", {"train_on": "best", "rsm": CONSTANT, "demo_ratio": 0.0, "bc_coef": 0.0, "demos": None}),
        ("dpmd", {"freeze_actor": True}),
        ("sdac", FLAT),
        ("sdac", FLAT | {"draw_at": "current", "reverse": "clipped", "bc_coef": 0.0}),
        ("sdac", FLAT | {"noisy_from": "replay", "actor_steps": 1}),
    ],
)
def test_gradient_steps_are_those_by_hand(monkeypatch, name, settings):
    """Losses and all five networks, over the warm-up, several refreshes and the whole fall of the learning rate."""
    learns_from(monkeypatch, random_demonstrations)
    torch.manual_seed(1)
    policy = make_policy(horizon=TA + 1, denoiser=DenoiserConfig(hidden_dim=16))
    stage = make_stage(name, policy=policy, **(BY_HAND | settings))
    with torch.no_grad():  # the three denoisers differ from the pretrained one, and from each other
        for network in (stage.actor, stage.averaged, stage.old, stage.critic.target):
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    play(stage, np.random.default_rng(0), 2, learn=False)
    hand = OffPolicyByHand(stage, monkeypatch)
    before = {network: parameters(getattr(hand, network)) for network in hand.NETWORKS}
    for _ in range(9):
        hand.step()
        for network in hand.NETWORKS:
            ours, theirs = parameters(hand.of_stage(network)), parameters(getattr(hand, network))
            tolerance = 2e-3 * (theirs - before[network]).norm() + 1e-6
            assert (ours - theirs).norm() <= tolerance, f"{network} after {hand.steps} steps"
    assert hand.timesteps == (set(range(6)) if name == "sdac" else set())


def random_demonstrations(source: str, sensors: list[str] | tuple[()] = ()) -> Demonstrations:
    rng = np.random.default_rng(5)
    obs, final = rng.normal(9, 1, (30, 2)).astype(np.float32), rng.normal(9, 1, 2).astype(np.float32)
    actions, rewards = rng.uniform(-1, 1, (30, DA)).astype(np.float32), rng.normal(size=30).astype(np.float32)
    episode = Episode("demo_0", {"flat": obs}, actions, rewards, np.zeros(30, bool), {"flat": final})
    return Demonstrations([episode], source=source)


def parameters(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# -- acting, storing, and when it is learned --------------------------------------------------------------------------


def test_what_a_chunk_led_to_is_stored(pretrained_weights):
    """Of a chunk that was cut after one step, one that terminated, one of a time limit, and whole ones; two rounds."""
    policy = make_policy()
    policy.load_state_dict(pretrained_weights)
    policy.obs_normalizer.offset.fill_(1.0)
    policy.obs_normalizer.scale.fill_(2.0)
    stage, rng = make_stage("dpmd", policy=policy, gamma=0.5, reward_scale=0.1), np.random.default_rng(0)
    steps = np.array([1, 2, 1, *[2] * (E - 3)])
    terminated, truncated = np.arange(E) == 1, np.arange(E) == 2
    for stored in (slice(0, E), slice(E, 2 * E)):
        obs, after, final = (rng.normal(size=(E, 1, 2)).astype(np.float32) for _ in range(3))
        stage.act(obs)
        chunk = stage.pending[1].flatten(1).clone()
        rewards = np.stack([rng.normal(size=E), np.where(steps == 2, rng.normal(size=E), 0)], 1)
        stage.observe(chunk_step(after, rewards, terminated, truncated, final, steps))
        data = stage.replay.at(torch.arange(2 * E)[stored])
        torch.testing.assert_close(data[0], (torch.from_numpy(obs[:, 0]) - 1) / 2)
        assert torch.equal(data[1], chunk)
        np.testing.assert_allclose(data[2], 0.1 * (rewards[:, 0] + 0.5 * rewards[:, 1]), rtol=1e-5)
        assert data[3].tolist() == [0.5, 0.0, 0.5, *[0.25] * (E - 3)]
        torch.testing.assert_close(data[4], (torch.from_numpy(final[:, 0]) - 1) / 2)
    assert (stage.replay.size, stage.env_steps) == (2 * E, 2 * int(steps.sum()))


def test_the_averaged_actor_acts(pretrained_weights, monkeypatch):
    """After so many random steps, with one candidate before the first gradient step and with all of them afterwards."""
    stage = make_stage("dpmd", pretrained_weights, n_candidates=5, random_steps=E * TA + 1)
    seen, sample = [], stage.policy.sample

    def watched(obs, noise, **given):
        assert given["finetuned"] is stage.averaged and given["sampler"] is stage.acting_sampler
        seen.append(tuple(noise.shape[:3]))  # (S + 1, E, N)
        return sample(obs, noise, **given)

    monkeypatch.setattr(stage.policy, "sample", watched)
    rng = np.random.default_rng(0)
    play(stage, rng, 2, learn=False)
    assert not seen
    play(stage, rng, 1, learn=False)
    stage.gradient_steps = 1
    play(stage, rng, 1, learn=False)
    assert seen == [(6, E, 1), (6, E, 5)]


@pytest.mark.parametrize("annealing", [False, True])
def test_noise_on_draws_and_on_what_is_executed(pretrained_weights, monkeypatch, annealing):
    noise = {"draw_noise": 0.05, "exploration_noise": 0.02, "noise_annealing": annealing}
    stage = make_stage("dpmd", pretrained_weights, **noise)
    monkeypatch.setattr(stage.critic, "target", KnownCritic())
    chunks = 0.1 * torch.arange(3.0).view(1, 3, 1, 1).expand(1000, 3, TA, DA)
    monkeypatch.setattr(stage, "_sample", lambda obs, n, network, sampler: chunks[: len(obs), :n])
    obs = torch.randn(1000, 2)
    draws = stage._draw(obs, 3)
    scale = 5.0 if annealing else 1.0  # the paper's lambda at the start
    assert float((draws.x - chunks).std()) == pytest.approx(0.05 * scale, rel=0.03)
    torch.testing.assert_close(draws.q, draws.x.sum((2, 3)) + obs[:, :1])  # of the noisy draws
    executed = stage.act(obs[:, None].numpy())
    assert float(executed.std()) == pytest.approx(0.02 * scale, rel=0.03)
    assert torch.equal(stage.pending[0], obs) and np.array_equal(stage.pending[1].numpy(), executed)


def test_gradient_steps_are_owed_until_they_are_made(pretrained_weights, monkeypatch):
    """At most MOST_GRADIENT_STEPS in one `update`; what is not whole is carried over; earlier chunks do not count."""
    monkeypatch.setattr(off_policy, "MOST_GRADIENT_STEPS", 3)
    settings = {"learning_starts": 2 * E * TA + 1, "update_every": 2, "utd_ratio": 0.1, "critic_warmup_updates": 4}
    stage = make_stage("dpmd", pretrained_weights, buffer_size=2 * E + 1, **settings)
    assert stage.chunks_per_update == 3  # learning_starts
    losses = iter(torch.arange(100.0))
    made = []

    def gradient_step():
        made.append(stage.gradient_steps)
        stage.gradient_steps += 1
        return {"critic_loss": next(losses)} | ({"actor_loss": torch.tensor(7.0)} if len(made) == 2 else {})

    monkeypatch.setattr(stage, "_gradient_step", gradient_step)
    rng = np.random.default_rng(0)
    play(stage, rng, 2)
    assert not stage.ready() and stage.owed == 4
    play(stage, rng, 1, learn=False)
    assert stage.ready() and stage.owed == 5.6
    metrics = stage.update()
    told = {metrics.pop(name) for name in ("critic_bias", "critic_rank_correlation")}
    assert all(map(math.isfinite, told))
    assert metrics == {"critic_loss": 1.0, "actor_loss": 7.0, "gradient_steps": 3, "replay_size": 2 * E + 1}
    assert stage.ready()  # two more are due
    assert stage.update()["critic_loss"] == 3.5
    assert not stage.ready() and stage.owed == pytest.approx(0.6) and len(made) == 5
    play(stage, rng, 1)
    assert len(made) == 5 and not stage.ready()  # update_every
    play(stage, rng, 1)
    assert len(made) == 8 and stage.owed == pytest.approx(0.8)
    assert make_stage("dpmd", pretrained_weights, learning_starts=1, update_every=7).chunks_per_update == 7


@pytest.mark.parametrize(("sampler", "eta", "steps"), [("ddim", 0.5, 2), ("ddpm", 1.0, 10), ("inherit", 0.0, 5)])
def test_the_sampler_of_draws(sampler, eta, steps):
    policy = make_policy(sampler="ddim", ddim_steps=5)
    stage = make_stage("dpmd", policy=policy, sampler=sampler, ddim_steps=2, eta=0.5)
    expected = Sampler(policy.process, "ddim" if sampler == "inherit" else sampler, steps, eta)
    assert torch.equal(stage.sampler.std, expected.std) and torch.equal(stage.sampler.timesteps, expected.timesteps)
    assert torch.equal(stage.acting_sampler.std, expected.std) and len(policy.sampler) == 5


def test_a_stage_begins_alike(pretrained_weights):
    """Three equal denoisers, of which the actor alone learns; a critic by the seed, and its copy; the global generator
    as it was."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = make_stage("dpmd", pretrained_weights)
    policy = make_policy()
    torch.manual_seed(3)
    two = make_stage("dpmd", pretrained_weights, policy=policy)
    assert torch.equal(torch.rand(2), expected)
    start = parameters(one.policy.denoiser)
    for name in ("actor", "averaged", "old"):
        network = getattr(one, name)
        assert torch.equal(parameters(network), start)
        assert {p.requires_grad for p in network.parameters()} == {name == "actor"}
    assert len({id(one.actor), id(one.averaged), id(one.old), id(one.policy.denoiser)}) == 4
    assert torch.equal(parameters(one.critic.network), parameters(two.critic.network))
    assert torch.equal(parameters(one.critic.network), parameters(one.critic.target))
    assert one.critic.network is one.policy.critic
    assert all(p.requires_grad for p in one.critic.network.parameters())
    assert not any(p.requires_grad for p in one.critic.target.parameters())
    other = make_stage("dpmd", pretrained_weights, policy=make_policy(), seed=1)
    assert not torch.equal(parameters(one.critic.network), parameters(other.critic.network))
    assert not torch.equal(one.generator.get_state(), other.generator.get_state())


# -- own episodes ------------------------------------------------------------------------------------------------------


def test_a_share_of_a_batch_is_of_own_successes_and_their_returns_are_known(pretrained_weights, monkeypatch):
    """Episodes of 3 chunks, all begun together; the first environment succeeds in its second chunk."""
    monkeypatch.setattr(DPMD, "keeps_returns", True)
    stage = make_stage(
        "dpmd", pretrained_weights, success_ratio=0.25, batch_size=32, n_step=2, gamma=0.5, reward_scale=0.1
    )
    rng, rewards, seen = np.random.default_rng(0), [], []
    for t in range(6):
        obs = rng.normal(size=(E, 1, 2)).astype(np.float32)
        stage.act(obs)
        seen.append(obs)
        rewards.append(rng.normal(size=E).astype(np.float32))
        step = chunk_step(obs, rewards[t], terminated=t % 3 == 2)
        stage.observe(step._replace(success=(np.arange(E) == 0) & (t == 1)))
        if t == 1:
            assert len(stage._batch().sources) == 1  # no episode has ended
    batch = stage._batch()
    (_, online), (_, own) = batch.sources
    assert (len(online), len(own)) == (24, 8)
    # R_t = r_t + gamma^Ta R_{t+1}, of chunks of Ta steps whose reward comes with the first
    g, returns = 0.5**TA, {}
    for first in (0, 3):
        G = np.zeros(E, np.float32)
        for t in (first + 2, first + 1, first):
            G = 0.1 * rewards[t] + g * G
            returns[t] = G
    whole = stage.replay.at(torch.arange(6 * E))
    found = whole.extra["return_to_go"]
    for t, obs in enumerate(seen):
        for e in range(E):
            (row,) = (whole.obs == stage.policy.normalized_obs(obs)[e]).all(1).nonzero().flatten().tolist()
            assert float(found[row]) == pytest.approx(float(returns[t][e]), abs=1e-6)
    expected = [float(returns[t][0]) for t in range(3)]  # of the episode that succeeded
    drawn = stage.replay.at(own).extra["return_to_go"].tolist()
    assert len(set(drawn)) > 1 and all(min(abs(G - each) for each in expected) < 1e-6 for G in drawn)
    again = make_stage("dpmd", pretrained_weights, success_ratio=0.25, batch_size=32, n_step=2)
    again.load_state_dict(stage.state_dict())
    ours, theirs = stage._batch(), again._batch()
    assert torch.equal(ours.obs, theirs.obs) and torch.equal(ours.rows, theirs.rows)


def test_shares_that_leave_nothing_online_are_refused():
    with pytest.raises(
        BurnishError, match=r"demo_ratio=0.5 and stage.success_ratio=0.5: expected less than 1 together"
    ):
        DPMDConfig(demo_ratio=0.5, success_ratio=0.5, batch_size=32)
