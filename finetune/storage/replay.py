"""What off-policy learning remembers: chunk transitions, online and from demonstrations.

Symbols: M stored transitions, B batch, E environments, T steps of an episode, h <= Ta executed steps of a chunk,
To, Tp, Ta, W, Da as in `burnish.policies.diffusion`; n chunks of an n-step return.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from burnish.datasets.episodes import Episode
from burnish.datasets.windows import history_rows
from burnish.envs.base import ChunkStep
from burnish.errors import BurnishError
from burnish.policies.base import Policy


class Transitions(NamedTuple):
    """Chunks as Q-learning sees them, normalised and flattened."""

    obs: Tensor  # (B, To * W) prepared, see `Policy.normalized_obs`
    chunk: Tensor  # (B, Tp * Da); of it the first Ta * Da numbers were executed
    reward: Tensor  # (B,) sum_{i<h} gamma^i r_i, of the chunk or of n of them
    discount: Tensor  # (B,) gamma^h, or 0 where the environment terminated
    next_obs: Tensor  # (B, To * W) what that truly led to


def discounted(step_rewards: np.ndarray, steps: np.ndarray, terminated: np.ndarray, gamma: float) -> np.ndarray:
    """Rewards and discounts of chunks that executed `steps` (E,) of Ta steps -> (2, E).

    Args:
        step_rewards: (E, Ta), 0 after the cut.
        terminated: (E,); a chunk cut by a time limit still bootstraps, after its h executed steps.
        gamma: per environment step.
    """
    powers = gamma ** np.arange(step_rewards.shape[1])
    return np.stack([step_rewards @ powers, gamma**steps * ~terminated]).astype(np.float32)


class NSteps:
    """Joins up to n successive chunks of an environment into one transition of n-step returns.

        r_0 + g_0 r_1 + ... + g_0 ... g_{n-2} r_{n-1},   discounted by g_0 ... g_{n-1}

    r and g are the chunks' rewards and discounts. The end of an episode cuts a transition short.

    Args:
        n: chunks; with 1 what comes in goes out.
    """

    def __init__(self, n: int, device: torch.device):
        self.n, self.device = n, device
        self.waiting: list[tuple[Transitions, Tensor]] = []  # oldest first; and which rows wait, (E,) bool

    def add(self, new: Transitions, ended: Tensor) -> Transitions:
        """Take a chunk of each environment -> what is complete, oldest first.

        Args:
            new: of E rows. ended: (E,) bool, where the episode did with this chunk.
        """
        joined = []
        for old, waits in self.waiting:
            reward = torch.where(waits, old.reward + old.discount * new.reward, old.reward)
            discount = old.discount * new.discount
            joined.append((old._replace(reward=reward, discount=discount, next_obs=new.next_obs), waits))
        joined.append((new, torch.ones_like(ended)))
        full = len(joined) == self.n
        out = [(rows, waits & (ended | (full and i == 0))) for i, (rows, waits) in enumerate(joined)]
        left = [(rows, waits & ~ended) for rows, waits in joined]
        self.waiting = left[1:] if full else left
        return _rows(out)

    def flush(self) -> Transitions | None:
        """What waits, as it is: shorter returns; None where nothing does. The next chunk begins anew."""
        waiting, self.waiting = self.waiting, []
        return _rows(waiting) if waiting else None

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": [([*rows], waits) for rows, waits in self.waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        waiting = [([*rows, waits]) for rows, waits in state["waiting"]]
        moved = [[field.to(self.device) for field in fields] for fields in waiting]
        self.waiting = [(Transitions(*rows), waits) for *rows, waits in moved]


def _rows(parts: list[tuple[Transitions, Tensor]]) -> Transitions:
    """Those that are marked, one part after the other."""
    chosen = [[field[where] for field in rows] for rows, where in parts]
    return Transitions(*(torch.cat(field) for field in zip(*chosen)))


class Replay:
    """A ring of the last M = `capacity` transitions on `device`.

    Memory is reserved, but touched (and so taken) only as it fills.

    Args:
        example: any transitions of the kind that is to be stored.
    """

    def __init__(self, capacity: int, example: Transitions):
        self.capacity, self.device = capacity, example.reward.device
        self.data = Transitions(*(field.new_empty(capacity, *field.shape[1:]) for field in example))
        self.size = self.position = 0

    def add(self, transitions: Transitions) -> None:
        """Store, over the oldest where the ring is full."""
        n = len(transitions.reward)
        rows = (self.position + torch.arange(n, device=self.device)) % self.capacity
        for ours, new in zip(self.data, transitions):
            ours[rows] = new
        self.position = (self.position + n) % self.capacity
        self.size = min(self.size + n, self.capacity)

    def sample(self, n: int, generator: torch.Generator) -> Transitions:
        """`n` transitions, drawn uniformly with replacement."""
        rows = torch.randint(self.size, (n,), device=self.device, generator=generator)
        return Transitions(*(ours.index_select(0, rows) for ours in self.data))

    def state_dict(self) -> dict[str, Any]:
        # through numpy, or a part would be saved with all of its memory; without a copy, which would double it
        return {"position": self.position, "data": [torch.from_numpy(t[: self.size].cpu().numpy()) for t in self.data]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.size, self.position = len(state["data"][0]), state["position"]
        for ours, saved in zip(self.data, state["data"]):
            ours[: self.size] = saved.to(self.device)


def online_transitions(policy: Policy, obs: Tensor, chunk: Tensor, step: ChunkStep, gamma: float) -> Transitions:
    """What the chunks (E, Tp, Da), normalised, led to from `obs` (E, To * Do), normalised."""
    device = policy.device
    numbers = torch.as_tensor(discounted(step.step_rewards, step.steps, step.terminated, gamma), device=device)
    return Transitions(obs, chunk.flatten(1), numbers[0], numbers[1], policy.normalized_obs(step.final_obs))


def example_transition(policy: Policy) -> Transitions:
    """One of zeros, of the sizes and types that `policy`'s have."""
    obs = policy.blank_obs(1)
    number = torch.zeros(1, device=policy.device)
    chunk = torch.zeros(1, policy.config.horizon * policy.action_dim, device=policy.device)
    return Transitions(obs, chunk, number, number, obs)


