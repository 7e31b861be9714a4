"""Ensemble of action-value networks Q(s, a), or of networks of the return's distribution at (s, a).

Symbols: n members, B batch, N chunks for an observation, M numbers that stand for a distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.config import Checked, key
from burnish.networks.activation import ACTIVATIONS
from burnish.networks.base import MOST_LAYERS, MOST_WIDTH
from burnish.networks.compiled.in_parts import in_parts
from burnish.networks.compiled.mlp import CompiledMLP, can_compile, up_to_date


@dataclass(frozen=True)
class CriticConfig(Checked):
    """The Q ensemble; its subclasses say how else it may be made, or learned."""

    kind: Literal["q"] = key(
        "q",
        "how Q is learned: q (temporal differences), expectile (with a V, from data alone: IQL), quantile or gaussian "
        "(the return's distribution)",
        kw_only=True,
    )
    n_critics: int = key(
        2, "members of the Q ensemble (2: twin critics); their least value counts", least=1, most=MOST_LAYERS
    )
    hidden_dim: int = key(256, "of each member", least=1, most=MOST_WIDTH)
    n_layers: int = key(3, "of each member", least=1, most=MOST_LAYERS)
    activation: str = key("relu", "of each member", options=ACTIVATIONS)
    layer_norm: bool = key(
        True, "normalise each hidden layer, which keeps Q from exploding off the data (RLPD, arXiv 2302.02948)"
    )

    @property
    def network(self) -> CriticConfig:
        """What of it decides what the network computes."""
        return self

    @property
    def n_outputs(self) -> int:
        """M"""
        return 1

    def mean(self, outputs: Tensor) -> Tensor:
        """Q of what the network gives: see `QEnsemble.outputs`."""
        return outputs


@dataclass(frozen=True)
class QuantileCriticConfig(CriticConfig):
    """Quantiles of the return, learned by quantile regression (QR-DQN, Dabney et al. 2018); Q is their mean."""

    kind: Literal["quantile"] = field(default="quantile", kw_only=True)  # type: ignore[assignment]
    n_quantiles: int = key(25, "quantiles, at (i + 1/2) / n_quantiles (M)", least=2, most=MOST_WIDTH)
    huber: float = key(1.0, "errors below it count by their square (kappa; 0: none do)", least=0)

    @property
    def n_outputs(self) -> int:
        return self.n_quantiles

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.mean(-1)


@dataclass(frozen=True)
class GaussianCriticConfig(CriticConfig):
    """Mean and standard deviation of the return (DSAC-T, Duan et al. 2023, arXiv 2310.05858); Q is the mean."""

    kind: Literal["gaussian"] = field(default="gaussian", kw_only=True)  # type: ignore[assignment]

    @property
    def n_outputs(self) -> int:
        return 2

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs[..., 0]

    def std(self, outputs: Tensor) -> Tensor:
        """Of the return."""
        return F.softplus(outputs[..., 1])


NETWORKS: dict[str, type[CriticConfig]] = {
    "q": CriticConfig,
    "quantile": QuantileCriticConfig,
    "gaussian": GaussianCriticConfig,
}
"""Kind -> config, of those that differ in what the network computes."""


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
        self.config = config
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
        self.layers = nn.Sequential(*layers, EnsembleLinear(n, dim, config.n_outputs))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Q. Args: obs (B, ...), actions (B, N, Ta * Da) -> (n, B, N)."""
        return self.mean(self.outputs(obs, actions))

    def mean(self, outputs: Tensor) -> Tensor:
        """Q (n, B, N) of `outputs`."""
        return self.config.mean(outputs)

    def outputs(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Q (n, B, N), or what stands for the return's distribution (n, B, N, M). Args: see `forward`."""
        n, _, dim = self.bias.shape
        h_obs = torch.baddbmm(self.bias, self.encoder(obs).expand(n, -1, -1), self.from_obs)  # (n, B, hidden)
        if can_compile(actions, dim, self.activation):
            members = up_to_date(self, self._compiled)
            each = [member(actions.flatten(0, 1), h) for member, h in zip(members, h_obs)]  # (B N, M)
            return torch.stack(each).view(n, *actions.shape[:2], *self._shape)
        return in_parts(self._outputs, actions, h_obs.transpose(0, 1), width=n * actions.shape[1] * dim, dim=1)

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of what stands for one Q."""
        return () if self.config.n_outputs == 1 else (self.config.n_outputs,)

    def _outputs(self, actions: Tensor, h_obs: Tensor) -> Tensor:
        """(B, N, Ta * Da), (B, n, hidden) -> (n, B, N) or (n, B, N, M)"""
        B, N, _ = actions.shape
        n, _, dim = self.bias.shape
        h_action = torch.bmm(actions.flatten(0, 1).expand(n, -1, -1), self.from_action)  # (n, B N, hidden)
        h = h_action.view(n, B, N, dim) + h_obs.transpose(0, 1)[:, :, None]
        return self.layers(h.view(n, B * N, dim)).view(n, B, N, *self._shape)

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
