"""Critics against closed forms: expectiles, quantiles, a known chain's value, and gradients in actions."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from bandit import DA, TA, E, chunk_step, make_policy, make_stage, tensors
from scipy import optimize, stats
from test_parity import files, numbers

from burnish.errors import BurnishError
from burnish.finetune.critics import (
    CRITICS,
    Critic,
    ExpectileCritic,
    ExpectileCriticConfig,
    GaussianCritic,
    Learning,
    QuantileCritic,
)
from burnish.finetune.losses.critic import expectile_loss, gaussian_loss, quantile_loss
from burnish.finetune.losses.rsm import weighted_denoising_loss
from burnish.finetune.storage.replay import Transitions
from burnish.networks import CriticConfig, GaussianCriticConfig, QuantileCriticConfig
from burnish.policies.load import load_policy

SMALL = {"hidden_dim": 32, "n_layers": 2}
CONFIGS = {
    "q": CriticConfig(**SMALL),
    "expectile": ExpectileCriticConfig(**SMALL),
    "quantile": QuantileCriticConfig(**SMALL, n_quantiles=7),
    "gaussian": GaussianCriticConfig(**SMALL),
}


def make_critic(kind: str, policy=None, members: int | None = None, lr: float = 1e-2, tau: float = 0.05, **changes):
    torch.manual_seed(0)
    config = type(CONFIGS[kind])(**{**vars(CONFIGS[kind]), **changes})
    learning = Learning(lr, tau, 10.0, members)
    return CRITICS[kind](policy or make_policy(), config, learning, torch.Generator().manual_seed(0))


def minimiser(loss, start: torch.Tensor) -> torch.Tensor:
    """Where the convex `loss` of a tensor like `start` is least."""
    x = start.clone().requires_grad_(True)
    best = torch.optim.LBFGS([x], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        best.zero_grad()
        value = loss(x)
        value.backward()
        return value

    best.step(closure)
    return x.detach()


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.99])
def test_the_expectile_of_a_uniform_distribution(tau):
    """tau E(x - e)+ = (1 - tau) E(e - x)+ on [0, 1]: e / (1 - e) = sqrt(tau / (1 - tau)); the mean at 1/2."""
    x = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    found = float(minimiser(lambda e: expectile_loss(x - e, tau), torch.tensor(0.2, dtype=torch.float64)))
    odds = np.sqrt(tau / (1 - tau))
    assert found == pytest.approx(odds / (1 + odds), abs=1e-4)
    assert found == pytest.approx(optimize.brentq(lambda e: tau * (1 - e) ** 2 - (1 - tau) * e**2, 0, 1), abs=1e-4)


def test_the_expectile_goes_from_the_mean_to_the_maximum():
    x = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    found = [float(minimiser(lambda e, t=t: expectile_loss(x - e, t), x.mean())) for t in (0.5, 0.9, 0.999, 0.999999)]
    assert found[0] == pytest.approx(2.0) and found == sorted(found) and found[-1] == pytest.approx(5, abs=1e-4)


def test_quantile_regression_finds_the_quantiles_of_a_normal_distribution():
    """Without Huber's part; within half the distance of two draws there."""
    M = 5
    draws = torch.from_numpy(stats.norm.ppf((np.arange(4001) + 0.5) / 4001)).float()[None]
    z = torch.zeros(1, M, requires_grad=True)
    optimizer = torch.optim.Adam([z], 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        quantile_loss(z, draws, 0.0).backward()
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(z[0].detach(), stats.norm.ppf((np.arange(M) + 0.5) / M), atol=5e-3)


def test_the_quantile_loss_by_hand():
    """Two quantiles at 1/4 and 3/4, two targets, kappa 1 and 2."""
    z, y = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 3.0]])
    # errors y - z: 0.5, 3.0 of the first; -0.5, 2.0 of the second
    one = (0.25 * 0.125 + 0.25 * 2.5 + 0.25 * 0.125 + 0.75 * 1.5) / 4
    assert float(quantile_loss(z, y, 1.0)) == pytest.approx(one)
    two = (0.25 * 0.25 / 4 + 0.25 * 2.0 + 0.25 * 0.25 / 4 + 0.75 * 4.0 / 4) / 4
    assert float(quantile_loss(z, y, 2.0)) == pytest.approx(two)


