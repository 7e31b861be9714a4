"""What commands print."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from burnish.commands.table import Command


def print_config(command: Command, config: dict[str, Any]) -> None:
    """Print a resolved configuration as YAML; checked, unless a value is still to be given."""
    import yaml

    if "???" not in config.values():
        command.parse(config)
    print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")


def report(result: Any) -> None:
    """Print what a command gives: a summary, demonstrations, or the path of what it wrote."""
    if isinstance(result, dict):
        for key, value in _flat(result):
            print(f"{key:<42}{f'{value:.6g}' if isinstance(value, float) else value}")
        return
    from burnish.datasets.checking.inspect import inspect
    from burnish.datasets.episodes import Demonstrations

    print(inspect(result) if isinstance(result, Demonstrations) else result)


def _flat(summary: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in summary.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        elif value is not None:
            yield prefix + key, value
