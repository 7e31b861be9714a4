"""Finished run folders as typed containers: what was evaluated, when, how long it took, what it cost.

Minutes are those of training: acting and updates, without evaluations, checkpoints and the start. Folders of older
runs, whose files lack newer keys, are read as well; what they do not tell is None.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from burnish.errors import BurnishError
from burnish.evaluation.intervals import Difference
from burnish.policies.folder import DESCRIPTION
from burnish.runs.checkpoint import Checkpoints
from burnish.runs.folder import load_config, read_metrics

OLD_VERSIONS = ("burnish", "torch")  # what evaluation.json told before it had `versions`
Axis = Literal["env_steps", "minutes"]
SAME_STEP = 0.02  # evaluations of two seeds are of the same time where their steps differ by less of the whole run


class Measure(NamedTuple):
    """What is compared: its name in a summary, that of its value per episode, how it is written."""

    key: str
    per_episode: str
    form: str

    @property
    def label(self) -> str:
        return self.key.replace("_", " ")


SUCCESS = Measure("success_rate", "success", "{:.1%}")
RETURN = Measure("return", "return", "{:,.4g}")


class Point(NamedTuple):
    """One evaluation on the way: after so much training, the mean over its episodes."""

    env_steps: int
    minutes: float
    value: float


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: its mean, its successes, and the value of each episode by the episode's seed where it was kept.

    `best` checkpoints have no `by_seed`: metrics.jsonl keeps means alone.
    """

    env_steps: int
    value: float
    successes: int
    episodes: int
    latency_ms: float | None
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Cost:
    """What a run took; None where the run is older than the number.

    Attributes:
        env_steps_per_second: over all of the training.
        update_seconds, gradient_step_seconds: mean per `update` of the stage, and per gradient step in it.
        denoising_steps, transitions: K, and how many of them the sampler runs at an evaluation (no diffusion: None).
    """

    env_steps_per_second: float
    update_seconds: float | None
    gradient_step_seconds: float | None
    peak_memory_mib: float | None
    n_parameters: int | None
    denoising_steps: int | None
    transitions: int | None


@dataclass(frozen=True)
class RunResult:
    """One finished run. `selected`: with the best of `candidates` by Q instead of a single sample."""

    task: str
    measure: Measure
    seed: int
    env_steps: int
    minutes: float
    policy: str | None
    candidates: int
    before: Evaluated
    last: Evaluated
    last_selected: Evaluated | None
    best: Evaluated
    best_selected: Evaluated | None
    curve: tuple[Point, ...]
    curve_selected: tuple[Point, ...]
    curve_training: tuple[Point, ...]
    cost: Cost
    config: str
    commit: str
    versions: dict[str, str]
    machine: str

    def evaluated(self, checkpoint: str, selected: bool) -> Evaluated | None:
        """Of `checkpoint` "last" or "best"."""
        one = self.last if checkpoint == "last" else self.best
        of_n = self.last_selected if checkpoint == "last" else self.best_selected
        return of_n if selected else one


def read_run(folder: Path) -> RunResult:
    """Read a finished run folder. Raises BurnishError where it is none, or where a file lacks what is needed."""
    config = load_config(folder)
    summary = read_json(folder, "summary.json")
    lines = with_minutes(folder)
    try:
        return _result(folder, config, summary, lines)
    except (KeyError, TypeError, IndexError) as error:
        raise BurnishError(f"{folder} is damaged: its files lack {error}, expected what a training writes") from error


def _result(folder: Path, config: dict[str, Any], summary: dict[str, Any], lines: list[dict[str, Any]]) -> RunResult:
    measure = SUCCESS if config["task"]["suite"] == "robosuite" else RETURN
    steps = summary["env_steps"]
    before = _of_file(folder, "evaluation_before.json", measure, 0)
    last = _of_file(folder, "evaluation.json", measure, steps)
    if before.by_seed.keys() != last.by_seed.keys():
        raise BurnishError(f"{folder}: before and after were evaluated on other episodes, and cannot be compared")
    selected = "evaluation_selected.json" if summary.get("after_selected") else None
    best_step = summary["best"]["env_steps"]
    best = _of_lines(lines, "eval", measure, best_step)
    if best is None:
        raise BurnishError(f"{folder / 'metrics.jsonl'} has no evaluation after {best_step} steps, the best's")
    written = read_json(folder, "evaluation.json")
    return RunResult(
        task=config["task"]["name"],
        measure=measure,
        seed=config["seed"],
        env_steps=steps,
        minutes=lines[-1]["minutes"],
        policy=weights_at_start(folder) or config.get("policy"),
        candidates=_candidates(folder, selected),
        before=before,
        last=last,
        last_selected=_of_file(folder, selected, measure, steps) if selected else None,
        best=best,
        best_selected=_of_lines(lines, "eval_selected", measure, best_step),
        curve=curve(lines, f"eval/{measure.key}"),
        curve_selected=curve(lines, f"eval_selected/{measure.key}"),
        curve_training=curve(lines, f"train/{measure.key}"),
        cost=_cost(folder, summary, lines),
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
        commit=str(written.get("commit", "")),
        versions=written.get("versions") or {name: str(written[name]) for name in OLD_VERSIONS if name in written},
        machine=str(written.get("machine", "")),
    )


