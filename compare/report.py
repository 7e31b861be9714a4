"""The report of a grid: `write_report` reads run folders and writes report.html, report.md, figures and CSVs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from burnish.compare.document import (
    Block,
    Bullets,
    Column,
    Details,
    Heading,
    Paragraph,
    Picture,
    Pictures,
    Table,
    write_csv,
    write_document,
)
from burnish.compare.figures import (
    LABELS,
    ProfileLine,
    Row,
    Series,
    draw_estimates,
    draw_learning_curves,
    draw_profiles,
    look,
)
from burnish.compare.grouping import Method, TaskRuns, across_tasks, group_pretrained
from burnish.compare.plan import PlannedRun
from burnish.compare.results import RunResult, read_run
from burnish.compare.statistics import FEW, RESAMPLES, improvement, profile, summarise
from burnish.compare.tables import (
    actions,
    budget_table,
    cost_table,
    curves_table,
    difference_table,
    improvement_table,
    least,
    measure_of,
    pairs_table,
    results_table,
    runs_table,
    temperature_table,
)
from burnish.compare.verdicts import imitation, remarks, sentences, verdict_blocks, verdicts
from burnish.errors import BurnishError
from burnish.runs.origin import commit, machine, versions, without_names

INTRODUCTION = (
    "Value of a run: the success rate or the return, as its task is judged by, mean over the episodes of "
    "an evaluation; all methods are evaluated from the same initial states. IQM: interquartile mean over runs, with "
    f"95 % intervals of the stratified bootstrap (rliable, {RESAMPLES:,} resamples of the runs). Minutes are of "
    "training: acting and updates, without evaluations. Statistics are over the runs that finished: the column seeds "
    "says n of m."
)
RESULTS = (
    "The last checkpoint is the headline. The best checkpoint was chosen by the very evaluations of one sample shown "
    "here, so their number is optimistic. Wilson's interval pools all episodes of all runs as if they were "
    "independent, and says nothing about another seed. Methods may have had different budgets (the column env steps): "
    "the tables at equal ones are below."
)
TEMPERATURES = (
    "Last checkpoints. The best temperature of each run was chosen in other episodes than those reported. A row with "
    "tau is a policy without any learning, at that temperature: what fine-tuning must be above."
)
NORMALISED = (
    "Across tasks scores are normalised, here alone: a success rate stays as it is; a return is 0 at the mean of the "
    "pretrained policies (the first kind of them; from scratch: of the lowest method) and 1 at the mean of the best "
    "method. A method is shown where it has finished runs, of the same seeds, in every task. Where no method is better "
    "than the start, the difference is told as a share of the start. Last checkpoints, whatever their budgets."
)
DIFFERENCES = (
    "After minus before over the same initial states, mean over the seeds, paired bootstrap over episodes: how another "
    "seed would do is not in the interval."
)
IMPROVEMENT = (
    "Probability that a run of the method has a higher value than a run of the other (ties count half), last "
    "checkpoints, whatever their budgets; 0.5 is no difference."
)
STEPS = (
    "Each run's curve at the fewest steps that a method took (mean over its seeds), linear between the evaluations "
    "before and after: those of on-policy methods come with the end of a rollout."
)
PAIRS = "Each method and the first one, both at the budget of the one that took less: curves as above."
MINUTES = "The same at the fewest minutes that a method took. Minutes depend on the machine and on what ran beside."
COST = (
    "Means over the finished runs. K: denoising steps of the noise process; the sampler's transitions are those that "
    "an evaluation runs. Parameters: of the policy, with its critic where it has one. Latency: median time of one "
    "action chunk for one observation. A dash: not recorded, or no such thing."
)


def write_report(
    title: str,
    cells: Sequence[PlannedRun],
    failures: Mapping[PlannedRun, str],
    folder: Path,
    more: Sequence[Block] = (),
) -> Path:
    """Write the report of `cells` into `folder`, from nothing but their run folders -> path of report.html.

    Args:
        cells: in the report's order; the first method is the one that others are compared with.
        failures: cell -> one-line message. Cells without a finished run folder are listed as well.
        more: what the report shall say besides, before the configurations.

    Raises:
        BurnishError: the folder cannot be written.
    """
    found, problems = _read(cells, failures)
    tasks = _group(cells, found)
    with_runs = [task for task in tasks if task.measure is not None]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        blocks: list[Block] = [Paragraph(INTRODUCTION), Paragraph(f"{len(found)} of {len(cells)} runs finished.")]
        if problems:
            blocks += [Heading("Failed or missing"), Bullets(tuple(problems))]
        for task in tasks:
            blocks += _task_blocks(task, folder)
        if with_runs:
            blocks += _across_blocks(with_runs, [task.name for task in tasks if task.measure is None], folder)
            blocks += [Heading("Cost"), Paragraph(COST), cost_table(with_runs)]
            for table in (runs_table(with_runs), curves_table(with_runs)):
                write_csv(table, folder / f"{table.name}.csv")
        blocks += [*more, *_configuration_blocks(cells, found)]
        blocks += _origin_blocks(found)
        return write_document(title, blocks, folder, "report")
    except OSError as error:
        raise BurnishError(f"the report cannot be written to {folder}: {error.strerror or error}") from error


def headline(cells: Sequence[PlannedRun]) -> list[Block]:
    """Of each task what the last checkpoints reach at which temperature, and what can be said of it."""
    blocks: list[Block] = []
    for task in _group(cells, _read(cells, {})[0]):
        if any(run.at_best for run in task.runs):
            said = (*remarks(task), *sentences(task, list(verdicts(task))))
            blocks += [Heading(task.name), temperature_table(task), *([Bullets(said)] if said else [])]
    return blocks


def _read(cells: Sequence[PlannedRun], failures: Mapping[PlannedRun, str]) -> tuple[dict[int, RunResult], list[str]]:
    """The finished runs by the cell's index, and a line for each other cell."""
    found: dict[int, RunResult] = {}
    problems = []
    for index, cell in enumerate(cells):
        message = failures.get(cell)
        if message is None:
            try:
                found[index] = read_run(cell.folder)
                continue
            except BurnishError as error:
                message = str(error).replace(str(cell.folder), cell.folder.name)
        problems.append(f"{cell.task}, {cell.method}, seed {cell.seed}: {without_names(' '.join(message.split()))}")
    return found, problems


