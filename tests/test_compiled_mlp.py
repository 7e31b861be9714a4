"""The compiled pass of a small MLP against torch's operations in float64, and what happens where nothing compiles."""

import copy
import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from burnish.commands import doctor
from burnish.diffusion import StdBounds
from burnish.diffusion.process import PREDICTIONS
from burnish.networks import CriticConfig, DenoiserConfig, QEnsemble, build_denoiser
from burnish.networks.averages import polyak
from burnish.networks.compiled import mlp as compiled_mlp
from burnish.networks.compiled.mlp import CompiledMLP
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig, encode_for
from burnish.runs import origin

DO, TP, DA, K = 5, 3, 2, 7
SHAPES = [(1, 1), (4, 1), (5, 3), (13, 7), (40, 5)]  # observations, candidates: whole tiles and remainders
DENOISERS = [
    {"hidden_dim": 32, "n_layers": 1},
    {"hidden_dim": 96, "n_layers": 2, "activation": "relu"},
    {"hidden_dim": 256, "n_layers": 3},
    {"hidden_dim": 64, "n_layers": 3, "residual": True, "activation": "relu"},
    {"hidden_dim": 64, "n_layers": 7, "residual": True},
]
CRITICS = [{}, {"layer_norm": False, "activation": "mish"}, {"n_critics": 3, "n_layers": 1}]
VARIANTS = [
    (level, compiler, tuning)
    for compiler in ("g++", "clang++")
    for level in (compiled_mlp.BASELINE, *compiled_mlp.LEVELS)
    for tuning in (("native", "znver3") if level == "x86-64-v3" else ("native",))  # Zen's avoids fused operations
]


@functools.cache
def built(level: str, compiler: str, tuning: str) -> ctypes.CDLL | str:
    """The library, or why there is none on this machine."""
    if level not in compiled_mlp.levels():
        return f"this processor has no {level}"
    if shutil.which(compiler) is None:
        return f"no {compiler} here"
    try:
        return compiled_mlp.load(level, [compiler], tuning)
    except OSError as error:
        if "avx512fp16" in str(error):
            return f"this {compiler} does not know {level}: {error}"
        raise


@pytest.fixture(params=VARIANTS, ids="-".join)
def variant(request, monkeypatch) -> str:
    """The level of each code that can be built and run here; it runs in place of this machine's own."""
    library = built(*request.param)
    if isinstance(library, str):
        pytest.skip(library)
    monkeypatch.setattr(compiled_mlp, "_library", lambda: library)
    return request.param[0]


def denoiser(seed=0, **settings):
    torch.manual_seed(seed)
    return build_denoiser(DenoiserConfig(**settings), features=DO, horizon=TP, action_dim=DA, denoising_steps=K)


def inputs(states: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(states, DO, generator=generator), 3 * torch.randn(states, n, TP, DA, generator=generator)


def output(network, obs, x, k=2):
    """By torch's operations."""
    encoded = network.encode(obs)
    return network(x, torch.tensor(k), encoded._replace(obs=encoded.obs[:, None]))


@torch.no_grad()
def compiled(network, obs, x, k=2):
    return compiled_pass(network.encode(obs), x, k)


def compiled_pass(encoded, x, k=2):
    return encoded.compiled(x.flatten(0, 1).flatten(1), encoded.obs + encoded.times[k]).view_as(x)


@contextmanager
def threads(n: int):
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", DENOISERS)
def test_a_denoiser_is_torchs(settings, shape):
    network = denoiser(**settings)
    obs, x = inputs(*shape)
    ours = compiled(network, obs, x)
    theirs = output(copy.deepcopy(network).double(), obs.double(), x.double())  # nn.Linear and torch's Mish
    torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", CRITICS)
def test_a_critic_is_torchs(settings, shape, monkeypatch):
    torch.manual_seed(0)
    critic = QEnsemble(CriticConfig(**{"hidden_dim": 64, **settings}), DO, TP * DA)
    obs, x = inputs(*shape)
    calls = count_calls(monkeypatch)
    with torch.no_grad():
        ours = critic(obs, x.flatten(2))
    assert len(calls) == len(critic.bias)
    theirs = copy.deepcopy(critic).double()(obs.double(), x.double().flatten(2))
    torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1e-5, atol=1e-5)


