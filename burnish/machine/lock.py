"""One writer in a folder: a lock that the system takes back when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from datetime import datetime
from pathlib import Path
from types import TracebackType

from burnish.errors import BurnishError, warn

LOCK = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES)  # the latter of NFS
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Held(BurnishError):
    """Another process writes in the folder."""


class FolderLock:
    """`flock` on the file `.lock` in the folder, which says who holds it. A context manager.

    Where the file system knows no locks, a warning says so and nothing is held.

    Attributes:
        descriptor: of the file.

    Args:
        lasting: leave the file there at the end. For a descriptor that is handed to other processes: the lock is held
            until the last of them has closed it.

    Raises:
        Held: by another process, which is named.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, lasting: bool = False) -> None:
        self._path, self._lasting = folder / LOCK, lasting
        while True:
            self._file = self._path.open("a+b", buffering=0)
            self.descriptor = self._file.fileno()
            try:
                self._take()
            except BaseException:
                self._file.close()
                raise
            if self._is_there():
                break
            self._file.close()  # whoever held it has ended since, and took the file away
        with contextlib.suppress(OSError):  # on a full disk nobody is named
            self._file.truncate(0)
            since = datetime.now().isoformat(" ", "seconds")
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode())

    def release(self) -> None:
        """Harmless a second time."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):
            if not self._lasting and self._is_there():
                self._path.unlink()  # while it is held: who opened it meanwhile looks whether it is there
        self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _take(self) -> None:
        try:
            import fcntl

            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            return
        except OSError as error:
            if error.errno in _HELD:
                self._file.seek(0)
                holder = self._file.read(200).decode("utf-8", "replace") or "another process"
                raise Held(
                    f"{self._path.parent} is being written by {holder}: wait until that has ended, or choose another "
                    "folder"
                ) from None
            if error.errno not in _UNKNOWN:
                raise
            warn(f"{self._path.parent}: its file system knows no locks; let no other process write in it")

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.descriptor), self._path.stat())
        except FileNotFoundError:
            return False