def _group(cells: Sequence[PlannedRun], found: dict[int, RunResult]) -> list[TaskRuns]:
    names = list(dict.fromkeys(cell.method for cell in cells))
    tasks = []
    for task in dict.fromkeys(cell.task for cell in cells):
        methods = []
        for number, name in enumerate(names):
            mine = [i for i, cell in enumerate(cells) if (cell.task, cell.method) == (task, name)]
            runs = tuple(found[i] for i in mine if i in found)
            if mine:
                methods.append(Method(name, look(number), runs, len(mine)))
        methods.sort(key=lambda method: method.learns)
        measure = next((run.measure for method in methods for run in method.runs), None)
        tasks.append(TaskRuns(task, measure, tuple(methods), group_pretrained(methods)))
    return tasks


def _task_blocks(task: TaskRuns, folder: Path) -> list[Block]:
    blocks: list[Block] = [Heading(task.name)]
    if task.measure is None:
        return [*blocks, Paragraph("No run of this task has finished.")]
    if any(run.at_best for run in task.runs):
        blocks += [Paragraph(TEMPERATURES), temperature_table(task)]
    if notes := (*imitation(task), *remarks(task)):
        blocks.append(Bullets(notes))
    blocks += verdict_blocks(task)
    blocks += [Heading(f"{task.name}: last and best checkpoints", 3), Paragraph(RESULTS), *_warning(task)]
    blocks.append(results_table(task))
    return [*blocks, *_learning_blocks(task, folder)] if any(method.runs for method in task.learned) else blocks


def _learning_blocks(task: TaskRuns, folder: Path) -> list[Block]:
    """Of the methods that learn: what they had reached when, and what each gained."""
    steps, minutes = least(task.learned, "env_steps"), least(task.learned, "minutes")
    blocks: list[Block] = [
        _curves(task, folder),
        Heading(f"{task.name}: at equal environment steps ({steps:,.0f})", 3),
        Paragraph(STEPS),
        budget_table(task, "env_steps"),
        Heading(f"{task.name}: at equal wall-clock ({minutes:.1f} minutes of training)", 3),
        Paragraph(MINUTES),
        budget_table(task, "minutes"),
        *_pairs(task),
        Heading(f"{task.name}: difference to the policy at the start", 3),
        Paragraph(DIFFERENCES),
        difference_table(task),
    ]
    compared = improvement_table(task)
    if compared.rows:
        blocks += [Heading(f"{task.name}: probability of improvement", 3), Paragraph(IMPROVEMENT), compared]
    return blocks


def _pairs(task: TaskRuns) -> list[Block]:
    table = pairs_table(task)
    first = next(method.name for method in task.learned if method.runs)
    return [Heading(f"{task.name}: beside {first} at equal budgets", 3), Paragraph(PAIRS), table] if table.rows else []


def _warning(task: TaskRuns) -> list[Block]:
    if task.few >= FEW:
        return []
    said = (
        "their intervals over runs say little (one of no width means that no pair of runs overlaps), "
        "for a single run none is given, and with fewer than four runs the IQM is the mean."
    )
    return [Paragraph(f"Some methods have fewer than {FEW} finished seeds: {said}")]