def count_calls(monkeypatch) -> list[int]:
    calls: list[int] = []
    plain = CompiledMLP.__call__

    def counted(self, x, *others):
        calls.append(len(x))
        return plain(self, x, *others)

    monkeypatch.setattr(CompiledMLP, "__call__", counted)
    return calls


def test_all_code_is_exact(variant, monkeypatch):
    for shape in SHAPES:
        for settings in DENOISERS:
            test_a_denoiser_is_torchs(settings, shape)
        for settings in CRITICS:
            with monkeypatch.context() as patched:
                test_a_critic_is_torchs(settings, shape, patched)


# SHA-256 of `numbers_of_many_networks`, whatever computed them. They change with the order of a sum or what is fused.
BITS = {
    "fused": "6cdd2d988e7dbe1c7529fc74af02f0994a7574bafce1b209a684f3ca5b741ad9",
    "not fused": "7fe4a9a99c79d14b678bab022244680cab30788b02e2847d8fc5325eb6158d38",
}
FUSED = ["x86-64-v3", "x86-64-v4", "x86-64-v4+fp16"]
if platform.machine() in ("aarch64", "arm64"):
    FUSED.append(compiled_mlp.BASELINE)


def test_all_code_gives_the_same_bits(variant):
    """On every machine: what fails on one only computes otherwise there."""
    digest = hashlib.sha256(numbers_of_many_networks().numpy().tobytes()).hexdigest()
    assert digest == BITS["fused" if variant in FUSED else "not fused"]


def numbers_of_many_networks() -> torch.Tensor:
    """Passes and chains from numbers that are the same everywhere, as those of torch.randn are not."""
    random = np.random.RandomState(0)

    def uniform(*shape: int, size: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(2 * size * (random.random_sample(shape) - 0.5).astype(np.float32))

    found = []
    for dim, layers, residual in ((32, 0, False), (96, 1, False), (256, 2, False), (64, 2, True)):
        for activation in compiled_mlp.ACTIVATION_CODES:
            for layer_norm in (False, True):
                hidden = [(uniform(dim, dim, size=3 * dim**-0.5), uniform(dim)) for _ in range(layers)]
                last = uniform(dim, 6, size=3 * dim**-0.5), uniform(6)
                settings = {"activation": activation, "residual": residual, "layer_norm": layer_norm}
                network = CompiledMLP(uniform(6, dim), hidden, last, **settings)
                found.append(network(uniform(100, 6, size=30), uniform(50, dim)))
                x, mean = torch.empty(4, 25, 6), torch.empty(3, 25, 6)
                x[0] = uniform(25, 6, size=3)
                transitions = uniform(3, 6) + torch.tensor([0, 0, 2, 1.5, 0, 0])
                network.chain(transitions, uniform(3, 25, 6), x, mean, uniform(5, dim), uniform(3, dim))
                found += [x, mean]
    return torch.cat([numbers.flatten() for numbers in found])


@pytest.mark.parametrize("residual", [False, True])
def test_bits_of_a_row_depend_on_that_row_alone(residual, variant):
    network = denoiser(hidden_dim=64, residual=residual)
    obs, x = inputs(50, 9)  # 450 rows: five blocks
    with torch.no_grad():
        encoded = network.encode(obs)  # once: the observations' part is a product of torch's
        whole = compiled_pass(encoded, x)
        for rows, n in ((slice(0, 1), 1), (slice(17, 18), 9), (slice(20, 50), 4)):
            part = encoded._replace(obs=encoded.obs[rows])
            assert torch.equal(compiled_pass(part, x[rows, :n]), whole[rows, :n])
        with threads(2):
            assert torch.equal(compiled_pass(encoded, x), whole)


def test_bits_of_a_value_depend_on_that_row_alone(variant):
    network = CompiledMLP(
        torch.randn(6, 64), [(torch.randn(64, 64), torch.randn(64))], (torch.randn(64, 1), torch.zeros(1)),
        activation="relu", layer_norm=True,
    )  # fmt: skip
    x, given = torch.randn(450, 6), torch.randn(450, 64)
    whole = network(x, given)
    for first, last in ((0, 1), (17, 20), (100, 111), (200, 450)):
        assert torch.equal(network(x[first:last], given[first:last]), whole[first:last])


def change_by_adam(network, obs, x):
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, fused=True)
    output(network, obs, x).square().mean().backward()
    optimizer.step()


