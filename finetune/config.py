"""What a run of `burnish finetune` or `burnish scratch` is."""

from __future__ import annotations

from dataclasses import dataclass, field

from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.evaluation.evaluate import EvaluationConfig
from burnish.finetune.stage import StageConfig
from burnish.policies.diffusion import PolicyConfig
from burnish.policies.gaussian import GaussianPolicyConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """One run of `burnish finetune` or `burnish scratch`; see their config files for what each key means.

    Either `policy` (the folder of a pretrained one) or `network` (what a fresh one shall be) is given.
    """

    task: TaskConfig
    stage: StageConfig
    run_dir: str
    policy: str | None = None
    network: PolicyConfig | GaussianPolicyConfig | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    total_env_steps: int = 51_200
    max_minutes: float | None = None
    n_envs: int = 16
    backend: str = "auto"
    n_workers: int | None = None
    eval_every: int = 0
    checkpoint_every: int = 12_800
    seed: int = 0
    device: str = "auto"
    torch_threads: int = 1
    resume: str | None = None
    wandb: str = "disabled"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.policy is None and self.network is None:
            raise BurnishError(
                "policy=null: expected the folder of a pretrained policy (burnish scratch starts without one)"
            )
        if self.policy is not None and self.network is not None:
            raise BurnishError(f"policy={self.policy}: burnish scratch starts without one (burnish finetune with one)")
        if self.network is not None:
            for key in ("obs_normalization", "action_normalization"):
                if getattr(self.network, key) != "none":
                    raise BurnishError(
                        f"network.{key}={getattr(self.network, key)}: expected none, there are no data to take it from"
                    )
        self.evaluation.require_single()
        for key in ("total_env_steps", "n_envs"):
            if getattr(self, key) < 1:
                raise BurnishError(f"{key}={getattr(self, key)}: expected at least 1")
        for key in ("eval_every", "checkpoint_every", "seed"):
            if getattr(self, key) < 0:
                raise BurnishError(f"{key}={getattr(self, key)}: expected at least 0")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise BurnishError(f"max_minutes={self.max_minutes}: expected more than 0, or null for no limit")