def weights_at_start(run: Path) -> str | None:
    """The SHA-256 of what a fine-tuning began from; None before its first evaluation, and of older runs."""
    try:
        weights: str | None = json.loads((run / "evaluation_before.json").read_text(encoding="utf-8")).get("weights")
    except (OSError, ValueError):
        return None
    return weights


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The keys and values of a JSON file. Raises BurnishError where it is not there, or is something else."""
    path = folder / name
    if not path.is_file():
        raise BurnishError(f"{folder} is no finished run: it has no {name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BurnishError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise BurnishError(f"{path} is damaged: expected keys and values")
    return found


def with_minutes(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, each with the `minutes` of training up to it."""
    path = folder / "metrics.jsonl"
    lines = read_metrics(path) if path.is_file() else []
    steps, seconds = 0, 0.0
    for line in lines:
        if "time/training" in line:
            seconds += line["time/training"]
        elif "time/env_steps_per_second" in line:  # runs of commits before ff38ebb log no more
            seconds += (line["step"] - steps) / line["time/env_steps_per_second"]
            steps = line["step"]
        line["minutes"] = seconds / 60
    if not seconds:
        raise BurnishError(f"{folder} is no finished run: its metrics.jsonl has no update")
    return lines


def curve(lines: list[dict[str, Any]], key: str) -> tuple[Point, ...]:
    """A point for each line that has the key."""
    return tuple(Point(line["step"], line["minutes"], line[key]) for line in lines if line.get(key) is not None)


def mean_curve(curves: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
    """Means over seeds, where each seed was evaluated at about the same step."""
    tolerance = SAME_STEP * max(points[-1].env_steps for points in curves)
    means = []
    for point in curves[0]:
        nearest = [min(points, key=lambda p: abs(p.env_steps - point.env_steps)) for points in curves]
        if all(abs(near.env_steps - point.env_steps) <= tolerance for near in nearest):
            steps, minutes, value = np.mean(nearest, axis=0).tolist()
            means.append(Point(round(steps), minutes, value))
    return tuple(means)


def at(points: Sequence[Point], budget: float, axis: Axis) -> Point | None:
    """Linear between the evaluations before and after; the last one afterwards, None before the first.

    Evaluations come at the ends of updates, so the last one within a budget would be half a run back for one seed, or
    one method, and not for the next, by chance.
    """
    if not points or budget < getattr(points[0], axis):
        return None
    reached = min(budget, getattr(points[-1], axis))
    steps, minutes, values = np.array(points, dtype=float).T
    along = {"env_steps": steps, "minutes": minutes}[axis]
    env_steps, minute, value = (float(np.interp(reached, along, numbers)) for numbers in (steps, minutes, values))
    return Point(round(env_steps), minute, value)


class PairedDifference(NamedTuple):
    """After - before over `episodes` initial states, each the mean over `runs`."""

    difference: Difference
    runs: int
    episodes: int


def paired_difference(pairs: Sequence[tuple[Evaluated, Evaluated]]) -> PairedDifference | None:
    """After - before over the episodes that all runs' (before, after) have; None where there are none.

    The runs of all seeds are evaluated from the same initial states, so what is drawn again is the initial state, in
    all runs at once. The seeds are taken as given: how another seed would do is not in the interval.
    """
    found = [set(evaluated.by_seed) for pair in pairs for evaluated in pair]
    states = sorted(set.intersection(*found)) if found else []
    if not states:
        return None
    before, after = (
        np.mean([[pair[which].by_seed[state] for state in states] for pair in pairs], axis=0) for which in (0, 1)
    )
    return PairedDifference(Difference.between(before, after), len(pairs), len(states))


def _of_file(folder: Path, name: str, measure: Measure, env_steps: int) -> Evaluated:
    found = read_json(folder, name)
    values = [float(value) for value in found[measure.per_episode]]
    return Evaluated(
        env_steps=env_steps,
        value=float(np.mean(values)),
        successes=int(sum(found["success"])),
        episodes=len(values),
        latency_ms=found["summary"].get("time/latency_ms"),
        by_seed=dict(zip(found["seeds"], values)),
    )


def _of_lines(lines: list[dict[str, Any]], prefix: str, measure: Measure, env_steps: int) -> Evaluated | None:
    """The evaluation after `env_steps` as metrics.jsonl has it."""
    for line in reversed(lines):
        if line["step"] == env_steps and f"{prefix}/{measure.key}" in line:
            episodes = int(line[f"{prefix}/episodes"])
            successes = round(line[f"{prefix}/success_rate"] * episodes)
            latency = line.get(f"time/{prefix}_latency_ms")
            return Evaluated(env_steps, line[f"{prefix}/{measure.key}"], successes, episodes, latency, {})
    return None


def _candidates(folder: Path, selected: str | None) -> int:
    """N of the evaluation by Q; 1 where there is none."""
    return int(read_json(folder, selected)["evaluation"]["candidates"]) if selected else 1


def _cost(folder: Path, summary: dict[str, Any], lines: list[dict[str, Any]]) -> Cost:
    updates = [line["time/update"] for line in lines if "time/update" in line]
    gradient_steps = max((line.get("gradient_steps") or 0 for line in lines), default=0)
    policy = _policy_config(folder)
    K = policy.get("denoising_steps")
    return Cost(
        env_steps_per_second=summary["env_steps"] / (60 * lines[-1]["minutes"]),
        update_seconds=float(np.mean(updates)) if updates else None,
        gradient_step_seconds=sum(updates) / gradient_steps if gradient_steps else None,
        peak_memory_mib=summary.get("peak_memory_mib"),
        n_parameters=summary.get("n_parameters"),
        denoising_steps=K,
        transitions=policy.get("ddim_steps") if policy.get("sampler") == "ddim" else K,
    )


def _policy_config(folder: Path) -> dict[str, Any]:
    """Of the last checkpoint; empty where checkpoints were deleted."""
    latest = Checkpoints(folder / "checkpoints").latest()
    if latest is None or not (latest / DESCRIPTION).is_file():
        return {}
    return dict(read_json(latest, DESCRIPTION).get("config", {}))
