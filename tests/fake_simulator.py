"""A counter in place of a simulator: every number of its episodes is known beforehand."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.envs.base import Floats, Step
from burnish.errors import BurnishError
from burnish.observations import ObsSpec


@dataclass
class Counter:
    """Observation [episode, t, start] with a random start for each episode; reward = action[0] + 10 t, where
    t = 1 for the first step of an episode.

    At step `terminate_at` the episode terminates; at `nan_at` the observation is NaN (and the simulator
    claims termination and success), at `success_at` there is a success. `fault_at` raises `fault`.
    """

    terminate_at: int = 0
    nan_at: int = 0
    nan_reward_at: int = 0
    success_at: int = 0
    fault_at: int = 0
    fault: str = ""
    slow: float = 0.0  # seconds for a step

    obs_spec = ObsSpec.of_state(3)
    action_dim = 1

    def __post_init__(self) -> None:
        self.episode = 0
        self.t = 0
        self.start = 0.0
        self.generator = np.random.default_rng()

    def reset(self, seed: int | None) -> Floats:
        if seed is not None:
            self.generator = np.random.default_rng(seed)
            self.episode = 0
        self.episode += 1
        self.t = 0
        self.start = self.generator.uniform()
        return self.observation()

    def observation(self) -> Floats:
        return np.array([self.episode, self.t, self.start], np.float32)

    def step(self, action: Floats) -> Step:
        self.t += 1
        if self.slow:
            time.sleep(self.slow)
        if self.t == self.fault_at:
            self.fail()
        reward = float(action[0]) + 10 * self.t
        if self.t == self.nan_at:
            return Step(np.array([np.nan, 0, 0], np.float32), reward, True, True)
        if self.t == self.nan_reward_at:
            return Step(self.observation(), float("nan"), True, True)
        return Step(self.observation(), reward, self.t == self.terminate_at, self.t == self.success_at)

    def fail(self) -> None:
        if self.fault == "user":
            raise BurnishError("model.xml: not found")
        if self.fault in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else signal.SIGSTOP)
        if self.fault == "sleep":
            time.sleep(3600)
        while self.fault == "spin":
            pass
        raise ZeroDivisionError("a joint of length zero")

    def get_state(self) -> dict[str, Any]:
        if self.fault == "unsupported":
            raise NotImplementedError("this simulator cannot be saved")
        generator = self.generator.bit_generator.state
        return {"episode": self.episode, "t": self.t, "start": self.start, "generator": generator}

    def set_state(self, state: dict[str, Any]) -> None:
        self.episode, self.t, self.start = state["episode"], state["t"], state["start"]
        self.generator.bit_generator.state = state["generator"]

    def render(self, width: int, height: int) -> NDArray[np.uint8]:
        return np.zeros((height, width, 3), np.uint8)

    def close(self) -> None:
        pass