# -- the authors' own numbers ------------------------------------------------------------------------------------------


def stub_q(case, name: str, obs: torch.Tensor, actions: torch.Tensor, weights=None) -> torch.Tensor:
    """3 sin(a Qx) + s Qs"""
    Qx, Qs = weights or (case[f"{name}_Qx"], case[f"{name}_Qs"])
    return 3 * (actions @ Qx).sin() + obs @ Qs


@pytest.mark.parametrize("path", files("idql_iql.npz"))
def test_iql_s_losses_are_the_authors(path):
    case = {name: value.double() for name, value in numbers(path).items()}
    obs, actions = case["obs"], case["actions"]
    Vs = case["value_Vs"].clone().requires_grad_(True)
    least = torch.minimum(*(stub_q(case, name, obs, actions) for name in ("qt1", "qt2")))
    u = least - 2 * (obs @ Vs).tanh()
    torch.testing.assert_close(u.detach(), case["iql_adv"])
    loss = expectile_loss(u, float(case["expectile"]))
    torch.testing.assert_close(loss.detach(), case["iql_value_loss"][0])
    torch.testing.assert_close(torch.autograd.grad(loss, Vs)[0], case["iql_value_grad_Vs"])


@pytest.mark.parametrize("path", files("idql_iql.npz"))
def test_idql_s_weights_and_actor_loss_are_the_authors(path, pretrained_weights):
    """Their loss sums over the dimensions where ours has the mean."""
    case = {name: value.double() for name, value in numbers(path).items()}
    u, t = case["iql_adv"], case["time"].long()
    signal = (1 - case["betas"]).cumprod(0)[t, None]
    x = signal.sqrt() * case["actions"] + (1 - signal).sqrt() * case["noise"]
    eps = (x @ case["Wx"] + case["obs"] @ case["Ws"] + case["time"][:, None] * case["v"] + case["b"]).tanh()
    names = {"bc": "constant", "soft_adv": "expectile", "hard_adv": "positive", "exp_adv": "exponential"}
    for theirs, ours in names.items():
        temperature = 1 / float(case["temperature"])
        critic = ExpectileCriticConfig(**SMALL, expectile=float(case["hyper_expectile"]))
        stage = make_stage("idql", pretrained_weights, temperature=temperature, critic=critic)
        stage.config = replace(stage.config, weights=ours)
        weights = stage.weigh(u)
        assert float(weights.mean()) == pytest.approx(float(case[f"idql_weight_mean_{theirs}"]), rel=1e-6)
        loss = weighted_denoising_loss(eps[:, None, None], case["noise"][:, None, None], weights[:, None])
        assert 3 * float(loss) == pytest.approx(float(case[f"idql_actor_loss_{theirs}"]), rel=1e-5)


