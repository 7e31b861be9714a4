"""Our transitions, log-probabilities and losses against numbers of the authors' own code.

The files hold a stub network's weights and what the authors' code made of them; see their README. Every
`dppo_*.npz`, `rsm_*.npz`, `flow_bc.npz`, `flow_grpo.npz`, `reinflow.npz`, `qsm.npz`, `qvpo.npz`, `dacer.npz` and
`dipo.npz` in $BURNISH_PARITY_DIR (default: ../shared/data/parity) is tried.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.diffusion import FlowProcess, NoiseProcess, Sampler, StdBounds, betas, flow_times, gaussian_log_prob
from burnish.envs.task import TaskConfig
from burnish.finetune import on_policy
from burnish.finetune.algorithms.dacer import DACER, DACERConfig
from burnish.finetune.algorithms.dipo import DIPO, DIPOConfig
from burnish.finetune.algorithms.dppo import DPPO, DPPOConfig
from burnish.finetune.algorithms.qsm import QSM, QSMConfig
from burnish.finetune.algorithms.qvpo import QVPO, QVPOConfig, best_by_advantage, with_uniform
from burnish.finetune.losses.mixture import mixture_entropy
from burnish.finetune.losses.ppo import (
    chunk_log_prob,
    clip_range,
    clipped_surrogate,
    denoising_discount,
    normalize_advantages,
)
from burnish.finetune.losses.rsm import RSMConfig, Weighting, weighted_denoising_loss
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch, Transitions
from burnish.networks import DenoiserConfig, GaussianCriticConfig
from burnish.networks.encoded import Encoded
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.flow import FlowPolicy, FlowPolicyConfig

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("BURNISH_PARITY_DIR", ROOT.parent / "shared" / "data" / "parity"))
WEIGHTS = ("Wx", "Ws", "v", "b")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # of numbers of the order of 1


def files(pattern):
    """Parameters of a fixture: the files, or one that is skipped."""
    skipped = pytest.mark.skip(reason=f"no {pattern} in {FOLDER} (set BURNISH_PARITY_DIR)")
    found = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob(pattern))]
    return found or [pytest.param(None, id="none", marks=skipped)]


def numbers(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: torch.from_numpy(np.atleast_1d(file[key])) for key in file.files if file[key].dtype.kind in "fi"}


def stub(weights, x, t, s):
    """eps(x, t, s) = tanh(flat(x) @ Wx + flat(s) @ Ws + t v + b); t (B,)"""
    flat = x.flatten(1) @ weights["Wx"] + s.flatten(1) @ weights["Ws"] + t[:, None] * weights["v"] + weights["b"]
    return torch.tanh(flat).view_as(x)


class Case:
    """One file of DPPO's: its numbers as tensors, the sampler it describes, and the stub network."""

    def __init__(self, path: Path):
        self.data = numbers(path)
        ddim_steps = int(self["ddim_steps"])
        self.sampler = Sampler(
            NoiseProcess(betas("cosine", int(self["K"]))),
            "ddim" if ddim_steps > 0 else "ddpm",
            steps=ddim_steps,
            eta=float(self["eta"]),
        )
        self.n_finetuned, self.Ta = int(self["K_ft"]), int(self["Ta"])
        self.first_finetuned = len(self.sampler) - self.n_finetuned

    def __getitem__(self, key):
        return self.data[key]

    def weights(self, which):
        return {name: self[f"{which}_{name}"].clone() for name in WEIGHTS}

    def policy_config(self):
        return PolicyConfig(
            DenoiserConfig(hidden_dim=8),
            horizon=self["chain"].shape[2],
            n_action_steps=self.Ta,
            denoising_steps=int(self["K"]),
            sampler="ddim" if int(self["ddim_steps"]) > 0 else "ddpm",
            ddim_steps=max(1, int(self["ddim_steps"])),
        )

    def mean(self, weights, x, i):
        t = self.sampler.timesteps[i].float().expand(len(x))
        return self.sampler.mean(stub(weights, x, t, self["obs"]), x, torch.full((len(x),), i))

    def log_probs(self, weights):
        """Element-wise, of the stored chain (B, K', Tp, Da)."""
        std = self.sampler.bounded_std(StdBounds(floor=float(self["std_floor_logprob"])))
        chain = self["chain"]
        steps = []
        for j in range(self.n_finetuned):
            i = self.first_finetuned + j
            steps.append(gaussian_log_prob(chain[:, j + 1], self.mean(weights, chain[:, j], i), std[i]))
        return torch.stack(steps, dim=1)


@pytest.fixture(params=files("dppo_*.npz"))
def case(request):
    return Case(request.param)


