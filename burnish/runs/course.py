"""The course of a training: what is due, which checkpoint is the best, and how it is stopped. The same for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from burnish.errors import BurnishError, SimulatorsLost, Stopped
from burnish.machine.stop import GivenUp, Overdue, StopRequest, no_longer_overdue
from burnish.runs.folder import Run


def passed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` was passed on the way from `before` to `now`; never for 0."""
    return bool(every) and now // every > before // every


class Course:
    """Keeps the checkpoints of one training.

    Attributes:
        best: success rate and return of the best evaluation (`Evaluation.score`).
        best_step: of its checkpoint.
        savable: False where there is nothing to save that a checkpoint does not hold already.

    Args:
        command: that goes on with the run, "finetune".
        save: writes the checkpoint of the present step.
    """

    def __init__(self, run: Run, command: str, save: Callable[[], None]) -> None:
        self.run, self.command, self.save = run, command, save
        self.best = (-math.inf, -math.inf)
        self.best_step = 0
        self.savable = False

    def judge(self, score: tuple[float, float], step: int) -> bool:
        """Whether the evaluation at `step` is the best one so far; of equals the later."""
        if not score >= self.best:
            return False
        self.best, self.best_step = score, step
        return True

    def keep(self, step: int, *, is_best: bool, due: bool) -> None:
        """Save what is the best or due, and mark the best."""
        if is_best or due:
            self.save()
        if is_best:
            self.run.checkpoints.mark_best(step)

    def stop_if_asked(self, stop: StopRequest, done: str) -> None:
        """Save and raise Stopped, which says how to go on, where the process was asked to; `done`: how far it is."""
        if stop.requested:
            raise Stopped(self._saved("stopped", done))

    @contextmanager
    def ending(self, done: Callable[[], str]) -> Iterator[None]:
        """Save, and say how to go on, also where an evaluation is given up or the simulators are lost.

        Raises:
            Stopped: asked to stop.
            BurnishError: the simulators are lost.
        """
        try:
            yield
        except GivenUp:
            raise Stopped(self._saved("stopped", done())) from None
        except SimulatorsLost as error:
            if error.asked:
                raise Stopped(f"{self._saved('stopped', done())} ({error})") from error
            raise BurnishError(f"{error}; {self._saved('ended', done())}") from error
        except Overdue:
            raise Stopped(
                "stopped in the middle of something that took too long: what came after the last checkpoint is lost; "
                f"{self._go_on}"
            ) from None

    def _saved(self, ended: str, done: str) -> str:
        """Save what can be -> how it `ended`, and what to do."""
        no_longer_overdue()
        if self.savable:
            self.save()
        return f"{ended} {done}; {self._go_on}"

    @property
    def _go_on(self) -> str:
        return f"go on with: burnish {self.command} resume={self.run.folder}"
