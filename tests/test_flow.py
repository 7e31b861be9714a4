"""Flow-matching policies: the line from noise to the action, and that what is made for diffusion holds for them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from bandit import DA, TA, TASK, E, play, score

from burnish.diffusion import FlowProcess, NoiseProcess, Sampler, StdBounds, betas, flow_times
from burnish.errors import BurnishError
from burnish.finetune.algorithms.dpmd import DPMD, DPMDConfig
from burnish.finetune.algorithms.dppo import DPPO, DPPOConfig
from burnish.finetune.algorithms.sdac import SDAC, SDACConfig
from burnish.finetune.losses.rsm import RSMConfig
from burnish.finetune.stage import Setting
from burnish.networks import CriticConfig, DenoiserConfig
from burnish.policies.flow import FlowPolicy, FlowPolicyConfig
from burnish.policies.load import load_policy


def make_policy(**settings) -> FlowPolicy:
    fixed = {"denoiser": DenoiserConfig(hidden_dim=64, n_layers=2), "horizon": TA, "n_action_steps": TA}
    fixed |= {"denoising_steps": 20, "euler_steps": 10}
    return FlowPolicy(FlowPolicyConfig(**(fixed | settings)), 2, DA, ["flat"]).eval()


@pytest.fixture(scope="module")
def cloned() -> dict[str, torch.Tensor]:
    """Of actions that are -0.6 or 0.6, all of a chunk alike, by the sign of nothing: two modes."""
    torch.manual_seed(0)
    policy = make_policy()
    optimizer = torch.optim.Adam(policy.parameters(), 2e-3)
    for _ in range(1500):
        obs = torch.randn(256, 1, 2)
        actions = 0.6 * torch.randn(256, 1, 1).sign().expand(256, TA, DA) + 0.05 * torch.randn(256, TA, DA)
        optimizer.zero_grad()
        policy.loss(obs, actions).backward()
        optimizer.step()
    return policy.state_dict()


def test_times_run_from_noise_to_the_action():
    process = FlowProcess(flow_times(5))
    torch.testing.assert_close(process.signal, torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0]))
    torch.testing.assert_close(process.noise, 1 - process.signal)
    x0, eps, k = torch.randn(5, 4, 3), torch.randn(5, 4, 3), torch.arange(5)
    x = process.add_noise(x0, eps, k)
    torch.testing.assert_close(x[4], eps[4])
    unclipped = FlowProcess(flow_times(5), clip_sample=None)
    torch.testing.assert_close(unclipped.predict_x0(process.target(x0, eps, k), x, k), x0)


@pytest.mark.parametrize(
    ("kind", "steps", "eta"), [("ddpm", 1, 1.0), ("ddim", 20, 1.0), ("ddim", 5, 0.5), ("ddim", 4, 0.0)]
)
def test_transitions_keep_the_line_s_distribution(kind, steps, eta):
    """With the exact clean action each transition leads from N(t x_0, (1 - t)^2) to N(t' x_0, (1 - t')^2)."""
    sampler = Sampler(FlowProcess(flow_times(20), clip_sample=None), kind, steps, eta)
    t = [float(sampler.process.signal[k]) for k in sampler.timesteps] + [1.0]
    assert t[0] == 0
    for i in range(len(sampler)):
        coef_x0, coef_x, std = (float(table[i]) for table in (sampler.coef_x0, sampler.coef_x, sampler.std))
        assert coef_x0 + coef_x * t[i] == pytest.approx(t[i + 1], abs=1e-6)
        assert (coef_x * (1 - t[i])) ** 2 + std**2 == pytest.approx((1 - t[i + 1]) ** 2, abs=1e-6)


def test_it_keeps_both_modes_where_a_mean_would_be_between(cloned):
    policy = make_policy()
    policy.load_state_dict(cloned)
    actions = policy.act(np.zeros((2000, 1, 2), np.float32), generator=torch.Generator().manual_seed(0))[:, :, 0].mean(
        1
    )
    right = float((actions > 0).mean())
    assert 0.4 < right < 0.6
    assert np.abs(np.abs(actions) - 0.6).mean() < 0.12


def test_a_saved_one_acts_alike_and_compiled_chains_are_the_same(cloned, tmp_path, monkeypatch):
    policy = make_policy(temperature=0.5)
    policy.load_state_dict(cloned)
    policy.save(tmp_path)
    obs = torch.randn(7, 1, 2)
    expected = policy.act(obs, generator=torch.Generator().manual_seed(0))
    loaded = load_policy(tmp_path)
    assert isinstance(loaded, FlowPolicy) and loaded.config == policy.config
    np.testing.assert_array_equal(loaded.act(obs, generator=torch.Generator().manual_seed(0)), expected)
    monkeypatch.setenv("BURNISH_COMPILED", "0")
    uncompiled = load_policy(tmp_path).act(obs, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(uncompiled, expected, atol=1e-5)


def test_dppo_trains_a_flow_and_its_first_ratio_is_1(cloned):
    policy = make_policy()
    policy.load_state_dict(cloned)
    settings = {"n_steps": 8, "batch_size": 320, "actor_lr": 1e-3, "clip_coef_base": 0.1, "clip_coef": 0.1}
    floors = {"min_sampling_denoising_std": 0.1, "min_logprob_denoising_std": 0.1}
    stage = DPPO(policy, DPPOConfig(ft_denoising_steps=5, desired_kl=None, **settings, **floors), Setting(TASK, E, 0))
    before = score(policy)
    metrics = play(stage, np.random.default_rng(0), 40 * 8)
    assert all(each.get("first_ratio_error", 0) == pytest.approx(0, abs=1e-5) for each in metrics)
    assert score(policy) > before + 0.2


@pytest.mark.parametrize(
    ("make", "config"),
    [(DPMD, DPMDConfig(train_on="all", draws=16, rsm=RSMConfig(kl_target=0.7))), (SDAC, SDACConfig())],
)
def test_reweighting_trains_a_flow(cloned, make, config):
    policy = make_policy()
    policy.load_state_dict(cloned)
    settings = {"critic": CriticConfig(hidden_dim=64, n_layers=2), "batch_size": 128, "learning_starts": 2 * E * TA}
    settings |= {"update_every": 1, "critic_warmup_updates": 100, "old_policy_every": 50, "actor_tau": 0.02}
    settings |= {"actor_lr": 1e-3, "actor_lr_final": 1e-3, "critic_lr": 1e-3, "demos": None, "demo_ratio": 0.0}
    stage = make(policy, replace(config, n_step=1, utd_ratio=0.5, n_candidates=2, **settings), Setting(TASK, E, 0))
    before = score(policy)
    play(stage, np.random.default_rng(0), 80)
    assert score(policy) > before + 0.15


def test_the_flat_prior_is_refused():
    with pytest.raises(BurnishError, match=r"stage.prior=flat: at its noisiest a flow policy sees noise alone"):
        SDAC(make_policy(), SDACConfig(prior="flat", demos=None, demo_ratio=0.0), Setting(TASK, E, 0))


# -- Flow-GRPO's stochastic steps --------------------------------------------------------------------------------------


def sampled_moments(steps: int, level: float, mean: float, std: float) -> tuple[float, float]:
    """Of `flow_sde` with the exact velocity of data N(mean, std^2), whose steps are linear, in closed form."""
    sampler = Sampler(FlowProcess(flow_times(steps), clip_sample=None), "flow_sde", steps, level)
    m, v = 0.0, 1.0
    for i in range(steps):
        t = float(sampler.process.signal[sampler.timestep(i)])
        gain = t * std**2 / (t**2 * std**2 + (1 - t) ** 2)  # E[x_0 | x] = mean + gain (x - t mean)
        x0, x, noise = (float(table[i]) for table in (sampler.coef_x0, sampler.coef_x, sampler.std))
        m, v = x0 * (mean + gain * (m - t * mean)) + x * m, (x0 * gain + x) ** 2 * v + noise**2
    return m, v**0.5


@pytest.mark.parametrize("level", [0.0, 0.3, 0.7])
def test_flow_sde_samples_the_data_s_distribution(level):
    """The more steps, the nearer: that is what the ODE's own marginals mean; level 0 is the ODE."""
    errors = []
    for steps in (10, 100, 1000):
        m, s = sampled_moments(steps, level, 0.3, 0.2)
        errors.append(abs(m - 0.3) + abs(s - 0.2))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.003