def test_transitions(case):
    assert case.sampler.timesteps.tolist() == case["timesteps"].tolist()
    for i in range(len(case.sampler)):
        which = "base" if i < case.first_finetuned else "ft"
        mean = case.mean(case.weights(which), case["x_in"][i], i)
        torch.testing.assert_close(mean, case["mean"][i], atol=1e-5, rtol=1e-5)
        std = case.sampler.std[i].expand_as(case["std"][i])
        torch.testing.assert_close(std, case["std"][i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("which", "key"), [("ft", "logprob_old"), ("moved", "logprob_moved")])
def test_log_probabilities(case, which, key):
    torch.testing.assert_close(case.log_probs(case.weights(which)), case[key], atol=1e-3, rtol=1e-5)


def test_ppo_loss_and_gradient(case):
    K = case.n_finetuned
    moved = {name: weight.requires_grad_() for name, weight in case.weights("moved").items()}
    log_prob = chunk_log_prob(case.log_probs(moved), case.Ta)  # (B, K')
    old_log_prob = chunk_log_prob(case["logprob_old"], case.Ta)
    low, high = case["adv_quantiles"].tolist()
    advantages = normalize_advantages(case["advantages"], (low, high))[:, None]  # (B, 1)
    advantages = advantages * denoising_discount(K, float(case["gamma_denoising"]))  # (B, K')
    eps = clip_range(K, *(float(case[f"clip_coef{suffix}"]) for suffix in ("", "_base", "_rate")))
    result = clipped_surrogate(
        log_prob.flatten(), old_log_prob.flatten(), advantages.flatten(), eps.expand_as(log_prob).flatten()
    )
    for ours, key in (
        (result.loss.detach(), "pg_loss"),
        (result.clip_fraction, "clip_fraction"),
        (result.ratio.mean(), "ratio_mean"),
    ):
        assert float(ours) == pytest.approx(float(case[key]), rel=1e-4)
    assert float(result.approx_kl) == pytest.approx(float(case["approx_kl"]), rel=1e-2, abs=1e-7)
    result.loss.backward()
    for name in WEIGHTS:
        theirs = case[f"grad_{name}"]
        difference = (moved[name].grad - theirs).norm() / theirs.norm()
        assert difference < 1e-4, f"gradient of {name}: relative difference {difference:.2e}"


class StubDenoiser(torch.nn.Module):
    """The stub in a denoiser's place."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.nn.ParameterDict(weights)

    def encode(self, obs):
        return Encoded(obs, obs)

    def forward(self, x, k, encoded):
        return stub(self.weights, x, k.float().expand(len(x)), encoded.obs)


class StubCritic(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weights = torch.nn.Parameter(weights)

    def forward(self, obs):
        return (obs @ self.weights).squeeze(-1)


def test_the_stage_makes_that_update(case, monkeypatch):
    """One minibatch of the whole rollout: losses and first gradient as DPPO's own code has them."""
    B, K_ft, config = len(case["obs"]), case.n_finetuned, case.policy_config()
    policy = DiffusionPolicy(config, case["obs"].shape[-1], case["chain"].shape[-1], ["flat"])
    policy.denoiser = StubDenoiser(case.weights("base"))
    floor = float(case["std_floor_logprob"])
    low, high = case["adv_quantiles"].tolist()
    settings = {
        name: float(case[name]) for name in ("gamma_denoising", "clip_coef", "clip_coef_base", "clip_coef_rate")
    }
    settings |= {"min_sampling_denoising_std": floor, "min_logprob_denoising_std": floor, "update_epochs": 1}
    settings |= {"adv_quantile_low": low, "adv_quantile_high": high, "batch_size": B * K_ft, "n_steps": 1}
    setting = Setting(TaskConfig("stub", "gymnasium", "Stub-v0", 1), B, 0)
    stage = DPPO(policy, DPPOConfig(ft_denoising_steps=K_ft, critic_warmup_iterations=0, **settings), setting)
    stage.actor.load_state_dict(StubDenoiser(case.weights("moved")).state_dict())
    stage.critic = StubCritic(case["critic_w"].clone())
    stage.rollout.obs[0] = case["obs"].flatten(1)
    stage.rollout.sampled[0] = case["chain"]
    stage.rollout.log_prob[0] = chunk_log_prob(case["logprob_old"], case.Ta)
    losses = []
    monkeypatch.setattr(on_policy, "gae", lambda *_, **__: (case["advantages"][None], case["returns"][None]))
    monkeypatch.setattr(on_policy, "clipped_step", lambda optimizer, loss, norm: losses.append(loss))
    monkeypatch.setattr(stage, "check_first_ratio", lambda ratio: ratio.mean())  # moved before the update
    metrics = stage.update()
    for ours, key in (("policy_loss", "pg_loss"), ("value_loss", "v_loss"), ("clip_fraction", "clip_fraction")):
        assert metrics[ours] == pytest.approx(float(case[key]), rel=1e-4), ours
    assert metrics["first_ratio_error"] == pytest.approx(float(case["ratio_mean"]), rel=1e-4)
    _, policy_loss = losses
    gradients = torch.autograd.grad(policy_loss, [stage.actor.weights[name] for name in WEIGHTS])
    for name, ours in zip(WEIGHTS, gradients):
        assert (ours - case[f"grad_{name}"]).norm() < 1e-4 * case[f"grad_{name}"].norm(), name


def test_value_loss(case):
    value = (case["obs"].flatten(1) @ case["critic_w"]).squeeze(-1)
    assert float(0.5 * (value - case["returns"]).square().mean()) == pytest.approx(float(case["v_loss"]), rel=1e-4)


class RSMCase:
    """One file of RSM's; an action (B, Da) is a chunk of one step (B, 1, Da)."""

    def __init__(self, path: Path):
        self.data = numbers(path)
        with np.load(path, allow_pickle=False) as file:
            schedule = str(file["schedule"])
        beta = betas(schedule, int(self["K"]), scale=float(self["beta_scale"]))
        self.process = NoiseProcess(beta)
        self.M = int(self["sdac_M"])

    def __getitem__(self, key):
        return self.data[key]

    def eps(self, x, k):
        return stub(self.data, x, k.to(x.dtype), self["obs"])

    def draws(self, key):
        """Stored for each draw (B M, ...) -> (B, M, ...)."""
        return self[key].unflatten(0, (-1, self.M))

    def reverse_draws(self):
        """The clean actions of the stored noise (B, M, Da)."""
        signal, sigma = self.process.levels(self["timestep"][:, None], self.draws("sdac_noise"))
        return ((self["x_t"][:, None] - sigma * self.draws("sdac_noise")) / signal).clamp(-1, 1)

    def q_over_lambda(self, actions):
        """Q(s, a) = 3 sin(a @ q_Qx) + s @ q_Qs of (B, M, Da), times 5 / lambda with lambda = 2 -> (B, M)"""
        q = 3 * torch.sin(actions @ self["q_Qx"]) + (self["obs"] @ self["q_Qs"])[:, None]
        return q * 5 / 2


@pytest.fixture(params=files("rsm_*.npz"))
def rsm(request):
    return RSMCase(request.param)


def test_rsm_forward_noising(rsm):
    torch.testing.assert_close(rsm.process.betas.float(), rsm["betas"].float(), rtol=1e-5, atol=1e-7)
    x = rsm.process.add_noise(rsm["action"], rsm["noise"], rsm["timestep"])
    torch.testing.assert_close(x, rsm["x_t"], **CLOSE)


def test_dpmd_loss(rsm):
    output = rsm.eps(rsm["x_t"], rsm["timestep"])
    target = rsm.process.target(rsm["action"], rsm["noise"], rsm["timestep"])
    loss = weighted_denoising_loss(output[:, None, None], target[:, None, None], rsm["dpmd_weights"][:, None])
    assert float(loss) == pytest.approx(float(rsm["dpmd_loss"]), rel=1e-5)


def test_sdac_draws_and_weights(rsm):
    theirs = rsm.draws("sdac_recon")
    # a small difference of two numbers of the size of 1 / sqrt(abar): relative to those
    signal = rsm.process.levels(rsm["timestep"][:, None], theirs)[0]
    torch.testing.assert_close(rsm.reverse_draws() * signal, theirs * signal, rtol=1e-5, atol=2e-6)
    q = rsm.q_over_lambda(theirs)
    torch.testing.assert_close(q, rsm.draws("sdac_q_over_lambda"), **CLOSE)
    weighting = Weighting(RSMConfig(weights="fixed", temperature=0.5), torch.device("cpu"))
    weights = weighting(0.5 * q, 0).weights
    torch.testing.assert_close(weights, rsm.draws("sdac_weights"), rtol=1e-5, atol=1e-6)


def test_sdac_loss(rsm):
    """From observations, actions and noise alone; the released loss is the mean over draws, ours their sum."""
    weights = Weighting(RSMConfig(weights="fixed"), torch.device("cpu"))(
        rsm.q_over_lambda(rsm.reverse_draws()), 0
    ).weights
    output = rsm.eps(rsm["x_t"], rsm["timestep"])
    loss = weighted_denoising_loss(output[:, None, None], rsm.draws("sdac_noise")[:, :, None], weights)
    assert float(loss) / rsm.M == pytest.approx(float(rsm["sdac_loss"]), rel=1e-5)


def test_rsm_posterior(rsm):
    sampler = Sampler(rsm.process)
    for k, x, mean, std in zip(rsm["timesteps"].tolist(), rsm["x_in"], rsm["mean"], rsm["std"]):
        i = sampler._timesteps.index(k)
        ours = sampler.mean(rsm.eps(x, torch.full((len(x),), k)), x, i)
        torch.testing.assert_close(ours, mean, **CLOSE)
        assert float(sampler.std[i]) == pytest.approx(float(std), rel=1e-5, abs=1e-7)


class FlowStub(torch.nn.Module):
    """v(x, t, s) = tanh(flat(x) Wx + flat(s) Ws + t u + b), told the timestep k of a process."""

    def __init__(self, case: dict[str, torch.Tensor], process: FlowProcess):
        super().__init__()
        for name in ("Wx", "Ws", "u", "b"):
            self.register_parameter(name, torch.nn.Parameter(case[name].clone()))
        self.process = process

    def encode(self, obs):
        return obs

    def forward(self, x, k, obs):
        t = self.process.signal[k].expand(len(x))[:, None]
        return (x.flatten(1) @ self.Wx + obs @ self.Ws + t * self.u + self.b).tanh().view_as(x)


@pytest.fixture(params=files("flow_bc.npz"))
def flow(request) -> dict[str, torch.Tensor]:
    return numbers(request.param)


def test_flow_matching_loss_and_gradient(flow, monkeypatch):
    """At the file's times, which are the policy's grid here, and with its noise."""
    policy = FlowPolicy(FlowPolicyConfig(horizon=4, n_action_steps=4, clip_sample=None), 5, 3, ["flat"])
    policy.process = FlowProcess(flow["t"])
    stub = FlowStub(flow, policy.process)
    drawn = iter([flow["x0"]])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.arange(32))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(drawn))
    k = torch.arange(32)
    torch.testing.assert_close(policy.process.add_noise(flow["x1"], flow["x0"], k), flow["xt"], **CLOSE)
    output, target = policy.denoise_noised(stub, flow["obs"].flatten(1), flow["x1"])
    torch.testing.assert_close(output, flow["v_pred"], **CLOSE)
    torch.testing.assert_close(target, flow["v_target"], **CLOSE)
    loss = (output - target).square().mean()
    loss.backward()
    assert float(loss) == pytest.approx(float(flow["loss"]), rel=1e-5)
    for name, parameter in stub.named_parameters():
        torch.testing.assert_close(parameter.grad, flow[f"grad_{name}"], rtol=1e-4, atol=1e-6)


