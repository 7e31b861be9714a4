"""Runs by task and method, the pretrained policies they started from, and their scores as matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from burnish.compare.figures import Look
from burnish.compare.results import RETURN, Evaluated, Measure, RunResult


class Method(NamedTuple):
    """The finished runs of one method in one task, of `planned`."""

    name: str
    look: Look
    runs: tuple[RunResult, ...]
    planned: int

    def evaluated(self, checkpoint: str, selected: bool) -> list[Evaluated]:
        """Of the runs that have such an evaluation."""
        found = [run.evaluated(checkpoint, selected) for run in self.runs]
        return [one for one in found if one is not None]

    def scores(self, checkpoint: str, selected: bool) -> np.ndarray | None:
        """(runs, 1), None where there are none."""
        return column(self.evaluated(checkpoint, selected))

    @property
    def learns(self) -> bool:
        """False of pretrained policies that are evaluated as they are."""
        return not self.runs or self.runs[0].learns

    @property
    def trains_policy(self) -> bool:
        """False where the policy stays, and is evaluated as it is or with a critic that chooses."""
        return not self.runs or self.runs[0].trains_policy

    @property
    def pretrained(self) -> bool:
        """Whether its runs started from a pretrained policy rather than from nothing."""
        return bool(self.runs) and self.runs[0].policy is not None


class Pretrained(NamedTuple):
    """The policies that methods started from, one evaluation each."""

    name: str
    evaluations: dict[str, Evaluated]


class TaskRuns(NamedTuple):
    """Everything of one task, methods without learning first; `measure` is None where nothing has finished."""

    name: str
    measure: Measure | None
    methods: tuple[Method, ...]
    pretrained: tuple[Pretrained, ...]

    @property
    def runs(self) -> Iterator[RunResult]:
        return (run for method in self.methods for run in method.runs)

    @property
    def learned(self) -> tuple[Method, ...]:
        """The methods that have a budget."""
        return tuple(method for method in self.methods if method.learns)

    @property
    def few(self) -> int:
        """The least number of finished runs of a method that has any."""
        return min((len(method.runs) for method in self.methods if method.runs), default=0)

    def pretrained_of(self, method: Method) -> Pretrained | None:
        started = {run.policy for run in method.runs}
        return next((group for group in self.pretrained if started & group.evaluations.keys()), None)


def column(evaluated: Sequence[Evaluated]) -> np.ndarray | None:
    """(runs, 1) values, None where there are none."""
    return np.array([[one.value] for one in evaluated]) if evaluated else None


def group_pretrained(methods: Sequence[Method]) -> tuple[Pretrained, ...]:
    """Other policies of the same seeds (a Gaussian one, say) are a group of their own."""
    groups: list[Pretrained] = []
    by_seed: list[dict[int, str]] = []
    for method in methods:
        mine = {run.seed: (run.policy, run.before) for run in method.runs if run.policy is not None}
        if not mine:
            continue
        policies = {seed: policy for seed, (policy, _) in mine.items() if policy is not None}
        fitting = (
            i
            for i, theirs in enumerate(by_seed)
            if theirs.keys() & policies.keys() and all(theirs.get(s, p) == p for s, p in policies.items())
        )
        index = next(fitting, len(groups))
        if index == len(groups):
            groups.append(Pretrained(f"pretrained ({method.name})" if groups else "pretrained", {}))
            by_seed.append({})
        by_seed[index].update(policies)
        groups[index].evaluations.update({str(policy): before for policy, before in mine.values()})
    return tuple(groups)


def normaliser(task: TaskRuns) -> Callable[[np.ndarray], np.ndarray]:
    """Scores of one task on a scale that tasks share; see NORMALISED in burnish.compare.report."""
    if task.measure != RETURN:
        return lambda scores: scores
    columns = [method.scores("last", selected) for method in task.methods for selected in (False, True)]
    means = [float(scores.mean()) for scores in columns if scores is not None]
    started = [one.value for group in task.pretrained[:1] for one in group.evaluations.values()]
    low = float(np.mean(started)) if started else min(means)
    span = max(means) - low
    return lambda scores: (scores - low) / (span if span > 0 else max(abs(low), 1.0))


def across_tasks(tasks: Sequence[TaskRuns], method: str, selected: bool) -> np.ndarray | None:
    """Normalised scores (seeds, tasks) over the seeds finished in all tasks; None where there is no such seed."""
    columns = []
    for task in tasks:
        found = next((m for m in task.methods if m.name == method), None)
        scale = normaliser(task) if found and found.runs else None
        if found is None or scale is None:
            return None
        by_seed = {run.seed: run.evaluated("last", selected) for run in found.runs}
        columns.append({seed: float(scale(np.array(one.value))) for seed, one in by_seed.items() if one is not None})
    seeds = sorted(set.intersection(*(set(values) for values in columns))) if columns else []
    return np.array([[values[seed] for values in columns] for seed in seeds]) if seeds else None
