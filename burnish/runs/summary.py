"""summary.json: what a whole training gave. It is written last, so a run that has it is finished.

Here alone its keys stand; those of older versions are read as well, what they do not tell is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from burnish.runs.evaluation_file import EvaluationSummary
from burnish.runs.json_file import read_json, told_of

SUMMARY = "summary.json"


class Best(NamedTuple):
    """The best evaluation between the updates, or after the last one."""

    env_steps: int
    success_rate: float
    mean_return: float


@dataclass(frozen=True)
class FinetuneSummary:
    """Of `burnish finetune` and `burnish scratch`.

    Attributes:
        policy: folder of the last checkpoint.
        env_steps: primitive steps in all environments together.
        after_selected: with the best of several candidates by the critic; None where the stage has none.
        n_parameters: of the policy, with its critic where it has one.
        training_minutes: acting and updating, without evaluations.
    """

    policy: str
    env_steps: int
    updates: int
    before: EvaluationSummary
    after: EvaluationSummary
    after_selected: EvaluationSummary | None
    best: Best
    n_parameters: int | None
    peak_memory_mib: float | None
    training_minutes: float | None

    def to_json(self) -> dict[str, Any]:
        best = {"env_steps": self.best.env_steps, "success_rate": self.best.success_rate}
        return {
            "policy": self.policy,
            "env_steps": self.env_steps,
            "updates": self.updates,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "after_selected": self.after_selected.to_json() if self.after_selected else None,
            "best": best | {"return": self.best.mean_return},
            "n_parameters": self.n_parameters,
            "peak_memory_mib": self.peak_memory_mib,
            "time/training_minutes": self.training_minutes,
        }

    @classmethod
    def read(cls, run: Path) -> FinetuneSummary:
        """Of a run folder. Raises BurnishError, naming the file, where it is missing or damaged."""
        content = read_json(run / SUMMARY)
        with told_of(run / SUMMARY):
            selected, best = content.get("after_selected"), content["best"]
            return cls(
                policy=content["policy"],
                env_steps=content["env_steps"],
                updates=content["updates"],
                before=EvaluationSummary.from_json(content["before"]),
                after=EvaluationSummary.from_json(content["after"]),
                after_selected=EvaluationSummary.from_json(selected) if selected else None,
                best=Best(best["env_steps"], best["success_rate"], best["return"]),
                n_parameters=content.get("n_parameters"),
                peak_memory_mib=content.get("peak_memory_mib"),
                training_minutes=content.get("time/training_minutes"),
            )


@dataclass(frozen=True)
class PretrainSummary:
    """Of `burnish pretrain`.

    Attributes:
        policy: folder of the last checkpoint.
        steps: gradient steps.
        parameters: of the policy.
        evaluation: of the last checkpoint; its numbers stand beside the others.
    """

    policy: str
    steps: int
    parameters: int
    evaluation: EvaluationSummary

    def to_json(self) -> dict[str, Any]:
        about = {"policy": self.policy, "steps": self.steps, "parameters": self.parameters}
        return about | self.evaluation.to_json()

    @classmethod
    def read(cls, run: Path) -> PretrainSummary:
        """Of a run folder. Raises BurnishError, naming the file, where it is missing or damaged."""
        content = read_json(run / SUMMARY)
        with told_of(run / SUMMARY):
            evaluation = EvaluationSummary.from_json(content)
            return cls(content["policy"], content["steps"], content["parameters"], evaluation)
