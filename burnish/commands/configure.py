"""The configuration of a command: composed anew, or with resume=RUN that of an earlier run."""

from __future__ import annotations

from typing import Any

from burnish.commands.table import Command
from burnish.compose import compose, config_groups, parse_value, split
from burnish.errors import BurnishError, NotInstalled, warn
from burnish.plugins import import_plugins


def configure(command: Command, overrides: list[str]) -> dict[str, Any]:
    """The resolved configuration, not parsed yet.

    With `resume=RUN` it is RUN/config.yaml; only wandb, device, torch_threads and the total length may be set anew.
    Raises BurnishError for everything else, and where RUN is not a run of this command.
    """
    given = {split(override)[0]: override for override in overrides}
    run = parse_value(given.pop("resume")) if "resume" in given else None
    if run is not None:
        return _resumed(command, run, given)
    return compose(command.config, overrides, _from_policy(command, given))


def _from_policy(command: Command, given: dict[str, str]) -> dict[str, Any]:
    """The task that the policy knows, and the plugins that it may need, where none is given."""
    from burnish.policies.folder import known_plugins, known_task

    groups = config_groups(command.config)
    if "task" not in groups or "task" in given or "policy" not in given or "policy" in groups:
        return {}
    folder = parse_value(given["policy"])
    task = known_task(folder)
    plugins = []
    for name in known_plugins(folder):
        try:
            plugins += import_plugins([name])
        except NotInstalled as error:  # perhaps the training needed it, and nothing here does
            warn(f"policy={folder} was made with a plugin that is not here: {error}")
    return {} if task is None else {"task": task, "plugins": plugins}


def _resumed(command: Command, run: str, given: dict[str, str]) -> dict[str, Any]:
    from burnish.runs.folder import load_config

    if not command.lengths:
        raise BurnishError(f"burnish {command.name} takes no resume=...: only trainings have runs")
    config = load_config(run)
    import_plugins(config.get("plugins", []))
    if command.section not in config:
        raise BurnishError(
            f"resume={run} is not a run of burnish {command.name}: its config.yaml has no {command.section}"
        )
    allowed = ("wandb", "device", "torch_threads", *command.lengths, *(["allow"] if "allow" in config else []))
    for key, override in given.items():
        if key not in allowed:
            raise BurnishError(f"{override}: a resumed run keeps its settings; only {', '.join(allowed)} may differ")
        others = [other for other in command.lengths if key in command.lengths and other != key]
        for each, value in {**dict.fromkeys(others), key: parse_value(override)}.items():
            *parents, name = each.split(".")
            section = config
            for parent in parents:
                section = section[parent]
            section[name] = value
    return {**config, "resume": run, "run_dir": run, "overwrite": False}