def test_euler_s_steps_of_a_flow(flow):
    """The uniform grid, every state on the way; of the clipped variant the file clips each state, we the predicted
    action, which is the same after the last step."""
    config = FlowPolicyConfig(denoising_steps=4, euler_steps=4, horizon=4, n_action_steps=4, clip_sample=None)
    sampler = config.chain_sampler()
    torch.testing.assert_close(sampler.process.signal[sampler.timesteps], flow["grid_uniform"])
    stub, obs = FlowStub(flow, sampler.process), flow["obs"].flatten(1)
    noise = torch.cat([flow["z"][None], torch.zeros(4, *flow["z"].shape)])
    _, chain = sampler.sample(lambda x, i: stub(x, sampler.timesteps[i], obs), noise, keep=4)
    torch.testing.assert_close(chain.x[:, 1:], flow["sample_uniform_noclip"], **CLOSE)
    bounded = replace(config, clip_sample=1.0).chain_sampler()
    last = flow["sample_uniform_clip"][:, -2]
    output = stub(last, bounded.timesteps[3], obs)
    torch.testing.assert_close(bounded.mean(output, last, 3), flow["sample_uniform_clip"][:, -1], **CLOSE)


@pytest.fixture(params=files("flow_grpo.npz"))
def flow_grpo(request) -> dict[str, torch.Tensor]:
    return numbers(request.param)


