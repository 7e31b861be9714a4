"""summary.json: what a whole training gave. It is written last, so a run that has it is finished.

Here alone its keys stand; those of older versions are read as well, what they do not tell is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from burnish.errors import BurnishError
from burnish.runs.checkpoint import run_of
from burnish.runs.evaluation_file import EvaluationSummary
from burnish.runs.json_file import read_json, told_of

SUMMARY = "summary.json"


class Best(NamedTuple):
    """The best evaluation between the updates, or after the last one."""

    env_steps: int
    success_rate: float
    mean_return: float


class AtBestTemperature(NamedTuple):
    """The last checkpoint at the temperature that was best in other episodes.

    `tried`: temperature -> the task's measure in those; empty where the policy's own was taken.
    """

    temperature: float
    evaluation: EvaluationSummary
    tried: dict[float, float]

    def to_json(self) -> dict[str, Any]:
        tried = {f"{temperature:g}": value for temperature, value in self.tried.items()}
        return {"temperature": self.temperature, "tried": tried, **self.evaluation.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> AtBestTemperature:
        tried = {float(temperature): value for temperature, value in content["tried"].items()}
        return cls(content["temperature"], EvaluationSummary.from_json(content), tried)


@dataclass(frozen=True)
class FinetuneSummary:
    """Of `burnish finetune` and `burnish scratch`.

    Attributes:
        policy: folder of the last checkpoint.
        env_steps: primitive steps in all environments together.
        after_selected: with the best of several candidates by the critic; None where the stage has none.
        n_parameters: of the policy, with its critic where it has one.
        training_minutes: acting and updating, without evaluations.
        at_best_temperature: None in runs of older versions.
        fell: what is to be said where the last evaluation was below the first by more than chance.
        went_back_to: number of the checkpoint that was taken for the last one instead: environment steps, and gradient
            steps of the offline phase.
        imitation_converged: whether the policy that it began with had; None: not known.
        offline_steps: gradient steps of the offline phase, in which no environment was stepped.
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
    at_best_temperature: AtBestTemperature | None = None
    fell: str | None = None
    went_back_to: int | None = None
    imitation_converged: bool | None = None
    offline_steps: int = 0

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
            "after_best_temperature": self.at_best_temperature.to_json() if self.at_best_temperature else None,
            "fell": self.fell,
            "went_back_to": self.went_back_to,
            "imitation_converged": self.imitation_converged,
            "offline_steps": self.offline_steps,
        }

    @classmethod
    def read(cls, run: Path) -> FinetuneSummary:
        """Of a run folder. Raises BurnishError, naming the file, where it is missing or damaged."""
        content = read_json(run / SUMMARY)
        with told_of(run / SUMMARY):
            selected, best = content.get("after_selected"), content["best"]
            at_best = content.get("after_best_temperature")
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
                at_best_temperature=AtBestTemperature.from_json(at_best) if at_best else None,
                fell=content.get("fell"),
                went_back_to=content.get("went_back_to"),
                imitation_converged=content.get("imitation_converged"),
                offline_steps=content.get("offline_steps", 0),
            )


def converged(policy: str | None) -> bool | None:
    """Whether the pretraining that made the policy in this folder had converged; None where it is not told."""
    if policy is None:
        return None
    try:
        improving = PretrainSummary.read(run_of(Path(policy))).improving
    except BurnishError:
        return None
    return None if improving is None else not improving


@dataclass(frozen=True)
class PretrainSummary:
    """Of `burnish pretrain`.

    Attributes:
        policy: folder of the last checkpoint.
        steps: gradient steps.
        parameters: of the policy.
        evaluation: of the last checkpoint; its numbers stand beside the others. None without a simulator.
        improving: what still became better at the end, in words; empty where it had converged, None: not told.
        temperatures: temperature -> the task's measure at it, in the episodes of the evaluation.
        held_out: without a simulator, loss and errors of the actions on the held-out episodes.
        clamped_actions: share of the demonstrations' action values outside [-1, 1]; None: not told.
    """

    policy: str
    steps: int
    parameters: int
    evaluation: EvaluationSummary | None
    improving: list[str] | None = None
    temperatures: dict[float, float] | None = None
    held_out: dict[str, Any] | None = None
    clamped_actions: float | None = None

    def to_json(self) -> dict[str, Any]:
        about: dict[str, Any] = {"policy": self.policy, "steps": self.steps, "parameters": self.parameters}
        if self.improving is not None:
            about["converged"] = not self.improving
            about["improving"] = self.improving
        if self.clamped_actions is not None:
            about["clamped_actions"] = self.clamped_actions
        if self.temperatures:
            about["temperatures"] = {f"{temperature:g}": value for temperature, value in self.temperatures.items()}
        if self.held_out is not None:
            about["held_out"] = self.held_out
        return about | (self.evaluation.to_json() if self.evaluation else {})

    @classmethod
    def read(cls, run: Path) -> PretrainSummary:
        """Of a run folder. Raises BurnishError, naming the file, where it is missing or damaged."""
        content = read_json(run / SUMMARY)
        with told_of(run / SUMMARY):
            temperatures = content.get("temperatures")
            return cls(
                policy=content["policy"],
                steps=content["steps"],
                parameters=content["parameters"],
                evaluation=None if "held_out" in content else EvaluationSummary.from_json(content),
                improving=content.get("improving"),
                temperatures=temperatures and {float(each): value for each, value in temperatures.items()},
                held_out=content.get("held_out"),
                clamped_actions=content.get("clamped_actions"),
            )
