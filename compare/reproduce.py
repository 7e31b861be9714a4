"""A committed comparison run again: do its figures agree?

A recipe is a folder with compare.yaml and figures.json: for each task and method the mean over seeds of what was
measured, before and after, and by how much a repetition may differ. One machine repeats a run bit by bit; another
processor or library rounds differently, and a chaotic simulation makes other episodes of that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from burnish.compare.config import CompareConfig
from burnish.compare.grid import is_finished
from burnish.compare.plan import PlannedRun, plan
from burnish.compare.results import at_temperatures
from burnish.envs.task import recorded_measure
from burnish.errors import BurnishError
from burnish.runs.evaluation_file import EvaluationSummary
from burnish.runs.folder import load_config
from burnish.runs.summary import FinetuneSummary

COMPARISON, FIGURES = "compare.yaml", "figures.json"
TOLERANCE = {"success_rate": 0.1, "return": 0.15}
"""By how much a mean over seeds may differ: success absolutely, returns as a share of the largest of their task."""


class Figure(NamedTuple):
    """One number of a comparison."""

    task: str
    method: str
    evaluation: str  # see `evaluations`
    measure: str  # success_rate or return
    mean: float  # over seeds
    seeds: list[int]
    tolerance: float

    def agrees(self, other: Figure, largest: float) -> bool:
        """Whether `other` is as near to this one as its tolerance says; `largest`: committed return of the task."""
        allowed = self.tolerance * (1 if self.measure == "success_rate" else largest)
        return self.seeds == other.seeds and abs(other.mean - self.mean) <= allowed


def commit(folder: Path, config: CompareConfig) -> list[Figure]:
    """Write figures.json of a finished comparison into the recipe's folder -> the figures.

    Raises BurnishError where a cell has no result; nothing is written then.
    """
    cells = plan(config)
    if missing := [str(cell) for cell in cells if not is_finished(cell)]:
        raise BurnishError(f"run_dir={config.run_dir} has no result yet of {', '.join(missing)}: nothing is written")
    figures = list(measured(cells))
    content = json.dumps([figure._asdict() for figure in figures], indent=1)
    (folder / FIGURES).write_text(content + "\n", encoding="utf-8")
    return figures


def find(recipe: str) -> Path:
    """The recipe's folder. Raises BurnishError where there is none."""
    for folder in (Path(recipe), Path("results") / recipe):
        if (folder / COMPARISON).is_file():
            return folder
    known = sorted(path.parent.name for path in Path("results").glob(f"*/{FIGURES}"))
    raise BurnishError(f"{recipe}: expected a folder with {COMPARISON}, or one of {', '.join(known) or 'none here'}")


def read_figures(path: Path) -> list[Figure]:
    """The committed figures. Raises BurnishError where they cannot be read."""
    try:
        figures = [Figure(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise BurnishError(f"{path} cannot be read: expected the figures of a finished comparison ({error})") from error
    if not figures:
        raise BurnishError(f"{path} has no figures: expected those of a finished comparison")
    return figures


def measured(cells: Iterable[PlannedRun]) -> Iterator[Figure]:
    """The figures of what is finished."""
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for cell in cells:
        if cell.is_compared and is_finished(cell):
            groups.setdefault((cell.task, cell.method), []).append(cell)
    for (task, method), finished in groups.items():
        measure = recorded_measure(load_config(finished[0].folder)["task"])
        found = [evaluations(cell.folder) for cell in finished]
        for name in found[0]:
            if all(name in each for each in found):
                mean = float(np.mean([each[name].value(measure) for each in found]))
                seeds = [cell.seed for cell in finished]
                yield Figure(task, method, name, measure, mean, seeds, TOLERANCE[measure])


def evaluations(run: Path) -> dict[str, EvaluationSummary]:
    """Of a run by name: before; of the last checkpoint after (one sample), after_selected (best of N by Q),
    after_best_temperature; and where nothing is learned temperature0 and the others that were tried."""
    summary = FinetuneSummary.read(run)
    at_best = summary.at_best_temperature
    found = {
        "before": summary.before,
        "after": summary.after,
        "after_selected": summary.after_selected,
        "after_best_temperature": at_best.evaluation if at_best else None,
        **{f"temperature{one:g}": file.summary for one, file in at_temperatures(run, summary).items()},
    }
    return {name: evaluation for name, evaluation in found.items() if evaluation}


def judge(committed: Iterable[Figure], found: Iterable[Figure]) -> int:
    """Print both beside each other -> 0 where all agree, else 1."""
    committed, by_name = list(committed), {figure[:4]: figure for figure in found}
    largest: dict[str, float] = {}
    for figure in committed:
        largest[figure.task] = max(largest.get(figure.task, 0.0), abs(figure.mean))
    agree = True
    print(f"\n{'':<34}{'committed':>12}{'here':>12}")
    for figure in committed:
        other = by_name.get(figure[:4])
        good = other is not None and figure.agrees(other, largest[figure.task])
        agree &= good
        here = f"{other.mean:12.4g}" if other else f"{'missing':>12}"
        if other is None:
            said = "no result"
        elif good:
            said = "agrees"
        else:
            said = f"differs by more than {figure.tolerance:.0%}" if other.seeds == figure.seeds else "of other seeds"
        name = f"{figure.task} {figure.method} {figure.evaluation}"
        print(f"{name:<34}{figure.mean:12.4g}{here}  {said}")
    for new in by_name.keys() - {figure[:4] for figure in committed}:
        print(f"{' '.join(new[:3]):<34}{'none':>12}{by_name[new].mean:12.4g}  not committed, not compared")
    print("\nall figures agree" if agree else "\nnot all figures agree")
    return 0 if agree else 1
