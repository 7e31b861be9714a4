"""DQL, IQL, Cal-QL, RLPD and Q-chunking against numbers of the authors' own code: see test_parity.py.

The stages are our own, in float64, with the files' stub networks in place of the actor and the critics, and the files'
noise in place of what they draw.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from bandit import TASK
from test_parity import StubDenoiser, files, numbers

from burnish.datasets.episodes import Episode
from burnish.finetune.algorithms.calql import CalQL, CalQLConfig
from burnish.finetune.algorithms.dql import DQL, DQLConfig
from burnish.finetune.algorithms.idql import IDQL, IDQLConfig
from burnish.finetune.algorithms.qc import QChunking, QChunkingConfig
from burnish.finetune.algorithms.rlpd import RLPD, RLPDConfig
from burnish.finetune.critics import ExpectileCriticConfig
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch, _returns
from burnish.networks import CriticConfig, DenoiserConfig
from burnish.networks.encoded import Encoded
from burnish.networks.squashed import squash
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.flow import FlowPolicy, FlowPolicyConfig
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig

EXACT = {"rtol": 1e-10, "atol": 1e-12}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # our tables of noise levels are float32
ALONE = {"demos": None, "demo_ratio": 0.0, "critic_warmup_updates": 0}
SETTING = Setting(TASK, 4, 0)


def doubles(path) -> dict[str, torch.Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in numbers(path).items()}


class StubQ(torch.nn.Module):
    """Q_j(s, a) = 3 sin(a @ Qx_j) + s @ Qs_j"""

    def __init__(self, *members: tuple[torch.Tensor, torch.Tensor]):
        super().__init__()
        Qx, Qs = (torch.stack(each) for each in zip(*members))
        self.Qx, self.Qs = torch.nn.Parameter(Qx), torch.nn.Parameter(Qs)  # (n, d), (n, Do)

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        q = 3 * torch.einsum("bnd,jd->jbn", actions, self.Qx).sin()
        return q + torch.einsum("bo,jo->jb", obs, self.Qs)[:, :, None]

    outputs = forward

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs


def stub_q(case, *names: str) -> StubQ:
    """Of two-letter names, the members one by one; q_ and qt_ of other files hold all in one."""
    if f"{names[0]}_Qx" in case and case[f"{names[0]}_Qx"].dim() == 2:
        return StubQ(*zip(case[f"{names[0]}_Qx"], case[f"{names[0]}_Qs"]))
    return StubQ(*((case[f"{name}_Qx"], case[f"{name}_Qs"]) for name in names))


def with_critics(stage, network: StubQ, target: StubQ):
    stage.policy.critic = stage.critic.network = network
    stage.critic.target = target.requires_grad_(False)
    return stage


def batch_of(case, mask: str, **extra: torch.Tensor) -> Batch:
    """Of transitions of one step."""
    alive = 1 - case[mask] if mask == "dones" else case[mask]
    rows = case["obs"], case["actions"], case["rewards"], case["discount"] * alive, case["next_obs"]
    return Batch(*rows, extra, ())


def normal(monkeypatch, *noises: torch.Tensor) -> None:
    """What is drawn next, in this order."""
    drawn = iter(noises)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: next(drawn))


def losses(monkeypatch, *modules: str) -> list[torch.Tensor]:
    """What would be minimised, in order; nothing changes."""
    found: list[torch.Tensor] = []
    for module in modules:
        monkeypatch.setattr(f"burnish.finetune.{module}.clipped_step", lambda optimizer, loss, norm: found.append(loss))
    return found


def same(found, case, key: str, **tolerance) -> None:
    expected = case[key].reshape(torch.as_tensor(found).shape)
    torch.testing.assert_close(torch.as_tensor(found).detach().double(), expected.double(), **(tolerance or EXACT))


# -- DQL ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=files("dql.npz"))
def dql(request):
    return doubles(request.param)


def stub_weights(case, prefix: str = "") -> dict[str, torch.Tensor]:
    return {name: case[f"{prefix}{name}"].clone() for name in ("Wx", "Ws", "v", "b")}


class Eps(StubDenoiser):
    """Of one or several chunks an observation; `encode` gives what `encode_for` can index."""

    def encode(self, obs):
        return Encoded(obs, obs)

    def forward(self, x, k, encoded):
        w, obs = self.weights, encoded.obs  # (B, Do) or (B, 1, Do)
        t = k.double().broadcast_to(x.shape[:-2])[..., None]
        return (x.flatten(-2) @ w["Wx"] + obs @ w["Ws"] + t * w["v"] + w["b"]).tanh().view_as(x)


def dql_stage(case, **settings) -> DQL:
    config = PolicyConfig(
        DenoiserConfig(hidden_dim=32, n_layers=1),
        horizon=1,
        n_action_steps=1,
        denoising_steps=5,
        schedule="trained_betas",
        trained_betas=case["betas"].tolist(),
        obs_normalization="none",
    )
    policy = DiffusionPolicy(config, 5, 3, ["flat"]).double()
    policy.denoiser = Eps(stub_weights(case))
    settings = {"gamma": float(case["discount"]), "draw_width": "narrow", "sampler": "ddpm"} | ALONE | settings
    stage = DQL(policy, DQLConfig(**settings), SETTING)
    stage.averaged.load_state_dict(Eps(stub_weights(case, "ema_")).state_dict())
    return with_critics(stage, stub_q(case, "q1", "q2"), stub_q(case, "qt1", "qt2"))


def chain_noise(case, name: str) -> torch.Tensor:
    """Of one chain of theirs, or several for an observation -> (S + 1, B, N, 1, Da)."""
    noise = torch.cat([case[f"{name}_xT"][None], case[f"{name}_z"]])
    return (noise if noise.dim() == 4 else noise[:, :, None])[:, :, :, None]


def test_dql_s_target_and_critic_losses(dql, monkeypatch):
    stage = dql_stage(dql)
    batch = batch_of(dql, "not_done")
    normal(monkeypatch, chain_noise(dql, "target"))
    loss, q = stage.critic.loss(batch, stage.next_values(batch))
    expected = dql["critic1_loss"] + dql["critic2_loss"]
    torch.testing.assert_close(loss.detach(), expected[0], **CLOSE)
    y = dql["target_q"]
    torch.testing.assert_close((q - y).square().mean(1).detach(), torch.cat([dql[f"critic{i}_loss"] for i in (1, 2)]))


def test_dql_s_largest_of_ten_draws_for_each_target(dql, monkeypatch):
    stage = dql_stage(dql, target_candidates=10)
    batch = batch_of(dql, "not_done")
    normal(monkeypatch, chain_noise(dql, "maxq"))
    q = stage.next_values(batch)
    same(batch.reward + batch.discount * q.amin(0).amax(1), dql, "maxq_target_q", **CLOSE)


@pytest.mark.parametrize(("order", "name"), [([0, 1], "q1over2"), ([1, 0], "q2over1")])
def test_dql_s_actor_loss_and_its_gradient_through_the_chain(dql, monkeypatch, order, name):
    stage = dql_stage(dql, q_weight=float(dql["eta"]))
    normal(monkeypatch, dql["bc_noise"][:, None, None], chain_noise(dql, "pi"))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: dql["bc_timestep"][:, None])
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: torch.tensor(order))
    loss, metrics = stage.actor_loss(batch_of(dql, "not_done"))
    same(metrics["cloning_loss"], dql, "bc_loss", **CLOSE)
    same(metrics["q_loss"], dql, f"q_loss_{name}", **CLOSE)
    same(loss, dql, f"actor_loss_{name}", **CLOSE)
    loss.backward()
    for weight, parameter in stage.actor.weights.items():
        same(parameter.grad, dql, f"actor_grad_{name}_{weight}", rtol=1e-5, atol=1e-5)
    assert all(parameter.grad is None for parameter in stage.critic.network.parameters())


def test_dql_s_chunks_of_the_actor(dql, monkeypatch):
    stage = dql_stage(dql)
    normal(monkeypatch, chain_noise(dql, "pi"))
    same(stage.sampled(dql["obs"])[:, 0, 0], dql, "new_actions", **CLOSE)


def test_dql_s_choice_among_fifty(dql, monkeypatch):
    """Theirs is by the critics' average, from the actor itself; ours by the critic, of the average that is saved."""
    stage = dql_stage(dql)
    assert (stage.config.n_candidates, stage.config.selection, stage.config.selection_temperature) == (50, "softmax", 1)
    stage.averaged.load_state_dict(stage.actor.state_dict())
    with_critics(stage, stub_q(dql, "qt1", "qt2"), stub_q(dql, "qt1", "qt2"))
    noise = torch.cat([dql["act_xT"][None], dql["act_z"]])[:, None, :, None]  # (S + 1, 1, 50, 1, Da)
    normal(monkeypatch, noise)
    asked = []
    monkeypatch.setattr(
        "burnish.finetune.off_policy.resample", lambda p, n, generator: asked.append(p) or torch.zeros(1, 1).long()
    )
    with torch.no_grad():
        stage._select(dql["act_obs"][None], 50)
    same(asked[0][0], dql, "act_probs", **CLOSE)


