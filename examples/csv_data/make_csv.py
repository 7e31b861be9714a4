"""Writes reach.csv, as the logger of a real arm would: three joints that are driven to a target by their velocities."""

import csv
from pathlib import Path

import numpy as np

MOST = np.array([0.5, 0.5, 1.0])  # rad/s
RATE = 10  # control steps a second

rng = np.random.default_rng(0)
joints = [f"joint_pos.{i}" for i in range(3)]
targets = [f"target.{i}" for i in range(3)]
with Path("reach.csv").open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["episode", "step", *joints, *targets, "action.0", "action.1", "action.2"])
    for episode in range(50):
        q, target = rng.uniform(-1, 1, (2, 3))
        for step in range(30):
            velocity = np.clip(2 * (target - q), -MOST, MOST)
            table.writerow([episode, step, *q.round(4), *target.round(4), *velocity.round(4)])
            q = q + velocity / RATE + rng.normal(0, 0.002, 3)
