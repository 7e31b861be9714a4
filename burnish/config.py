"""Dataclasses of settings, which have default, range and meaning of each key, and strict parsing into them."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import itertools
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from burnish.errors import BurnishError
from burnish.foreign import cause, one_line

T = TypeVar("T")
POWER_OF_TEN = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
MOST_SEED = 2**31 - 1  # numbers derived from it suit all generators, those of simulators among them
MOST_NODES = 100_000  # values in a YAML file
MOST_WHOLE = 2**63  # what torch and NumPy can hold
MISSING = dataclasses.MISSING


def key(
    default: Any = MISSING,
    doc: str = "",
    *,
    factory: Any = MISSING,
    options: Iterable[str] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    kw_only: bool = False,
) -> Any:
    """A field of a `Checked` dataclass.

    Args:
        default: without one, and without `factory` (what makes it), the key must be given. A list is copied.
        doc: what the key means; its line in the --help.
        options: the texts that it may be, where its type does not say.
        least, above, most, below: range of a number, and of each number of a list. Infinity must be an end itself.
        kw_only: given by its name alone; False: as the class has it.
    """
    if isinstance(default, list):
        default, factory = MISSING, lambda found=default: copy.copy(found)
    about = About(doc, tuple(options), Range(least, above, most, below))
    return dataclasses.field(
        default=default, default_factory=factory, metadata={About: about}, kw_only=kw_only or MISSING
    )


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a key may have."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def admits(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
            and (abs(number) < MOST_WHOLE if isinstance(number, int) else self._is_end(number) or math.isfinite(number))
        )

    def _is_end(self, number: float) -> bool:
        return number in (self.least, self.most)

    def __str__(self) -> str:
        """What is expected; empty where every finite number is."""
        if self.least is not None and self.most not in (None, math.inf):
            return f"{self.least} to {self.most}"
        words = {"at least": self.least, "more than": self.above, "at most": self.most, "less than": self.below}
        return " and ".join(f"{word} {end}" for word, end in words.items() if end not in (None, math.inf))


@dataclasses.dataclass(frozen=True)
class About:
    """What `key` was told beside the default."""

    doc: str = ""
    options: tuple[str, ...] = ()
    range: Range = Range()


def about(cls: type, name: str) -> About:
    """Meaning and range of a key of the dataclass `cls`: a subclass that changes its default need not repeat them."""
    for base in cls.__mro__:
        field = vars(base).get("__dataclass_fields__", {}).get(name)
        if field is not None and About in field.metadata:
            return field.metadata[About]
    return About()


class WrongValue(BurnishError):
    """A value that the dataclass refuses. The message begins with `key=value`; `parse` says in which section."""


class Checked:
    """Base of the dataclasses of settings: whoever makes one, each key is held against its range."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, known = getattr(self, field.name), about(type(self), field.name)
            items = value if isinstance(value, (list, tuple)) else [value]
            if known.options and any(isinstance(item, str) and item not in known.options for item in items):
                raise WrongValue(f"{field.name}={_show(value)}: expected one of {', '.join(known.options)}")
            numbers = [item for item in items if isinstance(item, (int, float)) and not isinstance(item, bool)]
            if not all(map(known.range.admits, numbers)):
                expected = str(known.range) or "a finite number"
                each = " each" if items is value else ""
                instead = "".join(f", or {word}" for word in words(get_type_hints(type(self))[field.name]))
                raise WrongValue(f"{field.name}={_show(value)}: expected {expected}{each}{instead}")
            if any(map(math.isnan, _floats(value))):
                raise WrongValue(f"{field.name}={_show(value)}: nan is no number, expected others")
        self.check()

    def check(self) -> None:
        """Raise BurnishError for values that do not go together."""


