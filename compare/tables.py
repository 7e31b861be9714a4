"""The report's tables, from runs grouped by task and method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from burnish.compare.document import Column, Table, Value
from burnish.compare.grouping import Method, Pretrained, TaskRuns, column
from burnish.compare.results import (
    SUCCESS,
    Axis,
    Evaluated,
    Measure,
    Point,
    RunResult,
    at,
    paired_difference,
)
from burnish.compare.statistics import Estimate, improvement, summarise
from burnish.evaluation.intervals import wilson_interval

CHECKPOINTS = {"last": "last (headline)", "best": "best (optimistic)"}
BEST_SELECTED = "best by one sample"  # of an evaluation by Q, which did not choose the checkpoint
BUDGETS: dict[Axis, str] = {"env_steps": "{:,.0f} steps", "minutes": "{:.1f} minutes"}
SIGNED = {"success_rate": "{:+.1%}", "return": "{:+,.0f}"}


def actions(selected: bool, candidates: int = 1) -> str:
    """How an evaluation acted."""
    if not selected:
        return "one sample"
    return f"best of {candidates} by Q" if candidates > 1 else "best of N by Q"


def finished(method: Method) -> str:
    return f"{len(method.runs)} of {method.planned}"


def results_table(task: TaskRuns) -> Table:
    """Last and best checkpoint, one sample and best of N; pretrained policies first."""
    measure = measure_of(task)
    rows: list[list[Value]] = [_pretrained_row(group, measure) for group in task.pretrained]
    for method in task.methods:
        if not method.runs:
            rows.append([method.name, "–", "–", finished(method), None, None, None, None])
        for checkpoint, said in CHECKPOINTS.items() if method.learns else [("last", "the pretrained one")]:
            for selected in (False, True):
                if evaluated := method.evaluated(checkpoint, selected):
                    how = actions(selected, method.runs[0].candidates)
                    chosen = BEST_SELECTED if selected and checkpoint == "best" else said
                    steps = float(np.mean([one.env_steps for one in evaluated]))
                    rows.append([method.name, chosen, how, finished(method), steps, *_aggregates(evaluated)])
    columns = [
        Column("method"),
        Column("checkpoint"),
        Column("actions"),
        Column("seeds"),
        Column("env steps", "{:,.0f}"),
        Column(f"{measure.label}: IQM [95 %]", measure.form),
        Column("mean [95 %]", measure.form),
        Column("success, all episodes [Wilson]", SUCCESS.form),
    ]
    width = len(columns) if measure == SUCCESS else len(columns) - 1
    return Table(f"{task.name}-results", tuple(columns[:width]), [row[:width] for row in rows])


def temperature_table(task: TaskRuns) -> Table:
    """The last checkpoint at its own temperature, at the best one and by its critic."""
    measure = measure_of(task)
    rows: list[list[Value]] = []
    for method in task.methods:
        runs = method.runs
        steps = float(np.mean([run.env_steps for run in runs])) if runs else None
        means = [_mean_of_all(found) for found in _last_ones(runs)]
        chosen = "; ".join(f"{run.seed}: {_temperatures(run)}" for run in runs)
        rows.append([method.name, finished(method), steps, *means[:2], chosen or "–", means[2]])
        for temperature in sorted({each for run in runs for each in run.by_temperature if each != run.temperature}):
            mean = _mean_of_all([run.by_temperature.get(temperature) for run in runs])
            rows.append([f"{method.name}, tau = {temperature:g}", finished(method), steps, mean, None, "–", None])
    columns = (
        Column("method"),
        Column("seeds"),
        Column("env steps", "{:,.0f}"),
        Column(f"{measure.label} at its own temperature: mean [95 %]", measure.form),
        Column("at its best temperature [95 %]", measure.form),
        Column("seed: own temperature, best one"),
        Column("best of N by Q [95 %]", measure.form),
    )
    return Table(f"{task.name}-temperatures", columns, rows)


def budget_table(task: TaskRuns, budget: Axis) -> Table:
    """Each run at the least budget that any run of the task used."""
    measure = measure_of(task)
    limit = least(task.learned, budget)
    rows = [
        _budget_row(method, selected, budget, limit)
        for method in task.learned
        if method.runs
        for selected in (False, True)
        if not selected or any(run.curve_selected for run in method.runs)
    ]
    columns = (
        Column("method"),
        Column("actions"),
        Column("seeds"),
        Column(f"{measure.label}: IQM [95 %]", measure.form),
        Column("mean [95 %]", measure.form),
        Column("seed: value (after env steps, minutes)"),
        Column("remark"),
    )
    return Table(f"{task.name}-equal-{budget.replace('_', '-')}", columns, rows)


def least(methods: Iterable[Method], budget: Axis) -> float:
    """Of the methods the fewest environment steps, or minutes, that their runs took on average."""
    return min(float(np.mean([getattr(run, budget) for run in m.runs])) for m in methods if m.runs)


def pairs_table(task: TaskRuns) -> Table:
    """Each method beside the first one, acting alike where that can, at the lesser of the two's budgets."""
    measure = measure_of(task)
    first, *others = (method for method in task.learned if method.runs)
    rows: list[list[Value]] = []
    for method in others:
        for selected in (False, True):
            alike = selected and any(run.curve_selected for run in first.runs)
            for budget, form in BUDGETS.items():
                limit = least((method, first), budget)
                ours, theirs = (
                    [at(run.curve_selected if select else run.curve, limit, budget) for run in one.runs]
                    for one, select in ((method, selected), (first, alike))
                )
                if all(ours) and all(theirs):  # of every seed
                    values = [summarise(np.array([[p.value] for p in points if p])).mean for points in (ours, theirs)]
                    beside = f"{first.name}, {actions(alike)}"
                    rows.append([method.name, actions(selected), form.format(limit), values[0], beside, values[1]])
    columns = (
        Column("method"),
        Column("actions"),
        Column("at"),
        Column(f"{measure.label}: mean [95 %]", measure.form),
        Column("beside"),
        Column("its mean [95 %]", measure.form),
    )
    return Table(f"{task.name}-pairs", columns, rows)


