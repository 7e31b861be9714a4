"""What is compared, as its YAML file tells it."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from burnish.compose import PATHS, config_text, group_options, in_home, is_file, read_option, split, with_home
from burnish.config import MOST_SEED, Checked, key, load_yaml, parse
from burnish.errors import BurnishError, NotInstalled, warn
from burnish.finetune.stage import stage_class
from burnish.plugins import PluginsConfig, import_plugins

PRETRAIN = "pretrain"  # the command of the cells that others start from, and what their methods' names begin with
FOLDER_CHARACTERS = set(string.ascii_letters + string.digits + "-_.")


@dataclass(frozen=True)
class TaskGrid(Checked):
    """What is particular to one task."""

    task: str | None = key(None, "the task: a name, or a YAML file (null: the name of this section)")
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
class TuningGrid(Checked):
    """Settings to choose among before the comparison, as many for each method, on seeds that it does not have."""

    seeds: list[int] = key(
        [100], "of its trainings and of the policies they start from; none of the comparison's", least=0, most=MOST_SEED
    )
    settings: list[str] = key([], "words for each of its cells, before the setting's, such as total_env_steps=6400")
    methods: dict[str, dict[str, list[str]]] = key(
        factory=dict, doc="method -> name of a setting -> its words, after the method's; as many for each method"
    )
    tasks: dict[str, dict[str, dict[str, list[str]]]] = key(
        factory=dict, doc="task -> method -> its settings there, in place of those"
    )

    def of(self, task: str, method: str) -> dict[str, list[str]]:
        """The settings by name; empty for a method that is not tuned."""
        return self.tasks.get(task, {}).get(method, self.methods.get(method, {}))


@dataclass(frozen=True)
class Tuned(Checked):
    """What a tuning chose: the content of tuned.yaml."""

    tasks: dict[str, dict[str, list[str]]] = key(doc="task -> method -> words")


@dataclass(frozen=True)
class CompareConfig(PluginsConfig):
    """A comparison: tasks x methods x seeds."""

    name: str = key(doc="its title (default: the file's name)")
    run_dir: str = key(doc="folder of all runs and of the report (default: runs/compare-NAME)")
    tasks: dict[str, TaskGrid] = key(doc="task -> its keys, see below")
    methods: dict[str, list[str]] = key(doc="name -> words, such as [stage=NAME, n_envs=8]; in the report's order")
    seeds: list[int] = key(
        [0, 1, 2], "of all trainings; seed s starts from the policy pretrained with seed s", least=0, most=MOST_SEED
    )
    settings: list[str] = key([], "words for every cell but the pretraining")
    total_env_steps: int | None = key(
        None, "the budget of each cell that names none of its own (null: its command's)", above=0
    )
    max_minutes: float | None = key(None, "of training, likewise (null: no limit)", above=0)
    tuning: TuningGrid | None = key(None, "settings that --tune chooses among, see below (null: none)")
    tuned: str | None = key(
        None, "the tuned.yaml that --tune wrote: its words come after the method's (null: none; relative to FILE)"
    )
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
        if self.tuning is not None:
            self._check_tuning(self.tuning)

    def _check_names(self) -> None:
        for section in ("tasks", "methods"):
            for name in getattr(self, section):
                _check_folder(f"{section}.{name}", name)
        for task, grid in self.tasks.items():
            for name in grid.pretrainings.keys() & self.methods.keys():
                raise BurnishError(f"methods.{name}: taken by the policies that the others start from")
            if grid.pretrain == {}:
                raise BurnishError(f"tasks.{task}.pretrain is empty: expected words (pretrain: [] for none), or names")
            for method in grid.methods:
                _expect(f"tasks.{task}.methods.{method}", method, self.methods)

    def settings_of(self, task: str, method: str) -> dict[str, list[str]]:
        """Those that the tuning chooses among; empty where it does not."""
        return self.tuning.of(task, method) if self.tuning else {}

    def learns(self, method: str) -> bool:
        """Whether there is something to tune."""
        options = [value for key, value in map(split, self.methods[method]) if key == "stage"]
        try:
            return not options or stage_class(stage_name(options[-1])).learns
        except BurnishError:  # said where the cell is resolved
            return True

    def _check_tuning(self, tuning: TuningGrid) -> None:
        if not tuning.seeds or len({*tuning.seeds, *self.seeds}) < len(tuning.seeds) + len(self.seeds):
            raise BurnishError(
                f"tuning.seeds={tuning.seeds}: expected one or more, all different and none of seeds={self.seeds}"
            )
        sections = {"tuning.methods": tuning.methods}
        sections |= {f"tuning.tasks.{task}": methods for task, methods in tuning.tasks.items()}
        for section, methods in sections.items():
            for method, settings in methods.items():
                _expect(f"{section}.{method}", method, self.methods)
                for name in settings:
                    _check_folder(f"{section}.{method}.{name}", name)
        for task in tuning.tasks:
            _expect(f"tuning.tasks.{task}", task, self.tasks)
        for task in self.tasks:
            numbers = {name: len(tuning.of(task, name)) for name in self.methods if self.learns(name)}
            numbers = {name: number for name, number in numbers.items() if number}
            if len(set(numbers.values())) != 1:
                found = ", ".join(f"{name} {number}" for name, number in numbers.items()) or "none"
                raise BurnishError(
                    f"tuning: the settings of the methods in {task} are {found}: expected as many for each one"
                )


def stage_name(option: str) -> str:
    """The stage's name in the registry, of an option of the config group `stage`."""
    if is_file(option):
        return str(read_option("stage", option).get("name"))
    if option in group_options("stage"):
        return str(yaml.safe_load(config_text(f"stage/{option}"))["name"])
    return option


