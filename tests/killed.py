"""A process that is killed before a change of the file system, chosen by its number."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def killed_before(n: int, action: Callable[[], object], *, torn: bool = False) -> bool:
    """Run `action` in a process that is killed (SIGKILL) before its n-th change -> whether there were so many.

    `torn`: a file that was to be opened for writing is there then, and empty.
    """
    child = os.fork()
    if child == 0:
        try:
            _kill_before(n, torn)
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def _kill_before(n: int, torn: bool) -> None:
    count = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if not (opened or event in CHANGES):
            return
        count += 1
        if count == n:
            if opened and torn:
                os.close(os.open(arguments[0], arguments[2], 0o666))  # asks again: the count is past n
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def tree(folder: Path) -> dict[str, Any]:
    """All that is in a folder: path -> content, target of a link, or None of a folder."""
    found: dict[str, Any] = {}
    for path in _walk(folder):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
