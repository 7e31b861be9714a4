"""DSRL: the authors' numbers, the steered policy and its folder, and that noise is what is learned."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

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
    score,
)
from stopped import assert_same_run, untimed_metrics
from test_offline import signal_at, two_phases
from test_parity import files, numbers
from test_training import dataset, pretrained  # noqa: F401 - fixtures

from burnish.diffusion import Sampler
from burnish.errors import BurnishError, Stopped
from burnish.evaluation.evaluate import evaluate
from burnish.finetune.algorithms.dsrl import DSRL, DSRLConfig
from burnish.finetune.stage import Setting
from burnish.finetune.start import finetune
from burnish.finetune.storage.replay import Transitions
from burnish.machine.checksums import CHECKSUMS
from burnish.networks import CriticConfig, DenoiserConfig
from burnish.networks.squashed import EntropyTemperature, SquashedConfig, SquashedGaussian, squash
from burnish.policies.flow import FlowPolicy, FlowPolicyConfig
from burnish.policies.load import load_policy
from burnish.policies.steered import SteeredConfig, SteeredPolicy
from burnish.runs.evaluation_file import BEFORE, EvaluationFile

SMALL = {"hidden_dim": 32, "n_layers": 2}


def make_dsrl(weights=None, policy=None, seed=0, has_base=True, **kwargs) -> DSRL:
    policy = policy or make_policy()
    if weights is not None:
        policy.load_state_dict(weights)
    settings = {
        **LITTLE,
        "actor": SquashedConfig(**SMALL),
        "critic_warmup_updates": 60,
        "actor_lr": 3e-3,
        "alpha": 0.01,
        "target_entropy": -2.0,
    }
    return DSRL(policy, DSRLConfig(**(settings | kwargs)), Setting(TASK, E, seed, has_base))


# -- against the authors' numbers --------------------------------------------------------------------------------------


class StubActor(torch.nn.Module):
    """mean and clipped log std of s @ W + c"""

    def __init__(self, W, c):
        super().__init__()
        self.W, self.c = torch.nn.Parameter(W), c

    def forward(self, obs):
        mean, log_std = (obs @ self.W + self.c).chunk(2, 1)
        return mean, log_std.clamp(-20, 2)


class StubCritic(torch.nn.Module):
    """Q_j(s, a) = 3 sin(a @ Qx_j) + s @ Qs_j"""

    def __init__(self, Qx, Qs):
        super().__init__()
        self.Qx, self.Qs = torch.nn.Parameter(Qx), torch.nn.Parameter(Qs)

    def forward(self, obs, actions):
        return 3 * (actions @ self.Qx.T).sin().permute(2, 0, 1) + (obs @ self.Qs.T).T[:, :, None]


@pytest.mark.parametrize("path", files("dsrl.npz"))
def test_a_gradient_step_is_the_authors(path, monkeypatch):
    data = {name: each.double() for name, each in numbers(path).items()}
    B, h, Da = len(data["obs"]), int(data["chunk"]), int(data["action_dim"])
    policy = make_policy(horizon=h, n_action_steps=h, denoiser=DenoiserConfig(hidden_dim=16))
    own = {"target_entropy": float(data["target_entropy"]), "max_grad_norm": 1e9}
    stage = make_dsrl(policy=policy, critic_warmup_updates=0, **own)
    steered = stage.policy
    assert (steered.config.magnitude, stage.critic.config.n_critics) == (float(data["action_magnitude"]), 2)
    steered.actor = StubActor(data["policy_W"], data["policy_c"])
    stage.critic.network, stage.critic.target, stage.noise_critic = (
        StubCritic(data[f"{name}_Qx"].clone(), data[f"{name}_Qs"].clone()) for name in ("qa", "qat", "qw")
    )
    stage.entropy = EntropyTemperature(float(data["log_ent_coef"].exp()), float(data["target_entropy"])).double()
    learning = {"noise": stage.noise_critic, "actor": steered.actor, "alpha": stage.entropy}
    for name, each in learning.items():
        setattr(stage, f"{name}_optimizer", torch.optim.SGD(each.parameters(), lr=0.0))  # the gradients alone
    stage.critic.optimizer = torch.optim.SGD(stage.critic.network.parameters(), lr=0.0)
    steered.steers.fill_(True)

    def chunks_of(obs, u):
        w = float(data["action_magnitude"]) * u.flatten(2)
        return (w @ data["F_w"] + (obs @ data["F_s"] + data["F_b"])[:, None]).tanh().view(u.shape)

    monkeypatch.setattr(steered, "chunks_of", chunks_of)
    drawn = iter([data[name] for name in ("next_noise", "pi_noise", "distill_noise")])
    monkeypatch.setattr(stage, "normal", lambda *shape: next(drawn).view(*shape, h, Da))
    discount = float(data["discount"]) * (1 - data["dones"])
    batch = Transitions(data["obs"], data["actions"], data["rewards"], discount, data["next_obs"])
    close = {"rtol": 1e-5, "atol": 1e-8}
    alpha_loss, seen = stage.entropy.loss, {}
    monkeypatch.setattr(stage.entropy, "loss", lambda logp: seen.setdefault("alpha", alpha_loss(logp)))
    q_next = stage.next_values(batch)
    torch.testing.assert_close(batch.reward + batch.discount * q_next.amin(0)[:, 0], data["target_q_min"], **close)
    metrics = stage.critic.update(batch, q_next) | stage.update_actor(batch)
    # theirs is half the sum over two members, ours reports their mean, and minimises their sum
    found = {
        "critic_loss_min": metrics["critic_loss"],
        "critic_grad_Qx": 0.5 * stage.critic.network.Qx.grad,
        "critic_grad_Qs": 0.5 * stage.critic.network.Qs.grad,
        "actor_loss_min": metrics["actor_loss"],
        "actor_grad_W_min": steered.actor.W.grad,
        "ent_coef_loss_min": seen["alpha"].detach(),
        "log_ent_coef_grad": stage.entropy.log_alpha.grad,
        "noise_critic_loss_min": metrics["noise_critic_loss"],
        "noise_critic_grad_Qx": stage.noise_critic.Qx.grad,
        "noise_critic_grad_Qs": stage.noise_critic.Qs.grad,
    }
    for name, ours in found.items():
        torch.testing.assert_close(ours.reshape(-1).double(), data[name].reshape(-1), **close, msg=name)
    assert B == 20


def test_the_squashed_gaussian_integrates_to_one_and_its_entropy_is_learned():
    mean, log_std = torch.tensor([0.3]), torch.tensor([-0.4])
    a = torch.linspace(-0.99999, 0.99999, 200_001)
    z = (a.atanh() - mean) / log_std.exp()
    again, log_prob = squash(mean, log_std, z[:, None])
    torch.testing.assert_close(again[:, 0], a, atol=1e-5, rtol=1e-5)
    assert float(torch.trapezoid(log_prob.exp(), a)) == pytest.approx(1, abs=1e-3)
    alpha = EntropyTemperature(0.5, target=-1.0)
    assert float(alpha.alpha) == pytest.approx(0.5)
    for entropy, sign in ((-2.0, -1), (0.5, 1)):  # of less entropy alpha shall rise: a descent's gradient below 0
        alpha.zero_grad()
        alpha.loss(torch.full((4,), -entropy)).backward()
        assert np.sign(float(alpha.log_alpha.grad)) == sign


def test_an_actor_begins_at_zero_and_sees_what_it_is_given():
    torch.manual_seed(0)
    actor = SquashedGaussian(SquashedConfig(**SMALL), features=3, dim=2, given=4, log_std=-1.0)
    obs, given = torch.randn(5, 3), torch.randn(5, 6, 4)
    mean, log_std = actor(obs, given)
    assert mean.shape == (5, 6, 2) and not mean.any() and bool((log_std == -1).all())
    torch.nn.init.normal_(actor.out.weight)
    mean, _ = actor(obs, given)
    torch.testing.assert_close(mean[:, 2], actor(obs, given[:, 2])[0])
    assert not torch.equal(mean[:, 2], actor(obs, given[:, 3])[0])


# -- the policy --------------------------------------------------------------------------------------------------------


def steered(weights=None, base=None, **own) -> SteeredPolicy:
    base = base or make_policy()
    if weights is not None:
        base.load_state_dict(weights)
    policy = SteeredPolicy(SteeredConfig.around(base, actor=SquashedConfig(**SMALL), **own), base).eval()
    torch.manual_seed(3)
    torch.nn.init.normal_(policy.actor.out.weight, std=0.3)
    return policy


def test_a_policy_that_has_learned_nothing_is_the_base_bit_for_bit(pretrained_weights):
    policy, obs = steered(pretrained_weights, magnitude=0.7), observations(np.random.default_rng(0), 9)
    noise = torch.randn((len(policy.base.sampler) + 1, 9, TA, DA))
    assert policy.noise_shape() == policy.base.noise_shape()
    np.testing.assert_array_equal(policy.act(obs, noise=noise), policy.base.act(obs, noise=noise))
    policy.steers.fill_(True)
    assert not np.array_equal(policy.act(obs, noise=noise), policy.base.act(obs, noise=noise))


@pytest.mark.parametrize("base", ["diffusion", "flow", "finetuned"])
def test_chunks_are_those_of_a_deterministic_sampler(base, monkeypatch):
    """DDIM with eta 0, or Euler's steps; also where the policy itself is stochastic and turned down."""
    torch.manual_seed(0)
    if base == "flow":
        settings = {"denoiser": DenoiserConfig(**SMALL), "horizon": TA, "n_action_steps": TA, "denoising_steps": 10}
        own = FlowPolicy(FlowPolicyConfig(**settings, euler_steps=2, eta=1.0, temperature=0.3), 2, DA, ["flat"]).eval()
        expected = Sampler(own.process, "euler", 5)
    else:
        own = make_policy(temperature=0.3)
        expected = Sampler(own.process, "ddim", 5, eta=0.0)
        if base == "finetuned":
            own.start_finetuning(4)
            with torch.no_grad():
                own.finetuned.out.bias.add_(0.3)
    policy = steered(base=own, base_steps=5, magnitude=1.2)
    obs, u = torch.randn(6, 2), 2 * torch.rand(6, 3, TA, DA) - 1
    noise = torch.randn(6, 6, 3, TA, DA)  # but for the first, it must not matter
    noise[0] = 1.2 * u
    with torch.no_grad():
        torch.testing.assert_close(policy.chunks_of(obs, u), own.sample(obs, noise, sampler=expected)[0])
    policy.steers.fill_(True)
    assert policy.sampler_steps == 5


