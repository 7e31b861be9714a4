"""DPPO as a stage: it learns, its updates are those written out by hand, and it stores nothing over episode cuts."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from bandit import DA, TA, TASK, chunk_step, make_policy, observations, reward_of, tensors
from by_hand import DPPOByHand

from burnish.envs.base import ChunkStep
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.finetune.algorithms.dppo import DPPO, DPPOConfig
from burnish.finetune.stage import Setting, stage_class
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

E = 32


def make_stage(weights=None, policy=None, **kwargs) -> DPPO:
    policy = policy or make_policy()
    if weights is not None:
        policy.load_state_dict(weights)
    settings = {"ft_denoising_steps": 5, "n_steps": 20, "batch_size": 800, "clip_coef": 0.05, "clip_coef_base": 0.05}
    return DPPO(policy, DPPOConfig(**(settings | kwargs)), Setting(TASK, E, 0))


def bandit_rollout(stage: DPPO, rng: np.random.Generator) -> float:
    """One rollout of one-step episodes: the first action dimension shall follow the sign of the first observation."""
    rewards = []
    while not stage.ready():
        obs = observations(rng, E)
        reward = reward_of(stage.act(obs), obs)
        stage.observe(chunk_step(obs, reward, terminated=True))
        rewards.append(reward.mean())
    return float(np.mean(rewards))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_dppo_learns_a_bandit(pretrained_weights, sampler):
    stage = make_stage(pretrained_weights, sampler=sampler, ddim_steps=5)
    rng = np.random.default_rng(0)
    rewards = []
    for _ in range(12):
        rewards.append(bandit_rollout(stage, rng))
        metrics = stage.update()
        assert metrics.get("first_ratio_error", 0.0) <= 1e-5
    assert abs(rewards[0]) < 0.05
    assert rewards[-1] > 0.25


def test_without_reward_the_policy_only_drifts(pretrained_weights):
    """The control of the test above: what is learned comes from the reward."""
    stage = make_stage(pretrained_weights)
    rng = np.random.default_rng(0)
    for _ in range(12):
        last = bandit_rollout(stage, rng)
        stage.rollout.reward.normal_()
        stage.update()
    assert abs(last) < 0.15


@pytest.mark.parametrize("settings", [{"log_prob": "joint"}, {"ft_denoising_steps": 1}, {"ft_denoising_steps": 10}])
def test_first_ratio_is_one(pretrained_weights, settings):
    stage = make_stage(pretrained_weights, critic_warmup_iterations=0, **settings)
    bandit_rollout(stage, np.random.default_rng(0))
    stored = stage.rollout.log_prob.flatten(0, 1)
    n, i = torch.meshgrid(torch.arange(len(stored)), torch.arange(stored.shape[1]), indexing="ij")
    with torch.no_grad():
        again = stage.new_log_prob(n.flatten(), i.flatten()).view_as(stored)
    torch.testing.assert_close(again, stored, atol=2e-5, rtol=1e-5)
    assert "policy_loss" in stage.update()


def test_a_policy_that_changed_between_sampling_and_update_stops_the_run(pretrained_weights):
    stage = make_stage(pretrained_weights, critic_warmup_iterations=0)
    bandit_rollout(stage, np.random.default_rng(0))
    with torch.no_grad():
        next(stage.actor.parameters()).add_(0.05)
    with pytest.raises(RuntimeError, match="the likelihood ratio differs from 1"):
        stage.update()


def test_going_on_with_a_finetuned_policy(pretrained_weights):
    stage = make_stage(pretrained_weights)
    again = make_stage(policy=stage.policy)
    assert again.actor is stage.actor
    with pytest.raises(BurnishError, match="fine-tuned with 5 before"):
        make_stage(policy=stage.policy, ft_denoising_steps=4)
    with pytest.raises(BurnishError, match="fine-tuned with ddpm before"):
        make_stage(policy=stage.policy, sampler="ddim")


def test_unknown_stage():
    assert stage_class("dppo") is DPPO
    with pytest.raises(BurnishError, match="stage=reinforce: expected one of dppo"):
        stage_class("reinforce")


# -- the assembled update, against the same written out (by_hand.py) ---------------------------------------------------

T, N_ENVS, TO, DO, TP = 4, 3, 2, 3, 3  # TA and DA are the bandit's
TINY = {
    "ft_denoising_steps": 4,
    "n_steps": T,
    "gamma": 0.9,
    "gae_lambda": 0.7,
    "gamma_denoising": 0.6,
    "actor_lr": 3e-3,
    "desired_kl": None,
    "critic_lr": 1e-2,
    "max_grad_norm": 0.3,
    "update_epochs": 2,
    "batch_size": 18,
    "clip_coef": 0.1,
    "clip_coef_base": 0.01,
    "clip_coef_rate": 2.0,
    "min_sampling_denoising_std": 0.3,
    "min_logprob_denoising_std": 0.2,
    "max_sampling_denoising_std": 0.32,
    "randn_clip": 1.2,
}
VARIANTS = {
    "ddpm": {},
    "quantiles": {"adv_quantile_low": 0.2, "adv_quantile_high": 0.7, "max_sampling_denoising_std": None},
    "ddim": {"sampler": "ddim", "ddim_steps": 5, "ft_denoising_steps": 3, "reward_scaling": False},
    "joint": {"log_prob": "joint", "clip_coef": 0.4, "max_grad_norm": float("inf")},
    "cloning": {"bc_coef": 0.3, "critic_warmup_iterations": 0},
    "one step": {"ft_denoising_steps": 1, "critic_warmup_iterations": 2, "batch_size": 5},
    "target_kl": {"target_kl": 1e-4, "update_epochs": 3},
    "slower and slower": {"desired_kl": 1e-6, "critic_warmup_iterations": 0, "actor_lr": 9e-3},
    "faster and faster": {"desired_kl": 1e3, "critic_warmup_iterations": 0, "actor_lr": 2e-3},
}


def tiny_stage(seed: int = 0, weights: int = 0, **settings) -> DPPO:
    """Of a policy with random weights, whose two denoisers differ, and normalizers that change something."""
    torch.manual_seed(weights)
    config = PolicyConfig(
        DenoiserConfig(hidden_dim=16), n_obs_steps=TO, horizon=TP, n_action_steps=TA, denoising_steps=10
    )
    policy = DiffusionPolicy(config, DO, DA, ["flat"]).eval()
    policy.obs_normalizer.offset.copy_(torch.tensor([0.3, -0.2, 0.1]))
    policy.obs_normalizer.scale.copy_(torch.tensor([2.0, 0.5, 1.5]))
    policy.action_normalizer.offset.copy_(torch.tensor([0.1, -0.3]))
    policy.action_normalizer.scale.copy_(torch.tensor([0.5, 2.0]))
    stage = DPPO(policy, DPPOConfig(**(TINY | settings)), Setting(TASK, N_ENVS, seed))
    with torch.no_grad():
        for parameter in stage.actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return stage


def random_step(rng: np.random.Generator) -> ChunkStep:
    """Every kind of end; what comes next is not what a chunk led to."""
    ends = rng.choice(3, N_ENVS, p=[0.5, 0.25, 0.25])
    obs, final_obs = rng.normal(size=(2, N_ENVS, TO, DO)).astype(np.float32)
    step = chunk_step(obs, terminated=ends == 1, truncated=ends == 2, final_obs=3 * final_obs)
    return step._replace(reward=rng.normal(1, 2, N_ENVS).astype(np.float32))


def play(stages: list, rng: np.random.Generator, chunks: int) -> None:
    """The same chunks of all `stages`, whose actions must agree."""
    for _ in range(chunks):
        obs = rng.normal(size=(N_ENVS, TO, DO)).astype(np.float32)
        first, *others = [stage.act(obs) for stage in stages]
        for other in others:
            np.testing.assert_allclose(other, first, rtol=1e-3, atol=1e-4)
        step = random_step(rng)
        for stage in stages:
            stage.observe(step)


@pytest.mark.parametrize("variant", VARIANTS)
def test_updates_are_those_by_hand(variant):
    """Three rollouts: actions, what is stored, metrics and weights."""
    stage = tiny_stage(**VARIANTS[variant])
    hand, rng = DPPOByHand(stage, N_ENVS, seed=0), np.random.default_rng(1)
    for iteration in range(3):
        play([stage, hand], rng, T)
        assert stage.ready()
        torch.testing.assert_close(stage.rollout.sampled, torch.stack(hand.chains), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(stage.rollout.log_prob, torch.stack(hand.old_log_probs), rtol=1e-3, atol=1e-3)
        before = {"actor": flat(hand.actor), "critic": flat(hand.critic)}
        ours, theirs = stage.update(), hand.update()
        assert not stage.ready()
        assert ours.pop("first_ratio_error", 0.0) <= 1e-5 * (TA * DA if variant == "joint" else 1)
        assert ours == pytest.approx(theirs, rel=5e-3, abs=1e-5)
        assert ("policy_loss" in ours) == (iteration >= stage.config.critic_warmup_iterations)
        for name, network in (("actor", stage.actor), ("critic", stage.critic)):
            moved = flat(getattr(hand, name)) - before[name]
            assert (flat(network) - before[name] - moved).norm() <= 2e-3 * moved.norm(), name
    if variant == "target_kl":
        assert ours["epochs"] < stage.config.update_epochs
    else:
        assert ours["clip_fraction"] > 0.05


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("chunks", [T - 1, T, 2 * T + 1])
def test_a_restored_stage_goes_on_bitwise(chunks):
    """From the middle of a rollout and from its end; the restored one had other weights and another seed."""

    def go_on(stage, rng, n):
        for _ in range(n):
            play([stage], rng, 1)
            if stage.ready():
                stage.update()

    stage = tiny_stage(critic_warmup_iterations=1)
    go_on(stage, np.random.default_rng(0), chunks)
    again = tiny_stage(seed=5, weights=5, critic_warmup_iterations=1)
    again.load_state_dict(copy.deepcopy(stage.state_dict()))
    for one in (stage, again):
        go_on(one, np.random.default_rng(1), 2 * T)
    ours, theirs = stage.state_dict(), again.state_dict()
    assert len(tensors(ours)) == len(tensors(theirs)) > 40
    assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs)))
    assert (ours["iteration"], ours["t"]) == (theirs["iteration"], theirs["t"])


def test_cut_episodes_cuts_the_last_chunk_alone():
    stage, rng = tiny_stage(), np.random.default_rng(0)
    stage.cut_episodes()  # nothing was stored yet
    assert not stage.rollout.truncated.any()
    for _ in range(2):
        obs = rng.normal(size=(N_ENVS, TO, DO)).astype(np.float32)
        stage.act(obs)
        stage.observe(chunk_step(obs, terminated=np.arange(N_ENVS) == 0))
    stage.reward_scaler.running_return += 1
    stage.cut_episodes()
    assert stage.rollout.truncated.tolist() == [[False] * 3, [False, True, True], [False] * 3, [False] * 3]
    assert not stage.reward_scaler.running_return.any()


@pytest.mark.parametrize(("log_prob", "tolerance"), [("mean", 1e-4), ("joint", 1e-4 * TA * DA)])
def test_one_ratio_beyond_the_tolerance_is_enough(log_prob, tolerance):
    stage = tiny_stage(log_prob=log_prob)
    for excess, allowed in ((0.8, True), (-0.8, True), (1.2, False), (-1.2, False), (float("nan"), False)):
        ratio = torch.ones(100)
        ratio[7] += excess * tolerance
        if allowed:
            assert float(stage.check_first_ratio(ratio)) == pytest.approx(0.8 * tolerance, rel=0.05)
        else:
            with pytest.raises(RuntimeError, match="the likelihood ratio differs from 1"):
                stage.check_first_ratio(ratio)


def test_the_seed_decides_how_a_stage_begins():
    """Its critic and its generator; the global generator stays as it was."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    policies = [make_policy() for _ in range(3)]
    config = DPPOConfig(**TINY)
    torch.manual_seed(3)
    one, same, other = (DPPO(policy, config, Setting(TASK, 3, seed)) for policy, seed in zip(policies, (0, 0, 1)))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(flat(one.critic), flat(same.critic)) and not torch.equal(flat(one.critic), flat(other.critic))
    assert torch.equal(one.generator.get_state(), same.generator.get_state())
    assert not torch.equal(one.generator.get_state(), other.generator.get_state())
    assert one.chunks_per_update == T