def test_flow_sde_draws_what_its_moments_say():
    steps, m, s = 20, 0.3, 0.2
    sampler = Sampler(FlowProcess(flow_times(steps), clip_sample=None), "flow_sde", steps, 0.7)

    def velocity(x, i):
        t = sampler.process.signal[sampler.timestep(i)]
        x0 = m + t * s**2 / (t**2 * s**2 + (1 - t) ** 2) * (x - t * m)
        return (x0 - x) / (1 - t)

    noise = torch.randn(steps + 1, 100_000, 1, 1, generator=torch.Generator().manual_seed(0))
    x, _ = sampler.sample(velocity, noise)
    expected = sampled_moments(steps, 0.7, m, s)
    assert (float(x.mean()), float(x.std())) == pytest.approx(expected, abs=0.003)


def test_flow_sde_with_level_0_is_euler():
    process = FlowProcess(flow_times(20))
    euler, sde = Sampler(process, "euler", 10), Sampler(process, "flow_sde", 10, 0.0)
    torch.testing.assert_close(sde.coef_x, euler.coef_x, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(sde.coef_x0, euler.coef_x0, atol=1e-6, rtol=1e-5)
    assert not sde.std.any()


def test_a_flow_acts_by_the_sampler_it_is_told(cloned):
    policy = make_policy(sampler="flow_sde", eta=0.5)
    policy.load_state_dict(cloned)
    assert policy.sampler.std.all()
    assert torch.equal(policy.config.chain_sampler(eta=1.0).std, policy.sampler.std)  # explores with its own level
    obs, noise = torch.zeros(4, 1, 2), torch.randn(11, 4, TA, DA)
    with policy.sampling(sampler="euler"):
        first = policy.act(obs, noise=noise)
    assert not torch.equal(first, policy.act(obs, noise=noise))
    with policy.sampling(sampler="euler", sampler_steps=20):
        assert len(policy.sampler) == 20
    assert policy.config.sampler == "flow_sde" and len(policy.sampler) == 10


@pytest.mark.parametrize("kind", ["euler", "flow_sde"])
def test_only_a_flow_is_sampled_like_a_flow(kind):
    with pytest.raises(BurnishError, match=f"sampler={kind}: only a flow is sampled so; expected ddpm or ddim"):
        Sampler(NoiseProcess(betas("cosine", 20)), kind, 10)


# -- Standard deviations of a head -------------------------------------------------------------------------------------


class Noise(torch.nn.Module):
    """A head that sees the state, the step, and x, as a noise network does."""

    def __init__(self, obs: torch.Tensor):
        super().__init__()
        self.obs, self.linear = obs, torch.nn.Linear(2 + 1 + TA * DA, TA * DA)

    def forward(self, x, i):
        seen = torch.cat([self.obs, torch.full_like(self.obs[:, :1], i / 10), x.flatten(1)], 1)
        return (self.linear(seen).tanh() - 2).exp().view_as(x)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_chain_whose_standard_deviation_a_head_gives(cloned, temperature):
    """It moves by what the head says at each state, within the bounds; its likelihood is torch's, with gradients."""
    torch.manual_seed(0)
    policy = make_policy(temperature=temperature)
    policy.load_state_dict(cloned)
    obs, bounds = torch.randn(6, 2), StdBounds(0.06, 0.2)
    head = Noise(obs)
    noise = torch.randn(11, 6, TA, DA)
    with torch.no_grad():
        _, chain = policy.sample(obs, noise, std_head=head, bounds=bounds, noise_clip=1.0, keep=5)
        table = policy.sample(obs, noise, keep=5)[1]
    assert chain.std.shape == chain.mean.shape and table.std.shape == (5, 1, 1) and not table.std.any()
    outside = (chain.std < 0.06) | (chain.std > 0.2)
    assert 0 < float(outside.float().mean()) < 1
    log_prob = torch.zeros(())
    for i in range(5):
        x, sampled = chain.x[:, i], chain.x[:, i + 1]
        std = head(x, 5 + i)
        output = policy.denoiser(x, policy.sampler.timesteps[5 + i], policy.denoiser.encode(obs))
        step = policy.sampler.transition(output, x, 5 + i, std)
        torch.testing.assert_close(step.std, temperature * std)
        torch.testing.assert_close(step.std, chain.std[:, i])
        torch.testing.assert_close(step.mean, chain.mean[:, i], atol=1e-5, rtol=1e-5)
        within = step._replace(std=bounds.of(step.std))
        torch.testing.assert_close(sampled, within.mean + within.std * noise[6 + i].clamp(-1, 1), atol=1e-5, rtol=1e-5)
        expected = torch.distributions.Normal(within.mean, within.std).log_prob(sampled)
        torch.testing.assert_close(within.log_prob(sampled), expected)
        log_prob = log_prob + within.log_prob(sampled).sum()
    log_prob.backward()
    assert float(head.linear.weight.grad.abs().sum()) > 0


def test_a_transition_s_table_is_that_of_each_step():
    sampler = Sampler(FlowProcess(flow_times(10)), "euler", 10, 1.0)
    x, output, i = torch.randn(4, TA, DA), torch.randn(4, TA, DA), torch.tensor([0, 3, 7, 9])
    together = sampler.transition(output, x, i)
    for row, step in enumerate(i.tolist()):
        alone = sampler.transition(output[row : row + 1], x[row : row + 1], step)
        torch.testing.assert_close(together.mean[row], alone.mean[0])
        assert float(together.std[row]) == float(alone.std) == float(sampler.std[step])
