"""Episodes as MP4 files, rendered offscreen."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from burnish.envs import make_simulator
from burnish.envs.base import Simulator, Step
from burnish.envs.task import TaskConfig
from burnish.envs.vector.sync import SyncVectorEnv
from burnish.errors import BurnishError, Stopped
from burnish.evaluation.evaluate import run_episodes
from burnish.policies.base import Policy

FRAME_SIZE = (480, 480)  # width, height
FPS = 20


class RecordingSimulator:
    """A simulator that keeps a picture of every step."""

    def __init__(self, simulator: Simulator):
        self.simulator = simulator
        self.obs_spec, self.action_dim = simulator.obs_spec, simulator.action_dim
        self.frames: list[np.ndarray] = []

    def reset(self, seed: int | None) -> np.ndarray:
        obs = self.simulator.reset(seed)
        self.frames = [self.simulator.render(*FRAME_SIZE)]
        return obs

    def step(self, action: np.ndarray) -> Step:
        step = self.simulator.step(action)
        self.frames.append(self.simulator.render(*FRAME_SIZE))
        return step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.simulator, name)


def record(policy: Policy, task: TaskConfig, seeds: list[int], folder: Path, candidates: int = 1) -> list[Path]:
    """Write one MP4 for each seed: the very episodes that `evaluate` counts.

    Whatever goes wrong (no OpenGL, no ffmpeg, a full disk) is said on stderr: a training that is done is worth
    more than its videos.
    """
    paths: list[Path] = []
    if not seeds:
        return paths
    try:
        recorder = RecordingSimulator(make_simulator(task))
        with contextlib.closing(_single_env(recorder, policy, task)) as envs:
            for seed in seeds:
                success = run_episodes(policy, envs, [seed], candidates).success[0]
                path = folder / f"seed{seed}_{'success' if success else 'end'}.mp4"
                _write(path, recorder.frames)
                paths.append(path)
    except Stopped:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, BurnishError) else f"{type(error).__name__}: "
        print(f"no videos: {kind}{reason}", file=sys.stderr)
    return paths


def _single_env(recorder: RecordingSimulator, policy: Policy, task: TaskConfig) -> SyncVectorEnv:
    return SyncVectorEnv(
        lambda: recorder,
        n_envs=1,
        n_obs_steps=policy.config.n_obs_steps,
        n_action_steps=policy.config.n_action_steps,
        max_episode_steps=task.max_episode_steps,
        seed=0,
        autoreset=False,
    )


def _write(path: Path, frames: list[np.ndarray]) -> None:
    import imageio.v2 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        imageio.mimwrite(path, frames, fps=FPS, macro_block_size=16)  # type: ignore[arg-type]
    except Exception:
        path.unlink(missing_ok=True)  # half a video
        raise