def improvement_table(task: TaskRuns) -> Table:
    """P(a run of the method is better than one of the first method, or of the pretrained policies)."""
    rows: list[list[Value]] = []
    first = next((method for method in task.learned if method.runs), None)
    for method in task.learned:
        for selected in (False, True):
            ours = method.scores("last", selected)
            if ours is None:
                continue
            for over, theirs in _references(task, method, first, selected):
                pairs = f"{len(ours)} against {len(theirs)}"
                rows.append([method.name, actions(selected), over, improvement(ours, theirs), pairs])
    columns = (Column("method"), Column("actions"), Column("over"), Column("P [95 %]", "{:.2f}"), Column("runs"))
    return Table(f"{task.name}-improvement", columns, rows)


def difference_table(task: TaskRuns) -> Table:
    """Last checkpoint - the policy that the run started from, episode by episode."""
    rows: list[list[Value]] = []
    for method in task.learned:
        for selected in (False, True):
            pairs = [(run.before, after) for run in method.runs if (after := run.evaluated("last", selected))]
            if found := paired_difference(pairs):
                gain = Estimate(found.difference.mean, found.difference.interval)
                start = "pretrained" if method.pretrained else "untrained"
                rows.append([method.name, actions(selected), start, gain, found.runs, found.episodes])
    columns = (
        Column("method"),
        Column("actions"),
        Column("minus"),
        Column("difference [95 %]", SIGNED[measure_of(task).key]),
        Column("seeds", "{:d}"),
        Column("episodes each", "{:d}"),
    )
    return Table(f"{task.name}-differences", columns, rows)


def cost_table(tasks: Sequence[TaskRuns]) -> Table:
    """What each method took, means over its finished runs."""
    columns = (
        Column("method"),
        Column("task"),
        Column("env steps", "{:,.0f}"),
        Column("minutes", "{:.1f}"),
        Column("env steps/s", "{:,.0f}"),
        Column("update, s", "{:.3g}"),
        Column("gradient step, ms", "{:.3g}"),
        Column("peak memory, MiB", "{:,.0f}"),
        Column("parameters", "{:,.0f}"),
        Column("K", "{:.0f}"),
        Column("sampler's transitions", "{:.0f}"),
        Column("latency, ms: one sample", "{:.1f}"),
        Column("latency, ms: best of N", "{:.1f}"),
        Column("N", "{:.0f}"),
    )
    rows = [[method.name, task.name, *_costs(method.runs)] for task in tasks for method in task.methods if method.runs]
    return Table("cost", columns, rows)


def runs_table(tasks: Sequence[TaskRuns]) -> Table:
    """Every finished run with its numbers."""
    titles = ("task", "method", "seed", "measure", "env steps", "minutes", "before", "last", "last best of N", "best")
    columns = tuple(Column(title) for title in (*titles, "best best of N", "best after env steps", "N"))
    columns += tuple(Column(title) for title in ("own temperature", "best temperature", "last at best temperature"))
    rows: list[list[Value]] = []
    for task in tasks:
        for method in task.methods:
            for run in method.runs:
                evaluated = (run.before, run.last, run.last_selected, run.best, run.best_selected)
                values: list[Value] = [one.value if one else None for one in evaluated]
                amounts: list[Value] = [run.env_steps, run.minutes]
                found: list[Value] = [task.name, method.name, run.seed, run.measure.key]
                at_best = run.at_best.value if run.at_best else None
                sampled: list[Value] = [run.temperature, run.best_temperature, at_best]
                rows.append([*found, *amounts, *values, run.best.env_steps, run.candidates, *sampled])
    return Table("runs", columns, rows)


