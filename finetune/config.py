"""What a run of `burnish finetune`, `burnish offline` or `burnish scratch` is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.config import Checked, key
from burnish.envs import BACKENDS, WORKER_TIMEOUT
from burnish.envs.same_environment import AllowConfig
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.evaluation.temperatures import TrainingEvaluationConfig
from burnish.finetune.stage import StageConfig
from burnish.policies.base import ChunkConfig
from burnish.runs.config import RunConfig


@dataclass(frozen=True)
class OfflinePhaseConfig(Checked):
    """The phase before the first environment step, in which a stage learns from its demonstrations alone."""

    steps: int = key(0, "gradient steps on the demonstrations alone, before the first environment step", least=0)
    eval_every: int = key(
        0,
        "gradient steps of this phase between evaluations (0: only at its end, and before and after the run)",
        least=0,
    )
    checkpoint_every: int = key(5000, "gradient steps of this phase between checkpoints (0: only at its end)", least=0)
    report_every: int = key(100, "gradient steps of this phase whose means are a line of metrics.jsonl", least=1)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig, AllowConfig):
    """One run of `burnish finetune`, `burnish offline` or `burnish scratch`: an offline phase, then an online one.

    Either `policy` (the folder of a pretrained one) or `network` (what a fresh one shall be) is given.
    """

    task: TaskConfig = key()
    stage: StageConfig = key()
    policy: str | None = key(
        None, "folder of the pretrained policy, e.g. runs/pretrain-lift-seed0/checkpoints/best (from scratch: null)"
    )
    network: ChunkConfig | None = key(None)
    evaluation: TrainingEvaluationConfig = key(factory=TrainingEvaluationConfig)
    offline: OfflinePhaseConfig = key(factory=OfflinePhaseConfig)
    total_env_steps: int = key(
        51_200, "primitive (not chunk) steps in all environments together (0: the offline phase alone)", least=0
    )
    max_minutes: float | None = key(
        None, "of training (acting and updates) after which it stops as well (null: no limit)", above=0
    )
    n_envs: int = key(16, "environments that are stepped together", least=1)
    backend: str = key(
        "auto",
        "sync (in this process), workers (processes) or envpool (Gymnasium; resumed, its episodes start anew)",
        options=BACKENDS,
    )
    n_workers: int | None = key(None, "processes (null: one a CPU)", least=1)
    worker_timeout: float = key(
        WORKER_TIMEOUT,
        "seconds that one environment may take for a step or a reset; then the run saves what it has and ends",
        above=0,
    )
    ends_at_success: bool = key(
        True,
        "training episodes are over (terminated) at their first success, as evaluations always are, and so are the "
        "demonstrations that a critic learns from; false: they go on to the time limit, with a reward for each step in "
        "which the task stays solved",
    )
    eval_every: int = key(0, "environment steps between evaluations (0: only before and after)", least=0)
    when_worse: Literal["warn", "go_back"] = key(
        "warn",
        "where the policy ends below where it began, in the same episodes and by more than chance: warn alone, or "
        "go_back to the best checkpoint, the pretrained policy among them",
    )
    checkpoint_every: int = key(12_800, "environment steps between checkpoints (0: only at the end)", least=0)

    def check(self) -> None:
        self.task.require_simulator()
        if self.policy is None and self.network is None:
            raise BurnishError(
                "policy=null: expected the folder of a pretrained policy (burnish scratch starts without one)"
            )
        if self.policy is not None and self.network is not None:
            raise BurnishError(f"policy={self.policy}: burnish scratch starts without one (burnish finetune with one)")
        if self.network is not None:
            for name in ("obs_normalization", "action_normalization"):
                if (given := getattr(self.network, name)) != "none":
                    raise BurnishError(f"network.{name}={given}: expected none, there are no data to take it from")
        if not self.total_env_steps and not self.offline.steps:
            raise BurnishError("total_env_steps=0 and offline.steps=0: expected steps of one of the two phases")
        self.evaluation.require_single()