def test_flow_grpo_s_stochastic_steps(flow_grpo):
    """Their clock and velocity run backwards; row i of the file is one step, from a state of its own."""
    sampler = Sampler(FlowProcess(flow_times(6), clip_sample=None), "flow_sde", 6, float(flow_grpo["noise_level"]))
    torch.testing.assert_close(1 - sampler.process.signal[sampler.timesteps], flow_grpo["sigmas"][:-1])
    for i in range(6):
        step = sampler.transition(-flow_grpo["velocity"][i], flow_grpo["x_in"][i], i)
        torch.testing.assert_close(step.mean, flow_grpo["sde_mean"][i], **CLOSE)
        torch.testing.assert_close(step.std, flow_grpo["sde_step_std"][i], **CLOSE)
        log_prob = step.log_prob(flow_grpo["sde_next"][i]).mean((-1, -2))
        torch.testing.assert_close(log_prob, flow_grpo["sde_logprob_old"][i], **CLOSE)


@pytest.fixture(params=files("reinflow.npz"))
def reinflow(request) -> dict[str, torch.Tensor]:
    return numbers(request.param)


def test_reinflow_s_noise_network_is_a_head_of_the_standard_deviation(reinflow):
    """Its Euler steps on the uniform grid; they clip the mean, which is no part of a sampler of ours."""
    K, low, high = 4, reinflow["std_min"].float().log(), reinflow["std_max"].float().log()
    sampler = Sampler(FlowProcess(flow_times(K), clip_sample=None), "euler", K)
    obs, chain = reinflow["obs"].flatten(1), reinflow["chain_uniform"]

    def head(x, i):  # ln std = ln std_min + (ln std_max - ln std_min) (tanh(h) + 1) / 2, h of time and state
        t = torch.full((len(obs), 1), i / K)
        h = (torch.cat([t, obs], 1) @ reinflow["nz_W1"] + reinflow["nz_b1"]).tanh() @ reinflow["nz_W2"]
        return (low + (high - low) * ((h + reinflow["nz_b2"]).tanh() + 1) / 2).exp().view_as(x)

    log_prob = torch.distributions.Normal(0, 1).log_prob(chain[:, 0]).sum((-1, -2))
    for i in range(K):
        x, t = chain[:, i], sampler.process.signal[sampler.timesteps[i]]
        flat = x.flatten(1) @ reinflow["ft_Wx"] + obs @ reinflow["ft_Ws"] + t * reinflow["ft_u"] + reinflow["ft_b"]
        step = sampler.transition(flat.tanh().view_as(x), x, i, head(x, i))
        torch.testing.assert_close(step.std.flatten(1), reinflow["std_uniform_ft"][:, i], **CLOSE)
        step = step._replace(mean=step.mean.clamp(-1, 1))
        moved = step.mean + step.std * reinflow["noise"][i].clamp(-3, 3)
        torch.testing.assert_close(moved if i < K - 1 else moved.clamp(-1, 1), chain[:, i + 1], **CLOSE)
        log_prob = log_prob + step.log_prob(chain[:, i + 1]).sum((-1, -2))
    torch.testing.assert_close(log_prob, reinflow["logprob_joint_uniform_ft"], rtol=1e-5, atol=1e-4)