def curves_table(tasks: Sequence[TaskRuns]) -> Table:
    """Every evaluation of every finished run."""
    titles = ("task", "method", "seed", "actions", "measure", "env steps", "minutes", "value")
    rows: list[list[Value]] = []
    for task in tasks:
        for method in task.methods:
            for run in method.runs:
                for selected, points in ((False, run.curve), (True, run.curve_selected)):
                    about: list[Value] = [task.name, method.name, run.seed, actions(selected), run.measure.key]
                    rows += [[*about, *point] for point in points]
    return Table("curves", tuple(Column(title) for title in titles), rows)


def measure_of(task: TaskRuns) -> Measure:
    """Of a task with finished runs."""
    assert task.measure is not None, f"{task.name} has no finished run"
    return task.measure


def _pretrained_row(group: Pretrained, measure: Measure) -> list[Value]:
    evaluated = list(group.evaluations.values())
    return [group.name, "pretrained", "one sample", str(len(evaluated)), None, *_aggregates(evaluated)]


def _last_ones(runs: Sequence[RunResult]) -> tuple[list[Evaluated | None], ...]:
    """Of each run the last checkpoint at its own temperature, at its best one, by Q."""
    return [run.last for run in runs], [run.at_best for run in runs], [run.last_selected for run in runs]


def _mean_of_all(evaluated: Sequence[Evaluated | None]) -> Estimate | None:
    """None unless every run has one."""
    found = [one for one in evaluated if one is not None]
    return summarise(np.array([[one.value] for one in found])).mean if found and len(found) == len(evaluated) else None


def _temperatures(run: RunResult) -> str:
    return ", ".join("?" if each is None else f"{each:g}" for each in (run.temperature, run.best_temperature))


def _aggregates(evaluated: Sequence[Evaluated]) -> list[Value]:
    """IQM, mean, pooled success."""
    scores = column(evaluated)
    assert scores is not None
    iqm, mean = summarise(scores)
    successes, episodes = (sum(getattr(one, key) for one in evaluated) for key in ("successes", "episodes"))
    return [iqm, mean, Estimate(successes / episodes, wilson_interval(successes, episodes))]


def _budget_row(method: Method, selected: bool, budget: Axis, limit: float) -> list[Value]:
    used = {run.seed: at(run.curve_selected if selected else run.curve, limit, budget) for run in method.runs}
    points = {seed: point for seed, point in used.items() if point}
    how, form = actions(selected, method.runs[0].candidates), method.runs[0].measure.form
    if not points:
        return [method.name, how, finished(method), None, None, "–", "no such evaluation by then"]
    iqm, mean = summarise(np.array([[point.value] for point in points.values()]))
    each = [f"{seed}: {form.format(p.value)} ({p.env_steps:,}, {p.minutes:.1f})" for seed, p in points.items()]
    between = [run.seed for run in method.runs if not selected and len(run.curve) == 2]  # eval_every=0
    return [method.name, how, finished(method), iqm, mean, "; ".join(each), _remark(used, between)]


def _remark(used: dict[int, Point | None], between: Sequence[int]) -> str:
    missing = [str(seed) for seed, point in used.items() if point is None]
    said = [f"none by then: seeds {', '.join(missing)}"] if missing else []
    said += [f"known at the start and the end alone: seeds {', '.join(map(str, between))}"] if between else []
    return "; ".join(said)


def _references(
    task: TaskRuns, method: Method, first: Method | None, selected: bool
) -> Iterable[tuple[str, np.ndarray]]:
    """What a method is compared with: the first, acting alike where it can, and the pretrained policies."""
    if first is not None and first is not method:
        alike = first.scores("last", selected) if selected else None
        theirs = alike if alike is not None else first.scores("last", False)
        if theirs is not None:
            yield f"{first.name}, {actions(alike is not None)}", theirs
    if group := task.pretrained_of(method):
        theirs = column(list(group.evaluations.values()))
        if theirs is not None:
            yield group.name, theirs


def _costs(runs: Sequence[RunResult]) -> list[Value]:
    costs = [run.cost for run in runs]
    selected = [run.last_selected.latency_ms for run in runs if run.last_selected]
    return [
        _mean([run.env_steps for run in runs]),
        _mean([run.minutes for run in runs]),
        _mean([cost.env_steps_per_second for cost in costs]),
        _mean([cost.update_seconds for cost in costs]),
        _mean([1e3 * cost.gradient_step_seconds if cost.gradient_step_seconds else None for cost in costs]),
        _mean([cost.peak_memory_mib for cost in costs]),
        _mean([cost.n_parameters for cost in costs]),
        _mean([cost.denoising_steps for cost in costs]),
        _mean([cost.transitions for cost in costs]),
        _mean([run.last.latency_ms for run in runs]),
        _mean(selected),
        runs[0].candidates if selected else None,
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
