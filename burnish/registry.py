"""Parts that are named by a string: looked up when they are needed, so that nothing is imported for its name alone.

A name is one of the package's own tables, one that `register` added, or `module:name` of anything that can be imported.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from burnish.errors import BurnishError, NotInstalled
from burnish.foreign import cause, place_of

KINDS = ("stage", "policy", "denoiser", "behaviour", "suite")
ADDRESS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

_registered: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str, target: str) -> None:
    """Let `name` stand for `target` ("module:name") wherever a part of this kind is named. For plugins.

    Args:
        kind: stage, policy, denoiser, behaviour or suite.

    Raises:
        BurnishError: there is no such kind, `target` is no address, or the name stands for something else already.
    """
    if kind not in KINDS:
        raise BurnishError(f"register({kind!r}, {name!r}, ...): {_expected(kind, KINDS)}")
    if not is_address(target):
        raise BurnishError(f"register({kind!r}, {name!r}, {target!r}): expected module:name, as in my_package.rwr:RWR")
    if (found := _registered[kind].setdefault(name, target)) != target:
        raise BurnishError(f"register({kind!r}, {name!r}, {target!r}): it is {found} already, choose another name")


def registered(kind: str) -> list[str]:
    """The names that plugins added."""
    return list(_registered[kind])


def is_address(name: str) -> bool:
    """Whether it has the form module:name."""
    return ADDRESS.fullmatch(name) is not None


def address(kind: str, name: str) -> str:
    """`name`, by which the part is found without a plugin: that of one which a plugin registered is its target."""
    return _registered[kind].get(name, name)


def check_name(kind: str, name: str, known: Mapping[str, str], key: str) -> None:
    """Raise BurnishError where `name`, the value of `key`, is none of `known`, not registered, and no address."""
    if name in known and name in _registered[kind]:
        raise BurnishError(f"{key}={name}: a plugin registered {_registered[kind][name]} by a name of Burnish's own")
    names = [*known, *_registered[kind]]
    if name not in names and not is_address(name):
        raise BurnishError(f"{key}={name}: {_expected(name, names)}, or module:name of your own")


def find(
    kind: str, name: str, known: Mapping[str, str], key: str, base: type | None = None, keys: type | None = None
) -> Any:
    """What `name`, the value of `key`, stands for.

    Args:
        known: the package's own, name -> "module:name".
        base: that it must be a subclass of.
        keys: that its `Config`, a dataclass, must be a subclass of.

    Raises:
        NotInstalled: its module, or one that it imports, is not there.
        BurnishError: there is no such name, its module cannot be imported, or it is not what is expected.
    """
    check_name(kind, name, known, key)
    if name in known:
        return load(known[name])
    target = address(kind, name)
    module, attribute = target.split(":")
    found = getattr(import_named(module, f"{key}={name}"), attribute, None)
    if found is None:
        raise BurnishError(f"{key}={name}: module {module} has no {attribute}")
    if base is not None and not (isinstance(found, type) and issubclass(found, base)):
        raise BurnishError(f"{key}={name}: expected a subclass of {base.__module__}.{base.__qualname__}")
    config = getattr(found, "Config", None)
    if keys is not None and not (isinstance(config, type) and issubclass(config, keys) and is_dataclass(config)):
        expected = f"{keys.__module__}.{keys.__qualname__}"
        raise BurnishError(f"{key}={name}: expected its keys as a dataclass Config, a subclass of {expected}")
    if not callable(found):
        raise BurnishError(f"{key}={name}: expected a class or a function")
    return found


def import_named(module: str, asked_by: str) -> ModuleType:
    """The module of that name, which `asked_by` (key=value) needs.

    Raises:
        NotInstalled: it, or one that it imports, is not there.
        BurnishError: whatever else its import raised, with file and line.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        needs = "" if f"{module}.".startswith(f"{missing}.") else f", which {module} imports"
        raise NotInstalled(
            f"{asked_by}: there is no module {missing}{needs}: install its package, or put its folder on PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:  # a script that ends by itself
        raise BurnishError(
            f"{asked_by}: module {module} cannot be imported: {cause(error)} ({place_of(error)})"
        ) from error


def load(target: str) -> Any:
    """What "module:name" stands for."""
    module, name = target.split(":")
    return getattr(import_module(module), name)


def _expected(name: str, names: Mapping[str, Any] | list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"{f'did you mean {near[0]}? ' if near else ''}expected one of {', '.join(names)}"
