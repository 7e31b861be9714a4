"""What a run of `burnish finetune` or `burnish scratch` is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.config import key
from burnish.envs import BACKENDS
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.evaluation.temperatures import TrainingEvaluationConfig
from burnish.finetune.stage import StageConfig
from burnish.policies.diffusion import PolicyConfig
from burnish.policies.flow import FlowPolicyConfig
from burnish.policies.gaussian import GaussianPolicyConfig
from burnish.runs.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """One run of `burnish finetune` or `burnish scratch`.

    Either `policy` (the folder of a pretrained one) or `network` (what a fresh one shall be) is given.
    """

    task: TaskConfig = key()
    stage: StageConfig = key()
    policy: str | None = key(
        None, "folder of the pretrained policy, e.g. runs/pretrain-lift-seed0/checkpoints/best (from scratch: null)"
    )
    network: PolicyConfig | FlowPolicyConfig | GaussianPolicyConfig | None = key(None)
    evaluation: TrainingEvaluationConfig = key(factory=TrainingEvaluationConfig)
    total_env_steps: int = key(51_200, "primitive (not chunk) steps in all environments together", least=1)
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
        self.evaluation.require_single()
