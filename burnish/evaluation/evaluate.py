"""Evaluation: fixed-seed episodes -> success rate and return with intervals. The only one there is.

Pretraining, fine-tuning and `burnish evaluate` all call `evaluate`. Episode i starts from the initial state of
seed `config.seed + i` and draws its policy noise from a generator of its own with that seed, so the result does
not depend on how many environments run side by side. An episode ends when it succeeds (as robomimic counts),
when the environment terminates it, or after `task.max_episode_steps`.

Symbols: E environments, S transitions of a diffusion policy's sampler, Tp predicted action steps, Da dimensions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from burnish.config import MOST_SEED, Checked, WrongValue, key
from burnish.envs import BACKENDS, WORKER_TIMEOUT
from burnish.envs.base import VectorEnv
from burnish.envs.task import TaskConfig
from burnish.envs.vector.checks import require_finite
from burnish.errors import BurnishError
from burnish.evaluation.intervals import CONFIDENCE, bootstrap_interval, wilson_interval
from burnish.machine.stop import GivenUp, Overdue, asked_to_stop
from burnish.observations import ObsSpec
from burnish.policies.base import Policy
from burnish.policies.folder import fingerprint
from burnish.runs.evaluation_file import About, EvaluationFile, EvaluationSummary
from burnish.runs.origin import origin

LATENCY_CALLS = 20
ROWS = 32  # observations that a policy acts on at a time, however many environments there are


@dataclass(frozen=True)
class EpisodesConfig(Checked):
    """Which episodes, how they are run."""

    episodes: int = key(100, "with fixed seeds: episode i starts from seed + i", least=1)
    seed: int = key(100_000, "of the first episode", least=0, most=MOST_SEED)
    n_envs: int = key(20, "environments that are stepped together (changes the speed, not the episodes)", least=1)
    backend: str = key("auto", "sync (in this process), workers (processes) or envpool (Gymnasium)", options=BACKENDS)
    n_workers: int | None = key(None, "processes (null: one a CPU)", least=1)
    worker_timeout: float = key(
        WORKER_TIMEOUT,
        "seconds that one environment may take for a step or a reset, before it counts as hanging",
        above=0,
    )
    video: int = key(0, "so many episodes are filmed", least=0)
    candidates: int = key(
        1,
        "chunks sampled for each that is executed, chosen by the policy's critic (of a fine-tuning that learned one)",
        least=1,
    )

    def check(self) -> None:
        if self.video > self.episodes:
            raise WrongValue(f"video={self.video} is more than episodes={self.episodes}")


@dataclass(frozen=True)
class EvaluationConfig(EpisodesConfig):
    """How a policy is evaluated."""

    temperature: float | None = key(None, "factor on all noise of the policy's sampler (null: its own)", least=0)
    mean_of: int | None = key(None, "chunks whose mean is executed (null: the policy's own number)", least=1)
    sampler: str | None = key(None, "with which the policy acts (null: its own; docs/samplers.md)")
    sampler_steps: int | None = key(None, "denoising steps of it (null: the policy's own number)", least=1)

    def require_single(self) -> None:
        """Raise BurnishError unless trainings can evaluate so: as the policy acts, without selection."""
        for name in ("temperature", "mean_of", "sampler", "sampler_steps"):
            if getattr(self, name) is not None:
                raise BurnishError(
                    f"evaluation.{name}={getattr(self, name)}: expected null; trainings evaluate as the policy acts "
                    f"(policy.{name}=... of burnish pretrain, or burnish policy set)"
                )
        if self.candidates != 1:
            raise BurnishError(
                f"evaluation.candidates={self.candidates}: expected 1; trainings with a critic evaluate with "
                "stage.n_candidates as well, and burnish evaluate takes candidates=..."
            )


@dataclass(frozen=True)
class Evaluation:
    """What was measured, one entry per episode."""

    seeds: list[int]
    success: np.ndarray  # (n,) bool
    returns: np.ndarray  # (n,) sum of the rewards until the end (or the success)
    lengths: np.ndarray  # (n,) primitive steps
    latency_ms: float  # median time of one `act` for one observation
    nonfinite_episodes: int
    temperature: float
    mean_of: int
    sampler: str | None = None  # of a policy without one: None
    sampler_steps: int | None = None

    @property
    def score(self) -> tuple[float, float]:
        """What "best" compares: the success rate, then the return."""
        return float(self.success.mean()), float(self.returns.mean())

    def summary(self) -> EvaluationSummary:
        """Success rate with its Wilson interval, mean return with its bootstrap interval, length, latency."""
        n = len(self.seeds)
        success = wilson_interval(int(self.success.sum()), n)
        returns = bootstrap_interval(self.returns)
        return EvaluationSummary(
            episodes=n,
            success_rate=float(self.success.mean()),
            success_rate_low=success.low,
            success_rate_high=success.high,
            mean_return=float(self.returns.mean()),
            return_low=returns.low,
            return_high=returns.high,
            episode_length=float(self.lengths.mean()),
            nonfinite_episodes=self.nonfinite_episodes,
            latency_ms=self.latency_ms,
        )

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """The summary under the keys of metrics.jsonl."""
        return self.summary().metrics(prefix)

    def save(self, path: Path, about: About) -> None:
        """Write it with `about` (see the function of that name). Raises BurnishError where that cannot be done."""
        EvaluationFile(
            about=about,
            confidence=CONFIDENCE,
            summary=self.summary(),
            seeds=self.seeds,
            success=self.success.tolist(),
            returns=self.returns.tolist(),
            lengths=self.lengths.tolist(),
            temperature=self.temperature,
            mean_of=self.mean_of,
            sampler=self.sampler,
            sampler_steps=self.sampler_steps,
        ).write(path)


def check_fit(policy: Policy, task: TaskConfig, obs_spec: ObsSpec, action_dim: int, source: str | None = None) -> None:
    """Raise BurnishError where a policy cannot act in a task; `source` is what the user gave, if not a policy."""
    source = source or f"the policy (trained for task={policy.task or 'unknown'})"
    if policy.obs_keys != task.obs_keys:
        raise BurnishError(
            f"{source} has the observations {policy.obs_keys}, but task={task.name} gives {task.obs_keys}"
        )
    for name, ours, theirs in (
        ("observation", policy.obs_dim, obs_spec.state_dim),
        ("action", policy.action_dim, action_dim),
    ):
        if ours != theirs:
            raise BurnishError(f"{source} has {name} dimension {ours}, but task={task.name} has {theirs}")
    known, now = policy.obs_spec.state_sizes, obs_spec.state_sizes  # a policy from a file does not tell them
    for name in known:
        if set(known) == set(now) and known[name] != now[name]:
            raise BurnishError(f"{source} has {known[name]} numbers of {name!r}, but task={task.name} has {now[name]}")
    if policy.obs_spec != obs_spec:
        raise BurnishError(f"{source} has the observations {policy.obs_spec}, but task={task.name} gives {obs_spec}")


@contextlib.contextmanager
def evaluation_envs(
    policy: Policy, task: TaskConfig, config: EvaluationConfig, source: str | None = None
) -> Iterator[VectorEnv]:
    """Environments for `evaluate`, to be kept where it is called again and again; `source`: see `check_fit`."""
    from burnish.envs import make_vector_env

    envs = make_vector_env(
        task,
        n_envs=min(config.n_envs, config.episodes),
        n_obs_steps=policy.config.n_obs_steps,
        n_action_steps=policy.config.n_action_steps,
        seed=config.seed,
        backend=config.backend,
        n_workers=config.n_workers,
        autoreset=False,
        worker_timeout=config.worker_timeout,
    )
    try:
        check_fit(policy, task, envs.obs_spec, envs.action_dim, source)
        yield envs
    finally:
        envs.close()


def evaluate(
    policy: Policy,
    task: TaskConfig,
    config: EvaluationConfig,
    *,
    envs: VectorEnv | None = None,
    progress: Any = None,
) -> Evaluation:
    """Run `config.episodes` episodes of `policy` in `task`.

    Args:
        envs: from `evaluation_envs`; None makes and closes them.
        progress: something with `update(n, **shown)`, counting episodes.

    Raises:
        BurnishError: the policy does not fit the task, cannot act so, or has no critic to choose among candidates; or
            most episodes were cut because the simulation was not finite.
        SimulatorsLost: one of them died or hangs.
        GivenUp: a `StopRequest` is in force and the process was asked to stop.
    """
    with policy.sampling(config.temperature, config.mean_of, config.sampler, config.sampler_steps):
        policy.check_candidates(config.candidates)
        with contextlib.ExitStack() as stack:
            used = stack.enter_context(evaluation_envs(policy, task, config)) if envs is None else envs
            try:
                return _evaluate(policy, config, used, progress)
            except Overdue as overdue:  # in the policy: simulators tell by themselves
                raise GivenUp("asked to stop during an evaluation") from overdue


def _evaluate(policy: Policy, config: EvaluationConfig, envs: VectorEnv, progress: Any) -> Evaluation:
    nonfinite = envs.nonfinite_episodes
    seeds = [config.seed + i for i in range(config.episodes)]
    rounds = []
    for start in range(0, len(seeds), envs.n_envs):
        rounds.append(run_episodes(policy, envs, seeds[start : start + envs.n_envs], config.candidates))
        if progress is not None:
            progress.update(
                len(rounds[-1].success),
                success_rate=float(np.concatenate([r.success for r in rounds]).mean()),
            )
    require_finite(envs.nonfinite_episodes - nonfinite, len(seeds), "episodes of an evaluation")
    return Evaluation(
        seeds=seeds,
        success=np.concatenate([r.success for r in rounds]),
        returns=np.concatenate([r.returns for r in rounds]),
        lengths=np.concatenate([r.lengths for r in rounds]),
        latency_ms=latency_ms(policy, config.candidates),
        nonfinite_episodes=envs.nonfinite_episodes - nonfinite,
        temperature=policy.config.temperature,
        mean_of=policy.config.mean_of,
        sampler=getattr(policy.config, "sampler", None),
        sampler_steps=policy.sampler_steps,
    )


class Episodes(NamedTuple):
    """One episode for each of n seeds."""

    success: np.ndarray  # (n,) bool
    returns: np.ndarray  # (n,)
    lengths: np.ndarray  # (n,)


def run_episodes(policy: Policy, envs: VectorEnv, seeds: list[int], candidates: int = 1) -> Episodes:
    """One episode for each seed, at most as many as there are environments."""
    n = len(seeds)
    padded = [*seeds, *[seeds[-1]] * (envs.n_envs - n)]
    generators = [torch.Generator().manual_seed(seed) for seed in padded]
    success, returns, lengths = np.zeros(envs.n_envs, bool), np.zeros(envs.n_envs), np.zeros(envs.n_envs, int)
    running = np.arange(envs.n_envs) < n
    obs = envs.reset(padded)
    while running.any():
        if asked_to_stop():
            raise GivenUp("asked to stop during an evaluation")
        step = envs.step(act(policy, obs, generators, candidates), running)
        obs = step.obs
        returns += step.reward
        lengths += step.steps
        success |= step.success & running
        running &= ~(step.terminated | step.truncated | success)
    return Episodes(success[:n], returns[:n], lengths[:n])


def act(policy: Policy, obs: np.ndarray, generators: list[torch.Generator], candidates: int = 1) -> np.ndarray:
    """Actions (E, Ta, Da); row e draws its noise from generator e, and depends on that row alone.

    To that end the policy always acts on batches of the same size, the last filled up by its last row: a chaotic
    simulation makes another episode of the last bit, and libraries choose how to add by the size. On x86 CPUs torch
    rounds 1 to 3 rows otherwise than many (MKL's products), with several threads also remainders of 4, and SiLU, GELU
    and its own Mish where the numbers do not fill whole vectors; its convolutions do so below 16 rows. `ROWS` is twice
    the largest of these, a multiple of the tiles that we know of.
    """
    n, size = len(generators), max(ROWS, policy.least_rows)
    noise, each = episode_noise(policy, generators, candidates), []
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        each.append(np.asarray(policy.act(obs[rows], noise=noise[:, rows], candidates=candidates)))
    return np.concatenate(each)[:n]


def episode_noise(policy: Policy, generators: list[torch.Generator], candidates: int = 1) -> torch.Tensor:
    """What `Policy.act` takes, e.g. (S + 1, E, Tp, Da); column e is drawn from generator e alone."""
    shape = policy.noise_shape(candidates)
    return torch.stack([torch.randn(shape, generator=g) for g in generators], dim=1).to(policy.device)


def latency_ms(policy: Policy, candidates: int = 1) -> float:
    """Median wall-clock time of `act` for one observation (numpy in, numpy out), in milliseconds."""
    obs = policy.typical_obs()
    generator = torch.Generator(policy.device).manual_seed(0)
    times = []
    for _ in range(LATENCY_CALLS):
        start = time.perf_counter()
        policy.act(obs, generator=generator, candidates=candidates)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def about(policy: str | None, task: TaskConfig, config: EvaluationConfig) -> About:
    """What `evaluation.json` says about how its numbers came about; `policy`: its folder, None for an untrained one."""
    return About(
        policy=policy or "untrained",
        weights=fingerprint(policy) if policy else None,
        task=dataclasses.asdict(task),
        evaluation=dataclasses.asdict(config),
        origin=origin(),
    )
