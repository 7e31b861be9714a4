"""The changes of the file system that a run makes, counted, and the process killed before a chosen one.

Python's own audit events tell of them before they happen; fsync, of which there is none, is wrapped. What torch and
safetensors write, they write in C++: between two of the changes seen here.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class FileChanges:
    """In a fork: kills it before the change number `kill_at` (0 is the first) under `folder`; None: only counts.

    `log` has a line for each change that was reached.
    """

    def __init__(self, folder: Path, log: Path, kill_at: int | None = None) -> None:
        self.folder, self.kill_at = str(folder.absolute()), kill_at
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.reached = 0

    def watch(self) -> None:
        """From now on. It cannot be undone: for a fork."""
        sys.addaudithook(self._heard)
        fsync = os.fsync

        def told(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self._change("os.fsync", f"/proc/self/fd/{number}", follow=True)
            fsync(descriptor)

        os.fsync = told

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            if isinstance(arguments[2], int) and arguments[2] & WRITING:
                self._change(event, arguments[0])
        elif event in CHANGES:
            descriptor = next((each for each in reversed(arguments) if isinstance(each, int) and each >= 0), None)
            within = descriptor is not None and event in ("os.remove", "os.rmdir")  # of a tree, by its open folder
            path = arguments[1] if event in ("os.rename", "os.symlink", "os.link") else arguments[0]
            if isinstance(path, int) or (event == "os.remove" and not within and not os.path.lexists(path)):
                return  # shared memory, or nothing to remove
            self._change(event, os.fsdecode(path), f"/proc/self/fd/{descriptor}" if within else None)

    def _change(self, event: str, path: str | bytes, within: str | None = None, *, follow: bool = False) -> None:
        path = os.fsdecode(path)
        if within is not None:
            path = str(Path(within).readlink() / path)
        elif follow:
            path = str(Path(path).readlink())
        if not str(Path(path).absolute()).startswith(self.folder):
            return
        os.write(self.log, f"{self.reached} {event} {path}\n".encode())
        if self.reached == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.reached += 1