def _floats(value: Any) -> Iterator[float]:
    """Those in lists and mappings, however deep; sections have been looked at themselves."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _floats(item)


def words(hint: Any) -> list[str]:
    """The words that a value of this type may be, null among them."""
    if hint is type(None):
        return ["null"]
    if get_origin(hint) in (Union, types.UnionType):
        return [word for option in get_args(hint) for word in words(option)]
    return [_show(option) for option in get_args(hint)] if get_origin(hint) is Literal else []


def load_yaml(text: str, *, as_written: bool = False) -> Any:
    """What a YAML text says, 1e6 and 1e-3 being numbers as people write them (YAML 1.1 takes them for text, and so it
    is for a file `as_written` by us), but for names of keys.

    Raises yaml.YAMLError, also for what Python cannot make of it, and for more than `MOST_NODES` values, which aliases
    of aliases make of a few lines.
    """
    import yaml  # here, as training needs none

    loader = yaml.SafeLoader(text) if as_written else _loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST_NODES:
            raise yaml.YAMLError(f"more than {MOST_NODES:,} values, aliases counted as often as they are used")
        return loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except Exception as error:  # of 2024-13-32, [[[[..., !!timestamp x it raises what Python does
        raise yaml.YAMLError(cause(error)) from error
    finally:
        loader.dispose()


def _count(node: Any, known: dict[int, float]) -> float:
    """Values in a node of YAML, aliases followed; infinite where one contains itself. `known`: id of a node -> its."""
    if id(node) not in known:
        known[id(node)] = math.inf
        found = node.value if isinstance(node.value, list) else []
        parts = [part for each in found for part in (each if isinstance(each, tuple) else (each,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


@functools.cache
def _loader() -> Any:
    import yaml

    number, text = "tag:yaml.org,2002:float", "tag:yaml.org,2002:str"

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            for name, _ in node.value:
                if name.tag == number and POWER_OF_TEN.fullmatch(name.value):
                    name.tag = text
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(number, re.compile(f"(?:{POWER_OF_TEN.pattern})$"), list("-+.0123456789"))
    return Loader


def parse(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from plain data, refusing what does not fit.

    Integers widen to float where a float is expected, whole floats (1e6) narrow to integers. `where` is the dotted
    key of `mapping`, for messages. For the base of several dataclasses one of them is `chosen`. Raises BurnishError
    for an unknown key (naming the nearest right one), a missing or `???` value, or one of the wrong type or range.
    """
    if not isinstance(mapping, Mapping):
        raise BurnishError(f"{where or cls.__name__}={_show(mapping)}: expected keys and values")
    cls = chosen(cls, mapping)
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise BurnishError(unknown_key(_join(where, str(key)), [_join(where, name) for name in fields]))
    values = {}
    for name, field in fields.items():
        key = _join(where, name)
        if name in mapping and not (isinstance(mapping[name], str) and mapping[name] == "???"):
            values[name] = _convert(hints[name], mapping[name], key)
        elif name in mapping or _default(field) is MISSING:
            raise BurnishError(f"{key} is missing: give {key}=...")
    try:
        return cls(**values)
    except WrongValue as error:
        raise BurnishError(_join(where, str(error))) from error
    except ValueError as error:
        raise BurnishError(f"{where or cls.__name__}: {error}") from error


def completed(cls: type, given: Mapping[str, Any], default: Any = None) -> dict[str, Any]:
    """`given` over the defaults of the dataclass `cls`, or over those in `default`, an instance of it, as plain data.

    What has no default is "???". Keys that `cls` does not have stay, for `parse` to refuse.
    """
    cls = chosen(cls, given)
    hints = get_type_hints(cls)
    result: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        own = getattr(default, field.name) if isinstance(default, cls) else _default(field)
        value = given.get(field.name, "???" if own is MISSING else own)
        section = section_class(hints[field.name], value, field.name)
        result[field.name] = _plain(value) if section is None else completed(section, value, own)
    return {**result, **{str(name): value for name, value in given.items() if name not in result}}


def chosen(cls: Any, values: Mapping[str, Any]) -> Any:
    """`cls`; where it is the base of others and has a `choose` of its own, the one of them that `values` are for."""
    return cls.choose(values) if "choose" in vars(cls) else cls


def section_class(hint: Any, value: Any, key: str) -> type | None:
    """The dataclass that the keys and values `value` are for, by the key's type; None where it is a value."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    options = tuple(option for option in options if dataclasses.is_dataclass(option))
    return _of_kind(options, value, key)[0] if options and isinstance(value, Mapping) else None


def _default(field: dataclasses.Field[Any]) -> Any:
    """MISSING where the key must be given."""
    return field.default if field.default_factory is MISSING else field.default_factory()


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
    if hint in (int, float) and isinstance(value, str) and POWER_OF_TEN.fullmatch(value):
        value = float(value)  # YAML takes 1e6 for text: its numbers have a point and a sign, 1.0e+6
    if hint is float and type(value) is int and abs(value) < MOST_WHOLE:
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
    if len(options) == 1:
        return options
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
    if isinstance(value, int) and abs(value) >= MOST_WHOLE:  # Python refuses to write the largest
        return f"a number of {value.bit_length()} bits"
    return one_line(str(value), 200)
