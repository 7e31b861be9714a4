"""The gradient steps of DPMD, SDAC and their rivals that the benchmarks take: the papers' settings, variants, random
numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from burnish.compose import compose
from burnish.config import parse
from burnish.envs.task import TaskConfig
from burnish.finetune.off_policy import OffPolicyStage
from burnish.finetune.stage import Setting, stage_class
from burnish.finetune.storage.replay import Transitions
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

N_ENVS = 5
BATCH_SIZE = 256
TRANSITIONS = 2048  # in the replay
TASKS = {"halfcheetah": (17, 6), "humanoid": (348, 17)}  # Do, Da
DDIM = ["stage.sampler=ddim", "stage.ddim_steps=10", "stage.eta=1"]
FEW_TARGETS = ["stage.target_candidates=4"]
HALF = ["stage.draw_precision=float16"]
SHARED = ["stage.draw_at=next"]  # as dpmd_paper has it anyway
VARIANTS = {
    "paper": [],
    "shared draws": SHARED,
    "float16 draws": HALF,
    "ddim 10": DDIM,
    "4 targets": FEW_TARGETS,
    "all": [*SHARED, *DDIM, *FEW_TARGETS],
}
AUTHORS_STEP = {  # ms of the authors' jitted JAX update, lowest and highest, on another machine of this kind
    ("dpmd", "halfcheetah"): (513, 568),
    ("dpmd", "humanoid"): (847, 885),
    ("sdac", "halfcheetah"): (1485, 1733),
    ("sdac", "humanoid"): (1895, 2173),
    ("qsm", "halfcheetah"): (360, 360),
    ("qsm", "humanoid"): (645, 645),
}
AUTHORS_ACTION = {"halfcheetah": 16, "humanoid": 26}  # ms
AUTHORS_MEMORY = (330, 590)  # MiB, over all four


class Case(NamedTuple):
    algorithm: str
    task: str
    variant: str
    batch_size: int


def build(case: Case, more: Sequence[str] = ()) -> OffPolicyStage:
    """The stage of `burnish scratch` with `more` overrides, with random transitions in its replay."""
    overrides = [f"task={case.task}", f"stage={case.algorithm}_paper", f"stage.buffer_size={TRANSITIONS}"]
    overrides.append(f"stage.batch_size={case.batch_size}")
    config = compose("scratch", [*overrides, *VARIANTS[case.variant], *more])
    obs_dim, action_dim = TASKS[case.task]
    torch.manual_seed(0)
    policy = DiffusionPolicy(parse(PolicyConfig, config["network"]), obs_dim, action_dim, ["flat"]).eval()
    make_stage = stage_class(case.algorithm)
    setting = Setting(parse(TaskConfig, config["task"]), N_ENVS, seed=0)
    stage: OffPolicyStage = make_stage(policy, parse(make_stage.Config, config["stage"]), setting)  # type: ignore[assignment]
    fill(stage, obs_dim, policy.config.horizon * action_dim)
    stage.env_steps = stage.config.random_steps
    return stage


def fill(stage: OffPolicyStage, obs_dim: int, chunk_dim: int) -> None:
    """Random transitions into its replay."""
    obs, next_obs = torch.randn(2, TRANSITIONS, obs_dim)
    chunk = 2 * torch.rand(TRANSITIONS, chunk_dim) - 1
    stage.replay.store(Transitions(obs, chunk, torch.randn(TRANSITIONS), torch.full((TRANSITIONS,), 0.99), next_obs))


def gradient_step(stage: OffPolicyStage) -> None:
    stage.owed = 1.0
    stage.update()