def test_the_actor_s_noise_is_bounded_and_the_temperature_is_its_own(pretrained_weights, monkeypatch):
    policy, obs = steered(pretrained_weights), torch.randn(300, 2)
    policy.steers.fill_(True)
    seen, chunks_of = [], policy.chunks_of
    monkeypatch.setattr(policy, "chunks_of", lambda obs, u: seen.append(u) or chunks_of(obs, u))
    noise = 3 * torch.randn((len(policy.base.sampler) + 1, 300, TA, DA))
    for temperature in (0.0, 0.5, 1.0):
        with policy.sampling(temperature=temperature):
            policy.predict(obs, noise)
    policy.requires_grad_(False)
    mean = policy.actor(obs)[0].tanh().view(300, 1, TA, DA)
    torch.testing.assert_close(seen[0], mean)
    widths = [float((u.detach() - mean).abs().mean()) for u in seen]
    assert widths[0] < 1e-6 and 0.1 < widths[1] < widths[2] and float(seen[2].detach().abs().max()) <= 1
    z = noise[0, :, None]
    expected = (policy.actor(obs)[0].view(300, 1, TA, DA) + policy.actor(obs)[1].exp().view(z.shape) * z * 0.5).tanh()
    torch.testing.assert_close(seen[1], expected)


@pytest.mark.parametrize("critic_of", ["actions", "noise"])
def test_a_saved_one_evaluates_alone(pretrained_weights, tmp_path, critic_of):
    policy = steered(pretrained_weights, critic_of=critic_of, base_steps=2, magnitude=1.1, temperature=0.4)
    policy.base.action_normalizer.scale.fill_(0.5)
    policy = SteeredPolicy(policy.config, policy.base).eval()
    torch.nn.init.normal_(policy.actor.out.weight, std=0.3)
    policy.add_critic(CriticConfig(**SMALL))
    policy.steers.fill_(True)
    policy.save(tmp_path / "policy")
    loaded, obs = load_policy(tmp_path / "policy"), observations(np.random.default_rng(0), 8)
    assert isinstance(loaded, SteeredPolicy) and loaded.config == policy.config
    for n in (1, 4):
        noise = torch.randn((len(policy.base.sampler) + 1, 8, *([n] if n > 1 else []), TA, DA))
        ours = policy.act(obs, noise=noise, candidates=n)
        np.testing.assert_array_equal(loaded.act(obs, noise=noise, candidates=n), ours)
        assert np.abs(ours).max() <= 0.5
    description = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert description["base"]["kind"] == "diffusion" and description["kind"] == "steered"