@pytest.mark.parametrize(("episodes", "steps"), [(4, 8), (5, 10), (1, 2)])
def test_a_rollout_holds_whole_episodes(episodes, steps):
    """Of 7 steps, 4 chunks of 2, in E = 2 environments, where nothing else is said."""
    task = TaskConfig("bandit", "gymnasium", "Bandit-v0", 7)
    settings = {"ft_denoising_steps": 3, "batch_size": 8, "rollout_episodes": episodes}
    stage = DPPO(make_policy(), DPPOConfig(**settings), Setting(task, 2, 0))
    assert stage.chunks_per_update == len(stage.rollout.reward) == steps
    assert DPPO(make_policy(), DPPOConfig(**settings, n_steps=5), Setting(task, 2, 0)).chunks_per_update == 5


@pytest.mark.parametrize(
    ("suite", "n_steps", "told"), [("robosuite", 47, True), ("robosuite", 48, False), ("gymnasium", 9, False)]
)
def test_a_rollout_of_few_episodes_is_told_where_success_is_the_reward(suite, n_steps, told, capsys):
    task = replace(TASK, suite=suite, max_episode_steps=6 * make_policy().config.n_action_steps)  # 16 of 6 chunks in 2
    DPPO(make_policy(), DPPOConfig(ft_denoising_steps=3, n_steps=n_steps), Setting(task, 2, 0))
    said = capsys.readouterr().err
    assert ("a rollout of" in said) == told
    assert ("holds 15.7 of the longest episodes: expected at least 16" in said and "stage.n_steps=48" in said) == told