# -- off-policy: a stage on stubs, every random draw given -------------------------------------------------------------


class ChunkStub(torch.nn.Module):
    """eps = tanh(x Wx + s Ws + t v + b) of chunks of one step."""

    def __init__(self, case, prefix=""):
        super().__init__()
        self.weights = torch.nn.ParameterDict({name: case[prefix + name].clone() for name in WEIGHTS})

    def encode(self, obs):
        return Encoded(obs, obs)

    def forward(self, x, k, encoded):
        w, t = self.weights, k[..., None].to(x.dtype)
        return (x.flatten(-2) @ w["Wx"] + encoded.obs @ w["Ws"] + t * w["v"] + w["b"]).tanh().view_as(x)


class EnsembleStub(torch.nn.Module):
    """Q_i = 3 sin(a Qx) + s Qs, and, where the file has them, a Sx + s Ss before the softplus of the deviation."""

    def __init__(self, case, prefix):
        super().__init__()
        names = [name for name in ("Qx", "Qs", "Sx", "Ss") if f"{prefix}1_{name}" in case]
        each = [{name: case[f"{prefix}{i}_{name}"].clone() for name in names} for i in (1, 2)]
        self.members = torch.nn.ModuleList(map(torch.nn.ParameterDict, each))

    def outputs(self, obs, actions):
        return torch.stack([self.output(member, obs, actions) for member in self.members])

    def output(self, w, obs, actions):
        q = 3 * (actions @ w["Qx"]).sin() + (obs @ w["Qs"])[:, None]
        return torch.stack([q, actions @ w["Sx"] + (obs @ w["Ss"])[:, None]], -1) if "Sx" in w else q

    def mean(self, outputs):
        return outputs[..., 0] if "Sx" in self.members[0] else outputs

    def forward(self, obs, actions):
        return self.mean(self.outputs(obs, actions))


