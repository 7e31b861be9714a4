"""From YAML and `key=value` to dataclasses: composed by Hydra, then parsed strictly."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from burnish.errors import BurnishError

T = TypeVar("T")


def parse(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from plain data, refusing what does not fit.

    Integers widen to float where a float is expected, whole floats (1e6) narrow to integers. `where` is the dotted
    key of `mapping`, for messages. A class with a `choose` of its own is the base of others, and says which of them
    `mapping` is for. Raises BurnishError for an unknown key (naming the nearest right one), a missing or `???` value,
    or a value of the wrong type.
    """
    if not isinstance(mapping, Mapping):
        raise BurnishError(f"{where or cls.__name__}={mapping!r}: expected keys and values")
    if "choose" in vars(cls):
        cls = cls.choose(mapping)  # type: ignore[attr-defined]
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise BurnishError(unknown_key(_join(where, str(key)), [_join(where, name) for name in fields]))
    values = {}
    for name, field in fields.items():
        key = _join(where, name)
        if name in mapping and mapping[name] != "???":
            values[name] = _convert(hints[name], mapping[name], key)
        elif name in mapping or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING):
            raise BurnishError(f"{key} is missing: give {key}=...")
    try:
        return cls(**values)
    except ValueError as error:
        raise BurnishError(f"{where or cls.__name__}: {error}") from error


def to_dict(instance: Any) -> dict[str, Any]:
    """A dataclass as plain dict, list, str, number, bool and None: what YAML and JSON can hold."""
    return {field.name: _plain(getattr(instance, field.name)) for field in dataclasses.fields(instance)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key that does not exist: the nearest right ones, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # the right name in the wrong place
        leaf = key.rsplit(".", 1)[-1]
        near = [name for name in known if name.rsplit(".", 1)[-1] == leaf][:3]
    if near:
        return f"unknown key {key}: did you mean {' or '.join(near)}?"
    shown = known if len(known) <= 20 else [name for name in known if "." not in name]
    return f"unknown key {key}: expected one of {', '.join(shown)}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin = get_origin(hint) or hint
    if hint is Any or (dataclasses.is_dataclass(value) and isinstance(value, origin)):
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, key)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return parse(hint, value, key)  # type: ignore[arg-type]
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        return _convert_sequence(hint, value, key)
    if origin is dict and isinstance(value, Mapping):
        key_hint, item_hint = get_args(hint) or (Any, Any)
        return {
            _convert(key_hint, name, key): _convert(item_hint, item, _join(key, str(name)))
            for name, item in value.items()
        }
    return _convert_scalar(hint, value, key)


def _convert_scalar(hint: Any, value: Any, key: str) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is hint or any(value == option and type(value) is type(option) for option in get_args(hint)):
        return value
    raise BurnishError(f"{key}={_show(value)}: expected {_describe(hint)}")


def _convert_union(options: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if all(map(dataclasses.is_dataclass, options)) and isinstance(value, Mapping):
        options = _of_kind(options, value, key)
    if len(options) == 1:
        return _convert(options[0], value, key)
    for option in sorted(options, key=lambda option: type(value) is not option):  # the exact type first
        try:
            return _convert(option, value, key)
        except BurnishError:
            continue
    raise BurnishError(f"{key}={_show(value)}: expected {' or '.join(map(_describe, options))}")


def _of_kind(options: tuple[Any, ...], value: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """Of several dataclasses the one whose `kind` is `value`'s; the first where it has none (older files)."""
    kinds = {
        field.default: option for option in options for field in dataclasses.fields(option) if field.name == "kind"
    }
    if len(kinds) < len(options):
        return options
    if "kind" not in value:
        return options[:1]
    if value["kind"] not in kinds:
        raise BurnishError(f"{_join(key, 'kind')}={_show(value['kind'])}: expected {' or '.join(map(str, kinds))}")
    return (kinds[value["kind"]],)


def _convert_sequence(hint: Any, value: list[Any] | tuple[Any, ...], key: str) -> Any:
    args = get_args(hint)
    if get_origin(hint) is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise BurnishError(f"{key}={_show(value)}: expected {len(args)} values")
        item_hints: Iterable[Any] = args
    else:
        item_hints = itertools.repeat(args[0] if args else Any)
    items = [_convert(item, each, f"{key}[{i}]") for i, (item, each) in enumerate(zip(item_hints, value))]
    return tuple(items) if tuple in (hint, get_origin(hint)) else items


def _describe(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text (in quotes if it looks like a number)",
        type(None): "null",
    }
    origin, args = get_origin(hint), get_args(hint)
    if hint in names:
        return names[hint]
    if origin is Literal:
        return "one of " + ", ".join(map(_show, args))
    if origin in (list, tuple) or hint in (list, tuple):
        return "a list [...]"
    return "keys and values"


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