def test_candidates_are_chosen_by_what_the_critic_judges(pretrained_weights, monkeypatch):
    for critic_of in ("actions", "noise"):
        policy, obs = steered(pretrained_weights, critic_of=critic_of, temperature=1.0), torch.randn(50, 2)
        policy.add_critic(CriticConfig(**SMALL))
        policy.steers.fill_(True)
        monkeypatch.setattr(policy.critic, "forward", lambda obs, x: x.sum(-1)[None])
        noise = torch.randn(len(policy.base.sampler) + 1, 50, 5, TA, DA)
        with torch.no_grad():
            chosen, u = policy.predict(obs, noise, candidates=5), policy.noise(obs, noise[0])[0]
            x = policy.chunks_of(obs, u)
        best = (u if critic_of == "noise" else x.clamp(-1, 1)).sum((2, 3)).argmax(1)
        torch.testing.assert_close(chosen, x[torch.arange(50), best])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["config"].update(magnitude=0), "config.magnitude=0.0: expected more than 0"),
        (
            lambda d: d["config"].update(mean_of=4),
            "config.mean_of=4: expected 1, a policy of kind steered acts",
        ),
        (lambda d: d["config"].update(base_steps=7), "sampler_steps=7: expected a divisor of denoising_steps=10"),
        (lambda d: d["base"].update(kind="gauss"), "kind=gauss: did you mean gaussian"),
        (lambda d: d.pop("base"), r"it is damaged \(KeyError: 'base'\)"),
    ],
)
def test_a_damaged_folder_is_told(tmp_path, change, message):
    steered().save(tmp_path / "policy")
    (tmp_path / "policy" / CHECKSUMS).unlink()
    file = tmp_path / "policy" / "policy.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    with pytest.raises(BurnishError, match=message):
        load_policy(tmp_path / "policy")