def stub_stage(path, make, config, target="", **settings):
    """A stage of the file's T steps on its stubs -> stage and numbers; `target`: prefix of the actor's average."""
    case = numbers(path)
    with np.load(path, allow_pickle=False) as file:
        schedule = str(file["schedule"])
    chain = {"horizon": 1, "n_action_steps": 1, "denoising_steps": int(case["T"]), "schedule": schedule}
    policy = DiffusionPolicy(PolicyConfig(DenoiserConfig(hidden_dim=8), **chain), 5, 3, ["flat"])
    torch.testing.assert_close(policy.process.betas, case["betas"], rtol=1e-6, atol=1e-9)
    policy.denoiser = ChunkStub(case)
    settings |= {"demos": None, "demo_ratio": 0.0, "buffer_size": 100, "n_step": 1}
    stage = make(policy, config(**settings), Setting(TaskConfig("stub", "gymnasium", "Stub-v0", 1), 4, 0))
    stage.averaged.load_state_dict(ChunkStub(case, target).state_dict())
    stage.critic.network, stage.critic.target = EnsembleStub(case, "q"), EnsembleStub(case, "qt")
    return stage, case


def stub_batch(case, discount):
    return Batch(case["obs"], case["actions"], case["rewards"], discount, case["next_obs"], {}, ())


def given(monkeypatch, name, *arrays):
    """`torch.name` gives these, in the shapes that are asked for."""
    left = iter(arrays)

    def drawn(*sizes, **_):
        shape = sizes[-1] if isinstance(sizes[-1], (tuple, torch.Size)) else sizes
        return next(left).reshape(shape)

    monkeypatch.setattr(torch, name, drawn)


def chain_noise(case, which):
    return torch.cat([case[f"{which}_xT"][None], case[f"{which}_z"]])


def assert_gradients(loss, network, case, prefix, names=WEIGHTS, rtol=1e-5):
    weights = [network[name] for name in names]
    for name, ours in zip(names, torch.autograd.grad(loss, weights, retain_graph=True)):
        theirs = case[f"{prefix}_{name}"].float()
        assert float((ours - theirs).norm()) < 2 * rtol * float(theirs.norm()), name


def assert_critic_is_theirs(stage, case, batch, outputs, prefix="", names=("Qx", "Qs"), losses="critic"):
    """Their loss of each critic, ours is the sum, and the gradient of each."""
    found = []
    stage.critic.minimise = found.append
    stage.critic.update(batch, outputs)
    theirs = sum(float(case[f"{prefix}{losses}{i}_loss"]) for i in (1, 2))
    assert float(found[0].detach()) == pytest.approx(theirs, rel=1e-5, abs=2e-5)
    for i, member in enumerate(stage.critic.network.members, start=1):
        assert_gradients(found[0], member, case, f"{prefix}{losses}{i}_grad", names)


@pytest.mark.parametrize("path", files("qsm.npz"))
def test_qsm_s_critic(path, monkeypatch):
    """Their chain adds noise of variance beta, where ours has the posterior's, and clips after each step, where ours
    clips the predicted action; its means are ours without a bound."""
    stage, case = stub_stage(path, QSM, QSMConfig, prior="flat", target_noise=0.1)
    process = NoiseProcess(stage.policy.process.betas, clip_sample=None)
    sampler, x, obs = Sampler(process), case["sampler_xT"], case["next_obs"]
    for i, z in enumerate(case["sampler_z"]):
        k = sampler.timestep(i)
        torch.testing.assert_close(x, case["chain_in"][i].float(), **CLOSE)
        std = process.betas[k].sqrt().float() if k else 0.0
        x = (sampler.mean(stub(case, x, torch.full((len(x),), k), obs), x, i) + std * z).clamp(-1, 1)
    monkeypatch.setattr(stage, "draw", lambda obs, n, network: x[:, None, None])
    given(monkeypatch, "randn", case["target_noise"])
    chunks = stage.target_chunks(obs)
    torch.testing.assert_close(chunks[:, 0, 0], case["next_actions"].float(), **CLOSE)
    batch = stub_batch(case, case["discount"].float() * case["masks"])
    outputs = stage.critic.target.outputs(obs, chunks.flatten(2))
    torch.testing.assert_close(batch.reward + batch.discount * outputs.amin(0)[:, 0], case["target_q"].float(), **CLOSE)
    assert_critic_is_theirs(stage, case, batch, outputs)


