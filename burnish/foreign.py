"""Where code of others is called: whatever it raises becomes one line with its cause.

`told_as` stands around such calls: building an environment, reading a file, drawing, starting a service. Elsewhere an
exception is a defect of ours and keeps its traceback, but for what the machine itself refuses (`of_the_machine`).
"""

from __future__ import annotations

import codecs
import errno
import sys
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from burnish.errors import BurnishError, Stopped

MOST = 300  # characters of what others say
MOST_IN_ALL = 2000  # characters of a message
REPORT = (
    "burnish: this is a defect of Burnish, or of a plugin where the last lines above are one's: please report it with "
    "all lines above, the command and the output of `burnish doctor`"
)
PLAIN = {"\u2013": "-", "\u2014": "-", "\u2026": "...", "\u00b1": "+-", "\u00d7": "x"}
"""What stands for characters that a terminal does not have; of the lines of tables see `_plain_character`."""
LINES = {(True, False): "-", (False, True): "|"}
FULL = (errno.ENOSPC, errno.EDQUOT)
MISUSED = (None, errno.EBADF, errno.EINVAL, errno.EFAULT)  # no fault of the machine


@contextmanager
def told_as(what: str, advice: str = "", *, place: bool = False) -> Iterator[None]:
    """Inside, whatever others raise is a BurnishError: `what`, the cause in brackets, `advice`.

    Args:
        place: with file and line, for code that the user may have written.
    """
    try:
        yield
    except (BurnishError, Stopped, NotImplementedError):
        raise
    except Exception as error:
        at = f", {place_of(error)}" if place else ""
        raise BurnishError(f"{what} ({cause(error)}{at}){advice}") from error


def place_of(error: BaseException) -> str:
    """File and line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def cause(error: BaseException) -> str:
    """Its kind and what it says, in one line of bounded length."""
    said = one_line(str(error), MOST)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def one_line(text: str, most: int = MOST_IN_ALL) -> str:
    """`text` without line breaks; of a long one the beginning and the end."""
    text = " ".join(text.split()) if "\n" in text or "\r" in text else text
    return text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[-(most // 3) :]}"


def of_the_machine(error: BaseException) -> str | None:
    """One line for what the machine refuses, wherever it does; None for what may be a defect of ours."""
    if isinstance(error, OSError) and not isinstance(error, ConnectionError) and error.errno not in MISUSED:
        name = f"{error.filename}: " if error.filename is not None else ""
        advice = "; make room, or choose another folder" if error.errno in FULL else ""
        return one_line(f"{name}{error.strerror or error}{advice}")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return (
            f"out of memory ({cause(error)}): lower n_envs, batch_size, the size of the replay or of the networks, "
            "or use a larger machine"
        )
    if type(error).__module__.split(".")[0] == "mujoco":
        return f"MuJoCo ends: {cause(error)}"
    return None


def write_plainly() -> None:
    """Let the standard output and error write what their encoding does not have in characters that it has."""
    codecs.register_error("burnish-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="burnish-plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_plain_character, text)), error.end


def _plain_character(character: str) -> str:
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        return LINES.get(("HORIZONTAL" in name, "VERTICAL" in name), "+")
    decomposed = unicodedata.normalize("NFKD", character)
    return PLAIN.get(character) or decomposed.encode("ascii", "ignore").decode() or "?"