# -- IQL and IDQL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", files("idql_iql.npz"))
def test_iql_s_critic_and_idql_s_choice(path, monkeypatch):
    """The value's loss and the actor's are in test_critics.py. IDQL's loss is half of IQL's: the same to Adam."""
    case = doubles(path)
    stage = IDQL(gaussian_free_policy(), IDQLConfig(gamma=float(case["discount"]), **ALONE), SETTING)
    with_critics(stage, stub_q(case, "q1", "q2"), stub_q(case, "qt1", "qt2"))
    stage.critic.value = ValueStub(case["value_Vs"])
    found = losses(monkeypatch, "critics.base", "critics.expectile")
    monkeypatch.setattr("burnish.finetune.critics.base.polyak", lambda *_: None)
    stage.critic.update(batch_of(case, "masks"))
    value_loss, loss = found
    same(value_loss, case, "iql_value_loss", rtol=1e-7, atol=0)
    same(loss, case, "iql_critic_loss")
    same(loss / 2, case, "idql_critic_loss")
    Qx, Qs = torch.autograd.grad(loss, list(stage.critic.network.parameters()))
    for i in (0, 1):
        same(Qx[i], case, f"iql_critic{i + 1}_grad_Qx")
        same(Qs[i], case, f"iql_critic{i + 1}_grad_Qs")
    x = case["act_candidates"][None, :, None]  # (1, N, 1, Da)
    obs = case["act_obs"][None]
    q = stage.critic.values(obs, x, target=True)
    same(q[0] - stage.critic.value(obs), case, "act_adv")
    same(x[0, q.argmax(1)[0], 0], case, "act_best_of_N")


