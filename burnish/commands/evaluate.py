"""`burnish evaluate`: a policy folder and a task -> evaluation.json and videos."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from burnish.config import key
from burnish.envs.task import TaskConfig
from burnish.evaluation.evaluate import EvaluationConfig, about, evaluate
from burnish.evaluation.video import record
from burnish.machine.device import DeviceConfig, resolve_device
from burnish.machine.disk import require_writable
from burnish.policies.load import load_policy
from burnish.runs.evaluation_file import EVALUATION
from burnish.runs.progress import Progress


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationConfig, DeviceConfig):
    """What to evaluate; how, are the keys of `EvaluationConfig`."""

    policy: str = key(doc="folder of the policy, e.g. runs/dppo-lift-seed0/checkpoints/best")
    task: TaskConfig = key()
    seed: int = key(
        200_000,
        "of the first episode; not those from 100000 on, by which trainings choose their best checkpoint: measured on "
        "them it would seem better than it is",
        least=0,
    )
    out: str | None = key(None, "folder for the results (null: evaluation/ in the run folder, or beside the policy)")

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
