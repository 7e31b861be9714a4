"""Damage: of bytes, of trees of plain values, of HDF5, of arrays, of words on the command line. All from a generator.

A mutation says what it did. `MUST_REFUSE` in its words: whoever reads a difference there has read another file, or
what a checksum belies.
"""

from __future__ import annotations

import io
import json
import random
import string
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MUST_REFUSE = "(must be refused)"
OTHER_FILE = "/etc/passwd"  # that nobody wants to find in observations
BOMB_BYTES = 2**29
LONG = 300


def bytes_of(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A file's bytes, damaged."""
    kind = rng.choice(["bit", "bit", "bits", "byte", "zeros", "cut", "cut", "splice", "insert", "append", "swap"])
    if not data:
        return b"\0", "a byte in an empty file"
    changed, at = bytearray(data), rng.randrange(len(data))
    if kind == "bit":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "bits":
        for _ in range(rng.randint(2, 64)):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        changed[at] = rng.randrange(256)
    elif kind == "zeros":
        size = min(len(data) - at, rng.choice([1, 16, 512, 4096]))
        changed[at : at + size] = bytes(size)
    elif kind == "cut":
        changed = changed[:at]
    elif kind == "splice":
        size, source = rng.choice([8, 64, 1024]), rng.randrange(len(data))
        block = data[source : source + size]
        changed[at : at + len(block)] = block
    elif kind == "insert":
        changed[at:at] = rng.randbytes(rng.choice([1, 7, 100]))
    elif kind == "append":
        changed += rng.randbytes(rng.choice([1, 100, 5000]))
    else:
        half = len(data) // 2
        changed = changed[half:] + changed[:half]
    return bytes(changed), f"{kind} at byte {at} of {len(data)}"


def strange(rng: random.Random) -> Any:
    """A value that is not expected anywhere."""
    return rng.choice(
        [
            *(None, True, False, -1, 0, 1, 2**31, 2**62, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-308, 1e9),
            *(float("nan"), float("inf"), -float("inf"), "", "x", "nan", "1e400", "\u2603", "a\nb", "~", "../..", "0"),
            *("x" * LONG, [], {}, [1, 2, 3], [[]], [None], {"x": 1}, {"": None}, ["x"] * 50, [0.0] * 1000),
            _nested(rng.choice([3, 60, 500])),
        ]
    )


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def tree(root: Any, rng: random.Random, value: Callable[[random.Random], Any] = strange) -> str:
    """Change one place of nested dicts and lists, which are changed."""
    places = list(_places(root))
    if not places:
        root["added"] = value(rng)
        return "a key added to nothing"
    container, key, path = rng.choice(places)
    kind = rng.choice(["other", "other", "other", "other", "delete", "add", "swap", "scale", "wrap", "rename"])
    if kind == "delete":
        del container[key]
    elif kind == "add" and isinstance(container, dict):
        container[rng.choice(["added", "", "format", "name", "kind"])] = value(rng)
    elif kind == "rename" and isinstance(container, dict):
        container[f"{key}s"] = container.pop(key)
    elif kind == "swap":
        other, its_key, its_path = rng.choice(places)
        if not (its_path.startswith(path) or path.startswith(its_path)):
            container[key], other[its_key] = other[its_key], container[key]
    elif kind == "scale" and isinstance(container[key], (int, float)) and not isinstance(container[key], bool):
        container[key] = container[key] * rng.choice([-1, 1000, 10**9, 0.001])
    elif kind == "wrap":
        container[key] = [container[key]]
    else:
        container[key] = value(rng)
    return f"{kind} at {path}"


def _places(value: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield value, key, f"{path}/{key}"
        yield from _places(item, f"{path}/{key}")


def json_text(text: str, rng: random.Random) -> tuple[str, str]:
    """JSON with one other value, key or kind."""
    content = json.loads(text)
    if rng.random() < 0.05:
        content, what = strange(rng), "another value for all of it"
    else:
        what = tree(content, rng)
    return json.dumps(content), what


ALIASES = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)), "task: *a29"]
)
YAML_TEXTS = (
    *("", "\t", "- 1", "x", "1", "null", "a: b: c", "{", "? x\n: y", "!!python/object/apply:os.getcwd []", "&a [*a]"),
    *("a: 1\na: 2", "%YAML 9.9\n---\n", "---\n---\n", "a: !!binary x", "a: 2001-13-45", "a: !!timestamp x", "*x"),
    *(ALIASES, "[" * 3000, "{a: " * 2000, "name: '\\x00'", "x: " + "9" * 5000, "a: 1_0", "\ufeffname: x", "<<: 3"),
)


