"""Episodes as MP4 files, rendered offscreen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from burnish.envs import make_simulator
from burnish.envs.base import Simulator, Step
from burnish.envs.task import TaskConfig
from burnish.envs.vector import SyncVectorEnv
from burnish.errors import BurnishError
from burnish.evaluation import run_episodes
from burnish.policy import DiffusionPolicy

SIZE = (480, 480)  # width, height
FPS = 20


class RecordingSimulator:
    """A simulator that keeps a picture of every step."""

    def __init__(self, simulator: Simulator):
        self.simulator = simulator
        self.obs_dim, self.action_dim = simulator.obs_dim, simulator.action_dim
        self.frames: list[np.ndarray] = []

    def reset(self, seed: int | None) -> np.ndarray:
        obs = self.simulator.reset(seed)
        self.frames = [self.simulator.render(*SIZE)]
        return obs

    def step(self, action: np.ndarray) -> Step:
        step = self.simulator.step(action)
        self.frames.append(self.simulator.render(*SIZE))
        return step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.simulator, name)


def record(policy: DiffusionPolicy, task: TaskConfig, seeds: list[int], folder: Path) -> list[Path]:
    """Write one MP4 for each seed: the very episodes that `evaluate` counts.

    Without a working GL nothing is written; the reason and the remedy are said on stderr.
    """
    import imageio.v2 as imageio

    recorder = RecordingSimulator(make_simulator(task))
    envs = SyncVectorEnv(
        lambda: recorder,
        n_envs=1,
        n_obs_steps=policy.config.n_obs_steps,
        n_action_steps=policy.config.n_action_steps,
        max_episode_steps=task.max_episode_steps,
        seed=0,
        autoreset=False,
    )
    paths = []
    try:
        for seed in seeds:
            success = run_episodes(policy, envs, [seed]).success[0]
            path = folder / f"seed{seed}_{'success' if success else 'end'}.mp4"
            folder.mkdir(parents=True, exist_ok=True)
            imageio.mimwrite(path, recorder.frames, fps=FPS, macro_block_size=16)  # type: ignore[arg-type]
            paths.append(path)
    except BurnishError as error:
        print(f"no videos: {error}", file=sys.stderr)
    finally:
        envs.close()
    return paths
