"""The cells of a comparison's grid, all of them checked before the first one starts.

A cell is a plain `burnish pretrain`, `burnish finetune` or `burnish scratch`: its folder is the run folder that anyone
would have made by typing its words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from burnish.compare.config import PRETRAIN, CompareConfig, TaskGrid, read_tuned
from burnish.compose import compose, config_class, split
from burnish.config import parse
from burnish.datasets.sources import demonstrations_of
from burnish.datasets.sources import resolve as demonstrations_path
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError, NotInstalled, warn

EVALUATED_ALIKE = (
    ("evaluation", "seed"),
    ("evaluation", "episodes"),
    ("task", "env_id"),
    ("task", "env_kwargs"),
    ("task", "max_episode_steps"),
    ("task", "judged_by"),
)


class PlannedRun(NamedTuple):
    """One run of the grid."""

    task: str
    method: str
    seed: int
    command: str  # pretrain, finetune or scratch
    folder: Path
    words: tuple[str, ...]

    @property
    def is_compared(self) -> bool:
        """Whether it is no pretraining."""
        return self.command != PRETRAIN

    def __str__(self) -> str:
        return f"{self.task} {self.method} seed {self.seed}"


def plan(config: CompareConfig, *, only_report: bool = False) -> list[PlannedRun]:
    """All cells: those that pretrain first, then seed by seed, so that an unfinished grid compares all methods. With
    `only_report` a cell may name what is not installed here: its run is taken as it is found.

    Raises BurnishError for the first one whose words do not make a valid configuration.
    """
    tuned = read_tuned(config)
    cells = [
        compared_cell(config, task, method, seed, tuned.get(task, {}).get(method, []))
        for seed in config.seeds
        for task in config.tasks
        for method in config.methods
    ]
    return checked([*pretraining_cells(config), *cells], only_report)


def checked(cells: list[PlannedRun], only_report: bool = False) -> list[PlannedRun]:
    """The same. Raises BurnishError unless each makes a valid configuration, and all of a task are evaluated alike;
    with `only_report` not of those that name what is not installed, which are warned of."""
    configs, missing = {}, []
    for cell in cells:
        try:
            configs[cell] = resolve(cell)
        except NotInstalled as error:
            if not only_report:
                raise
            missing.append(str(error))
    if missing:
        warn(f"{len(missing)} cells are reported as found, not compared with their words: {missing[0]}")
    for task in dict.fromkeys(cell.task for cell in cells):
        _check_evaluation(task, [found for cell, found in configs.items() if cell.is_compared and cell.task == task])
    return cells


def _check_evaluation(task: str, configs: Sequence[Any]) -> None:
    """Raise BurnishError unless all methods are evaluated in the same task from the same initial states."""
    for section, name in EVALUATED_ALIKE:
        found = list(dict.fromkeys(str(getattr(getattr(config, section), name)) for config in configs))
        if len(found) > 1:
            raise BurnishError(f"{task}: {section}.{name} is {' and '.join(found)}: expected the same for all methods")


def check_needs(cells: Sequence[PlannedRun], unfinished: Sequence[PlannedRun]) -> None:
    """Raise BurnishError where one of `unfinished` needs what is not there: demonstrations, an extra, or a policy to
    start from, of the kind that its method trains, which no pretraining of `cells` makes."""
    made = {str(cell.folder): resolve(cell).policy.kind for cell in cells if not cell.is_compared}
    for cell in unfinished:
        config = resolve(cell)
        try:
            if cell.is_compared:
                _check_policy(config, made)
                demos, named_by = config.stage.demonstrations, f"stage.{config.stage.DEMONSTRATIONS}"
            else:
                demos, named_by = config.dataset or "task", "dataset"
            if demos is not None:
                _check_demonstrations(demos, config.task, named_by)
        except BurnishError as error:
            raise BurnishError(f"{cell}: {error}") from error


def _check_policy(config: Any, made: Mapping[str, str]) -> None:
    from burnish.finetune.stage import stage_class
    from burnish.finetune.start import check_kind
    from burnish.policies.load import load_policy

    if config.policy is None:
        kind = config.network.kind
    elif config.policy in made:
        kind = made[config.policy]
    elif Path(config.policy).is_dir():
        kind = load_policy(config.policy).config.kind
    else:
        raise BurnishError(f"policy={config.policy}: there is no such folder, and no pretraining here makes it")
    check_kind(config, kind)
    stage_class(config.stage.name).check_installed(config.stage.name)


def _check_demonstrations(demos: str, task: TaskConfig, named_by: str) -> None:
    source = demonstrations_of(task, demos)
    if source is None:
        raise BurnishError(f"task={task.name} names no demonstrations: give {named_by}=FILE")
    if not demonstrations_path(source).exists():
        raise BurnishError(
            f"{source}: no such demonstrations: burnish data collect makes them, burnish data download "
            "fetches robomimic's"
        )


@cache
def resolve(cell: PlannedRun) -> Any:
    """The configuration (a dataclass) that a cell's words make. Raises BurnishError naming the cell and its fault."""
    try:
        return parsed(cell, compose(cell.command, list(cell.words)))
    except BurnishError as error:
        raise type(error)(f"{cell}: {error}") from error


