"""The compiled pass of a small MLP against torch's operations in float64, and what happens where nothing compiles."""

import copy
import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from burnish import doctor, origin
from burnish.finetune.off_policy import polyak
from burnish.networks import CriticConfig, DenoiserConfig, QEnsemble, build_denoiser, compiled_mlp
from burnish.networks.compiled_mlp import CompiledMLP

DO, TP, DA, K = 5, 3, 2, 7
SHAPES = [(1, 1), (4, 1), (5, 3), (13, 7), (40, 5)]  # observations, candidates: whole tiles and remainders


def denoiser(seed=0, **settings):
    torch.manual_seed(seed)
    return build_denoiser(DenoiserConfig(**settings), obs_dim=DO, horizon=TP, action_dim=DA, denoising_steps=K)


def inputs(states: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(states, DO, generator=generator), 3 * torch.randn(states, n, TP, DA, generator=generator)


def output(network, obs, x, k=2):
    encoded = network.encode(obs)
    return network(x, torch.tensor(k), encoded._replace(obs=encoded.obs[:, None]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_dim": 32, "n_layers": 1},
        {"hidden_dim": 96, "n_layers": 2, "activation": "relu"},
        {"hidden_dim": 256, "n_layers": 3},
        {"hidden_dim": 64, "n_layers": 3, "residual": True, "activation": "relu"},
        {"hidden_dim": 64, "n_layers": 7, "residual": True},
    ],
)
def test_a_denoiser_is_torchs(settings, shape):
    network = denoiser(**settings)
    obs, x = inputs(*shape)
    with torch.no_grad():
        assert network.encode(obs).compiled is not None
        ours = output(network, obs, x)
    theirs = output(copy.deepcopy(network).double(), obs.double(), x.double())  # nn.Linear and torch's Mish
    torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"layer_norm": False, "activation": "mish"}, {"n_critics": 3, "n_layers": 1}])
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


@pytest.mark.parametrize("residual", [False, True])
def test_bits_of_a_row_depend_on_that_row_alone(residual):
    network = denoiser(hidden_dim=64, residual=residual)
    obs, x = inputs(50, 9)  # 450 rows: five blocks
    k = torch.tensor(2)
    with torch.no_grad():
        encoded = network.encode(obs)  # once: the observations' part is a product of torch's
        encoded = encoded._replace(obs=encoded.obs[:, None])
        whole = network(x, k, encoded)
        for rows, n in ((slice(0, 1), 1), (slice(17, 18), 9), (slice(20, 50), 4)):
            part = encoded._replace(obs=encoded.obs[rows])
            assert torch.equal(network(x[rows, :n], k, part), whole[rows, :n])
        torch.set_num_threads(2)
        try:
            assert torch.equal(network(x, k, encoded), whole)
        finally:
            torch.set_num_threads(1)


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
    with torch.no_grad():
        before = output(network, obs, x)
    change(network, obs, x)
    with torch.no_grad():
        ours = output(network, obs, x)
    assert not torch.equal(ours, before)
    torch.testing.assert_close(ours, output(network, obs, x).detach(), rtol=1e-5, atol=1e-6)


def test_a_network_that_ran_compiled_can_be_copied():
    network = denoiser(hidden_dim=32)
    obs, x = inputs(4, 2)
    with torch.no_grad():
        before = output(network, obs, x)
        other = copy.deepcopy(network)
        other.out.bias += 1
        torch.testing.assert_close(output(other, obs, x), before + 1)
        assert torch.equal(output(network, obs, x), before)