def change_by_polyak(network, obs, x):
    polyak(network, denoiser(hidden_dim=network.out.in_features, seed=1), 0.1)


def change_by_loading(network, obs, x):
    network.load_state_dict(denoiser(hidden_dim=network.out.in_features, seed=1).state_dict())


def change_by_replacing(network, obs, x):
    network.out.weight = nn.Parameter(network.out.weight + 1)


def change_one_number(network, obs, x):
    with torch.no_grad():
        network.trunk[1].bias[0] += 1


def change_unseen_by_torch(network, obs, x):
    network.trunk[1].weight.data.mul_(1.01)


def change_by_a_power_of_two(network, obs, x):
    network.trunk[1].weight.data.mul_(2)  # the same change of every word's exponent


def change_all_signs(network, obs, x):
    network.trunk[1].weight.data.neg_()  # of the highest bits


def change_two_signs(network, obs, x):
    network.trunk[1].weight.data.flatten()[[0, 256]] *= -1


def change_by_exchanging(network, obs, x):
    weight = network.trunk[1].weight.detach()
    weight[:, [0, 1]] = weight[:, [1, 0]]


@pytest.mark.parametrize(
    "change",
    [
        change_by_adam,
        change_by_polyak,
        change_by_loading,
        change_by_replacing,
        change_one_number,
        change_unseen_by_torch,
        change_by_a_power_of_two,
        change_all_signs,
        change_two_signs,
        change_by_exchanging,
    ],
)
@pytest.mark.parametrize("hidden_dim", [32, 256])
def test_weights_that_changed_are_seen(change, hidden_dim):
    network = denoiser(hidden_dim=hidden_dim)
    obs, x = inputs(4, 2)
    before = compiled(network, obs, x)
    change(network, obs, x)
    ours = compiled(network, obs, x)
    assert not torch.equal(ours, before)
    torch.testing.assert_close(ours, output(network, obs, x).detach(), rtol=1e-5, atol=1e-6)


def test_a_network_that_ran_compiled_can_be_copied():
    network = denoiser(hidden_dim=32)
    obs, x = inputs(4, 2)
    before = compiled(network, obs, x)
    other = copy.deepcopy(network)
    other.out.bias.data += 1
    torch.testing.assert_close(compiled(other, obs, x), before + 1)
    assert torch.equal(compiled(network, obs, x), before)


def test_gradients_other_widths_and_autocast_are_torchs():
    obs, _ = inputs(4, 2)
    assert denoiser(hidden_dim=32).encode(obs).compiled is None
    with torch.no_grad():
        assert denoiser(hidden_dim=36).encode(obs).compiled is None
        assert denoiser(hidden_dim=32, activation="silu").encode(obs).compiled is None
        with torch.autocast("cpu", torch.bfloat16):
            assert denoiser(hidden_dim=32).encode(obs).compiled is None
        assert denoiser(hidden_dim=32).encode(obs).compiled is not None