@pytest.mark.parametrize("slope", ["released", "normalised"])
@pytest.mark.parametrize("path", files("qsm.npz"))
def test_qsm_s_actor(path, slope, monkeypatch):
    """As released, and FlowRL's."""
    case = numbers(path)
    settings = {"q_grad_coef": float(case["M_q"]), "temperature": float(case["flowrl_temp"])}
    stage, case = stub_stage(path, QSM, QSMConfig, prior="flat", slope=slope, **settings)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: case["time"][:, None])
    given(monkeypatch, "randn", case["noise"])
    seen, asked = [], stage.critic.action_gradient

    def watched(obs, x, **how):
        seen.append((x, asked(obs, x, **how)))
        return seen[-1][1]

    monkeypatch.setattr(stage.critic, "action_gradient", watched)
    loss, _ = stage.actor_loss(stub_batch(case, case["masks"]))
    ((x, gradient),) = seen
    torch.testing.assert_close(x[:, 0, 0], case["noisy_actions"].float(), **CLOSE)
    if slope == "released":
        torch.testing.assert_close(gradient[:, 0, 0], case["q_grad"].float(), **CLOSE)
        target, _ = stage.predicted_noise(gradient, torch.ones(()))
        torch.testing.assert_close(target[:, 0, 0], case["eps_target"].float(), rtol=1e-5, atol=1e-4)
    prefix = "" if slope == "released" else "flowrl_"
    assert float(loss.detach()) == pytest.approx(float(case[f"{prefix}actor_loss"]), rel=1e-5)
    names = WEIGHTS if slope == "released" else ("Wx", "b")
    assert_gradients(loss, stage.actor.weights, case, f"{prefix}actor_grad", names)


@pytest.mark.parametrize("path", files("qvpo.npz"))
def test_qvpo_s_critic(path, monkeypatch):
    stage, case = stub_stage(path, QVPO, QVPOConfig, target="target_", target_candidates=4)
    given(monkeypatch, "randn", chain_noise(case, "target"))
    batch = stub_batch(case, case["masks"])
    outputs = stage.next_values(batch)
    ours = batch.reward + batch.discount * outputs.amin(0).amax(1)
    torch.testing.assert_close(ours, case["target_q"].float(), **CLOSE)
    assert_critic_is_theirs(stage, case, batch, outputs)


@pytest.mark.parametrize("path", files("qvpo.npz"))
def test_qvpo_s_actor(path, monkeypatch):
    """From observations and noise alone."""
    case = numbers(path)
    settings = {"draws": int(case["M"]), "uniform_draws": 10, "entropy_coef": float(case["entropy_alpha"])}
    stage, case = stub_stage(path, QVPO, QVPOConfig, target="target_", **settings)
    samples = case["samples"].float()
    q = stage.critic.values(case["obs"], samples[:, :, None]).detach()
    best, weights = best_by_advantage(q, 1)
    torch.testing.assert_close(weights[:, 0], case["weights"].float(), **CLOSE)
    torch.testing.assert_close(samples[torch.arange(8), best[:, 0]], case["best_actions"].float())
    torch.testing.assert_close(with_uniform(weights, 10, 0.02)[:, 1:].T, case["entropy_weights"].float(), **CLOSE)
    given(monkeypatch, "randn", chain_noise(case, "samples"), case["loss_noise"].transpose(0, 1))
    given(monkeypatch, "rand", (case["uniform_actions"].transpose(0, 1) + 1) / 2)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: case["loss_timestep"].T)
    loss, _ = stage.actor_loss(stub_batch(case, case["masks"]))
    assert float(loss.detach()) == pytest.approx(float(case["actor_loss"]), rel=1e-5)
    assert_gradients(loss, stage.actor.weights, case, "actor_grad")


def dacer_stage(path):
    case = numbers(path)
    settings = {"initial_alpha": float(case["log_alpha"].exp()), "exploration_noise": float(case["explore_factor"])}
    settings |= {"critic": GaussianCriticConfig(hidden_dim=8, n_layers=1), "tau": float(case["tau"])}
    return stub_stage(path, DACER, DACERConfig, **settings)