def read_tuned(config: CompareConfig) -> dict[str, dict[str, list[str]]]:
    """Task -> method -> the words that the tuning chose; empty where the comparison names none.

    Raises BurnishError where they cannot be read, or are not of this comparison and its `tuning`.
    """
    if config.tuned is None:
        return {}
    path = Path(config.tuned)
    again = "run burnish compare FILE --tune"
    try:
        tasks = parse(Tuned, read_yaml(path)).tasks
        for task, methods in tasks.items():
            _expect(f"tasks.{task}", task, config.tasks)
            for method in methods:
                _expect(f"tasks.{task}.{method}", method, config.methods)
        for task, method in itertools.product(config.tasks, config.methods):
            words, settings = tasks.get(task, {}).get(method), config.settings_of(task, method).values()
            if settings and words not in settings:
                raise BurnishError(f"tasks.{task}.{method}={words}: expected the words of one of its settings")
    except BurnishError as error:
        raise BurnishError(f"tuned={path}: {error}; {again}") from error
    return tasks


def _expect(key: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise BurnishError(f"{key}: expected one of {', '.join(known)}")


def _check_folder(key: str, name: str) -> None:
    if not name.strip(".") or set(name) - FOLDER_CHARACTERS:
        raise BurnishError(f"{key}: it names a folder, expected letters, digits, '-', '_' and '.'")


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises BurnishError where there are no keys and values to be read."""
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise BurnishError(f"{path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise BurnishError(f"{path}: expected keys and values, such as name, tasks and methods")
    return content


def read_config(path: Path, overrides: Sequence[str] = (), *, only_report: bool = False) -> CompareConfig:
    """The comparison of a YAML file; `overrides` are key=value, such as seeds=[0,1] or tasks.lift.policy=runs/x. Its
    plugins are imported; with `only_report` those that are missing are warned of.

    Raises BurnishError where the file cannot be read, or a key or value is wrong.
    """
    path = Path(in_home("FILE", str(path)))
    content = read_yaml(path)
    if isinstance(content.get("tuned"), str):
        content["tuned"] = str(path.parent / in_home("tuned", content["tuned"]))
    for override in overrides:
        _override(content, override)
    content.setdefault("name", path.stem)
    content.setdefault("run_dir", f"runs/compare-{content['name']}")
    plugins = content.get("plugins") or []
    try:
        content["plugins"] = import_plugins(plugins if isinstance(plugins, list) else [str(plugins)])
    except NotInstalled as error:
        if not only_report:
            raise BurnishError(f"{path}: {error}") from error
        warn(f"{path}: {error}")
    except BurnishError as error:
        raise BurnishError(f"{path}: {error}") from error
    try:
        return parse(CompareConfig, with_home(content, (*PATHS, "tuned")))
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
        section[name] = load_yaml(value)
    except yaml.YAMLError as error:
        raise BurnishError(f"{override}: the value is no YAML") from error