def chain_policy(**settings) -> DiffusionPolicy:
    torch.manual_seed(0)
    settings = {"horizon": TP, "n_action_steps": TP, "denoising_steps": 20, "ddim_steps": 5, **settings}
    policy = DiffusionPolicy(PolicyConfig(denoiser=DenoiserConfig(hidden_dim=64), **settings), DO, DA, ["a"])
    return policy.requires_grad_(False)


SAMPLERS = [{"sampler": "ddpm"}, {"sampler": "ddim", "eta": 0.0}, {"sampler": "ddim", "eta": 1.0}]


@pytest.mark.parametrize("finetuned", [False, True])
@pytest.mark.parametrize("clip_sample", [1.0, None])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_compiled_chain_is_the_same_bit_for_bit(prediction_type, sampler, clip_sample, finetuned):
    """As compiled passes with torch's operations for the transitions between them, and with any number of threads.

    Torch rounds every operation of a transition for itself, with whatever instructions. Its product of the
    observations is taken once, by one thread: two threads may round it differently.
    """
    policy = chain_policy(prediction_type=prediction_type, clip_sample=clip_sample, **sampler)
    if finetuned:
        policy.start_finetuning(3)
        policy.finetuned.out.bias.data += 0.1
    S, bounds = len(policy.sampler), StdBounds(0.01, 0.9)
    networks = [(policy.denoiser, S - 3), (policy.finetuned, 3)] if finetuned else [(policy.denoiser, S)]
    for shape, keep in (((1,), 0), ((5,), 3), ((13, 7), S), ((40, 5), 1), ((1, 31), 0), ((4, 0), 0), ((0,), 2)):
        obs, noise = torch.randn(shape[0], DO), policy.draw_noise(*shape)
        with torch.no_grad():
            parts = [(encode_for(network, obs, noise[0]), steps) for network, steps in networks]
            kwargs = {"bounds": bounds, "noise_clip": 2.0, "keep": keep} if keep else {}

            def denoise(x, i, parts=parts):
                encoded = parts[0 if i < parts[0][1] else 1][0]
                candidates = x if x.dim() == 4 else x[:, None]
                encoded = encoded._replace(obs=encoded.obs.flatten(0, -2))
                return compiled_pass(encoded, candidates, policy.sampler.timestep(i)).view_as(x)

            x, chain = policy.sampler.sample(denoise, noise, **kwargs)
            found = [policy.sample(obs, noise, **kwargs)]
            with threads(2):
                found.append(policy.sampler.sample_compiled(parts, noise, **kwargs))
            for ours, our_chain in found:
                assert torch.equal(ours, x)
                assert our_chain.x.shape == chain.x.shape and torch.equal(our_chain.x, chain.x)
                assert our_chain.mean.shape == chain.mean.shape and torch.equal(our_chain.mean, chain.mean)


def test_all_code_chains_bit_for_bit(variant):
    for prediction_type, sampler in zip(PREDICTIONS, itertools.cycle(SAMPLERS), strict=False):
        test_a_compiled_chain_is_the_same_bit_for_bit(prediction_type, sampler, 1.0, sampler == SAMPLERS[0])


@pytest.mark.parametrize("clip", [0.7, float("inf")])
def test_a_transition_rounds_operation_by_operation(clip, variant):
    """As numpy does."""
    T, R, D = 3, 13, 6
    network = CompiledMLP(torch.randn(D, 32), [], (torch.randn(32, D), torch.zeros(D)), activation="mish")
    transitions, noise, x, mean = torch.rand(T, 6), torch.randn(T, R, D), torch.randn(T + 1, R, D), torch.zeros(T, R, D)
    transitions[:, 3] = clip
    given, shifts = torch.randn(R, 32), torch.randn(T, 32)
    network.chain(transitions, noise, x, mean, given, shifts)
    for i, (from_x, from_output, divisor, _, coef_x0, coef_x) in enumerate(transitions.numpy()):
        now, output = x[i].numpy(), network(x[i], given + shifts[i]).numpy()
        x0 = ((from_x * now - from_output * output) / divisor).clip(-clip, clip)
        expected = coef_x0 * x0 + coef_x * now
        assert np.array_equal(mean[i].numpy(), expected)
        assert np.array_equal(x[i + 1].numpy(), expected + noise[i].numpy())