class ValueStub(torch.nn.Module):
    def __init__(self, Vs: torch.Tensor):
        super().__init__()
        self.Vs = torch.nn.Parameter(Vs)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return 2 * (obs @ self.Vs).tanh()


def gaussian_free_policy() -> DiffusionPolicy:
    config = PolicyConfig(DenoiserConfig(hidden_dim=32, n_layers=1), horizon=1, n_action_steps=1, denoising_steps=5)
    return DiffusionPolicy(config, 5, 3, ["flat"]).double()


@pytest.mark.parametrize("path", files("idql_iql.npz"))
def test_iql_s_weights(path):
    case = doubles(path)
    config = IDQLConfig(temperature=1 / float(case["temperature"]), **ALONE)
    stage = IDQL(gaussian_free_policy(), config, SETTING)
    same(stage.weigh(case["iql_adv"]), case, "iql_weights", rtol=1e-6, atol=0)
    critic = ExpectileCriticConfig(expectile=float(case["hyper_expectile"]))
    stage = IDQL(gaussian_free_policy(), IDQLConfig(weights="expectile", critic=critic, **ALONE), SETTING)
    p = stage.weigh(case["act_adv"])
    same(p / p.sum(), case, "idql_implicit_p_expectile_released", rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", files("idql_iql.npz"))
def test_the_released_implicit_weights_are_no_probabilities(path):
    """V2 of the defects, measured: we have none of it."""
    case = doubles(path)
    assert case["idql_implicit_p_quantile_released"].min() < 0 <= case["idql_implicit_p_quantile_paper"].min()
    released = case["idql_implicit_p_exponential_released"]
    assert (released == released[0]).all() and float(released.sum()) != pytest.approx(1)


# -- Gaussian actors ---------------------------------------------------------------------------------------------------


def linear_actor(case, make, config):
    """mean, l = split(s @ W + c), as the layers of a Gaussian policy without hidden ones."""
    policy = GaussianPolicy(GaussianPolicyConfig(hidden_sizes=[], n_action_steps=1, squash=True), 5, 3, ["flat"])
    stage = make(policy.double(), config, SETTING)
    W, c = case["policy_W"].T, case["policy_c"]
    for layer, rows in ((policy.network[-1], slice(0, 3)), (stage.log_std.double(), slice(3, 6))):
        layer.weight.data, layer.bias.data = W[rows].clone(), c[rows].clone()
    return stage


def actor_gradient(stage, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In their W (Do, 2 d) and c."""
    layers = stage.policy.network[-1], stage.log_std
    gradients = torch.autograd.grad(loss, [parameter for layer in layers for parameter in layer.parameters()])
    (w_mean, c_mean), (w_std, c_std) = gradients[:2], gradients[2:]
    return torch.cat([w_mean, w_std]).T, torch.cat([c_mean, c_std])


# -- RLPD --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=files("rlpd.npz"))
def rlpd(request):
    return doubles(request.param)


def rlpd_stage(case, **settings) -> RLPD:
    n, members = int(case["ensemble"]), int(case["subset_size"])
    settings |= {"critic": CriticConfig(n_critics=n), "target_critics": members, "gamma": float(case["discount"])}
    stage = linear_actor(case, RLPD, RLPDConfig(alpha=float(case["log_temp"].exp()), **settings, **ALONE))
    stage.entropy.double().log_alpha.data.copy_(case["log_temp"][0])
    return with_critics(stage, stub_q(case, "q"), stub_q(case, "qt"))


@pytest.mark.parametrize(("entropy", "key"), [(True, "critic_loss"), (False, "critic_loss_no_entropy")])
def test_rlpd_s_critic_loss(rlpd, monkeypatch, entropy, key):
    """Theirs is the mean over the members, ours the sum: the same to Adam."""
    stage, batch = rlpd_stage(rlpd, entropy_in_target=entropy), batch_of(rlpd, "masks")
    normal(monkeypatch, rlpd["next_noise"][:, None])
    rest = [i for i in range(10) if i not in rlpd["subset"].tolist()]
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: torch.tensor(rlpd["subset"].tolist() + rest))
    loss, _ = stage.critic.loss(batch, stage.next_values(batch))
    same(loss / 10, rlpd, key)
    if entropy:
        Qx, Qs = torch.autograd.grad(loss / 10, list(stage.critic.network.parameters()))
        same(Qx, rlpd, "critic_grad_Qx")
        same(Qs, rlpd, "critic_grad_Qs")


def test_rlpd_s_actor_and_temperature(rlpd, monkeypatch):
    stage = rlpd_stage(rlpd, utd_ratio=1.0)
    assert stage.entropy.target == float(rlpd["target_entropy"]) == -3 / 2
    normal(monkeypatch, rlpd["pi_noise"][:, None])
    found = losses(monkeypatch, "soft_actor")
    metrics = stage.update_actor(batch_of(rlpd, "masks"))
    loss, loss_of_alpha = found
    same(loss, rlpd, "actor_loss")
    same(metrics["entropy"], rlpd, "entropy")
    of_critic = torch.autograd.grad(loss, [*stage.critic.network.parameters()], retain_graph=True, allow_unused=True)
    assert of_critic == (None, None)
    W, c = actor_gradient(stage, loss)
    same(W, rlpd, "actor_grad_W")
    same(c, rlpd, "actor_grad_c")
    same(loss_of_alpha, rlpd, "temperature_loss")
    (gradient,) = torch.autograd.grad(loss_of_alpha, [stage.entropy.log_alpha])
    same(gradient, rlpd, "log_temp_grad")


def test_rlpd_s_slices_are_half_demonstrations(rlpd):
    """They interleave one large batch; here every gradient step draws half of its batch from each (test_rlpd.py)."""
    shown = rlpd["combined_example"] < 10
    for size in (2, 4, 8):
        assert {int(part.sum()) for part in shown.split(size)} == {size // 2}


def test_rlpd_s_draws(rlpd, monkeypatch):
    stage = rlpd_stage(rlpd)
    for at, name in (("next_obs", "next"), ("obs", "pi")):
        normal(monkeypatch, rlpd[f"{name}_noise"][:, None])
        same(stage.draw(rlpd[at], 1)[0][:, 0], rlpd, f"{name}_actions")


# -- Cal-QL ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=files("calql.npz"))
def calql(request):
    return doubles(request.param)


def calql_stage(case, monkeypatch, **settings) -> CalQL:
    """Whose draws are the file's: at the target, then at s, at s'."""
    n = int(case["n_actions"])
    settings = {"target_candidates": n, "conservative_draws": n} | settings
    settings |= {"conservatism": float(case["min_q_weight"]), "gamma": float(case["discount"])}
    stage = linear_actor(case, CalQL, CalQLConfig(**settings, **ALONE))
    stage.entropy.double().log_alpha.data.copy_(case["log_alpha"][0])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: (case["random_actions"] + 1) / 2)
    drawn = iter((name, case[f"{name}_actions"], case.get(f"{name}_logp")) for name in ("target", "current", "next"))
    monkeypatch.setattr(stage, "draw", lambda obs, n: next(drawn)[1:])
    return with_critics(stage, stub_q(case, "q1", "q2"), stub_q(case, "qt1", "qt2"))


@pytest.mark.parametrize(("calibrated", "name"), [(True, "calql"), (False, "cql")])
def test_calql_s_critic_losses(calql, monkeypatch, calibrated, name):
    stage = calql_stage(calql, monkeypatch, calibrated=calibrated)
    stage.gradient_steps = -10  # the actor is not due
    monkeypatch.setattr(CalQLConfig, "critic_warmup_updates", 0)
    found = losses(monkeypatch, "critics.base")
    monkeypatch.setattr("burnish.finetune.critics.base.polyak", lambda *_: None)
    metrics = stage.learn(batch_of(calql, "dones", return_to_go=calql["mc_returns"]))
    (loss,) = found
    same(loss, {"sum": calql[f"{name}_qf1_loss"] + calql[f"{name}_qf2_loss"]}, "sum")
    Qx, Qs = torch.autograd.grad(loss, list(stage.critic.network.parameters()))
    for i in (0, 1):
        same(Qx[i], calql, f"{name}_q{i + 1}_grad_Qx")
        same(Qs[i], calql, f"{name}_q{i + 1}_grad_Qs")
    if calibrated:
        bellman = [calql[f"calql_qf{i}_bellman_loss"] for i in (1, 2)]
        same(metrics["critic_loss"], {"mean": sum(bellman) / 2}, "mean")
        differences = [calql[f"calql_cql_qf{i}_diff"] for i in (1, 2)]
        same(metrics["q_gap"], {"mean": sum(differences) / 2}, "mean")


def test_calql_s_targets(calql, monkeypatch):
    """The best of the draws, and of one alone."""
    stage, batch = calql_stage(calql, monkeypatch), batch_of(calql, "dones")
    same(batch.reward + batch.discount * stage.next_values(batch).amin(0).amax(1), calql, "calql_td_target")
    one = calql["singlebackup_actions"][:, None], calql["singlebackup_logp"][:, None]
    monkeypatch.setattr(stage, "draw", lambda obs, n: one)
    same(batch.reward + batch.discount * stage.next_values(batch).amin(0).amax(1), calql, "singlebackup_td_target")


def test_calql_s_actor(calql, monkeypatch):
    """Their loss of the temperature is log alpha (H - H_target), ours alpha times that: the same to Adam."""
    stage = calql_stage(calql, monkeypatch)
    monkeypatch.undo()
    assert stage.entropy.target == float(calql["target_entropy"]) == -3
    mean, log_std = (calql["obs"] @ calql["policy_W"] + calql["policy_c"]).chunk(2, -1)
    noise = (calql["pi_actions"].atanh() - mean) / (log_std - 1).clamp(-20, 2).exp()
    normal(monkeypatch, noise[:, None])
    found = losses(monkeypatch, "soft_actor")
    stage.update_actor(batch_of(calql, "dones"))
    loss, loss_of_alpha = found
    same(loss, calql, "policy_loss", rtol=1e-9, atol=0)
    W, c = actor_gradient(stage, loss)
    same(W, calql, "policy_grad_W", rtol=1e-8, atol=1e-8)
    same(c, calql, "policy_grad_c", rtol=1e-8, atol=1e-8)
    same(loss_of_alpha / stage.entropy.alpha, calql, "log_alpha_grad", rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["pi", "current"])
def test_the_likelihood_of_a_squashed_gaussian(calql, name):
    mean, log_std = (calql["obs"] @ calql["policy_W"] + calql["policy_c"]).chunk(2, -1)
    mean, log_std = (each if name == "pi" else each[:, None] for each in (mean, (log_std - 1).clamp(-20, 2)))
    noise = (calql[f"{name}_actions"].atanh() - mean) / log_std.exp()
    actions, log_prob = squash(mean, log_std, noise)
    same(actions, calql, f"{name}_actions")
    same(log_prob, calql, f"{name}_logp", rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["sparse_failure", "sparse_success", "dense"])
def test_calql_s_returns(calql, kind):
    """Rewards as their buffer has them, scaled and shifted; an episode that never succeeds goes on failing for ever."""
    rewards = calql[f"mc_{kind}_rewards"].numpy().astype(np.float32)
    ends = calql[f"mc_{kind}_terminals"].numpy().astype(bool)
    episode = Episode("demo_0", {"flat": np.zeros((len(rewards), 1), np.float32)}, rewards[:, None], rewards, ends)
    same(_returns(episode, float(calql["discount"])), calql, f"mc_{kind}_returns", rtol=1e-6, atol=0)


# -- Q-chunking --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=files("qc.npz"))
def qc(request):
    return doubles(request.param)


class Velocity(torch.nn.Module):
    """v = tanh(x @ Vx + s @ Vs + t v + b), told the timestep k; t = 1 - (k + 1) / K."""

    def __init__(self, case, K: int):
        super().__init__()
        self.weights = torch.nn.ParameterDict({name: case[f"flow_{name}"].clone() for name in ("Vx", "Vs", "v", "b")})
        self.K = K

    def encode(self, obs):
        return Encoded(obs, obs)

    def forward(self, x, k, encoded):
        w = self.weights
        t = (1 - (k.double() + 1) / self.K).broadcast_to(x.shape[:-2])[..., None]
        return (x.flatten(-2) @ w["Vx"] + encoded.obs @ w["Vs"] + t * w["v"] + w["b"]).tanh().view_as(x)


def qc_stage(case) -> QChunking:
    """Euler's steps without noise, and clipped at the end alone."""
    h, K = int(case["horizon"]), int(case["flow_steps"])
    config = FlowPolicyConfig(
        denoising_steps=K, euler_steps=K, horizon=h, n_action_steps=h, clip_sample=None, sampler="euler"
    )
    policy = FlowPolicy(config, 5, 2, ["flat"]).double()
    policy.denoiser = Velocity(case, K)
    settings = {"sampler": "inherit", "draw_width": "narrow", "gamma": float(case["discount"])}
    stage = QChunking(policy, QChunkingConfig(target_candidates=int(case["num_samples"]), **settings, **ALONE), SETTING)
    return with_critics(stage, stub_q(case, "q"), stub_q(case, "qt"))


def qc_batch(case) -> Batch:
    h = int(case["horizon"])
    discount = case["discount"] ** h * case["batch_masks"][:, -1]
    rows = case["batch_observations"], case["batch_actions"].flatten(1), case["batch_rewards"][:, -1], discount
    return Batch(*rows, case["batch_last_next_observations"], {}, ())


def test_qc_s_best_of_n_target_and_critic_loss(qc, monkeypatch):
    """Their chunks that are cut by an end count 0 in the mean over all rows; ours are learned by what was executed."""
    stage, batch = qc_stage(qc), qc_batch(qc)
    noise = qc["bon_next_noise"].unflatten(2, (int(qc["horizon"]), 2))  # (B, N, Tp, Da)
    normal(monkeypatch, torch.cat([noise[None], torch.zeros(int(qc["flow_steps"]), *noise.shape).double()]))
    chosen, best = [], stage.best
    monkeypatch.setattr(stage, "best", lambda obs, x: chosen.append(best(obs, x)) or chosen[0])
    q_next = stage.next_values(batch)
    same(chosen[0].flatten(1), qc, "bon_next_actions", **CLOSE)
    y = batch.reward + batch.discount * q_next[0, :, 0]
    valid = qc["batch_valid"][:, -1]
    q = stage.critic.network(batch.obs, stage.critic.executed(batch)).squeeze(2)
    loss = (valid * (q - y).square()).mean()
    same(loss, qc, "bon_critic_loss", **CLOSE)
    Qx, Qs = torch.autograd.grad(loss, list(stage.critic.network.parameters()))
    same(Qx, qc, "bon_critic_grad_Qx", rtol=1e-5, atol=1e-5)
    same(Qs, qc, "bon_critic_grad_Qs", rtol=1e-5, atol=1e-5)
    whole = Batch(*(field[valid > 0] for field in batch[:5]), {}, ())
    ours, _ = stage.critic.loss(whole, q_next[:, valid > 0])
    same(ours / 2 * valid.mean(), qc, "bon_critic_loss", **CLOSE)


def test_qc_s_cloning_loss_and_gradient(qc, monkeypatch):
    """Of whole chunks, at the file's times: those of another process."""
    stage, h = qc_stage(qc), int(qc["horizon"])
    t, x0 = qc["bc_t"], qc["bc_x0"]
    a = qc["batch_actions"].flatten(1)
    valid = qc["batch_valid"][:, :, None].expand(-1, -1, 2).flatten(1)
    w = stage.actor.weights
    v = (((1 - t) * x0 + t * a) @ w["Vx"] + qc["batch_observations"] @ w["Vs"] + t * w["v"] + w["b"]).tanh()
    loss = (valid * (v - (a - x0)).square()).mean()
    same(loss, qc, "bc_flow_loss")
    # and ours is that loss of whole chunks, at its own times
    whole = qc_batch(qc)
    k = torch.arange(len(t)).remainder(10)[:, None]
    monkeypatch.setattr(torch, "randint", lambda *_, **__: k)
    normal(monkeypatch, x0.view(-1, 1, h, 2))
    ours, _ = stage.actor_loss(whole)
    t = 1 - (k.double() + 1) / 10
    v = (((1 - t) * x0 + t * a) @ w["Vx"] + qc["batch_observations"] @ w["Vs"] + t * w["v"] + w["b"]).tanh()
    torch.testing.assert_close(ours, (v - (a - x0)).square().mean(), **CLOSE)


def test_copies_are_whole(dql):
    """A stage is not changed by what is done with its copy: `with_critics` and stubs are no part of it."""
    stage = dql_stage(dql)
    again = copy.deepcopy(stage.actor)
    again.weights["b"].data += 1
    assert not torch.equal(stage.actor.weights["b"], again.weights["b"])