@pytest.mark.parametrize("path", files("dacer.npz"))
@pytest.mark.parametrize("update", ["u0", "u1"])
def test_the_gaussian_loss_is_the_authors(path, update):
    """Gradients of both critics, at the first update and at one whose running standard deviation is another."""
    case = {name: value.double() for name, value in numbers(path).items()}
    at_next = case["next_obs"], case[f"{update}_next_actions"]

    def means_and_stds(prefix: str, obs, actions, weights):
        for i, own in enumerate(weights, start=1):
            Qx, Qs, Sx, Ss = own
            std = torch.nn.functional.softplus(actions @ Sx + obs @ Ss)
            yield stub_q(case, f"{prefix}{i}", obs, actions, (Qx, Qs)), std

    def weights(prefix: str):
        return [[case[f"{prefix}{i}_{part}"].clone() for part in ("Qx", "Qs", "Sx", "Ss")] for i in (1, 2)]

    (m1, s1), (m2, s2) = means_and_stds("qt", *at_next, weights("qt"))
    z1, z2 = (case[f"{update}_target_z{i}"].clamp(-3, 3) for i in (1, 2))
    sampled = torch.where(m1 < m2, m1 + s1 * z1, m2 + s2 * z2)
    discount = case["discount"] * (1 - case["done"])
    y, y_sampled = (case["reward_scale"] * case["rewards"] + discount * q for q in (torch.minimum(m1, m2), sampled))
    own = [[weight.requires_grad_(True) for weight in each] for each in weights("q")]
    mean, std = (torch.stack(each) for each in zip(*means_and_stds("q", case["obs"], case["actions"], own)))
    typical = torch.cat([case[f"{update}_mean_q{i}_std"] for i in (1, 2)])
    if update == "u0":
        torch.testing.assert_close(std.mean(1).detach(), typical)
    gaussian_loss(mean, std, y, y_sampled, typical).backward()
    for i, each in enumerate(own, start=1):
        for part, weight in zip(("Qx", "Qs", "Sx", "Ss"), each):
            torch.testing.assert_close(weight.grad, case[f"{update}_q{i}_grad_{part}"])


# -- whole critics -----------------------------------------------------------------------------------------------------


def batch_at(states: torch.Tensor, chunk, reward, discount, after: torch.Tensor) -> Transitions:
    return Transitions(states, torch.as_tensor(chunk).flatten(1), reward, discount, after)


def test_implicit_q_learning_finds_the_best_of_the_data_not_its_mean():
    """Two states. In the first the data's chunks give 0 or 1 at even odds and lead to the second, where they give 0 or
    2 and terminate. V is the expectile there; Q of the first state is its reward and gamma times V of the second."""
    torch.manual_seed(0)
    n = 400
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    good = torch.arange(n) % 2  # which of the two chunks
    chunk = (good * 1.0 - 0.5).view(n, 1, 1).expand(n, TA, DA)
    at_first = (torch.arange(n) < n // 2).float()
    states = torch.where(at_first[:, None] > 0, first, second)
    reward = torch.where(at_first > 0, good.float(), 2.0 * good)
    batch = batch_at(states, chunk, reward, 0.9 * at_first, second.expand(n, 2))
    critic = make_critic("expectile", expectile=0.9, tau=0.2, lr=3e-3)
    for _ in range(1500):
        metrics = critic.update(batch)
    # of 0 and b at even odds: tau (b - v) = (1 - tau) v, v = tau b
    with torch.no_grad():
        v = critic.value(torch.cat([first, second]))
        q = critic.values(first, torch.tensor([-0.5, 0.5]).view(1, 2, 1, 1).expand(1, 2, TA, DA))
    v2 = 0.9 * 2
    q1 = [0.9 * v2, 1 + 0.9 * v2]
    assert v[1] == pytest.approx(v2, abs=0.05)
    assert v[0] == pytest.approx(0.1 * q1[0] + 0.9 * q1[1], abs=0.08)
    assert q[0].tolist() == pytest.approx(q1, abs=0.08)
    assert set(metrics) == {"critic_loss", "value_loss", "q", "v", "advantage"}
    assert critic.advantages(batch)[good == 1].min() > 0 > critic.advantages(batch)[good == 0].max()


@pytest.mark.parametrize("kind", ["quantile", "gaussian"])
def test_a_distributional_critic_learns_the_distribution(kind):
    """Rewards uniform on {0, 1, 2, 3}, terminated at once: mean 1.5, standard deviation sqrt(5 / 4)."""
    n = 256
    obs, reward = torch.zeros(n, 2), torch.arange(n).remainder(4).float()
    batch = batch_at(obs, torch.zeros(n, TA, DA), reward, torch.zeros(n), obs)
    changes = {"n_quantiles": 4, "huber": 0.0} if kind == "quantile" else {}
    critic = make_critic(kind, lr=3e-3, **changes)
    if kind == "gaussian":  # what is learned without bootstrapping is the mean and the spread around it of the sample
        batch = batch._replace(reward=torch.full((n,), 1.5), discount=torch.ones(n))
        known = torch.tensor([0.0, np.log(np.expm1(np.sqrt(1.25)))]).float()
        after = known.expand(2, n, 1, 2)
    else:
        after = torch.zeros(2, n, 1, 4)
    for _ in range(1500):
        critic.update(batch, after)
    outputs = critic.network.outputs(obs[:1], torch.zeros(1, 1, TA * DA))[:, 0, 0]
    if kind == "quantile":  # any number between two of them halves them there, and these lie on the rewards
        np.testing.assert_allclose(outputs.detach(), [[0, 1, 2, 3]] * 2, atol=0.25)
    else:
        assert critic.config.mean(outputs).tolist() == pytest.approx([1.5, 1.5], abs=0.05)
        # the sampled return is clipped at 3 standard deviations: 0.997 of the spread
        assert critic.config.std(outputs).tolist() == pytest.approx([np.sqrt(1.25)] * 2, rel=0.05)
    torch.testing.assert_close(
        critic.values(obs[:1], torch.zeros(1, 1, TA, DA))[0, 0], critic.network.mean(outputs).min()
    )


def test_the_target_is_the_member_of_the_least_mean_at_the_best_chunk():
    critic = make_critic("quantile", n_quantiles=3)
    outputs = torch.tensor(
        [  # two members, one observation, three chunks: means 2, 4, 0 and 3, 1, 5: least 2, 1, 0
            [[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0], [-1.0, 0.0, 1.0]]],
            [[[3.0, 3.0, 3.0], [0.0, 1.0, 2.0], [5.0, 5.0, 5.0]]],
        ]
    )
    found, member = critic.least_of_best(outputs)
    assert found.tolist() == [[1.0, 2.0, 3.0]] and member.tolist() == [0]


