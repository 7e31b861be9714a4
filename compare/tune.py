"""Equal tuning: as many settings for each method, tried on seeds and episodes that no result has.

A setting's score is what verdicts are made of: the last checkpoint at its best temperature, or of best of N by Q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from burnish.compare.config import CompareConfig, Tuned, TuningGrid, read_tuned
from burnish.compare.document import Block, Column, Heading, Paragraph, Table, Value, write_document
from burnish.compare.plan import PlannedRun, checked, compared_cell, pretraining_cells
from burnish.compare.results import RETURN, SUCCESS, read_run
from burnish.config import to_dict
from burnish.errors import BurnishError
from burnish.runs.json_file import read_json, told_of, write_json
from burnish.runs.origin import without_names

FOLDER, TRIALS, TUNED = "tuning", "tuning.json", "tuned.yaml"
FIRST_EPISODE = 400_000  # of the tuning: the comparison reports others
TUNING = (
    "Each setting was trained with the tuning's seeds alone, from policies of these seeds, and evaluated in episodes "
    "that no result has. Score: of the last checkpoint at its best temperature, of best of N by its critic, "
    "mean over the seeds. The best one was chosen, of equals the first."
)


class Trial(NamedTuple):
    """One setting of a method in a task, and what it gave."""

    task: str
    method: str
    setting: str
    words: list[str]
    measure: str
    scores: dict[str, float]  # by seed
    chosen: bool = False

    @property
    def score(self) -> float:
        return float(np.mean(list(self.scores.values())))


def tuning_comparison(config: CompareConfig) -> CompareConfig:
    """What the tuning is: the same comparison with other seeds, in a folder of its own."""
    folder = str(Path(config.run_dir) / FOLDER)
    return replace(config, run_dir=folder, seeds=_grid(config).seeds, tuning=None, tuned=None)


def plan_tuning(config: CompareConfig) -> list[PlannedRun]:
    """All cells of the tuning, like `plan`; a method of theirs is METHOD/SETTING."""
    tuning, trial = _grid(config), tuning_comparison(config)
    first = [f"evaluation.seed={FIRST_EPISODE}", *tuning.settings]
    cells = [
        compared_cell(trial, task, method, seed, [*first, *words], setting)
        for seed in trial.seeds
        for task in trial.tasks
        for method in trial.methods
        for setting, words in tuning.of(task, method).items()
    ]
    return checked([*pretraining_cells(trial), *cells])


def write_choice(config: CompareConfig, cells: Sequence[PlannedRun], folder: Path) -> Path:
    """Write tuning.json, tuning.md (and its like) and tuned.yaml of finished cells -> path of the last."""
    trials = chosen_among(_trials(config, cells))
    tasks: dict[str, dict[str, list[str]]] = {task: {} for task in config.tasks}
    for trial in trials:
        if trial.chosen:
            tasks[trial.task][trial.method] = trial.words
    tuning = _grid(config)
    content = {"seeds": tuning.seeds, "settings": tuning.settings, "trials": [trial._asdict() for trial in trials]}
    write_json(folder / TRIALS, content)
    write_document(f"Tuning of {config.name}", trial_blocks(folder / TRIALS), folder, "tuning")
    text = yaml.safe_dump(to_dict(Tuned(tasks)), sort_keys=False)
    (folder / TUNED).write_text(
        f"# chosen by burnish compare --tune; {TRIALS} has the scores\n{text}", encoding="utf-8"
    )
    return folder / TUNED


def chosen_among(trials: Sequence[Trial]) -> list[Trial]:
    """The same, the best of each method in each task marked."""
    groups = dict.fromkeys((trial.task, trial.method) for trial in trials)
    best = [max((one for one in trials if one[:2] == group), key=lambda one: one.score) for group in groups]
    return [trial._replace(chosen=trial in best) for trial in trials]


def tuning_blocks(config: CompareConfig) -> list[Block]:
    """What the report says of the tuning; nothing where there is none."""
    if config.tuned is None:
        unused = "The settings of the key tuning were not used: the comparison names no tuned.yaml."
        return [Heading("Tuning"), Paragraph(unused)] if config.tuning else []
    tuned = read_tuned(config)
    without = [
        name for name in config.methods if config.learns(name) and not any(name in tuned[task] for task in tuned)
    ]
    said: list[Block] = [Paragraph(f"Not tuned: {', '.join(without)}.")] if without else []
    path = Path(config.tuned).with_name(TRIALS)
    if not path.is_file():
        return [Heading("Tuning"), Paragraph(f"Words of {TUNED}, which has no {TRIALS} beside it."), *said]
    return [Heading("Tuning"), *trial_blocks(path), *said]


def trial_blocks(path: Path) -> list[Block]:
    """A table for each task, of a tuning.json. Raises BurnishError where it cannot be read."""
    content = read_json(path)
    with told_of(path):
        trials = [Trial(**entry) for entry in content["trials"]]
        seeds, settings = ", ".join(map(str, content["seeds"])), " ".join(content["settings"])
    blocks: list[Block] = [Paragraph(f"{TUNING} Seeds: {seeds}.{f' All with {settings}.' if settings else ''}")]
    for task in dict.fromkeys(trial.task for trial in trials):
        blocks += [Heading(f"{task}: tuning", 3), _table(task, [trial for trial in trials if trial.task == task])]
    return blocks


def _table(task: str, trials: Sequence[Trial]) -> Table:
    measure = SUCCESS if trials[0].measure == SUCCESS.key else RETURN
    rows: list[list[Value]] = []
    for trial in trials:
        each = "; ".join(f"{seed}: {measure.form.format(score)}" for seed, score in trial.scores.items())
        chosen = "chosen" if trial.chosen else ""
        rows.append([trial.method, trial.setting, without_names(" ".join(trial.words)), trial.score, each, chosen])
    columns = (
        Column("method"),
        Column("setting"),
        Column("words"),
        Column(f"{measure.label}: score", measure.form),
        Column("seed: score"),
        Column("chosen"),
    )
    return Table(f"{task}-tuning", columns, rows)


def _trials(config: CompareConfig, cells: Sequence[PlannedRun]) -> list[Trial]:
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for cell in cells:
        if cell.is_compared:
            groups.setdefault((cell.task, cell.method), []).append(cell)
    trials = []
    for (task, name), mine in groups.items():
        method, _, setting = name.partition("/")
        runs = [read_run(cell.folder) for cell in mine]
        scores: dict[str, float] = {}
        for run in runs:
            if run.headline is None:
                raise BurnishError(f"{mine[0].folder}: an older run, without an evaluation at its best temperature")
            scores[str(run.seed)] = run.headline.value
        words = _grid(config).of(task, method)[setting]
        trials.append(Trial(task, method, setting, words, runs[0].measure.key, scores))
    order = [(task, method) for task in config.tasks for method in config.methods]
    return sorted(trials, key=lambda trial: order.index((trial.task, trial.method)))


def _grid(config: CompareConfig) -> TuningGrid:
    if config.tuning is None:
        raise BurnishError("--tune: the comparison has no key tuning: expected settings for its methods")
    return config.tuning
