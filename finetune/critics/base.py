"""What all critics share: an ensemble that is the policy's own, its average, values, and gradients in actions.

Symbols: n members, B batch, N chunks for an observation, N' those in the target, M numbers that stand for a
distribution, To, Tp, Ta, W, Da as in `burnish.policies.diffusion`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from burnish.errors import BurnishError
from burnish.finetune.storage.replay import Batch
from burnish.networks import CriticConfig, QEnsemble
from burnish.networks.averages import polyak
from burnish.networks.optimise import clipped_step, load_optimizer
from burnish.policies.base import Policy

C = TypeVar("C", bound=CriticConfig)


class Learning(NamedTuple):
    """How a critic learns."""

    lr: float
    tau: float  # of the target's Polyak average
    max_grad_norm: float
    target_members: int | None = None  # so many members of the ensemble are the target, drawn anew each time


class Critic(ABC, Generic[C]):
    """Q of a policy's chunks. A subclass says what its target is and by which loss it is learned.

    Attributes:
        network: the ensemble, which is saved with the policy and chooses among its candidates.
        target: its Polyak average.

    Args:
        policy: gets a critic, if it has none.
        generator: of the target's members.

    Raises:
        BurnishError: the policy has a critic of another configuration.
    """

    bootstraps_from_chunks: ClassVar[bool] = True  # `update` needs what the target says of chunks at s'
    config: C

    def __init__(self, policy: Policy, config: C, learning: Learning, generator: torch.Generator):
        self.policy, self.config, self.learning, self.generator = policy, config, learning, generator
        self.network: QEnsemble = policy.critic or policy.add_critic(config.network)
        if policy.critic_config != config.network:
            raise BurnishError(f"stage.critic={config}, but the policy has a critic of {policy.critic_config}")
        self.target: QEnsemble = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning.lr, fused=True)

    @abstractmethod
    def update(self, batch: Batch, next_outputs: Tensor | None) -> dict[str, Tensor]:
        """One gradient step -> metrics, `critic_loss` and `q` among them.

        Args:
            next_outputs: of the target for chunks at the batch's next observations, (n, B, N') or (n, B, N', M) (see
                `QEnsemble.outputs`); None where the critic does not bootstrap from chunks.
        """

    def minimise(self, loss: Tensor) -> None:
        """A gradient step of the ensemble, and of the target behind it."""
        clipped_step(self.optimizer, loss, self.learning.max_grad_norm)
        polyak(self.target, self.network, self.learning.tau)

    def target_members(self, outputs: Tensor) -> Tensor:
        """Of what the target says (n, ...) that of the members which count this time."""
        if self.learning.target_members is None:
            return outputs
        members = torch.randperm(len(outputs), device=outputs.device, generator=self.generator)
        return outputs[members[: self.learning.target_members]]

    def least_of_best(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Of the target's `outputs` (n, B, N', M) those of the chunk of the largest least Q, and of the member whose
        it is -> (B, M), and which member (B,)."""
        q, member = self.target.mean(outputs).min(0)  # (B, N')
        best = q.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        return outputs[member[rows, best], rows, best], member[rows, best]

    def executed(self, batch: Batch) -> Tensor:
        """What the critic sees of the batch's chunks, one for each observation: their executed part (B, 1, Ta * Da)."""
        x = batch.chunk.view(len(batch.chunk), 1, self.policy.config.horizon, self.policy.action_dim)
        return self.policy.critic_input(x)

    def values(self, obs: Tensor, x: Tensor, *, target: bool = False, clamp: bool = True) -> Tensor:
        """Least Q of the members -> (B, N).

        Args:
            obs: prepared (B, To * W). x: normalised chunks (B, N, Tp, Da).
            clamp: within the bounds of actions, as they would be executed; there Q has no gradient beyond them.
        """
        network = self.target if target else self.network
        if clamp:
            return self.policy.values(obs, x, network)
        return network(obs, x[..., : self.policy.config.n_action_steps, :].flatten(2)).amin(0)

    def climbed(self, obs: Tensor, x: Tensor) -> Tensor:
        """Q of each member (n, B, N) for an actor to climb: its gradient is in the chunks alone, beyond bounds too.

        Args:
            obs: prepared (B, To * W). x: normalised chunks (B, N, Tp, Da).
        """
        self.network.requires_grad_(False)  # else a third of the way back would be for weights that stay
        q = self.network(obs, x[..., : self.policy.config.n_action_steps, :].flatten(2))
        self.network.requires_grad_(True)
        return q

    def action_gradient(
        self, obs: Tensor, x: Tensor, *, target: bool = False, of: Literal["least", "mean"] = "least"
    ) -> Tensor:
        """dQ/da at chunks, without bounds: also outside of the range of actions Q has a slope -> (B, N, Tp, Da).

        Steps of a chunk that are not executed have gradient 0.

        Args:
            obs: prepared (B, To * W). x: normalised chunks (B, N, Tp, Da).
            of: the least Q of the members (DIPO, DACER), or their mean (QSM).
        """
        network = self.target if target else self.network
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            q = network(obs, x[..., : self.policy.config.n_action_steps, :].flatten(2))  # (n, B, N)
            (gradient,) = torch.autograd.grad((q.amin(0) if of == "least" else q.mean(0)).sum(), x)
        return gradient

    def state_dict(self) -> dict[str, Any]:
        """But for the ensemble, which the policy has. The names are those of checkpoints: they stay."""
        return {"target_critic": self.target.state_dict(), "critic_optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of a state that may have other keys as well."""
        self.target.load_state_dict(state["target_critic"])
        load_optimizer(self.optimizer, state["critic_optimizer"])