def yaml_text(text: str, rng: random.Random) -> tuple[str, str]:
    """YAML with one other value, key or kind; a line that is another; or what parsers stumble over."""
    import yaml

    kind = rng.random()
    if kind < 0.6:
        content = yaml.safe_load(text)
        what = tree(content, rng)
        return yaml.safe_dump(content, sort_keys=False), what
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    if kind < 0.7:
        special = rng.choice(YAML_TEXTS)
        return special, f"all of it is {special[:40]!r}"
    if kind < 0.8:
        name, _, _ = lines[at].partition(":")
        found = rng.choice(["${oc.env:HOME}", "${oc.env:CHAOS_SECRET}", "${task.name}", "${x}", "${", "${oc.decode:1}"])
        lines[at] = f"{name}: {found}"
        what = f"line {at} resolves {found}"
        return "\n".join(lines), f"{what} {MUST_REFUSE}" if "oc.env" in found else what
    if kind < 0.9:
        special = rng.choice([each for each in YAML_TEXTS if "\n" not in each])
        lines[at] = f"{lines[at].partition(':')[0]}: {special}"
        return "\n".join(lines), f"line {at} says {special[:40]!r}"
    lines[at] = rng.choice(
        ["", "  " + lines[at], lines[at].strip(), lines[at] + lines[at], lines[at][: len(lines[at]) // 2]]
    )
    return "\n".join(lines), f"line {at} is another"


def hdf5(path: Path, rng: random.Random) -> str:  # noqa: PLR0911 - one for each kind
    """Change one object or attribute of an HDF5 file."""
    import h5py

    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        kind = rng.choice(
            ["attribute", "attribute", "values", "values", "shape", "dtype", "object", "link", "delete", "huge"]
        )
        found = file[name]
        if kind == "attribute":
            return f"attribute of {_attribute(found if len(found.attrs) else file['/'], file, rng)}"
        if kind in ("values", "shape", "dtype") and not isinstance(found, h5py.Dataset):
            name = rng.choice([each for each in names if isinstance(file[each], h5py.Dataset)])
            found = file[name]
        if kind == "delete":
            del file[name]
            return f"{name} deleted"
        if kind == "values":
            values = found[()]
            if values.dtype.kind not in "biuf" or not values.size:
                kind = "dtype"
            else:
                flat = values.reshape(-1).astype(values.dtype)
                at = rng.randrange(flat.size)
                with np.errstate(all="ignore"):
                    new = np.array(rng.choice([np.nan, np.inf, -np.inf, 1e30, -1e30, 2, -3, 0, 255, 1e9]))
                    count = rng.choice([1, 1, flat.size])
                    flat[at : at + count] = np.nan_to_num(new).astype(flat.dtype) if flat.dtype.kind != "f" else new
                found[...] = flat.reshape(values.shape)
                return f"{name}[{at}:{at + count}] = {new}"
        if kind == "shape":
            values = found[()]
            new = rng.choice(
                [
                    lambda: values[: rng.randrange(len(values) + 1)],
                    lambda: np.concatenate([values, values]),
                    lambda: values[..., None],
                    lambda: values[None],
                    lambda: values.reshape(-1),
                    lambda: values[:0],
                    lambda: np.float32(1),
                    lambda: values.T,
                    lambda: np.zeros((len(values), 0), np.float32),
                ]
            )()
            _replace(file, name, new)
            return f"{name} has the shape {np.shape(new)}"
        if kind == "dtype":
            shape = found.shape or (3,)
            new = rng.choice(
                [
                    lambda: np.full(shape, b"word"),
                    lambda: np.full(shape, "word", dtype=h5py.string_dtype()),
                    lambda: np.zeros(shape, np.complex64),
                    lambda: np.zeros(shape, [("a", "i4"), ("b", "f8")]),
                    lambda: np.zeros(shape, np.int8),
                    lambda: np.full(shape, 2**64 - 1, np.uint64),
                    lambda: np.zeros(shape, np.float16),
                    lambda: np.zeros(shape, bool),
                    lambda: np.zeros(shape, "V7"),
                    lambda: h5py.Empty("f4"),
                ]
            )()
            _replace(file, name, new)
            return f"{name} is of {getattr(new, 'dtype', type(new))}"
        if kind == "object":
            del file[name]
            if rng.random() < 0.5:
                file.create_group(name)
                return f"{name} is an empty group"
            file[name] = np.dtype("f8")
            return f"{name} is a type"
        if kind == "link":
            return _link(file, name, rng)
        return _huge(file, name, rng)


def _attribute(found: Any, file: Any, rng: random.Random) -> str:
    holder = found if len(found.attrs) else file.get("data", file)
    name = rng.choice([*holder.attrs, "added", "env_args", "model_file"])
    old = holder.attrs.get(name)
    if isinstance(old, str) and old.startswith("{") and rng.random() < 0.7:
        new, what = json_text(old, rng)
        holder.attrs[name] = new
        return f"{holder.name}: {name}, {what}"
    new = rng.choice(
        [
            *(1, -1, 2**62, np.nan, "", "{", "null", "[1]", "3", b"\xff\xfe", "\u2603", "x" * 5000, [1, 2], ["a", "b"]),
            *(np.zeros((2, 2)), np.void(b"abc"), np.bytes_("{}"), "[" * 2000, '{"type": 1}', '{"env_name": 3}'),
        ]
    )
    if rng.random() < 0.1 and old is not None:
        del holder.attrs[name]
        return f"{holder.name}: {name} deleted"
    holder.attrs[name] = new
    return f"{holder.name}: {name} = {str(new)[:40]!r}"


def _replace(file: Any, name: str, value: Any) -> None:
    del file[name]
    file.create_dataset(name, data=value)


def _link(file: Any, name: str, rng: random.Random) -> str:
    import h5py

    kind = rng.choice(["soft", "cycle", "missing", "external", "storage", "virtual", "hard"])
    found = file[name]
    shape = found.shape if isinstance(found, h5py.Dataset) and found.shape else (4, 3)
    parent = found.parent
    own = found.name.rpartition("/")[2]
    del parent[own]
    if kind == "soft":
        parent[own] = h5py.SoftLink(rng.choice(["/nowhere", "/", ".", f"/{name}"]))
    elif kind == "cycle":
        parent[own] = parent
    elif kind == "missing":
        parent[own] = h5py.ExternalLink("not-here.hdf5", "/x")
    elif kind == "external":
        parent[own] = h5py.ExternalLink(OTHER_FILE, "/")
        return f"{name} is a link into {OTHER_FILE} {MUST_REFUSE}"
    elif kind == "storage":
        size = int(np.prod(shape)) * 4
        parent.create_dataset(own, shape, "f4", external=[(OTHER_FILE, 0, min(size, 400) if size < 400 else size)])
        return f"{name} has its values in {OTHER_FILE} {MUST_REFUSE}"
    elif kind == "virtual":
        layout = h5py.VirtualLayout(shape, "f4")
        layout[...] = h5py.VirtualSource("not-here.hdf5", "x", shape)
        parent.create_virtual_dataset(own, layout)
        return f"{name} is virtual, its source is missing {MUST_REFUSE}"
    else:
        parent[own] = file[rng.choice(list(file))]
    return f"{name} is a {kind} link"


def _huge(file: Any, name: str, rng: random.Random) -> str:
    """Declared, not written: what is allocated for it is nothing that the file justifies."""
    shape = rng.choice([(2**40,), (2**31, 3), (2**34, 7), (2**62,), (3, 2**33)])
    del file[name]
    file.create_dataset(name, shape, "f4", chunks=tuple(min(size, 1000) for size in shape))
    return f"{name} declares {shape}"


def npz(path: Path, rng: random.Random) -> str:
    """Change one array of an npz file, or how it is stored."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    name = rng.choice(list(arrays))
    kind = rng.choice(["delete", "values", "values", "shape", "dtype", "objects", "declares", "bomb", "add", "member"])
    values = arrays[name]
    if kind == "delete":
        del arrays[name]
    elif kind == "values" and values.size:
        flat = values.astype(np.float64).reshape(-1)
        flat[rng.randrange(flat.size)] = new = rng.choice([np.nan, np.inf, -1.0, 1e300, 2.0**62, 0.5, -(2.0**40)])
        arrays[name] = flat.reshape(values.shape)
        kind = f"the value {new}"
    elif kind == "shape":
        new_values = rng.choice(
            [values[:-1], values[None], values[..., None], values.reshape(-1), values[:0], np.array(3)]
        )
        arrays[name] = new_values
        kind = f"the shape {np.shape(new_values)}"
    elif kind == "dtype":
        dtype = rng.choice(["c8", "i1", "u8", "f2", "S3", "U3", "M8[s]", "?", "V4"])
        arrays[name] = np.zeros(values.shape, dtype)
        kind = f"dtype {dtype}"
    elif kind == "objects":
        arrays[name] = np.array([{"a": 1}] * max(1, len(np.atleast_1d(values))), object)
    elif kind == "add":
        arrays[rng.choice(["added", "images", ""]) or "x"] = np.zeros(3)
    if kind in ("declares", "bomb", "member"):
        _special_member(path, arrays, name, kind, rng)
    else:
        np.savez(path, **arrays)
    return f"{name}: {kind}"


def _special_member(path: Path, arrays: dict[str, Any], name: str, kind: str, rng: random.Random) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for key, values in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, values)
            if key != name:
                file.writestr(f"{key}.npy", buffer.getvalue())
        if kind == "member":
            file.writestr(
                f"{name}.npy", rng.choice([b"", b"x", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\0" * 99])
            )
            return
        shape: Any = (2**62,) if kind == "declares" else (BOMB_BYTES // 8,)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
        if kind == "declares":
            file.writestr(f"{name}.npy", header.getvalue() + b"\0" * 80)
            return
    _add_bomb(path, f"{name}.npy", header.getvalue())


def _add_bomb(path: Path, name: str, header: bytes) -> None:
    """A member that unpacks to half a gigabyte of zeros, out of half a megabyte."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        block = bytes(2**20)
        with file.open(name, "w", force_zip64=True) as member:
            member.write(header)
            for _ in range(BOMB_BYTES // len(block)):
                member.write(block)


def csv(text: str, rng: random.Random) -> tuple[str, str]:
    """A table with one other cell, line or column."""
    rows = [line.split(",") for line in text.splitlines()]
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    kind = rng.choice(["cell", "cell", "cell", "delete", "double", "column", "short", "long", "header"])
    cell = rng.choice(
        ["", "nan", "inf", "1e400", "x", '"', '"a,b"', " 1", "-", "1_0", "\u0663", "0x10", "1e30", "\0", "9" * 5000]
    )
    if kind == "cell":
        rows[row][column] = cell
    elif kind == "delete":
        del rows[row]
    elif kind == "double":
        rows.insert(row, list(rows[row]))
    elif kind == "column":
        rows = [each[:column] + each[column + 1 :] for each in rows]
    elif kind == "short":
        rows[row] = rows[row][:column]
    elif kind == "long":
        rows[row].append(cell)
    else:
        rows[0][column] = rng.choice([*rows[0], "", "x.1000000000", "action.7", "action", "pos.-1", "pos.0.1", "step"])
    return "\n".join(map(",".join, rows)) + "\n", f"{kind} in line {row}, column {column}: {cell[:20]!r}"


WORDS = (
    *("nan", "inf", "-inf", "-1", "0", "1", "1e400", "1e308", "1e-320", "9999999999999999999999", "null", "true", "''"),
    *(
        '""',
        "[]",
        "{}",
        "[1,2]",
        "{a:1}",
        "[[]]",
        "x",
        "???",
        "${oc.env:HOME}",
        "${task.name}",
        "${",
        "$",
        "~",
        "'",
        '"',
    ),
    *(
        "a,b",
        "range(0,3)",
        "choice(1,2)",
        "glob(*)",
        "interval(0,1)",
        "1_0",
        "0x10",
        "0b1",
        "1.5",
        "\u2603",
        "\u00e9" * 40,
    ),
    *(
        "a=b",
        "a:b",
        "@x",
        "!x",
        "#x",
        "%",
        "*",
        "\\",
        "/",
        "..",
        "/dev/null",
        "/etc/passwd",
        "a b",
        "\n",
        "\t",
        "\0",
        "x" * 300,
    ),
    *(
        "[" * 200,
        "{a:" * 100,
        "shuffle(a,b)",
        "sort(3,1)",
        "tag(a,1)",
        "int(x)",
        "float(nan)",
        "json_str([)",
        "1:2",
        "-",
    ),
    *(
        "torch:nn",
        "os:system",
        "x.y:Z",
        "file.yaml",
        "x.yml",
        "1e6",
        "1E6",
        "+1",
        "--",
        "null,null",
        "Nan",
        "NULL",
        "off",
    ),
)


def overrides(words: list[str], rng: random.Random, keys: list[str]) -> tuple[list[str], str]:
    """Words of a command line, one of them added or another."""
    kind = rng.choice(["value", "value", "value", "value", "key", "typo", "prefix", "bare", "twice", "text"])
    key, value = rng.choice(keys), rng.choice(WORDS)
    if kind == "typo":
        at = rng.randrange(len(key))
        key = key[:at] + rng.choice(string.ascii_lowercase + ".") + key[at + rng.randint(0, 1) :]
    elif kind == "key":
        key = rng.choice(
            ["", ".", "a.b", "task", "stage", "policy.", "x" * 300, "task.env_kwargs.x", "__class__", "[0]", "a[0]"]
        )
    elif kind == "prefix":
        key = rng.choice(["+", "++", "~", "-", "@", "'", " "]) + key
    word = f"{key}={value}"
    if kind == "bare":
        word = rng.choice([key, value, "=", "==", f"{key}=", f"={value}", ""])
    elif kind == "twice":
        return [*words, word, f"{key}={rng.choice(WORDS)}"], f"{word!r} twice"
    elif kind == "text":
        at = rng.randrange(len(words))
        changed, _ = bytes_of(words[at].encode(), rng)
        return [*words[:at], changed.decode(errors="surrogateescape")[:LONG], *words[at + 1 :]], f"word {at} is damaged"
    return [*words, word], repr(word)[:80]
