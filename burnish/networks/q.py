"""Ensemble of action-value networks Q(s, a)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from burnish.config import Checked, key
from burnish.networks.activation import ACTIVATIONS
from burnish.networks.compiled.in_parts import in_parts
from burnish.networks.compiled.mlp import CompiledMLP, can_compile, up_to_date


@dataclass(frozen=True)
class CriticConfig(Checked):
    """The Q ensemble."""

    n_critics: int = key(2, "members of the Q ensemble (2: twin critics); their least value counts", least=1)
    hidden_dim: int = key(256, "of each member", least=1)
    n_layers: int = key(3, "of each member", least=1)
    activation: str = key("relu", "of each member", options=ACTIVATIONS)
    layer_norm: bool = key(
        True, "normalise each hidden layer, which keeps Q from exploding off the data (RLPD, arXiv 2302.02948)"
    )


class EnsembleLinear(nn.Module):
    """n linear layers as one batched matrix product: (n, B, in) -> (n, B, out)."""

    def __init__(self, n: int, in_dim: int, out_dim: int):
        super().__init__()
        bound = 1 / math.sqrt(in_dim)  # torch's own initialisation of a linear layer
        self.weight = nn.Parameter(torch.empty(n, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, 1, out_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class QEnsemble(nn.Module):
    """n Q-functions of observations and of one or more action chunks for each.

    As in the denoiser, the first layer is a sum: the observation's part is computed once for all N actions, and what
    has no gradient runs compiled.

    Args:
        config: see `CriticConfig`.
        features: F, of an observation. action_dim: Ta * Da, normalised: the executed part of a chunk.
    """

    def __init__(self, config: CriticConfig, features: int, action_dim: int):
        super().__init__()
        self.encoder: nn.Module = nn.Identity()  # from observations to features
        self.activation, self.layer_norm = config.activation, config.layer_norm
        n, dim = config.n_critics, config.hidden_dim
        joint = EnsembleLinear(n, features + action_dim, dim)
        self.from_obs = nn.Parameter(joint.weight[:, :features].detach().clone())
        self.from_action = nn.Parameter(joint.weight[:, features:].detach().clone())
        self.bias = joint.bias
        layers: list[nn.Module] = []
        for i in range(config.n_layers):
            layers += [EnsembleLinear(n, dim, dim)] if i else []
            layers += [nn.LayerNorm(dim, elementwise_affine=False)] if config.layer_norm else []
            layers += [ACTIVATIONS[config.activation]()]
        self.layers = nn.Sequential(*layers, EnsembleLinear(n, dim, 1))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Args: obs (B, ...), actions (B, N, Ta * Da) -> (n, B, N)."""
        n, _, dim = self.bias.shape
        h_obs = torch.baddbmm(self.bias, self.encoder(obs).expand(n, -1, -1), self.from_obs)  # (n, B, hidden)
        if can_compile(actions, dim, self.activation):
            members = up_to_date(self, self._compiled)
            each = [member(actions.flatten(0, 1), h) for member, h in zip(members, h_obs)]  # (B N, 1)
            return torch.stack(each).view(n, *actions.shape[:2])
        return in_parts(self._values, actions, h_obs.transpose(0, 1), width=n * actions.shape[1] * dim, dim=1)

    def _values(self, actions: Tensor, h_obs: Tensor) -> Tensor:
        """(B, N, Ta * Da), (B, n, hidden) -> (n, B, N)"""
        B, N, _ = actions.shape
        n, _, dim = self.bias.shape
        h_action = torch.bmm(actions.flatten(0, 1).expand(n, -1, -1), self.from_action)  # (n, B N, hidden)
        h = h_action.view(n, B, N, dim) + h_obs.transpose(0, 1)[:, :, None]
        return self.layers(h.view(n, B * N, dim)).view(n, B, N)

    def _compiled(self) -> list[CompiledMLP]:
        """Each member, without the observation's part."""
        *hidden, last = (layer for layer in self.layers if isinstance(layer, EnsembleLinear))
        return [
            CompiledMLP(
                self.from_action[j],
                [(layer.weight[j], layer.bias[j, 0]) for layer in hidden],
                (last.weight[j], last.bias[j, 0]),
                activation=self.activation,
                layer_norm=self.layer_norm,
            )
            for j in range(len(self.bias))
        ]
