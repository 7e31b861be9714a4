"""One policy at several temperatures: what taking noise away from it gives, without any training.

A fine-tuning that gains no more than this has learned to be less noisy, and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from burnish.config import MOST_SEED, WrongValue, key
from burnish.envs.base import VectorEnv
from burnish.envs.task import TaskConfig
from burnish.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate, evaluation_envs
from burnish.policies.base import Policy
from burnish.runs.progress import Progress


@dataclass(frozen=True)
class TrainingEvaluationConfig(EvaluationConfig):
    """How a training evaluates its policy, and at which temperatures at its end."""

    temperatures: list[float] = key([1.0, 0.5, 0.0], "tried at the end ([]: its own alone)", least=0)
    selection_seed: int = key(
        300_000,
        "of the first episode by which the best temperature is chosen; the others then measure it",
        least=0,
        most=MOST_SEED,
    )


class Sampling(NamedTuple):
    """How a policy samples; None: with its own sampler, in its own number of steps."""

    temperature: float
    mean_of: int = 1
    sampler: str | None = None
    sampler_steps: int | None = None

    def __str__(self) -> str:
        mean = f", mean of {self.mean_of}" if self.mean_of > 1 else ""
        sampler = f", {self.sampler.removeprefix('diffusers:')}" if self.sampler else ""
        steps = f", {self.sampler_steps} steps" if self.sampler_steps else ""
        return f"temperature={self.temperature:g}{mean}{sampler}{steps}"

    @property
    def settings(self) -> dict[str, str]:
        """Key: value, as `burnish evaluate` and `burnish policy set` take them, but those that stay as they are."""
        given = {name: value for name, value in self._asdict().items() if value is not None}
        return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in given.items()}


def samplings(policy: Policy, temperatures: Sequence[float], means_of: Sequence[int] = ()) -> list[Sampling]:
    """Those of the temperatures that the policy can act with, then the means at temperature 1."""
    wanted = [Sampling(each) for each in temperatures] + [Sampling(1.0, n) for n in means_of if n > 1]
    return [each for each in dict.fromkeys(wanted) if _possible(policy, each)]


def _possible(policy: Policy, sampling: Sampling) -> bool:
    try:
        with policy.sampling(*sampling):
            return True
    except WrongValue:
        return False


def compare_samplings(
    policy: Policy,
    task: TaskConfig,
    config: EvaluationConfig,
    each: Sequence[Sampling],
    *,
    envs: VectorEnv | None = None,
    shown: str = "",
) -> dict[Sampling, Evaluation]:
    """Evaluate the policy once for each way to sample, in the same episodes.

    Args:
        envs: see `evaluate`.
        shown: beginning of the line that shows progress; without it none is.
    """
    with contextlib.ExitStack() as stack:
        envs = envs or stack.enter_context(evaluation_envs(policy, task, config))
        found = {}
        for sampling in each:
            how = replace(config, **sampling._asdict())
            with _progress(config.episodes, f"{shown}{sampling}" if shown else "") as progress:
                found[sampling] = evaluate(policy, task, how, envs=envs, progress=progress)
        return found


@contextlib.contextmanager
def _progress(episodes: int, shown: str) -> Iterator[Any]:
    if not shown:
        yield None
        return
    with Progress(episodes, shown) as progress:
        yield progress


def best(found: Mapping[Sampling, Evaluation]) -> Sampling:
    """The one with the best score; of equals the first."""
    return max(found, key=lambda sampling: found[sampling].score)


def table(found: Mapping[Sampling, Evaluation], measure: str) -> str:
    """A line for each way to sample, with the 95 % interval of `measure` ("success_rate" or "return")."""
    lines, width = [], max(26, *(len(str(sampling)) for sampling in found)) + 2
    for sampling, evaluation in found.items():
        summary = evaluation.summary()
        if measure == "success_rate":
            low, high = summary.success_rate_low, summary.success_rate_high
            numbers = f"{summary.success_rate:7.1%}  [{low:.1%}, {high:.1%}]"
        else:
            numbers = f"{summary.mean_return:9.1f}  [{summary.return_low:.1f}, {summary.return_high:.1f}]"
        lines.append(f"{sampling!s:<{width}}{numbers:<32}{summary.episode_length:7.1f} steps")
    return "\n".join(lines)
