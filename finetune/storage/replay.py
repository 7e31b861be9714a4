"""What off-policy learning remembers: chunk transitions, online and from demonstrations.

Symbols: M stored transitions, B batch, E environments, T steps of an episode, h <= Ta executed steps of a chunk,
To, Tp, Ta, W, Da as in `burnish.policies.diffusion`; n chunks of an n-step return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from burnish.datasets.episodes import Episode
from burnish.datasets.windows import history_rows
from burnish.envs.base import ChunkStep
from burnish.errors import BurnishError
from burnish.finetune.storage.frames import Frames, Histories
from burnish.finetune.storage.returns import endless
from burnish.policies.base import Policy


class Transitions(NamedTuple):
    """Chunks as Q-learning sees them, normalised and flattened."""

    obs: Tensor  # (B, To * W) prepared, see `Policy.normalized_obs`; or (B, To) numbers of frames in a replay
    chunk: Tensor  # (B, Tp * Da); of it the first Ta * Da numbers were executed
    reward: Tensor  # (B,) sum_{i<h} gamma^i r_i, of the chunk or of n of them
    discount: Tensor  # (B,) gamma^h, or 0 where the environment terminated
    next_obs: Tensor  # likewise, what that truly led to


class Joined(NamedTuple):
    """Complete transitions, and whose they are."""

    transitions: Transitions
    envs: Tensor  # (n,) environment of each


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

    def add(self, new: Transitions, ended: Tensor) -> Joined:
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

    def flush(self) -> Joined | None:
        """What waits, as it is: shorter returns; None where nothing does. The next chunk begins anew."""
        waiting, self.waiting = self.waiting, []
        return _rows(waiting) if waiting else None

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": [([*rows], waits) for rows, waits in self.waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        waiting = [([*rows, waits]) for rows, waits in state["waiting"]]
        moved = [[field.to(self.device) for field in fields] for fields in waiting]
        self.waiting = [(Transitions(*rows), waits) for *rows, waits in moved]


def _rows(parts: list[tuple[Transitions, Tensor]]) -> Joined:
    """Those that are marked, one part after the other."""
    chosen = [(where.nonzero().flatten(), rows) for rows, where in parts]
    fields = zip(*([field[envs] for field in rows] for envs, rows in chosen))
    return Joined(Transitions(*(torch.cat(field) for field in fields)), torch.cat([envs for envs, _ in chosen]))


class Batch(NamedTuple):
    """Transitions drawn from one or more replays."""

    obs: Tensor  # as in `Transitions`
    chunk: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Tensor
    extra: dict[str, Tensor]  # what is kept besides, name -> (B, ...)
    sources: tuple[tuple[Replay, Tensor], ...]  # the replays that the rows are of, one after the other, and their rows

    @property
    def rows(self) -> Tensor:
        """Where in its replay each transition is (B,)."""
        return torch.cat([rows for _, rows in self.sources])

    def write(self, **values: Tensor) -> None:
        """Put other values (B, ...) in their place: of `chunk`, `reward`, `discount` or an extra."""
        sizes = [len(rows) for _, rows in self.sources]
        for name, value in values.items():
            for (replay, rows), part in zip(self.sources, value.split(sizes)):
                replay.write(rows, **{name: part})

    @staticmethod
    def joined(batches: Sequence[Batch]) -> Batch:
        """One after the other; extras that all have."""
        if len(batches) == 1:
            return batches[0]
        obs, chunk, reward, discount, next_obs = (torch.cat(field) for field in zip(*(batch[:5] for batch in batches)))
        names = set.intersection(*(set(batch.extra) for batch in batches))
        extra = {name: torch.cat([batch.extra[name] for batch in batches]) for name in sorted(names)}
        sources = tuple(source for batch in batches for source in batch.sources)
        return Batch(obs, chunk, reward, discount, next_obs, extra, sources)


class Replay:
    """A ring of the last M = `capacity` transitions, whose observations are numbers of frames that are stored once.

    Memory is reserved, but touched (and so taken) only as it fills.

    Args:
        example: any transitions of the kind that is to be stored.
        n_obs_steps: To.
        n_frames: room for frames; None: for To that each chunk leads to and To where one begins anew, and for `spare`
            transitions that wait to be stored while their frames are in already.
        extra: what is kept of each transition besides, name -> what it is at first (...).

    Attributes:
        count: transitions ever stored.
    """

    def __init__(
        self,
        capacity: int,
        example: Transitions,
        n_obs_steps: int = 1,
        *,
        n_frames: int | None = None,
        spare: int = 0,
        extra: Mapping[str, Tensor] | None = None,
    ):
        self.capacity, self.device = capacity, example.reward.device
        frame = example.obs[0].unflatten(0, (n_obs_steps, -1))[0]
        self.frames = Frames(n_frames or 2 * n_obs_steps * (capacity + spare), frame)
        self.histories = Histories(self.frames, n_obs_steps)
        numbers = torch.empty(0, n_obs_steps, dtype=torch.int64, device=self.device)
        kept = example._replace(obs=numbers, next_obs=numbers)
        self.data = Transitions(*(field.new_empty(capacity, *field.shape[1:]) for field in kept))
        self.unknown = dict(extra or {})
        self.extra = {name: each.expand(capacity, *each.shape).clone() for name, each in self.unknown.items()}
        self.count = 0

    @property
    def size(self) -> int:
        return min(self.count, self.capacity)

    def store(self, transitions: Transitions) -> Tensor:
        """Store transitions with their observations (n, To * W), none of which is in yet -> their rows (n,)."""
        both = torch.stack([transitions.obs, transitions.next_obs], 1)  # a transition's frames lie together
        frames = both.view(-1, *self.frames.data.shape[1:])
        obs, next_obs = self.frames.put(frames).view(len(both), 2, self.histories.n_obs_steps).unbind(1)
        return self.add(transitions._replace(obs=obs, next_obs=next_obs))

    def add(self, transitions: Transitions) -> Tensor:
        """Store transitions whose observations are numbers of frames (n, To), over the oldest where the ring is full
        -> their rows (n,)."""
        n = len(transitions.reward)
        rows = torch.arange(self.count, self.count + n, device=self.device) % self.capacity
        for ours, new in zip(self.data, transitions):
            ours[rows] = new
        for name, kept in self.extra.items():
            kept[rows] = self.unknown[name]
        self.count += n
        return rows

    def write(self, rows: Tensor, **values: Tensor) -> None:
        """Put other values (n, ...) in place of those at `rows` (n,): of `chunk`, `reward`, `discount` or an extra."""
        for name, value in values.items():
            kept = self.extra[name] if name in self.extra else getattr(self.data, name)
            kept[rows] = value

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """`n` transitions, drawn uniformly with replacement."""
        return self.at(torch.randint(self.size, (n,), device=self.device, generator=generator))

    def at(self, rows: Tensor) -> Batch:
        """The transitions at `rows` (n,)."""
        found = Transitions(*(ours.index_select(0, rows) for ours in self.data))
        obs, next_obs = self.frames.windows(found.obs), self.frames.windows(found.next_obs)
        extra = {name: kept.index_select(0, rows) for name, kept in self.extra.items()}
        return Batch(*found._replace(obs=obs, next_obs=next_obs), extra, ((self, rows),))

    def state_dict(self) -> dict[str, Any]:
        # through numpy: see `Frames.state_dict`
        filled = [*self.data, *self.extra.values()]
        return {
            "count": self.count,
            "numbered": [torch.from_numpy(each[: self.size].cpu().numpy()) for each in filled],
            "frames": self.frames.state_dict(),
            "histories": self.histories.numbers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "data" in state:  # of a version that stored whole observations
            self.count = 0
            self.store(Transitions(*(each.to(self.device) for each in state["data"])))
            self.count = state["position"] + (self.capacity if self.count == self.capacity else 0)
            return
        self.count = state["count"]
        for ours, saved in zip([*self.data, *self.extra.values()], state["numbered"]):
            ours[: self.size] = saved.to(self.device)
        self.frames.load_state_dict(state["frames"])
        numbers = state["histories"]
        self.histories.numbers = numbers if numbers is None else numbers.to(self.device)


class Demonstrated(NamedTuple):
    """Transitions of demonstrations, their frames once."""

    frames: Tensor  # (F, W) prepared
    transitions: Transitions  # whose observations are rows of `frames` (N, To)
    returns: Tensor  # (N,) sum_i gamma^i r_i from each step to its episode's end, see `_returns`

    def expanded(self) -> Transitions:
        """With whole observations (N, To * W)."""
        t = self.transitions
        return t._replace(obs=self.frames[t.obs].flatten(1), next_obs=self.frames[t.next_obs].flatten(1))


def online_transitions(policy: Policy, obs: Tensor, chunk: Tensor, step: ChunkStep, gamma: float) -> Transitions:
    """What the chunks (E, Tp, Da), normalised, led to from `obs` (E, To * W), normalised."""
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
) -> Demonstrated:
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
    first, later = 0, []
    for frames, own, _ in parts:
        later.append(own._replace(obs=own.obs + first, next_obs=own.next_obs + first))
        first += len(frames)
    transitions = Transitions(*(torch.cat(field).to(policy.device) for field in zip(*later)))
    frames, returns = (torch.cat(each).to(policy.device) for each in zip(*((part[0], part[2]) for part in parts)))
    return Demonstrated(frames, transitions, returns)


def _episode_transitions(policy: Policy, episode: Episode, gamma: float, n_step: int) -> Demonstrated | None:
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

    def seen(steps: np.ndarray) -> Tensor:
        step = torch.from_numpy(steps)
        return history_rows(step, config.n_obs_steps, torch.zeros_like(step))

    actions = torch.from_numpy(chunk).to(policy.device, torch.float32).clamp(-1, 1)
    normalized = policy.within_bounds(policy.action_normalizer.normalize(actions)).flatten(1).cpu()
    transitions = Transitions(seen(start), normalized, numbers[0], numbers[1], seen(start + h))
    frames = policy.normalized_obs(raw[:, None]).cpu()  # each for itself
    return Demonstrated(frames, transitions, _returns(episode, gamma)[:known])


def _returns(episode: Episode, gamma: float) -> Tensor:
    """(T,) from each step to the end, by the rewards alone: see `endless` for what a time limit leaves out."""
    rewards = np.asarray(episode.rewards, np.float32)
    G = np.zeros(len(rewards) + 1, np.float32)
    if not episode.terminated[-1]:
        steps = torch.from_numpy(rewards)
        G[-1] = endless(steps, torch.full_like(steps, gamma))
    for t in reversed(range(len(rewards))):
        G[t] = rewards[t] + gamma * G[t + 1]
    return torch.from_numpy(G[:-1])
