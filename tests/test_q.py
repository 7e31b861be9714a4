"""The Q ensemble against separate networks, and Mish against torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from burnish.errors import BurnishError
from burnish.networks import CriticConfig, DenoiserConfig, QEnsemble, build_denoiser
from burnish.networks.activation import ACTIVATIONS, Mish
from burnish.networks.compiled import in_parts as parts

B, N, DO, DA = 5, 7, 4, 3


def separate(ensemble: QEnsemble, config: CriticConfig, member: int) -> nn.Sequential:
    """One member as an ordinary network of concatenated observation and action."""
    layers: list[nn.Module] = []
    for i in range(config.n_layers):
        layers.append(nn.Linear(config.hidden_dim if i else DO + DA, config.hidden_dim))
        if config.layer_norm:
            layers.append(nn.LayerNorm(config.hidden_dim))
        layers.append(ACTIVATIONS[config.activation]())
    network = nn.Sequential(*layers, nn.Linear(config.hidden_dim, 1))
    linears = [layer for layer in network if isinstance(layer, nn.Linear)]
    batched = [layer for layer in ensemble.layers if hasattr(layer, "weight") and hasattr(layer, "bias")]
    batched = [layer for layer in batched if not isinstance(layer, nn.LayerNorm)]
    with torch.no_grad():
        linears[0].weight.copy_(torch.cat([ensemble.from_obs[member], ensemble.from_action[member]]).T)
        linears[0].bias.copy_(ensemble.bias[member, 0])
        for linear, layer in zip(linears[1:], batched, strict=True):
            linear.weight.copy_(layer.weight[member].T)
            linear.bias.copy_(layer.bias[member, 0])
    return network


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("n_critics", "n_layers", "activation"), [(1, 1, "relu"), (2, 3, "mish"), (5, 2, "gelu")])
def test_ensemble_is_so_many_networks(n_critics, n_layers, activation, layer_norm):
    torch.manual_seed(0)
    config = CriticConfig(n_critics, 16, n_layers, activation, layer_norm)
    ensemble = QEnsemble(config, DO, DA)
    obs, actions = torch.randn(B, DO), torch.randn(B, N, DA)
    q = ensemble(obs, actions)
    assert q.shape == (n_critics, B, N)
    for member in range(n_critics):
        network = separate(ensemble, config, member)
        theirs = network(torch.cat([obs[:, None].expand(B, N, DO), actions], -1)).squeeze(-1)
        torch.testing.assert_close(q[member], theirs, rtol=1e-5, atol=1e-5)


def test_candidates_are_separate_calls():
    torch.manual_seed(0)
    ensemble = QEnsemble(CriticConfig(hidden_dim=16), DO, DA)
    obs, actions = torch.randn(B, DO), torch.randn(B, N, DA)
    together = ensemble(obs, actions)
    for n in range(N):
        torch.testing.assert_close(together[:, :, n], ensemble(obs, actions[:, n : n + 1])[:, :, 0])


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_parts_make_no_difference(monkeypatch, batch):
    """Without gradients the pass is cut into parts: here of two entries, the last may be shorter."""
    torch.manual_seed(0)
    ensemble = QEnsemble(CriticConfig(n_critics=2, hidden_dim=16), DO, DA)
    obs, actions = torch.randn(batch, DO), torch.randn(batch, N, DA)
    whole = ensemble(obs, actions)
    monkeypatch.setattr(parts, "NUMBERS", 2 * 2 * N * 16)
    with torch.no_grad():
        torch.testing.assert_close(ensemble(obs, actions), whole.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("states", [6, 1])
def test_parts_of_a_denoiser_make_no_difference(monkeypatch, states):
    """Its timestep and its observation may be broadcast."""
    torch.manual_seed(0)
    config = DenoiserConfig(hidden_dim=16, n_layers=2)
    denoiser = build_denoiser(config, features=DO, horizon=2, action_dim=DA, denoising_steps=10)
    x, encoded = torch.randn(6, 2, DA), denoiser.encode(torch.randn(states, DO))
    whole = denoiser(x, torch.tensor(3), encoded)
    monkeypatch.setattr(parts, "NUMBERS", 4 * 16)
    with torch.no_grad():
        torch.testing.assert_close(denoiser(x, torch.tensor(3), encoded), whole.detach(), rtol=1e-5, atol=1e-6)


def test_members_start_different_and_as_torch_initialises():
    torch.manual_seed(0)
    ensemble = QEnsemble(CriticConfig(n_critics=2, hidden_dim=512), DO, DA)
    assert not torch.equal(ensemble.from_obs[0], ensemble.from_obs[1])
    reference = nn.Linear(DO + DA, 512).weight.detach()
    for weight in (ensemble.from_obs.detach(), ensemble.from_action.detach()):
        assert float(weight.abs().max()) == pytest.approx(float(reference.abs().max()), rel=0.02)
        assert float(weight.std()) == pytest.approx(float(reference.std()), rel=0.1)


def test_impossible_critics():
    with pytest.raises(BurnishError, match=r"n_critics=0: expected 1 to"):
        CriticConfig(n_critics=0)
    with pytest.raises(BurnishError, match=r"activation=sine: expected one of relu, "):
        CriticConfig(activation="sine")


LARGE = torch.tensor([-1e4, -200.0, -104, -90, -50, 0, 20, 43, 45, 88, 89, 200, 1e4])


@pytest.mark.parametrize("x", [torch.linspace(-20, 20, 4001), LARGE], ids=["usual", "large"])
def test_mish_is_mish(x):
    """In float64 where torch's own float32 rounds."""
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = Mish()(ours), F.mish(theirs)
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=2e-6)
    with torch.no_grad():
        assert torch.equal(Mish()(x), y)  # without a gradient: the likelihood ratio must be exactly 1
    weight = torch.linspace(-1, 2, len(x))
    (weight * y).sum().backward()
    (weight.double() * expected).sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=2e-6)


def test_mish_leaves_its_input_alone_and_takes_any_layout():
    x = torch.randn(6, 4).T
    before = x.clone()
    torch.testing.assert_close(Mish()(x), F.mish(before), rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before)
    assert Mish()(x.double()).dtype == torch.float64
    torch.testing.assert_close(Mish()(x.double()), F.mish(before.double()))