def test_sampling_runs_whole_chains_compiled(monkeypatch):
    """Without a gradient; with one, or for a single chunk without a batch, step by step."""
    policy = chain_policy()
    chains = []
    plain = CompiledMLP.chain
    monkeypatch.setattr(CompiledMLP, "chain", lambda *args: (chains.append(1), plain(*args)))
    obs, noise = torch.randn(4, DO), policy.draw_noise(4)
    with torch.no_grad():
        ours, _ = policy.sample(obs, noise)
        assert len(chains) == 1
        strided = torch.randn(4, DA, TP, 21).permute(3, 0, 2, 1)
        torch.testing.assert_close(policy.sample(obs, strided)[0], policy.sample(obs, strided.contiguous())[0])
        chains.clear()
        torch.testing.assert_close(policy.sample(obs[0], noise[:, 0])[0], ours[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(policy.sample(obs, noise)[0], ours, rtol=1e-4, atol=1e-5)
    assert not chains


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_observations_are_those_of_their_chunks(shape):
    """One for all, or one each; compiled and not, anything else is refused."""
    policy = chain_policy()
    obs, noise = torch.randn(4, DO), policy.draw_noise(*shape)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            x, _ = policy.sample(obs[:1], noise)
            torch.testing.assert_close(x, policy.sample(obs[:1].expand(4, -1), noise)[0])
            for wrong in (obs[:2], obs[:3], torch.randn(8, DO)):
                with pytest.raises(RuntimeError, match="must match"):
                    policy.sample(wrong, noise)


def test_nan_stays_in_its_row():
    policy = chain_policy()
    obs, noise = torch.randn(3, DO), policy.draw_noise(3)
    noise[0, 1, 0, 0] = float("nan")
    with torch.no_grad():
        x, _ = policy.sample(obs, noise)
    assert x[1].isnan().all() and x[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    "changed",
    [
        {"transitions": torch.zeros(2, 5)},
        {"noise": torch.zeros(3, 4, 6)},
        {"noise": torch.zeros(2, 6, 4).transpose(1, 2)},
        {"x": torch.zeros(2, 4, 6)},
        {"x": torch.zeros(3, 4, 6).double()},
        {"mean": torch.zeros(3, 4, 6)},
        {"given": torch.zeros(3, 32)},
        {"given": torch.zeros(0, 32)},
        {"shifts": torch.zeros(1, 32)},
        {"noise": torch.zeros(2, 4, 5), "x": torch.zeros(3, 4, 5), "mean": None},
    ],
)
def test_wrong_inputs_of_a_chain_are_refused(changed):
    network = CompiledMLP(torch.ones(6, 32), [], (torch.ones(32, 6), torch.zeros(6)), activation="relu")
    good = {"transitions": torch.ones(2, 6), "noise": torch.zeros(2, 4, 6), "x": torch.zeros(3, 4, 6)}
    good |= {"mean": torch.zeros(2, 4, 6), "given": torch.zeros(2, 32), "shifts": torch.zeros(2, 32)}
    network.chain(**good)
    with pytest.raises(ValueError, match="expected"):
        network.chain(**{**good, **changed})
    other = CompiledMLP(torch.ones(6, 32), [], (torch.ones(32, 5), torch.zeros(5)), activation="relu")
    with pytest.raises(ValueError, match="5 outputs: expected 6"):
        other.chain(**good)


needs_float16 = pytest.mark.skipif(
    not compiled_mlp.has_float16(), reason="this processor has no arithmetic for float16 (AVX-512 FP16)"
)


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.float16)


@needs_float16
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{"hidden_dim": 32}, {"hidden_dim": 96}, {"hidden_dim": 256, "residual": True}])
def test_products_in_float16(settings, shape):
    """As exact as 11 bits of each number, and of each sum of 64 products; the first and the last layer as ever."""
    network = denoiser(**settings)
    obs, x = inputs(*shape)
    whole = compiled(network, obs, x)
    with half(), torch.no_grad():
        encoded = network.encode(obs)
        ours = compiled_pass(encoded, x)
        with threads(2):
            assert torch.equal(compiled_pass(encoded, x), ours)
        one = encoded._replace(obs=encoded.obs[-1:])
        assert torch.equal(compiled_pass(one, x[-1:, -1:]), ours[-1:, -1:])
    assert torch.equal(compiled(network, obs, x), whole)  # either's weights are kept for themselves
    theirs = output(copy.deepcopy(network).double(), obs.double(), x.double()).detach()
    scale = float(theirs.square().mean().sqrt())
    error = float((ours - theirs).square().mean().sqrt()) / scale
    assert 1e-5 < error < 3e-3
    assert ours.dtype == torch.float32 and encoded.times.dtype == torch.float32


