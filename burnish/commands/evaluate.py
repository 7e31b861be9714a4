"""`burnish evaluate`: a policy folder and a task -> evaluation.json and videos."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.evaluation.evaluate import EvaluationConfig, about, evaluate
from burnish.evaluation.video import record
from burnish.machine.device import resolve_device
from burnish.machine.disk import require_writable
from burnish.policies.load import load_policy
from burnish.runs.evaluation_file import EVALUATION
from burnish.runs.progress import Progress


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationConfig):
    """What to evaluate; how, are the keys of `EvaluationConfig`.

    Attributes:
        policy: folder of the policy.
        seed: other than in trainings, which choose their best checkpoint by the seeds from 100000 on: measured on
            those it would seem better than it is.
        device, torch_threads: see `burnish.machine.device.resolve_device`.
        out: folder for the results; None: `default_folder`.
    """

    policy: str
    task: TaskConfig
    seed: int = 200_000
    device: str = "auto"
    torch_threads: int = 1
    out: str | None = None

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except BurnishError as error:  # the keys have no prefix here
            raise BurnishError(str(error).replace("evaluation.", "")) from error

    def evaluation(self) -> EvaluationConfig:
        """How to evaluate, alone."""
        return EvaluationConfig(**{field.name: getattr(self, field.name) for field in fields(EvaluationConfig)})


def evaluate_policy(config: EvaluateConfig) -> dict[str, float]:
    """Evaluate -> the summary, which is also written to evaluation.json, with every episode.

    Raises BurnishError where the policy cannot be read or does not fit the task, or `out` cannot be written.
    """
    policy = load_policy(config.policy, resolve_device(config.device, config.torch_threads))
    how = config.evaluation()
    policy.check_candidates(how.candidates)
    folder = Path(config.out) if config.out else default_folder(config)
    require_writable(folder)
    with Progress(config.episodes, f"evaluate {config.task.name}") as progress:
        evaluation = evaluate(policy, config.task, how, progress=progress)
    evaluation.save(folder / EVALUATION, about(config.policy, config.task, how))
    record(policy, config.task, evaluation.seeds[: config.video], folder, config.candidates)
    return evaluation.summary().to_json()


def default_folder(config: EvaluateConfig) -> Path:
    """evaluation/ in the run folder the policy is a checkpoint of, or else beside the policy."""
    policy = Path(config.policy)
    if (policy / "checkpoints").is_dir():
        root = policy
    else:
        root = policy.parent.parent if policy.parent.name == "checkpoints" else policy.parent
    return root / "evaluation" / f"{policy.name}-{config.task.name}-seed{config.seed}"
