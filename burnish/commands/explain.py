"""What --help says about keys: read from the dataclasses that have them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from burnish.config import About, about, chosen, section_class, words

INDENT, WIDTH = 34, 110


def explain(cls: type, values: Mapping[str, Any], where: str = "") -> list[str]:
    """Lines for each key of the dataclass `cls`: its value in `values` (all of its keys, as plain data), its meaning,
    and in brackets what it may be. What the class adds to its bases comes first, sections last."""
    cls = chosen(cls, values)
    hints = get_type_hints(cls)
    own, sections = [], []
    keys = {field.name for field in fields(cls)}
    annotated = dict.fromkeys(name for base in cls.__mro__ for name in vars(base).get("__annotations__", {}))
    for name in filter(keys.__contains__, annotated):
        value, key = values[name], f"{where}{name}"
        section = section_class(hints[name], value, key)
        if section is not None:
            sections += explain(section, value, f"{key}.")
        elif doc := about(cls, name).doc:
            own.append(row(f"{key}={shown(value)}", f"{doc}{expected(about(cls, name), hints[name])}"))
    return own + sections


def expected(known: About, hint: Any) -> str:
    """What a key may be, as far as its meaning does not say so."""
    texts = [*known.options, *words(hint)]
    if all(re.search(rf"\b{text}\b", known.doc) for text in texts):
        texts = []
    listed = ", ".join(filter(None, [str(known.range), *texts]))
    return f" [{listed}]" if listed else ""


def shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "..." if value == "???" else str(value)


def row(left: str, right: str) -> str:
    """Two columns."""
    space = " " * INDENT
    text = textwrap.fill(right, WIDTH, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)
    return f"  {left:<30}  {text[INDENT:]}" if len(left) <= INDENT - 4 else f"  {left}\n{text}"
