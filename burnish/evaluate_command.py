"""`burnish evaluate`: a policy folder and a task -> evaluation.json and videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from burnish.device import resolve_device
from burnish.envs.task import TaskConfig
from burnish.evaluation import EvaluationConfig, about, evaluate
from burnish.policy import DiffusionPolicy
from burnish.progress import Progress


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, and how: see `EvaluationConfig`.

    Attributes:
        policy: folder of the policy.
        device: "auto", "cpu" or "cuda".
        out: folder for the results; None: `default_folder`.
    """

    policy: str
    task: TaskConfig
    episodes: int = 100
    seed: int = 100_000
    n_envs: int = 20
    backend: str = "auto"
    n_workers: int | None = None
    video: int = 0
    device: str = "auto"
    out: str | None = None


def evaluate_policy(config: EvaluateConfig) -> dict[str, float]:
    """Evaluate -> the summary, which is also written to evaluation.json, with every episode.

    Raises BurnishError where the policy cannot be read or does not fit the task.
    """
    policy = DiffusionPolicy.load(config.policy, resolve_device(config.device))
    evaluation_config = EvaluationConfig(
        config.episodes, config.seed, config.n_envs, config.backend, config.n_workers, config.video
    )
    folder = Path(config.out) if config.out else default_folder(config)
    with Progress(config.episodes, f"evaluate {config.task.name}") as progress:
        evaluation = evaluate(policy, config.task, evaluation_config, video_folder=folder, progress=progress)
    evaluation.save(folder / "evaluation.json", **about(config.policy, config.task, evaluation_config))
    return evaluation.summary()


def default_folder(config: EvaluateConfig) -> Path:
    """evaluation/ in the run folder the policy is a checkpoint of, or else beside the policy."""
    policy = Path(config.policy)
    if (policy / "checkpoints").is_dir():
        root = policy
    else:
        root = policy.parent.parent if policy.parent.name == "checkpoints" else policy.parent
    return root / "evaluation" / f"{policy.name}-{config.task.name}-seed{config.seed}"
