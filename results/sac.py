"""SAC from scratch (Stable-Baselines3, its defaults), evaluated on the same episodes as `burnish scratch` evaluates.

    python results/sac.py TASK OUT.json [--seed 0] [--total 100000] [--eval-every 10000] [--episodes 20]

The classical reference for the from-scratch runs of results/README.md: one environment, one update a step, two
layers of 256. OUT.json has the evaluations and the minutes of training before each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import RescaleAction
from stable_baselines3 import SAC

from burnish.envs import make_vector_env
from burnish.tasks import load_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("out", type=Path)
    for name, default in (("seed", 0), ("total", 100_000), ("eval-every", 10_000), ("episodes", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task(options.task)
    env = gymnasium.make(task.env_id, max_episode_steps=task.max_episode_steps, **task.env_kwargs)
    model = SAC("MlpPolicy", RescaleAction(env, np.float32(-1), np.float32(1)), seed=options.seed, device="cpu")
    seeds = [100_000 + i for i in range(options.episodes)]
    envs = make_vector_env(
        task, n_envs=len(seeds), n_obs_steps=1, n_action_steps=1, seed=0, backend="sync", autoreset=False
    )
    lines, seconds = [], 0.0
    for steps in range(options.eval_every, options.total + 1, options.eval_every):
        start = time.monotonic()
        model.learn(options.eval_every, reset_num_timesteps=False)
        seconds += time.monotonic() - start
        obs, returns, running = envs.reset(seeds), np.zeros(len(seeds)), np.ones(len(seeds), bool)
        while running.any():
            actions, _ = model.predict(obs[:, 0], deterministic=True)
            step = envs.step(actions[:, None].astype(np.float32), running)
            obs, returns = step.obs, returns + step.reward
            running &= ~(step.terminated | step.truncated)
        lines.append({"step": steps, "return": returns.tolist(), "minutes": seconds / 60})
        print(steps, returns.mean(), f"{seconds / 60:.1f} min", flush=True)
        options.out.write_text(json.dumps({"task": task.name, "seed": options.seed, "evaluations": lines}) + "\n")


if __name__ == "__main__":
    main()