@pytest.mark.parametrize("kind", ["q", "quantile"])
def test_a_subset_of_the_ensemble_is_the_target(kind):
    """2 of 10, drawn anew: each pair comes up, and never anything but the critic's own members."""
    critic = make_critic(kind, members=2, n_critics=10)
    outputs = torch.arange(10.0).view(10, 1, 1).expand(10, 3, 1)
    found = [tuple(sorted(critic.target_members(outputs)[:, 0, 0].tolist())) for _ in range(400)]
    assert len(set(found)) == 45 and all(a < b for a, b in found)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_gradients_in_actions_beyond_the_bounds(kind, target):
    """By finite differences, in float64; within the bounds and outside, where the clamped Q has no slope."""
    policy = make_policy(horizon=TA + 1)
    critic = make_critic(kind, policy, n_critics=3, activation="mish")
    network = critic.target if target else critic.network
    network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    obs = torch.randn(5, 2, dtype=torch.float64)
    x = 1.5 * torch.randn(5, 4, TA + 1, DA, dtype=torch.float64)
    x[0, 0] = 3.0
    for of, take in (("least", lambda q: q.amin(0)), ("mean", lambda q: q.mean(0))):
        found = critic.action_gradient(obs, x, target=target, of=of)
        assert not found[:, :, TA:].any()  # is not executed
        assert (found[0, 0, :TA] != 0).all()
        for t, d in ((0, 0), (1, 1)):
            step = torch.zeros_like(x)
            step[:, :, t, d] = 1e-5
            with torch.no_grad():
                up, down = (take(network(obs, (x + sign * step)[:, :, :TA].flatten(2))) for sign in (1, -1))
            torch.testing.assert_close(found[:, :, t, d], (up - down) / 2e-5, rtol=1e-4, atol=1e-6)
    beyond = torch.full((5, 1, TA + 1, DA), 3.0, dtype=torch.float64)
    clamped, free = (critic.values(obs, beyond, target=target, clamp=clamp) for clamp in (True, False))
    torch.testing.assert_close(clamped, critic.values(obs, beyond.clamp(-1, 1), target=target, clamp=False))
    assert (clamped - free).abs().min() > 1e-3


