"""The one exception that stands for a user's mistake, and warnings."""

import sys


class BurnishError(Exception):
    """Bad input, told in one line: which file, key or value, what was expected, what to do.

    The command prints the message without a traceback and exits with status 2.
    """


class NotInstalled(BurnishError):
    """A module that the input names cannot be found."""


class SimulatorsLost(BurnishError):
    """Simulators that died or do not answer any more: those of one vector environment, and what lives with them.

    Attributes:
        asked: they were given up because the process was asked to stop.
    """

    def __init__(self, message: str, *, asked: bool = False) -> None:
        super().__init__(message)
        self.asked = asked


class Stopped(Exception):
    """The user asked to stop (SIGTERM, Ctrl-C) and everything is saved; the message says how to go on.

    The command prints the message and exits with status 130.
    """


def warn(message: str) -> None:
    """A line that is hard to miss, on stderr."""
    print(f"\nWARNING: {message}\n", file=sys.stderr, flush=True)
