"""The course of a training: what is due, which checkpoint is the best, and how it is stopped. The same for all."""

from __future__ import annotations

import math
from collections.abc import Callable

from burnish.errors import Stopped
from burnish.runs.folder import Run
from burnish.runs.stop import StopRequest


def passed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` was passed on the way from `before` to `now`; never for 0."""
    return bool(every) and now // every > before // every


class Course:
    """Keeps the checkpoints of one training.

    Attributes:
        best: success rate and return of the best evaluation (`Evaluation.score`).
        best_step: of its checkpoint.

    Args:
        command: that goes on with the run, "finetune".
        save: writes the checkpoint of the present step.
    """

    def __init__(self, run: Run, command: str, save: Callable[[], None]) -> None:
        self.run, self.command, self.save = run, command, save
        self.best = (-math.inf, -math.inf)
        self.best_step = 0

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
            self.save()
            raise Stopped(f"stopped {done}; go on with: burnish {self.command} resume={self.run.folder}")