def test_the_gradient_of_a_quadratic_q():
    """Q = -|a - c|^2 by hand: dQ/da = 2 (c - a), outside of the bounds too."""

    class Quadratic(torch.nn.Module):
        def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            return torch.stack([-(actions - 0.5).square().sum(-1), 1 - (actions - 0.5).square().sum(-1)])

    critic = make_critic("q")
    critic.network = Quadratic()
    x = torch.linspace(-3, 3, 3 * TA * DA).view(1, 3, TA, DA)
    torch.testing.assert_close(critic.action_gradient(torch.zeros(1, 2), x), 2 * (0.5 - x))


# -- in a stage --------------------------------------------------------------------------------------------------------


def learned(kind: str, name: str, weights, **settings):
    stage = make_stage(name, weights, critic=CONFIGS[kind], gamma=0.7, tau=0.05, critic_lr=3e-3, **settings)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(E, 1, 2)).astype(np.float32)
    for _ in range(4):
        stage.act(obs)
        after = rng.normal(size=(E, 1, 2)).astype(np.float32)
        stage.observe(chunk_step(after, reward=1.0, terminated=False))
        obs = after
    return stage


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_every_critic_learns_the_value_of_a_chain(pretrained_weights, kind):
    """Reward 1 for each chunk of h = 2 steps, never terminated: Q = 1 / (1 - gamma^2)."""
    stage = learned(kind, "dpmd", pretrained_weights, freeze_actor=True)
    for _ in range(400):
        q = stage._gradient_step()["q"]
    assert float(q) == pytest.approx(1 / (1 - 0.7**2), rel=0.05)


@pytest.mark.parametrize("name", ["dpmd", "sdac", "best_of_n"])
@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "q"])
def test_a_stage_with_another_critic_goes_on_bitwise(pretrained_weights, name, kind, tmp_path):
    """Saved, restored, and its policy alone chooses by the same Q."""
    settings = {"critic_warmup_updates": 0} if name != "best_of_n" else {}
    stage = learned(kind, name, pretrained_weights, **settings)
    for _ in range(4):
        stage._gradient_step()
    again = learned(kind, name, pretrained_weights, **settings)
    again.load_state_dict(copy.deepcopy(stage.state_dict()))
    for one in (stage, again):
        for _ in range(3):
            one._gradient_step()
    ours, theirs = tensors(stage.state_dict()), tensors(again.state_dict())
    assert len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs))
    stage.policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    x, obs = torch.randn(5, 3, TA, DA), torch.randn(5, 2)
    with torch.no_grad():
        assert torch.equal(loaded.values(obs, x), stage.critic.values(obs, x))


def test_a_critic_that_asks_no_chunks_saves_the_draws(pretrained_weights, monkeypatch):
    """Implicit Q-learning bootstraps from V: of the old policy it draws only what the actor learns from."""
    stage = learned("expectile", "dpmd", pretrained_weights, critic_warmup_updates=0, draws=3, policy_delay=2)
    drawn, draw = [], stage._draw
    monkeypatch.setattr(stage, "_draw", lambda obs, n: drawn.append(n) or draw(obs, n))
    for _ in range(4):
        stage._gradient_step()
    assert drawn == [3, 3]


def test_mistakes():
    for make, message in (
        (lambda: ExpectileCriticConfig(expectile=1.0), "expectile=1.0: expected at least 0.5 and less than 1"),
        (lambda: QuantileCriticConfig(n_quantiles=1), "n_quantiles=1: expected 2 to 65536"),
    ):
        with pytest.raises(BurnishError, match=message):
            make()
    policy = make_policy()
    policy.add_critic(CriticConfig(**SMALL))
    make_critic("expectile", policy)  # whose Q is the same network
    with pytest.raises(BurnishError, match="but the policy has a critic of"):
        make_critic("gaussian", policy)


def test_all_kinds_are_tested():
    assert CRITICS.keys() == CONFIGS.keys()
    assert {type(config).kind for config in CONFIGS.values()} == CONFIGS.keys()
    assert all(issubclass(kind, Critic) for kind in (ExpectileCritic, QuantileCritic, GaussianCritic))