def parsed(cell: PlannedRun, config: Mapping[str, Any]) -> Any:
    """A configuration of the command that makes the cell, as its dataclass. Raises BurnishError where it is none."""
    return parse(config_class(cell.command), config)


def pretraining_cells(config: CompareConfig) -> list[PlannedRun]:
    """Those that make the policies to start from."""
    cores = _on_cores(config.cell_cores, "evaluation.")
    return [
        _made(config, task, name, seed, PRETRAIN, [f"task={grid.task or task}", *_plugins(config), *cores, *words])
        for task, grid in config.tasks.items()
        for name, words in grid.pretrainings.items()
        for seed in config.seeds
    ]


def compared_cell(
    config: CompareConfig, task: str, method: str, seed: int, last: Sequence[str] = (), setting: str | None = None
) -> PlannedRun:
    """A method's cell; the words in `last` win over all others. With a `setting` it has a folder, and a name, in the
    method's."""
    grid = config.tasks[task]
    words = [f"task={grid.task or task}", *_plugins(config), *_on_cores(config.cell_cores, "", "evaluation.")]
    words += [f"{key}={value}" for key in ("total_env_steps", "max_minutes") if (value := getattr(config, key))]
    if not grid.from_scratch:
        words.append(f"policy={grid.policy or next(iter(grid.pretrainings))}")
    words += [*config.settings, *grid.settings, *config.methods[method], *grid.methods.get(method, []), *last]
    words = [_with_policy(config, task, grid, seed, word) for word in words]
    name = f"{method}/{setting}" if setting else method
    return _made(config, task, name, seed, "scratch" if grid.from_scratch else "finetune", words)


def _with_policy(config: CompareConfig, task: str, grid: TaskGrid, seed: int, word: str) -> str:
    """`policy=NAME` of one that the comparison pretrains -> its folder; in another `{seed}` is replaced."""
    key, value = split(word)
    if key != "policy":
        return word
    for name in (value, f"{PRETRAIN}-{value}"):
        if name in grid.pretrainings:
            return f"policy={_folder(config, task, name, seed)}"
    return word.replace("{seed}", str(seed))


def _made(config: CompareConfig, task: str, method: str, seed: int, command: str, words: list[str]) -> PlannedRun:
    folder = _folder(config, task, method, seed)
    given = {split(word)[0]: word for word in [*words, f"seed={seed}", f"run_dir={folder}"]}  # the last of each key
    return PlannedRun(task, method, seed, command, folder, tuple(given.values()))


def _plugins(config: CompareConfig) -> list[str]:
    """The word by which cells import them, on whatever machine they run."""
    return [f"plugins=[{','.join(config.plugins)}]"] if config.plugins else []


def _folder(config: CompareConfig, task: str, method: str, seed: int) -> Path:
    return Path(config.run_dir) / task / method / f"seed{seed}"


def _on_cores(cores: int, *prefixes: str) -> list[str]:
    """Words that keep a cell to its cores: its simulators run in its own process, or in as many workers."""
    words = [f"torch_threads={cores}"]
    return words + [f"{prefix}backend=sync" if cores == 1 else f"{prefix}n_workers={cores}" for prefix in prefixes]
