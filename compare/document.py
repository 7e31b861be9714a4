"""A document of a few kinds of blocks, written as Markdown, as one self-contained HTML file, and its tables as CSV."""

from __future__ import annotations

import base64
import csv
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple, TypeAlias

from burnish.compare.statistics import Estimate

Value: TypeAlias = "str | int | float | Estimate | None"

WIDTH = 150  # letters in a line where no terminal says otherwise
LONG = 40  # letters in a cell, from which on it is broken into lines

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: #1a1a1a; background: #fff;
  margin: 0 auto; padding: 1rem; max-width: 1240px; }
h1, h2, h3 { overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.35rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.08rem; margin: 1.6rem 0 .4rem; } p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: .6rem 0 1rem; border: 1px solid #ddd; border-radius: 4px; }
table { border-collapse: collapse; font-size: .86rem; min-width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e5e5e5; }
th { background: #f3f4f6; vertical-align: bottom; white-space: normal; } tr:last-child td { border-bottom: 0; }
.words { text-align: left; } td.long { white-space: normal; min-width: 20rem; max-width: 34rem; }
td:first-child { font-weight: 600; position: sticky; left: 0; background: #fff; }
@media (max-width: 600px) { body { padding: .6rem; } th, td { padding: .3rem .45rem; } }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; } figure img { display: block; width: 100%; max-width: 46rem; height: auto; }
figcaption { font-size: .9rem; color: #444; }
details { margin: .4rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
pre { font-size: .82rem; overflow-x: auto; background: #f3f4f6; padding: .7rem; border-radius: 4px; }
ul { padding-left: 1.2rem; } li { overflow-wrap: anywhere; }
"""


class Heading(NamedTuple):
    text: str
    level: int = 2


class Paragraph(NamedTuple):
    text: str


class Bullets(NamedTuple):
    items: tuple[str, ...]


class Column(NamedTuple):
    """`form` writes numbers and both ends of an interval; a column of words has none."""

    title: str
    form: str | None = None


class Table(NamedTuple):
    """`name` is that of its CSV file, where an estimate takes three columns."""

    name: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Value]]


class Picture(NamedTuple):
    path: Path
    caption: str


class Pictures(NamedTuple):
    pictures: tuple[Picture, ...]


class Details(NamedTuple):
    """Folded text: in HTML `text` behind `title`, in Markdown the title alone."""

    title: str
    text: str


Block: TypeAlias = "Heading | Paragraph | Bullets | Table | Pictures | Details"


def write_document(title: str, blocks: Sequence[Block], folder: Path, name: str) -> Path:
    """Write NAME.html, NAME.md and the CSV of each table into `folder` -> path of the HTML."""
    for block in blocks:
        if isinstance(block, Table):
            write_csv(block, folder / f"{block.name}.csv")
    markdown = "\n\n".join([f"# {title}", *(_markdown(block, folder) for block in blocks)])
    (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
    html = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(_html(block) for block in blocks)
        + "\n</body>\n</html>\n"
    )
    path = folder / f"{name}.html"
    path.write_text(html, encoding="utf-8")
    return path


def print_blocks(blocks: Sequence[Block]) -> None:
    """Headings, paragraphs, items and tables as they fit into a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape as literal
    from rich.table import Table as Drawn

    console = Console(highlight=False, **({} if sys.stdout.isatty() else {"width": WIDTH}))  # type: ignore[arg-type]
    for block in blocks:
        match block:
            case Heading(text, _) | Paragraph(text):
                console.print(literal(text))
            case Bullets(items):
                for item in items:
                    console.print(f"- {literal(item)}")
            case Table(_, columns, rows):
                drawn = Drawn(box=SIMPLE_HEAD)
                cells = [[literal(shown(cell, column.form)) for cell, column in zip(row, columns)] for row in rows]
                for column, each in zip(columns, zip(*cells)):
                    numbers = column.form is not None  # an interval is not broken
                    width = max(map(len, each)) if numbers else None
                    drawn.add_column(literal(column.title), justify="right" if numbers else "left", min_width=width)
                for row in cells:
                    drawn.add_row(*row)
                console.print(drawn)


def write_csv(table: Table, path: Path) -> None:
    """Full numbers; an estimate is its value, low and high."""
    wide = [any(isinstance(row[i], Estimate) for row in table.rows) for i in range(len(table.columns))]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        head: list[str] = []
        for column, has_interval in zip(table.columns, wide):
            head += [column.title, *([f"{column.title} {end}" for end in ("low", "high")] if has_interval else [])]
        writer.writerow(head)
        for row in table.rows:
            writer.writerow([plain for cell, has_interval in zip(row, wide) for plain in _plain(cell, has_interval)])


def shown(cell: Value, form: str | None) -> str:
    """A cell as it is read: a number by `form`, an estimate with its interval in brackets."""
    if cell is None:
        return "–"
    if isinstance(cell, Estimate):
        ends = cell.interval and ", ".join(shown(end, form) for end in cell.interval)
        return shown(cell.value, form) + (f" [{ends}]" if ends else "")
    return cell if isinstance(cell, str) else (form or "{}").format(cell)


def _plain(cell: Value, has_interval: bool) -> list[str | int | float | None]:
    value = cell.value if isinstance(cell, Estimate) else cell
    ends = (cell.interval if isinstance(cell, Estimate) else None) or (None, None)
    return [value, *(ends if has_interval else ())]


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Table():
            return _markdown_table(block)
        case Pictures(pictures):
            return "\n\n".join(
                f"![{p.caption}]({p.path.relative_to(folder).as_posix()})\n{p.caption}" for p in pictures
            )
        case Details(title, _):
            return f"- `{title}`"
    raise TypeError(block)


def _markdown_table(table: Table) -> str:
    head = [column.title for column in table.columns]
    rules = ["---" if column.form is None else "---:" for column in table.columns]
    rows = [[shown(cell, column.form) for cell, column in zip(row, table.columns)] for row in table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in [head, rules, *rows])


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Table():
            return _html_table(block)
        case Pictures(pictures):
            return f'<div class="figures">{"".join(_html_picture(picture) for picture in pictures)}</div>'
        case Details(title, text):
            return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
    raise TypeError(block)


def _html_table(table: Table) -> str:
    kinds = [' class="words"' if column.form is None else "" for column in table.columns]
    head = "".join(f"<th{kind}>{escape(column.title)}</th>" for kind, column in zip(kinds, table.columns))
    rows = ["".join(_html_cell(cell, column) for cell, column in zip(row, table.columns)) for row in table.rows]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _html_cell(cell: Value, column: Column) -> str:
    text = shown(cell, column.form)
    kinds = ([] if column.form else ["words"]) + (["long"] if len(text) > LONG else [])
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<td{kind}>{escape(text)}</td>"


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    caption = escape(picture.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )
