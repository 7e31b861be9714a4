"""What is compared: a YAML file -> the cells of its grid, all of them checked before the first one starts.

A cell is a plain `burnish pretrain`, `burnish finetune` or `burnish scratch`: its folder is the run folder that anyone
would have made by typing its words.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from burnish.compose import compose, config_class, split
from burnish.config import Checked, key, parse
from burnish.datasets.sources import demonstrations_of
from burnish.datasets.sources import resolve as demonstrations_path
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError

PRETRAIN = "pretrain"  # the command of the cells that others start from, and what their methods' names begin with
EVALUATED_ALIKE = (
    ("evaluation", "seed"),
    ("evaluation", "episodes"),
    ("task", "env_id"),
    ("task", "env_kwargs"),
    ("task", "max_episode_steps"),
)
FOLDER_CHARACTERS = set(string.ascii_letters + string.digits + "-_.")


@dataclass(frozen=True)
class TaskGrid(Checked):
    """What is particular to one task."""

    policy: str | None = key(
        None, "folder of the pretrained policy to start from; {seed} in it is replaced (null: see pretrain)"
    )
    pretrain: list[str] | dict[str, list[str]] | None = key(
        None,
        "words of the burnish pretrain that makes it, for each seed; or several of them by name, the first for all "
        "methods that do not say policy=NAME. Neither (null): training from scratch",
    )
    settings: list[str] = key([], "words for each cell of this task, after the comparison's")
    methods: dict[str, list[str]] = key(
        factory=dict, doc="method -> words for its cells of this task, after the method's"
    )

    def check(self) -> None:
        if self.policy is not None and self.pretrain is not None:
            raise BurnishError(f"policy={self.policy} and pretrain=[...] of one task: expected one of them, or none")

    @property
    def pretrainings(self) -> dict[str, list[str]]:
        """Name (a folder's) -> words."""
        if isinstance(self.pretrain, dict):
            return {f"{PRETRAIN}-{name}": words for name, words in self.pretrain.items()}
        return {} if self.pretrain is None else {PRETRAIN: self.pretrain}

    @property
    def from_scratch(self) -> bool:
        return self.policy is None and self.pretrain is None


@dataclass(frozen=True)
class CompareConfig(Checked):
    """A comparison: tasks x methods x seeds."""

    name: str = key(doc="its title (default: the file's name)")
    run_dir: str = key(doc="folder of all runs and of the report (default: runs/compare-NAME)")
    tasks: dict[str, TaskGrid] = key(doc="task -> its keys, see below")
    methods: dict[str, list[str]] = key(
        doc="name -> words, such as [stage=dpmd, stage.rsm.weights=constant]; in the report's order"
    )
    seeds: list[int] = key([0, 1, 2], "of all trainings; seed s starts from the policy pretrained with seed s")
    settings: list[str] = key([], "words for every cell but the pretraining")
    total_env_steps: int | None = key(
        None, "the budget of each cell that names none of its own (null: its command's)", above=0
    )
    max_minutes: float | None = key(None, "of training, likewise (null: no limit)", above=0)
    runner: Literal["local", "ray"] = key(
        "local", "processes of this machine, or a Ray cluster with a file system in common"
    )
    cores: int | None = key(None, "what the local runner may use in all (null: what the machine has)", above=0)
    memory_gb: float | None = key(None, "likewise (null: what is free)", above=0)
    cell_cores: int = key(1, "what one cell takes: torch threads or simulator workers", above=0)
    cell_memory_gb: float = key(3.0, "and memory", above=0)

    def check(self) -> None:
        for name in ("tasks", "methods", "seeds"):
            if not getattr(self, name):
                raise BurnishError(f"{name} is empty: expected at least one")
        if len(set(self.seeds)) < len(self.seeds):
            raise BurnishError(f"seeds={self.seeds}: expected different ones")
        self._check_names()

    def _check_names(self) -> None:
        for section in ("tasks", "methods"):
            for name in getattr(self, section):
                if not name.strip(".") or set(name) - FOLDER_CHARACTERS:
                    raise BurnishError(
                        f"{section}.{name}: it names a folder, expected letters, digits, '-', '_' and '.'"
                    )
        for task, grid in self.tasks.items():
            for name in grid.pretrainings.keys() & self.methods.keys():
                raise BurnishError(f"methods.{name}: taken by the policies that the others start from")
            if grid.pretrain == {}:
                raise BurnishError(f"tasks.{task}.pretrain is empty: expected words (pretrain: [] for none), or names")
            for method in grid.methods:
                if method not in self.methods:
                    raise BurnishError(f"tasks.{task}.methods.{method}: expected one of {', '.join(self.methods)}")


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


def read_config(path: Path, overrides: Sequence[str] = ()) -> CompareConfig:
    """The comparison of a YAML file; `overrides` are key=value, such as seeds=[0,1] or tasks.lift.policy=runs/x.

    Raises BurnishError where the file cannot be read, or a key or value is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise BurnishError(f"{path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise BurnishError(f"{path}: expected keys and values, such as name, tasks and methods")
    for override in overrides:
        _override(content, override)
    content.setdefault("name", path.stem)
    content.setdefault("run_dir", f"runs/compare-{content['name']}")
    try:
        return parse(CompareConfig, content)
    except BurnishError as error:
        raise BurnishError(f"{path}: {error}") from error


def _override(content: dict[str, Any], override: str) -> None:
    keys, value = split(override)
    *parents, name = keys.split(".")
    section = content
    for parent in parents:
        found = section.get(parent)
        section[parent] = section = dict(found) if isinstance(found, dict) else {}
    try:
        section[name] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BurnishError(f"{override}: the value is no YAML") from error


def plan(config: CompareConfig) -> list[PlannedRun]:
    """All cells: those that pretrain first, then seed by seed, so that an unfinished grid compares all methods.

    Raises BurnishError for the first one whose words do not make a valid configuration.
    """
    cells = [cell for task, grid in config.tasks.items() for cell in _pretraining(config, task, grid)]
    for seed in config.seeds:
        for task, grid in config.tasks.items():
            cells += [_cell(config, task, grid, method, seed) for method in config.methods]
    for cell in cells:
        resolve(cell)
    for task in config.tasks:
        _check_evaluation(task, [resolve(cell) for cell in cells if cell.is_compared and cell.task == task])
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
                demos = getattr(config.stage, "demos", None) if getattr(config.stage, "demo_ratio", 1.0) else None
            else:
                demos = config.dataset or "task"
            if demos is not None:
                _check_demonstrations(demos, config.task)
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


def _check_demonstrations(demos: str, task: TaskConfig) -> None:
    source = demonstrations_of(task, demos)
    if source is None:
        raise BurnishError(f"task={task.name} names no demonstrations: give dataset=FILE, or stage.demos=FILE")
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
        raise BurnishError(f"{cell}: {error}") from error


def parsed(cell: PlannedRun, config: Mapping[str, Any]) -> Any:
    """A configuration of the command that makes the cell, as its dataclass. Raises BurnishError where it is none."""
    return parse(config_class(cell.command), config)


def _pretraining(config: CompareConfig, task: str, grid: TaskGrid) -> list[PlannedRun]:
    first = [f"task={task}", *_on_cores(config.cell_cores, "evaluation.")]
    return [
        _made(config, task, name, seed, PRETRAIN, [*first, *words])
        for name, words in grid.pretrainings.items()
        for seed in config.seeds
    ]


def _cell(config: CompareConfig, task: str, grid: TaskGrid, method: str, seed: int) -> PlannedRun:
    words = [f"task={task}", *_on_cores(config.cell_cores, "", "evaluation.")]
    words += [f"{key}={value}" for key in ("total_env_steps", "max_minutes") if (value := getattr(config, key))]
    if not grid.from_scratch:
        words.append(f"policy={grid.policy or next(iter(grid.pretrainings))}")
    words += [*config.settings, *grid.settings, *config.methods[method], *grid.methods.get(method, [])]
    words = [_with_policy(config, task, grid, seed, word) for word in words]
    return _made(config, task, method, seed, "scratch" if grid.from_scratch else "finetune", words)


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


def _folder(config: CompareConfig, task: str, method: str, seed: int) -> Path:
    return Path(config.run_dir) / task / method / f"seed{seed}"


def _on_cores(cores: int, *prefixes: str) -> list[str]:
    """Words that keep a cell to its cores: its simulators run in its own process, or in as many workers."""
    words = [f"torch_threads={cores}"]
    return words + [f"{prefix}backend=sync" if cores == 1 else f"{prefix}n_workers={cores}" for prefix in prefixes]