@needs_float16
def test_float16_of_a_critic_is_torchs():
    obs, x = inputs(4, 2)
    critic = QEnsemble(CriticConfig(hidden_dim=64), DO, TP * DA)
    with half(), torch.no_grad():
        assert critic(obs, x.flatten(2)).dtype == torch.float16


@needs_float16
def test_float16_overflow_is_not_hidden():
    """What float16 cannot hold (above 65504) is infinite, and so is seen."""
    network = denoiser(hidden_dim=64, activation="relu")
    network.trunk[1].weight.data.fill_(1e3)
    obs, x = inputs(4, 2)
    with half(), torch.no_grad():
        assert not compiled_pass(network.encode(100 * obs), 100 * x).isfinite().any()


def test_extreme_numbers():
    """NaN stays, large numbers do not overflow on the way, nothing at all is an empty result."""
    network = CompiledMLP(torch.ones(1, 32), [], (torch.ones(32, 1) / 32, torch.zeros(1)), activation="mish")
    x = torch.tensor([[float("nan")], [-100.0], [-30.0], [-1e-3], [0.0], [100.0], [1e30], [float("inf")]])
    values = network(x, torch.zeros(len(x), 32))
    expected = nn.functional.mish(x.double())
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=1e-35, equal_nan=True)
    assert abs(float(network(torch.tensor([[-1e30]]), torch.zeros(1, 32)))) < 1e-7
    assert network(x[:0], torch.zeros(0, 32)).shape == (0, 1)


@pytest.mark.parametrize(
    ("x", "given"),
    [
        (torch.zeros(4, 5), torch.zeros(4, 32)),  # too many inputs
        (torch.zeros(4, 6).double(), torch.zeros(4, 32)),
        (torch.zeros(4, 6).bfloat16(), torch.zeros(4, 32)),
        (torch.zeros(4, 6, device="meta"), torch.zeros(4, 32)),
        (torch.zeros(4, 6), torch.zeros(4, 31)),
        (torch.zeros(4, 6), torch.zeros(8, 32)),
        (torch.zeros(5, 6), torch.zeros(4, 32)),
        (torch.zeros(5, 6), torch.zeros(0, 32)),
    ],
)
def test_wrong_inputs_are_refused(x, given):
    network = CompiledMLP(torch.ones(6, 32), [], (torch.eye(32), torch.zeros(32)), activation="relu")
    with pytest.raises(ValueError, match="expected"):
        network(x, given)


def test_strided_inputs():
    network = CompiledMLP(torch.ones(2, 32), [], (torch.eye(32), torch.zeros(32)), activation="relu")
    x, given = torch.randn(4, 6)[:, ::3], torch.randn(32, 2).T
    expected = (x.sum(1, keepdim=True) + given.repeat_interleave(2, 0)).relu()
    torch.testing.assert_close(network(x, given), expected)
    with pytest.raises(ValueError, match="36 numbers in a hidden layer: expected a multiple of"):
        CompiledMLP(torch.ones(2, 36), [], (torch.eye(36), torch.zeros(36)), activation="relu")