def test_gradients_other_widths_and_autocast_are_torchs(monkeypatch):
    calls = count_calls(monkeypatch)
    obs, x = inputs(4, 2)
    assert output(denoiser(hidden_dim=32), obs, x).requires_grad
    with torch.no_grad():
        output(denoiser(hidden_dim=36), obs, x)
        output(denoiser(hidden_dim=32, activation="silu"), obs, x)
        with torch.autocast("cpu", torch.bfloat16):
            output(denoiser(hidden_dim=32), obs, x)
        assert not calls
        output(denoiser(hidden_dim=32), obs, x)
    assert calls


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
    ("x", "given", "shift"),
    [
        (torch.zeros(4, 5), torch.zeros(4, 32), None),  # too many inputs
        (torch.zeros(4, 6).double(), torch.zeros(4, 32), None),
        (torch.zeros(4, 6).bfloat16(), torch.zeros(4, 32), None),
        (torch.zeros(4, 6, device="meta"), torch.zeros(4, 32), None),
        (torch.zeros(4, 6), torch.zeros(4, 31), None),
        (torch.zeros(4, 6), torch.zeros(8, 32), None),
        (torch.zeros(5, 6), torch.zeros(4, 32), None),
        (torch.zeros(5, 6), torch.zeros(0, 32), None),
        (torch.zeros(4, 6), torch.zeros(4, 32), torch.zeros(1, 32)),
    ],
)
def test_wrong_inputs_are_refused(x, given, shift):
    network = CompiledMLP(torch.ones(6, 32), [], (torch.eye(32), torch.zeros(32)), activation="relu")
    with pytest.raises(ValueError, match="expected"):
        network(x, given, shift)


def test_strided_inputs():
    network = CompiledMLP(torch.ones(2, 32), [], (torch.eye(32), torch.zeros(32)), activation="relu")
    x, given, shift = torch.randn(4, 6)[:, ::3], torch.randn(32, 2).T, torch.randn(32, 4)[:, 1]
    expected = (x.sum(1, keepdim=True) + given.repeat_interleave(2, 0) + shift).relu()
    torch.testing.assert_close(network(x, given, shift), expected)


@pytest.mark.parametrize("shape", [(1, 3), (4, 3), (4, 1), (1, 1), (3,), (1,)])
def test_observations_are_broadcast_as_by_torch(shape):
    """Against chunks for 4 observations, 3 for each."""
    network = denoiser(hidden_dim=32)
    _, x = inputs(4, 3)
    with torch.no_grad():
        encoded = network.encode(torch.randn(*shape, DO))
        assert encoded.compiled is not None
        ours = network(x, torch.tensor(2), encoded)
        theirs = network(x, torch.tensor(2), encoded._replace(compiled=None))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_one_chunk_without_leading_dimensions():
    network = denoiser(hidden_dim=32)
    _, x = inputs(1, 1)
    with torch.no_grad():
        encoded = network.encode(torch.randn(DO))
        assert network(x[0, 0], torch.tensor(2), encoded).shape == (TP, DA)


def test_a_gradient_is_not_lost_where_encoding_had_none():
    network = denoiser(hidden_dim=32)
    obs, x = inputs(4, 1)
    with torch.no_grad():
        encoded = network.encode(obs)
    assert network(x[:, 0].requires_grad_(), torch.tensor(2), encoded).requires_grad


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these instruction sets are x86's")
@pytest.mark.parametrize(("without", "width"), [("-mno-avx512f", 16), ("-mno-avx", 8)])
def test_smaller_vectors_give_the_same(monkeypatch, tmp_path, without, width):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled_mlp, "FLAGS", (*compiled_mlp.FLAGS, without))
    other = ctypes.CDLL(str(compiled_mlp._built()))
    assert other.burnish_panel_width() == width
    obs, x = inputs(13, 7)
    for residual in (False, True):
        network = denoiser(hidden_dim=64, residual=residual)
        with torch.no_grad():
            ours = output(network, obs, x)
            with monkeypatch.context() as patched:
                patched.setattr(compiled_mlp, "_library", lambda: other)
                theirs = output(copy.deepcopy(network), obs, x)
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("reason", "level"), [(None, doctor.OK), ("no C++ compiler c++", doctor.MISSING)])
def test_doctor_and_evaluations_tell(monkeypatch, reason, level):
    monkeypatch.setattr(compiled_mlp, "why_not", lambda: reason)
    monkeypatch.setattr(origin, "why_not", lambda: reason)
    finding = doctor._compiled()
    assert finding.level == level and (reason is None or reason in finding.detail)
    assert origin.origin()["compiled_networks"] == (reason is None)


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