# -- the stage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic_of", ["actions", "noise"])
def test_a_bandit_is_learned_by_noise_alone(pretrained_weights, critic_of):
    stage = make_dsrl(pretrained_weights, critic_of=critic_of, utd_ratio=0.75)
    base = copy.deepcopy(stage.policy.base.state_dict())
    assert abs(score(stage.policy)) < 0.05
    play(stage, np.random.default_rng(0), 40)
    assert score(stage.policy) > 0.2
    assert all(torch.equal(each, base[name]) for name, each in stage.policy.base.state_dict().items())


@pytest.mark.parametrize("critic_of", ["actions", "noise"])
def test_what_is_stored_is_what_the_critic_judges(pretrained_weights, critic_of, monkeypatch):
    stage = make_dsrl(pretrained_weights, critic_of=critic_of)
    stage.policy.steers.fill_(True)
    obs = observations(np.random.default_rng(0))
    actions = stage.act(obs)
    stored = stage.pending[1]
    if critic_of == "noise":
        with torch.no_grad():
            x = stage.policy.chunks_of(stage.pending[0], stored[:, None])[:, 0]
        assert float(stored.abs().max()) <= 1
    else:
        x = stored
    np.testing.assert_allclose(actions, x.clamp(-1, 1).numpy(), atol=1e-6)
    stage.observe(chunk_step(obs))
    assert torch.equal(stage.replay.data.chunk[:E], stored.flatten(1))
    seen = stage.critic.executed(stage.replay.sample(4, stage.generator))
    assert seen.shape == (4, 1, TA * DA)


def test_the_base_s_own_noise_until_the_actor_has_learned(pretrained_weights, monkeypatch):
    """Unbounded where actions are stored, within the bounds where noise is; then the actor's."""
    for critic_of, most in (("actions", np.inf), ("noise", 1.0)):
        stage = make_dsrl(pretrained_weights, critic_of=critic_of, magnitude=0.5)
        obs = torch.randn(2000, 2)
        u, log_prob = stage.draw(obs, 1)
        assert float((0.5 * u).std()) == pytest.approx(1, abs=0.05) and not log_prob.any()
        assert float(stage.judged(obs, u).abs().max()) <= min(most, 1 + 1e-6)
        stage.policy.steers.fill_(True)
        u, log_prob = stage.draw(obs, 1)
        assert float(u.detach().abs().max()) <= 1 and bool(log_prob.all())