def test_a_gradient_is_not_lost_where_encoding_had_none():
    network = denoiser(hidden_dim=32)
    obs, x = inputs(4, 1)
    with torch.no_grad():
        encoded = network.encode(obs)
    assert network(x[:, 0].requires_grad_(), torch.tensor(2), encoded).requires_grad


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these instruction sets are x86's")
def test_levels_are_those_of_the_processor(monkeypatch):
    flags = [flag for needed in compiled_mlp.LEVELS.values() for flag in needed]
    names = [compiled_mlp.BASELINE, *compiled_mlp.LEVELS]
    for known, n in ((flags, 5), (flags[:-1], 4), (flags[:-2], 3), ([], 1), (["avx512f"], 1)):
        monkeypatch.setattr(compiled_mlp, "_flags", lambda known=known: frozenset(known))
        assert compiled_mlp.levels() == names[:n]


def test_a_level_can_be_asked_for(monkeypatch):
    """Without asking it is the highest that the compiler knows, too."""
    unknown, tried = compiled_mlp.levels()[1:], []

    def load(level, compiler):
        tried.append(level)
        if level in unknown:
            raise OSError(f"no {level}")
        return compiled_mlp._library()

    own = compiled_mlp._library()
    monkeypatch.setattr(compiled_mlp, "_library", lambda: own)
    monkeypatch.setattr(compiled_mlp, "load", load)
    ask = compiled_mlp._load.__wrapped__
    for asked in ("", "1"):
        monkeypatch.setenv(compiled_mlp.SWITCH, asked)
        assert ask() == (own, compiled_mlp.BASELINE, None)
    assert tried == 2 * compiled_mlp.levels()[::-1]
    for level in unknown:
        monkeypatch.setenv(compiled_mlp.SWITCH, level)
        assert ask() == (None, None, f"no {level}")
    monkeypatch.setenv(compiled_mlp.SWITCH, "x86-64-v9")
    tried.clear()
    assert "BURNISH_COMPILED=x86-64-v9: this processor knows 0, 1, baseline" in ask().reason and not tried


@pytest.mark.parametrize(("reason", "level"), [(None, doctor.OK), ("no C++ compiler c++", doctor.MISSING)])
def test_doctor_and_evaluations_tell(monkeypatch, reason, level):
    monkeypatch.setattr(compiled_mlp, "why_not", lambda: reason)
    monkeypatch.setattr(origin, "why_not", lambda: reason)
    finding = doctor._compiled()
    assert finding.level == level and (reason is None or reason in finding.detail)
    assert origin.origin().compiled_networks == (reason is None)


TRY = """
import torch
from burnish.networks import CriticConfig, QEnsemble
with torch.no_grad():
    for _ in range(2):
        QEnsemble(CriticConfig(hidden_dim=32), 3, 2)(torch.ones(2, 3), torch.ones(2, 4, 2))
print("done")
"""


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CXX": "no-such-compiler"}, "no-such-compiler"),
        ({"CXX": "false"}, "false: status 1"),
        ({"CXX": "g++ '"}, "No closing quotation"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "/dev/null"),
        ({"BURNISH_COMPILED": "z80"}, "BURNISH_COMPILED=z80"),
        ({"CXX": "no-such-compiler", "BURNISH_COMPILED": "0"}, None),
    ],
)
def test_without_a_compiler_torchs_operations_run(tmp_path, environment, said):
    result = subprocess.run(
        [sys.executable, "-c", TRY],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "done\n"
    lines = result.stderr.splitlines()
    assert len(lines) == (said is not None)
    if said is not None:
        assert lines[0].startswith("burnish: networks run without compiled code, more slowly: ")
        assert said in lines[0]