def _curves(task: TaskRuns, folder: Path) -> Pictures:
    series = [Series(method.name, method.look, method.runs) for method in task.learned if method.runs]
    started = [one.value for group in task.pretrained[:1] for one in group.evaluations.values()]
    pictures = []
    for over, label in LABELS.items():
        path = folder / f"{_file_name(task.name)}-{over.replace('_', '-')}.png"
        draw_learning_curves(series, measure_of(task), over, float(np.mean(started)) if started else None, path)
        pictures.append(Picture(path, f"{task.name}: {measure_of(task).label} over {label}. Thick: mean over seeds."))
    return Pictures(tuple(pictures))


def _across_blocks(tasks: Sequence[TaskRuns], without: Sequence[str], folder: Path) -> list[Block]:
    """Performance profiles, and with several tasks the aggregates over them."""
    looks = {method.name: method.look for task in tasks for method in task.methods}
    pictures: list[Picture] = []
    aggregates: list[list[object]] = []
    for selected in (False, True):
        scores = {name: across_tasks(tasks, name, selected) for name in looks}
        finished = {name: matrix for name, matrix in scores.items() if matrix is not None}
        if not finished:
            continue
        pictures.append(_profile_picture(finished, looks, selected, folder))
        if len(tasks) > 1:
            pictures.append(_aggregate_picture(finished, looks, selected, folder))
            first = next(iter(finished))
            for name, matrix in finished.items():
                better = improvement(matrix, finished[first]) if name != first else None
                aggregates.append([name, actions(selected), len(matrix), *summarise(matrix), first, better])
    if not pictures:
        return []
    blocks: list[Block] = [Heading("All tasks" if len(tasks) > 1 else "Performance profiles"), Paragraph(NORMALISED)]
    if without:
        blocks.append(Paragraph(f"Without {', '.join(without)}, of which nothing has finished."))
    few = min(task.few for task in tasks)
    if few < FEW:
        blocks.append(Paragraph(f"With fewer than {FEW} seeds bands and intervals are not meaningful."))
    if aggregates:
        columns = (
            Column("method"),
            Column("actions"),
            Column("seeds", "{:d}"),
            Column("normalised IQM [95 %]", "{:.2f}"),
            Column("mean [95 %]", "{:.2f}"),
            Column("compared with"),
            Column("P of improvement [95 %]", "{:.2f}"),
        )
        blocks.append(Table("all-tasks", columns, aggregates))  # type: ignore[arg-type]
    return [*blocks, Pictures(tuple(pictures))]


def _profile_picture(scores: dict[str, np.ndarray], looks: dict, selected: bool, folder: Path) -> Picture:
    values = np.concatenate([matrix.ravel() for matrix in scores.values()])
    thresholds = np.linspace(min(0.0, values.min()), max(1.0, values.max()), 101)
    lines = [ProfileLine(name, looks[name], profile(matrix, thresholds)) for name, matrix in scores.items()]
    path = folder / f"profiles-{'best-of-n' if selected else 'one-sample'}.png"
    draw_profiles(lines, path)
    return Picture(path, f"Performance profiles, {actions(selected)}, last checkpoints: share of runs above a score.")


def _aggregate_picture(scores: dict[str, np.ndarray], looks: dict, selected: bool, folder: Path) -> Picture:
    rows = [Row(name, looks[name], summarise(matrix).iqm) for name, matrix in scores.items()]
    path = folder / f"all-tasks-{'best-of-n' if selected else 'one-sample'}.png"
    draw_estimates(rows, "normalised IQM", path)
    return Picture(path, f"Interquartile mean over all tasks, {actions(selected)}, last checkpoints.")


def _configuration_blocks(cells: Sequence[PlannedRun], found: dict[int, RunResult]) -> list[Block]:
    blocks: list[Block] = [Heading("Configurations")]
    for index, cell in enumerate(cells):
        words = without_names(shlex.join(("burnish", cell.command, *cell.words)))
        config = without_names(found[index].config) if index in found else "(no finished run)"
        blocks.append(Details(f"{cell.task}, {cell.method}, seed {cell.seed}: {words}", config))
    return blocks


def _origin_blocks(found: dict[int, RunResult]) -> list[Block]:
    commits = sorted({run.commit for run in found.values()} - {""})
    said = sorted({listed(run.versions) for run in found.values()} - {""})
    machines = sorted({run.machine for run in found.values()} - {""})
    lines = [
        *([f"The runs were made at commit: {'; '.join(commits)}."] if commits else []),
        *([f"They were made with: {'; '.join(said)}."] if said else []),
        *([f"On: {'; '.join(machines)}."] if machines else []),
        f"This report was written at commit {commit()}, with {listed(versions())}, on {machine()}.",
    ]
    return [Heading("Where this comes from"), Bullets(tuple(without_names(line) for line in lines))]


def listed(numbers: Mapping[str, str]) -> str:
    """Versions as text."""
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