def test_the_entropy_is_in_the_target(pretrained_weights, monkeypatch):
    stage = make_dsrl(pretrained_weights, alpha=0.3)
    stage.policy.steers.fill_(True)
    batch = SimpleNamespace(next_obs=torch.randn(7, 2))
    u = torch.rand(7, 1, TA, DA)
    monkeypatch.setattr(stage, "draw", lambda obs, n: (u, torch.full((7, 1), 2.0)))
    with torch.no_grad():
        q = stage.critic.target(batch.next_obs, stage.policy.chunks_of(batch.next_obs, u).clamp(-1, 1).flatten(2))
    torch.testing.assert_close(stage.next_values(batch), q - 0.6)


@pytest.mark.parametrize("critic_of", ["actions", "noise"])
def test_a_restored_stage_goes_on_bitwise(pretrained_weights, critic_of):
    settings = {"critic_of": critic_of, "critic_warmup_updates": 10, "update_every": 2}
    assert_goes_on_bitwise(make_dsrl(pretrained_weights, **settings), make_dsrl(seed=4, **settings))


def test_demonstrations_teach_the_critic_of_actions(pretrained_weights, monkeypatch):
    learns_from(monkeypatch, demonstrations)
    stage = make_dsrl(pretrained_weights, demos="demos.hdf5", demo_ratio=0.5, critic_warmup_updates=5)
    metrics = stage.update_offline(8)
    assert {"critic_loss", "actor_loss", "noise_critic_loss", "alpha", "entropy"} <= set(metrics)


def test_user_mistakes(pretrained_weights):
    with pytest.raises(BurnishError, match=r"demo_ratio=0.5: expected 0 with critic_of=noise, no demonstration tells"):
        DSRLConfig(critic_of="noise", demo_ratio=0.5)
    with pytest.raises(BurnishError, match=r"stage=dsrl steers a pretrained policy: expected policy=FOLDER"):
        make_dsrl(has_base=False)
    with pytest.raises(BurnishError, match=r"stage=dsrl: .*sampler_steps=3: expected a divisor of denoising_steps=10"):
        make_dsrl(base_steps=3)
    with pytest.raises(BurnishError, match=r"stage=dsrl: the policy acts by the mean of 4 chunks: expected mean_of=1"):
        make_dsrl(policy=make_policy(mean_of=4))
    stage = make_dsrl(pretrained_weights)
    assert make_dsrl(policy=stage.policy).policy is stage.policy
    with pytest.raises(BurnishError, match=r"stage.magnitude=2.0, but the policy was steered with 1.5 before"):
        make_dsrl(policy=stage.policy, magnitude=2.0)


@pytest.fixture(scope="module")
def two_phased(dataset, pretrained, tmp_path_factory):  # noqa: F811
    """A run that nobody stopped, and how to make one."""
    few = {"batch_size": 32, "learning_starts": 200, "update_every": 5, "critic_warmup_updates": 14}
    nets = {"critic": CriticConfig(**SMALL), "actor": SquashedConfig(**SMALL)}
    stage = DSRLConfig(demos=str(dataset), demo_ratio=0.25, **few, **nets)
    folder = tmp_path_factory.mktemp("dsrl") / "whole"
    finetune(two_phases(folder, pretrained, stage))
    return folder, lambda run, **settings: two_phases(run, pretrained, stage, **settings)


@pytest.mark.parametrize(("method", "n"), [("update_offline", 2), ("update", 2)])
def test_a_run_stopped_in_either_phase_goes_on_bitwise(two_phased, tmp_path, monkeypatch, method, n):
    (whole, make), run = two_phased, tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, DSRL, method, n)
        with pytest.raises(Stopped, match="go on with: burnish finetune resume="):
            finetune(make(run))
    torch.manual_seed(99)
    finetune(make(run, resume=str(run)))
    assert_same_run(run, whole)


def test_a_run_begins_with_the_base_and_ends_with_a_steered_policy(two_phased, pretrained):  # noqa: F811
    whole, make = two_phased
    config, base = make(whole), load_policy(pretrained)
    found = evaluate(base, config.task, config.evaluation)
    assert EvaluationFile.read(whole / BEFORE).returns == found.returns.tolist()
    policy, lines = load_policy(whole), untimed_metrics(whole)
    assert policy.config.kind == "steered" and bool(policy.steers) and policy.trained_in["name"] == config.task.name
    assert any("actor_loss" in line for line in lines) and any("noise_critic_loss" in line for line in lines)
    for name, each in policy.base.state_dict().items():
        assert torch.equal(each, base.state_dict()[name])