def _until_success(episode: Episode) -> Episode:
    """The episode up to its first reward, which is sparse: there it terminates; all of it where there is none."""
    rewarded = np.flatnonzero(episode.rewards)
    if not len(rewarded):
        return episode
    T = int(rewarded[0]) + 1
    if T == 1:
        raise BurnishError(
            f"episode {episode.name} is rewarded from its first step on: where it succeeded cannot be told, expected "
            "sparse rewards, or ends_at_success=false"
        )
    after = {key: values[T] for key, values in episode.obs.items()} if len(episode) > T else episode.final_obs
    return replace(
        episode,
        obs={key: values[:T] for key, values in episode.obs.items()},
        actions=episode.actions[:T],
        rewards=episode.rewards[:T],
        terminated=np.arange(T) == T - 1,
        final_obs=after,
        states=None,
    )


def demonstration_transitions(
    policy: Policy, episodes: Sequence[Episode], gamma: float, n_step: int = 1, ends_at_success: bool = False
) -> Transitions:
    """The chunk from every step of the demonstrations, as if it and the `n_step` - 1 after it had been executed.

    A chunk is cut by the end of its episode; what follows the last step is the recorded final observation. Where an
    episode has none and did not terminate, the chunks that reach its end are left out. With `ends_at_success` an
    episode terminates at its first reward.

    Raises:
        BurnishError: no episode has a whole chunk, an observation is missing or of another size, or no step has a
            reward.
    """
    if not any(episode.rewards.any() for episode in episodes):
        raise BurnishError(
            "the demonstrations have no reward anywhere: a critic would learn that they are worthless (without them: "
            "stage.demo_ratio=0; sac and td3: stage.demos=null)"
        )
    if ends_at_success:
        episodes = [_until_success(episode) for episode in episodes]
    parts = [part for episode in episodes if (part := _episode_transitions(policy, episode, gamma, n_step)) is not None]
    if not parts:
        raise BurnishError("no demonstration is long enough for one chunk with a known end")
    return Transitions(*(torch.cat(field).to(policy.device) for field in zip(*parts)))


def _episode_transitions(policy: Policy, episode: Episode, gamma: float, n_step: int) -> Transitions | None:
    config, T = policy.config, len(episode)
    spec = policy.obs_spec
    theirs = episode.obs_spec(policy.obs_keys, list(spec.sensors))
    if theirs.state_dim != policy.obs_dim:
        raise BurnishError(
            f"episode {episode.name} has observation dimension {theirs.state_dim}, but the policy has {policy.obs_dim}"
        )
    if theirs != spec:
        raise BurnishError(f"episode {episode.name} has the observations {theirs}, but the policy has {spec}")
    if episode.actions.shape[1] != policy.action_dim:
        raise BurnishError(
            f"episode {episode.name} has action dimension {episode.actions.shape[1]}, but the policy has "
            f"{policy.action_dim}"
        )
    obs = episode.observations(spec, policy.obs_keys)  # (T, Do) or records (T,)
    if episode.final_obs is not None:
        last = episode.final_observation(spec, policy.obs_keys)
        known = end = T
    else:
        last = obs[-1]
        known, end = (T, T) if episode.terminated[-1] else (T - config.n_action_steps, T - 1)
    if known < 1:
        return None
    raw = spec.tensor(np.concatenate([obs, last[None]]))  # (T + 1, W)
    start = np.arange(known)
    h = np.minimum(n_step * config.n_action_steps, end - start)
    offsets = np.arange(n_step * config.n_action_steps)
    inside = offsets < h[:, None]  # (known, n Ta)
    rewards = np.where(inside, episode.rewards[np.minimum(start[:, None] + offsets, T - 1)], 0)
    numbers = torch.from_numpy(discounted(rewards, h, episode.terminated[start + h - 1], gamma))
    chunk = episode.actions[np.minimum(start[:, None] + np.arange(config.horizon), T - 1)]  # (known, Tp, Da)

    def windows(steps: np.ndarray) -> Tensor:
        step = torch.from_numpy(steps)
        rows = history_rows(step, config.n_obs_steps, torch.zeros_like(step))
        return policy.normalized_obs(raw[rows]).cpu()

    actions = torch.from_numpy(chunk).to(policy.device, torch.float32).clamp(-1, 1)
    normalized = policy.within_bounds(policy.action_normalizer.normalize(actions)).flatten(1).cpu()
    return Transitions(windows(start), normalized, numbers[0], numbers[1], windows(start + h))
