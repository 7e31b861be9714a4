"""The pretrained policy drives the arm (here: adds up its velocities): python act.py FOLDER_OF_THE_POLICY"""

import sys

import numpy as np

from burnish.policies.load import load_policy

MOST = np.array([0.5, 0.5, 1.0])  # rad/s: the --action-scale of the conversion
RATE = 10

policy = load_policy(sys.argv[1])
q, target = np.zeros(3), np.array([0.8, -0.6, 0.3])
for _ in range(12):
    obs = np.concatenate([q, target]).astype(np.float32)  # in the order of obs_keys
    for action in policy.act(obs[None, None])[0]:  # (B, To, Do) -> (B, Ta, Da)
        q = q + MOST * action / RATE
print("distance to the target, rad:", np.abs(target - q).max().round(3))
