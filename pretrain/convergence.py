"""Whether an imitation was still becoming better when it ended: fine-tuning from such a policy measures that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from burnish.envs.task import MeasureName
from burnish.runs.evaluation_file import EvaluationSummary

LATE = 0.75  # what comes after this share of the training is compared with what came before
LOSS_FALL = 0.02  # of the held-out loss in that time, as a share of it


def still_improving(lines: Sequence[dict[str, Any]], measure: MeasureName | None) -> list[str]:
    """What did, in words, by the lines of a pretraining's metrics.jsonl; nothing where it had converged.

    Success (or return) still improves where the last evaluation is above all of the first three quarters by more than
    the standard error of the difference; the held-out loss, where its least is after them, by more than 2 %. Without a
    `measure` (no simulator) the loss alone counts.
    """
    reasons = [_of_measure(lines, measure) if measure else None, _of_loss(lines)]
    return [reason for reason in reasons if reason]


def _of_measure(lines: Sequence[dict[str, Any]], measure: MeasureName) -> str | None:
    found = [(line["step"], EvaluationSummary.from_metrics(line)) for line in lines]
    evaluated = [(step, summary) for step, summary in found if summary is not None]
    early = [summary for step, summary in evaluated if step <= LATE * lines[-1]["step"]]
    if not early:
        return f"{measure} was evaluated at the end alone, so nobody knows (train.eval_every=...)"
    if measure == "success_rate" and not any(summary.success_rate for _, summary in evaluated):
        return "it never succeeded"
    last, before = evaluated[-1][1], max(early, key=lambda summary: summary.value(measure))
    gain = last.value(measure) - before.value(measure)
    if gain <= math.hypot(_standard_error(last, measure), _standard_error(before, measure)):
        return None
    number = "{:.0%}".format if measure == "success_rate" else "{:.0f}".format
    return f"{measure} still rose, from {number(before.value(measure))} to {number(last.value(measure))}"


def _standard_error(summary: EvaluationSummary, measure: MeasureName) -> float:
    """Of a mean, from the width of its 95 % interval."""
    low, high = (
        (summary.success_rate_low, summary.success_rate_high)
        if measure == "success_rate"
        else (summary.return_low, summary.return_high)
    )
    return (high - low) / (2 * 1.96)


def _of_loss(lines: Sequence[dict[str, Any]]) -> str | None:
    losses = [(line["step"], line["validation_loss"]) for line in lines if line.get("validation_loss") is not None]
    early = [loss for step, loss in losses if step <= LATE * lines[-1]["step"]]
    if not early or losses[-1][1] >= (1 - LOSS_FALL) * min(early):
        return None
    return f"the held-out loss still fell, from {min(early):.4g} to {losses[-1][1]:.4g}"
