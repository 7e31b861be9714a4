"""Other people's modules, imported where the package is used, so that what they register can be named.

They come from the key `plugins`, from the environment variable BURNISH_PLUGINS=a,b, and from installed packages with an
entry point in the group burnish.plugins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from burnish.config import Checked, key
from burnish.errors import BurnishError
from burnish.registry import import_named

VARIABLE = "BURNISH_PLUGINS"
GROUP = "burnish.plugins"

_imported: list[str] = []


@dataclass(frozen=True, kw_only=True)
class PluginsConfig(Checked):
    """What the configuration of every command has. Imported by whoever composes or reads it, before it is parsed."""

    plugins: list[str] = key(
        [], f"modules to import first, for the names that they register ({VARIABLE}=a,b adds to them)"
    )


def import_plugins(names: Iterable[str] = ()) -> list[str]:
    """Import those of the installed packages, of BURNISH_PLUGINS and `names` -> `names` and those of BURNISH_PLUGINS,
    each once: what a run must record to be resumed elsewhere.

    Raises:
        NotInstalled: there is no such module.
        BurnishError: it cannot be imported.
    """
    for point in _entry_points():
        import_named(point.module, f"the plugin {point.name} of {point.dist.name if point.dist else 'a package'}")
    wanted = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    wanted = list(dict.fromkeys([*names, *wanted]))
    for name in wanted:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise BurnishError(f"plugins=[{name}]: expected names of modules, as plugins=[my_package.robots]")
        import_named(name, f"plugins=[{name}]")
    _imported.extend(name for name in wanted if name not in _imported)
    return wanted


def imported_plugins() -> Sequence[str]:
    """All that `import_plugins` was asked for by name in this process: what a worker process imports as well."""
    return tuple(_imported)


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))
