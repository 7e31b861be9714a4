"""The weights of reweighted score matching, its reverse draws, and that both losses learn the density they promise."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats

from burnish.diffusion import NoiseProcess, betas
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.finetune.algorithms import sdac
from burnish.finetune.algorithms.dpmd import DPMD, DPMDConfig
from burnish.finetune.algorithms.sdac import SDAC, SDACConfig, reverse_noise
from burnish.finetune.losses.rsm import (
    RSMConfig,
    Weighting,
    kl_from_uniform,
    paper_temperature,
    weighted_denoising_loss,
)
from burnish.finetune.off_policy import Draws
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Transitions
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

CPU = torch.device("cpu")
STAGES = {"dpmd": (DPMD, DPMDConfig), "sdac": (SDAC, SDACConfig)}


def weighting(weights: str, **kwargs) -> Weighting:
    return Weighting(RSMConfig(weights=weights, **kwargs), CPU)


def make_policy(Do=1, Tp=1, Da=1, **kwargs) -> DiffusionPolicy:
    settings = {"denoiser": DenoiserConfig(hidden_dim=64, n_layers=3), "horizon": Tp, "n_action_steps": Tp}
    return DiffusionPolicy(PolicyConfig(**(settings | kwargs)), Do, Da, ["flat"]).eval()


def make_stage(name: str, policy: DiffusionPolicy, **kwargs):
    make, config = STAGES[name]
    settings = {"demo_ratio": 0.0, "bc_coef": 0.0, "demos": None, "sampler": "inherit", "buffer_size": 1000}
    return make(policy, config(**(settings | kwargs)), Setting(TaskConfig("bandit", "gymnasium", "Bandit-v0", 1), 4, 0))


def random_q(scale=1.0, states=256, draws=16, seed=0) -> torch.Tensor:
    return scale * torch.randn(states, draws, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["kl", "fixed", "constant"])
def test_weights_sum_to_one_and_follow_q(kind):
    q = random_q()
    weights = weighting(kind)(q, 0).weights
    torch.testing.assert_close(weights.sum(1), torch.ones(len(q)))
    if kind == "constant":
        assert torch.equal(weights, torch.full_like(q, 1 / 16))
    else:
        assert torch.equal(weights.argsort(1), q.argsort(1))


@pytest.mark.parametrize("shift", [-100.0, 1e3, -1e5])
@pytest.mark.parametrize("kind", ["kl", "fixed", "constant", "paper"])
def test_a_constant_added_to_q_changes_nothing(kind, shift):
    """Q in 64ths, so that the sum is exact in float32 and the weights must be too."""
    q = (64 * random_q()).round() / 64
    settings = {"temperature": 0.05} if kind == "fixed" else {}
    plain, shifted = weighting(kind, **settings), weighting(kind, **settings)
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if kind == "paper" else {"rtol": 1e-4, "atol": 1e-6}
    for _ in range(3):  # the paper's averages begin at the first
        torch.testing.assert_close(shifted(q + shift, 0).weights, plain(q, 0).weights, **tolerance)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e2, 1e4])
@pytest.mark.parametrize(("draws", "kl_target"), [(2, 0.3), (16, 0.1), (16, 1.0), (16, 2.5), (64, 1.0), (64, 3.0)])
def test_kl_target_is_hit(scale, draws, kl_target):
    q = random_q(scale, draws=draws) - 5 * scale
    weights, temperature = weighting("kl", kl_target=kl_target)(q, 0)
    kl = stats.entropy(weights.double().numpy(), np.full((1, draws), 1 / draws), axis=1).mean()
    assert kl == pytest.approx(kl_target, rel=0.01)
    assert float(kl_from_uniform(q, temperature)) == pytest.approx(kl_target, rel=0.01)


def test_kl_target_is_hit_by_states_of_different_scales():
    q = random_q() * torch.logspace(-2, 2, 256)[:, None]
    assert float(kl_from_uniform(q, weighting("kl", kl_target=1.0)(q, 0).temperature)) == pytest.approx(1.0, rel=0.01)


def test_kl_target_is_hit_beside_one_extreme_state():
    q = random_q()
    q[0] *= 1e5
    assert float(kl_from_uniform(q, weighting("kl", kl_target=1.0)(q, 0).temperature)) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e6])
def test_equal_q_gives_equal_weights(value):
    weights = weighting("kl")(torch.full((4, 8), value), 0).weights
    torch.testing.assert_close(weights, torch.full((4, 8), 1 / 8))


def test_ties_do_not_break_the_kl_target():
    """Two best of eight: KL <= log 4, whatever lambda is."""
    q = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0]]).repeat(4, 1)
    weights = weighting("kl", kl_target=2.0)(q, 0).weights
    torch.testing.assert_close(weights, (q / 2))


@pytest.mark.parametrize("kind", ["kl", "fixed", "paper", "constant"])
def test_no_nan_for_extreme_q(kind):
    q = random_q(1e6)
    for sign in (1, -1):
        weights = weighting(kind)(sign * q.abs(), 0).weights
        assert bool(torch.isfinite(weights).all()) and bool((weights >= 0).all())


def test_effective_sample_size_and_entropy_by_hand():
    # lambda = 1 and Q = log of (1/2, 1/4, 1/4); and all weight on one
    q = torch.tensor([[0.5, 0.25, 0.25]]).log()
    metrics = weighting("fixed")(torch.cat([q, torch.tensor([[200.0, 0, 0]])]), 0).metrics()
    assert float(metrics["ess"]) == pytest.approx((1 / (1 / 4 + 1 / 16 + 1 / 16) + 1) / 2, rel=1e-6)
    assert float(metrics["weight_entropy"]) == pytest.approx((1.5 * math.log(2) + 0) / 2, rel=1e-6)
    assert float(metrics["temperature"]) == 1.0


def test_paper_weights_by_hand():
    ours = weighting("paper")
    assert paper_temperature(0) == pytest.approx(5.0)
    # the first batch: mean 2, standard deviation 1
    first = ours(torch.tensor([[1.0], [3.0]]), 0).weights
    torch.testing.assert_close(first, torch.tensor([[-1 / 5], [1 / 5]]).exp())
    # the second: mean 6, deviation 4, of which a thousandth counts; 8 deviations are clipped to 3
    second = ours(torch.tensor([[10.0], [2.0]]), 0).weights
    low = (2 - 2.004) / 1.003
    torch.testing.assert_close(second, torch.tensor([[3 / 5], [low / 5]]).exp())


@pytest.mark.parametrize("alpha_updates", [1, 50, 100, 200, 232, 300, 400, 1000])
def test_paper_temperature_is_what_adam_does(alpha_updates):
    """Adam (7e-3) on log alpha, every 250 updates, whose gradient is H - target: H of N(0, (0.1 alpha)^2) in d dims."""
    d, log_alpha = 6, torch.tensor(math.log(5.0), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([log_alpha], lr=7e-3)
    for _ in range(alpha_updates):
        entropy = 0.5 * d * torch.log(2 * math.pi * math.e * (0.1 * log_alpha.detach().exp()) ** 2)
        adam.zero_grad()
        (-log_alpha * (-entropy - 0.9 * d)).backward()
        adam.step()
    assert paper_temperature(250 * alpha_updates) == pytest.approx(float(log_alpha.detach().exp()), rel=1e-6)


def test_what_cannot_be_weighed():
    with pytest.raises(BurnishError, match=r"kl_target=2.8 nats: expected less than log\(draws\) = 2.773"):
        RSMConfig(kl_target=2.8).check_draws(16)
    with pytest.raises(BurnishError, match=r"stage.draws=1: expected at least 2"):
        RSMConfig(kl_target=0.1).check_draws(1)
    with pytest.raises(BurnishError, match=r"temperature=0: expected more than 0"):
        RSMConfig(temperature=0)
    RSMConfig(weights="constant", kl_target=2.8).check_draws(1)


def test_weighted_loss_by_hand():
    output = torch.zeros(2, 1, 2, 1)
    target = torch.tensor([1.0, 1, 2, 2, 3, 3, 4, 4]).view(2, 2, 2, 1)
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.25]])
    # ((1 + 4) / 2 + 9 + 16 / 4) / 2
    assert float(weighted_denoising_loss(output, target, weights)) == pytest.approx((2.5 + 13) / 2)


COSINE = NoiseProcess(betas("cosine", 20))


@pytest.mark.parametrize("k", [0, 3, 10, 16, 19])
@pytest.mark.parametrize(("x0", "eps"), [(0.0, 0.0), (0.4, -1.0), (1.0, 3.5), (-1.0, -3.5), (1.0, -2.0)])
def test_truncated_draws_are_truncated_normal(k, x0, eps):
    signal, sigma = float(COSINE.signal[k]), float(COSINE.noise[k])
    x = torch.full((1, 1, 1, 1), signal * x0 + sigma * eps)
    levels = torch.tensor(signal).view(1, 1, 1, 1), torch.tensor(sigma).view(1, 1, 1, 1)
    draws = reverse_noise(x, *levels, 20_000, 1.0, "truncated", torch.Generator().manual_seed(k))
    clean = (x - levels[1] * draws) / levels[0]
    assert float(clean.abs().max()) <= 1 + 1e-6 + 1e-6 / signal
    low, high = (float(x) - signal) / sigma, (float(x) + signal) / sigma
    result = stats.kstest(draws.flatten().double().numpy(), stats.truncnorm(low, high).cdf)
    assert result.pvalue > 1e-3, result


def test_truncated_draws_of_each_element_have_their_own_bounds():
    generator = torch.Generator().manual_seed(0)
    x0 = 2 * torch.rand(8, 1, 3, 2, generator=generator) - 1
    k = torch.randint(20, (8, 1), generator=generator)
    x = COSINE.add_noise(x0, torch.randn(x0.shape, generator=generator), k)
    signal, sigma = COSINE.levels(k, x)
    draws = reverse_noise(x, signal, sigma, 500, 1.0, "truncated", generator)
    assert draws.shape == (8, 500, 3, 2)
    assert float(((x - sigma * draws).abs() - signal).max()) <= 1e-5
    low, high = ((x + sign * signal) / sigma for sign in (-1, 1))
    mean = stats.truncnorm.mean(low.double().numpy(), high.double().numpy())
    np.testing.assert_allclose(draws.mean(1, keepdim=True).numpy(), mean, atol=0.25)  # 5 / sqrt(500)


@pytest.mark.parametrize("lowest", [True, False])
def test_extreme_uniform_numbers_give_possible_draws(monkeypatch, lowest):
    """torch.rand gives 0 once in 2^24 numbers; the far corner of the action box is not where that draw belongs."""
    u = 0.0 if lowest else 1 - 2**-24
    monkeypatch.setattr(sdac.torch, "rand", lambda *args, **kwargs: torch.full(*args, u))
    signal, sigma = COSINE.signal[:1].view(1, 1, 1, 1), COSINE.noise[:1].view(1, 1, 1, 1)
    for x in (-0.1, 0.1):
        eps = reverse_noise(torch.full((1, 1, 1, 1), x), signal, sigma, 1, 1.0, "truncated", torch.Generator())
        assert float(eps.abs()) < 7


@pytest.mark.parametrize("x", [1.6, -1.6])
def test_a_noisy_chunk_out_of_reach_comes_from_the_near_bound(x):
    """As after demonstrations beyond the range that the policy was normalised by."""
    signal, sigma = COSINE.signal[:1].view(1, 1, 1, 1), COSINE.noise[:1].view(1, 1, 1, 1)
    noisy = torch.full((1, 1, 1, 1), x)
    eps = reverse_noise(noisy, signal, sigma, 100, 1.0, "truncated", torch.Generator().manual_seed(0))
    assert float(((noisy - sigma * eps) / signal - math.copysign(1, x)).abs().max()) < 0.2


def test_clipped_draws_are_standard_normal():
    x = torch.full((1, 1, 1, 1), 0.9)
    draws = reverse_noise(x, torch.tensor(0.5), torch.tensor(0.8), 20_000, 1.0, "clipped", torch.Generator())
    assert draws.shape == (1, 20_000, 1, 1)
    assert stats.kstest(draws.flatten().double().numpy(), "norm").pvalue > 1e-3


TEMPERATURE = 0.3
BINS = np.linspace(-1, 1, 41)


def known_q(a: torch.Tensor) -> torch.Tensor:
    """Bimodal, in [0, 1]."""
    return (-(((a + 0.5) / 0.25) ** 2)).exp() + 0.8 * (-(((a - 0.5) / 0.2) ** 2)).exp()


def values(obs, x, critic=None):
    """In place of `DiffusionPolicy.values`: (B, N, 1, 1) -> (B, N)"""
    return known_q(x.clamp(-1, 1))[..., 0, 0]


def density(log_density) -> np.ndarray:
    """Probabilities of the bins for an unnormalised density on [-1, 1]."""
    fine = np.linspace(-1, 1, 4001)
    p = np.add.reduceat(np.exp(log_density(fine))[:-1], np.arange(0, 4000, 100))
    return p / p.sum()


def log_target(a: np.ndarray) -> np.ndarray:
    return known_q(torch.from_numpy(a)).numpy() / TEMPERATURE


def histogram(actions: np.ndarray, weights=None) -> np.ndarray:
    counts = np.histogram(actions, BINS, weights=weights)[0]
    return counts / counts.sum()


def total_variation(actions: np.ndarray, p: np.ndarray) -> float:
    return 0.5 * float(np.abs(histogram(actions) - p).sum())


@torch.no_grad()
def sample(policy: DiffusionPolicy, network, n=20_000) -> np.ndarray:
    noise = policy.draw_noise(n, generator=torch.Generator().manual_seed(1))
    return policy.sample(torch.zeros(n, 1), noise, finetuned=network)[0].flatten().clamp(-1, 1).numpy()


def batch_of(n: int, chunk: torch.Tensor | None = None) -> Transitions:
    obs, zeros = torch.zeros(n, 1), torch.zeros(n)
    return Transitions(obs, torch.zeros(n, 1) if chunk is None else chunk, zeros, zeros, obs)


def train(parameters, steps: int, lr: float, loss) -> None:
    """Adam, its rate falling to zero."""
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("noisy_from", ["uniform", "replay"])
def test_sdac_learns_exp_q(monkeypatch, noisy_from):
    """Whatever density the noisy chunks come from: here uniform, and clipped Gaussian around the lesser mode."""
    torch.manual_seed(0)
    policy = make_policy()
    monkeypatch.setattr(policy, "values", values)
    rsm = RSMConfig(weights="fixed", temperature=TEMPERATURE)
    stage = make_stage("sdac", policy, rsm=rsm, noisy_from=noisy_from, draws=32)
    target = density(log_target)
    assert total_variation(sample(policy, stage.actor), target) > 0.3
    uniform = np.random.default_rng(0).uniform(-1, 1, 20_000)
    assert total_variation(uniform, target) > 0.3

    def loss():
        chunk = (0.5 + 0.6 * torch.randn(256, 1)).clamp(-1, 1)
        batch = batch_of(256, chunk)
        return stage.actor_loss(batch, Draws(batch.next_obs, torch.zeros(256, 1, 1, 1), torch.zeros(256, 1)))[0]

    train(stage.actor.parameters(), 700, 3e-3, loss)
    actions = sample(policy, stage.actor)
    assert total_variation(actions, target) < 0.15
    assert np.mean(np.abs(actions) >= 0.999) < 0.02


OLD_MEAN, OLD_STD = 0.3, 0.5


def old_log_density(a: np.ndarray) -> np.ndarray:
    return -0.5 * ((a - OLD_MEAN) / OLD_STD) ** 2


@pytest.fixture(scope="module")
def old_weights() -> dict[str, torch.Tensor]:
    """A policy cloned from truncated normal actions."""
    torch.manual_seed(0)
    policy = make_policy()
    bounds = (-1 - OLD_MEAN) / OLD_STD, (1 - OLD_MEAN) / OLD_STD
    data = stats.truncnorm(*bounds, OLD_MEAN, OLD_STD).rvs(100_000, random_state=0)
    actions = torch.from_numpy(data).float().view(-1, 1, 1)

    def loss():
        return policy.loss(torch.zeros(512, 1, 1), actions[torch.randint(len(actions), (512,))])

    train(policy.parameters(), 700, 3e-3, loss)
    return policy.state_dict()


@pytest.mark.parametrize(("weights", "resample"), [("fixed", 0), ("fixed", 4), ("constant", 0)])
def test_dpmd_learns_one_mirror_step(old_weights, weights, resample):
    """pi_old exp(Q / lambda) from pi_old; with constant weights, the control, it stays pi_old."""
    torch.manual_seed(0)
    policy = make_policy()
    policy.load_state_dict(old_weights)
    rsm = RSMConfig(weights=weights, temperature=TEMPERATURE)
    stage = make_stage("dpmd", policy, rsm=rsm, draws=64, resample=resample)
    before = sample(policy, stage.old)
    assert total_variation(before, density(old_log_density)) < 0.15
    old = histogram(before)
    mirror = histogram(before, np.exp(log_target(before)))
    assert total_variation(before, mirror) > 0.3
    pool = torch.from_numpy(before).view(-1, 1, 1)
    states = 128 if resample else 16

    def loss():
        draws = pool[torch.randint(len(pool), (states, 64))]
        batch = batch_of(states)
        return stage.actor_loss(batch, Draws(batch.next_obs, draws, values(None, draws)))[0]

    train(stage.actor.parameters(), 700, 2e-3, loss)
    after = sample(policy, stage.actor)
    if weights == "constant":
        assert total_variation(after, old) < 0.15
        assert total_variation(after, mirror) > 0.3
    else:
        assert total_variation(after, mirror) < 0.15
        assert total_variation(after, old) > 0.3


@pytest.mark.parametrize("draws", [1, 4])
def test_constant_weights_give_exactly_the_gradient_of_behaviour_cloning(draws):
    """Of cloning every draw; with several draws no other weights do."""
    torch.manual_seed(0)
    policy = make_policy(Do=3, Tp=4, Da=2)
    policy.obs_normalizer.fit(torch.randn(50, 3), "min_max")
    policy.action_normalizer.fit(0.7 * torch.rand(50, 2) - 0.2, "min_max")
    clone = copy.deepcopy(policy)
    obs, actions = torch.randn(32, 1, 3), 0.7 * torch.rand(32, draws, 4, 2) - 0.2
    normalized = policy.normalized_obs(obs)
    batch = Transitions(normalized, torch.zeros(32, 8), torch.zeros(32), torch.zeros(32), normalized)
    q = torch.randn(32, draws)

    theirs = clone.loss(
        obs.repeat_interleave(draws, 0), actions.flatten(0, 1), torch.Generator().manual_seed(5)
    )  # the same numbers in the same order
    theirs.backward()
    for weights in ("constant", "fixed"):
        stage = make_stage("dpmd", copy.deepcopy(policy), rsm=RSMConfig(weights=weights), draws=draws, resample=0)
        stage.generator.manual_seed(5)
        ours, _ = stage.actor_loss(batch, Draws(normalized, policy.action_normalizer.normalize(actions), q))
        ours.backward()
        if weights == "constant":
            torch.testing.assert_close(ours, theirs)
            for (name, p), other in zip(stage.actor.named_parameters(), clone.denoiser.parameters()):
                torch.testing.assert_close(p.grad, other.grad, rtol=1e-5, atol=1e-7, msg=f"gradient of {name}")
        elif draws > 1:
            assert abs(ours - theirs) > 1e-2 * theirs


@pytest.mark.parametrize("name", ["dpmd", "sdac"])
def test_a_shift_of_q_does_not_change_the_actor(monkeypatch, name):
    """By -100: the same updates."""
    actors = []
    for shift in (0.0, -100.0):
        torch.manual_seed(0)
        policy = make_policy()
        monkeypatch.setattr(policy, "values", lambda obs, x, critic=None, shift=shift: values(obs, x) + shift)
        extra = {"resample": 0} if name == "dpmd" else {}
        stage = make_stage(name, policy, batch_size=32, critic_warmup_updates=0, policy_delay=1, **extra)
        stage.replay.add(batch_of(64))
        for _ in range(10):
            stage._gradient_step()
        actors.append(torch.cat([p.detach().flatten() for p in stage.actor.parameters()]))
    start = torch.cat([p.detach().flatten() for p in policy.denoiser.parameters()])
    moved = (actors[0] - start).norm()
    assert moved > 0.01
    assert (actors[0] - actors[1]).norm() < 1e-2 * moved