@pytest.mark.parametrize("update", ["u0", "u1"])
@pytest.mark.parametrize("path", files("dacer.npz"))
def test_dacer_s_critic(path, update, monkeypatch):
    """The first update, and one whose running standard deviation is another; the sampled return is of the critic whose
    mean is the least."""
    stage, case = dacer_stage(path)
    discount = (1 - case["done"]) * case["discount"].float()
    batch = stub_batch(case, discount)._replace(reward=case["reward_scale"].float() * case["rewards"])
    if update == "u1":
        stds = [case[f"u1_prev_mean_q{i}_std"].float() for i in (1, 2)]
        stage.critic.typical_std = torch.cat(stds)
    given(monkeypatch, "randn", chain_noise(case, f"{update}_next"), case[f"{update}_next_explore"])
    x = stage.target_chunks(batch.next_obs)
    torch.testing.assert_close(x[:, 0, 0].detach(), case[f"{update}_next_actions"].float(), **CLOSE)
    outputs = stage.critic.target.outputs(batch.next_obs, x.flatten(2)).detach()
    least = outputs[..., 0, 0].argmin(0)
    given(monkeypatch, "randn", torch.where(least == 0, case[f"{update}_target_z1"], case[f"{update}_target_z2"]))
    assert_critic_is_theirs(stage, case, batch, outputs, f"{update}_", ("Qx", "Qs", "Sx", "Ss"), "q")
    theirs = torch.cat([case[f"{update}_mean_q{i}_std"] for i in (1, 2)])
    torch.testing.assert_close(stage.critic.typical_std, theirs.float(), **CLOSE)


@pytest.mark.parametrize("update", ["u0", "u1"])
@pytest.mark.parametrize("path", files("dacer.npz"))
def test_dacer_s_actor(path, update, monkeypatch):
    """Through all denoising steps."""
    stage, case = dacer_stage(path)
    stage.gradient_steps = 2  # no measurement of the entropy
    given(monkeypatch, "randn", chain_noise(case, f"{update}_pi"), case[f"{update}_pi_explore"])
    loss, _ = stage.actor_loss(stub_batch(case, case["done"]))
    assert float(loss.detach()) == pytest.approx(float(case[f"{update}_policy_loss"]), rel=1e-5)
    if update == "u0":
        assert_gradients(loss, stage.actor.weights, case, "u0_policy_grad")


@pytest.mark.parametrize("path", files("dacer.npz"))
def test_dacer_s_entropy_of_the_stored_mixture(path):
    """And what alpha's logarithm is moved by."""
    stage, case = dacer_stage(path)
    entropy = mixture_entropy(case["gmm_weights"], case["gmm_covariances"]).mean()
    assert float(entropy) == pytest.approx(float(case["entropy"]), rel=1e-9)
    stage.entropy = lambda obs: entropy
    stage._regulate(stub_batch(case, case["done"]))
    assert float(stage.alpha["log"].grad) == pytest.approx(float(case["log_alpha_grad"]), rel=1e-6)


@pytest.mark.parametrize("path", files("dipo.npz"))
def test_dipo_s_critic(path, monkeypatch):
    stage, case = stub_stage(path, DIPO, DIPOConfig, target="target_")
    given(monkeypatch, "randn", chain_noise(case, "target"))
    batch = stub_batch(case, case["masks"])
    outputs = stage.next_values(batch)
    ours = batch.reward + batch.discount * outputs.amin(0)[:, 0]
    torch.testing.assert_close(ours, case["target_q"].float(), **CLOSE)
    found = []
    stage.critic.minimise = found.append
    stage.critic.update(batch, outputs)
    theirs = float(case["critic1_loss"] + case["critic2_loss"])
    assert float(found[0].detach()) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("path", files("dipo.npz"))
def test_dipo_s_actor_and_its_memory(path, monkeypatch):
    """The memory is as they intended it; what was executed stays, as their code has it."""
    stage, case = stub_stage(path, DIPO, DIPOConfig, target="target_", action_lr=0.03, action_grad_norm=0.1)
    obs, none = case["memory_obs"], torch.zeros(24)
    stage.replay.store(Transitions(obs, case["memory_actions"], none, none, obs))
    batch, path_of = stage.replay.at(case["indices"]), case["action_path"].float()
    for i, norm in enumerate(case["action_grad_norm"]):
        slope = stage.critic.action_gradient(batch.obs, path_of[i][:, None, None])
        assert float(slope.norm()) == pytest.approx(float(norm), rel=1e-5)
    for steps in (1, 7):
        stage.config = replace(stage.config, action_steps=steps)
        torch.testing.assert_close(stage.improved(batch)[:, 0, 0], path_of[steps], **CLOSE)
    stage.config = replace(stage.config, action_steps=int(case["action_steps"]))
    given(monkeypatch, "randn", case["loss_noise"])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: case["loss_timestep"][:, None])
    loss, _ = stage.actor_loss(batch)
    assert float(loss.detach()) == pytest.approx(float(case["actor_loss"]), rel=1e-5)
    assert_gradients(loss, stage.actor.weights, case, "actor_grad")
    stored = stage.replay.at(torch.arange(24))
    memory = stored.chunk + stored.extra["improvement"]
    torch.testing.assert_close(memory, case["memory_after_intended"].float(), **CLOSE)
    assert torch.equal(stored.chunk, case["memory_after_released"].float())