def test_the_learning_rate_follows_the_divergence():
    def rate_after(*divergences):
        config = DPPOConfig(ft_denoising_steps=3, desired_kl=0.1, actor_lr=1e-3)
        stage = DPPO(make_policy(), config, Setting(TASK, 2, 0))
        for kl in divergences:
            stage.adapt_learning_rate(kl)
        return stage.actor_optimizer.param_groups[0]["lr"]

    assert rate_after(0.06, 0.19) == 1e-3
    assert rate_after(0.21) == pytest.approx(1e-3 / 1.5) and rate_after(0.04, 0.04) == pytest.approx(1e-3 * 2.25)
    assert rate_after(*[9.0] * 100) == 1e-6 and rate_after(*[0.0] * 100) == 1e-2
    stage = DPPO(make_policy(), DPPOConfig(ft_denoising_steps=3, actor_lr=1e-3, desired_kl=None), Setting(TASK, 2, 0))
    stage.adapt_learning_rate(9.0)
    assert stage.actor_optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_a_tempered_policy_is_explored_from(temperature):
    """The chain's noise is tau times the sampler's, not less than the floor; so is what likelihoods take."""
    policy = make_policy(temperature=temperature)
    config = DPPOConfig(ft_denoising_steps=3, min_sampling_denoising_std=0.05, min_logprob_denoising_std=0.02)
    stage = DPPO(policy, config, Setting(TASK, 2, 0))
    whole = make_policy().sampler.std
    assert stage.inner.sampler.temperature == temperature
    torch.testing.assert_close(stage.inner.sampler.std, temperature * whole)
    torch.testing.assert_close(stage.inner.logprob_std, (temperature * whole).clamp(min=0.02))
