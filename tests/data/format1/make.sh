#!/bin/sh
# How these files were made, in an empty folder that has compare.yaml and this script. `burnish` is the program of
# commit a90f0bf and PYTHON an interpreter that imports its package:
#
#   PYTHON=python sh make.sh
set -e
each="task=inverted_double_pendulum seed=3 torch_threads=1 evaluation.episodes=3 evaluation.backend=sync"
rl="$each n_envs=2 backend=sync eval_every=0 checkpoint_every=0"
small="stage.batch_size=8 stage.buffer_size=100 stage.demos=null"

# a Gaussian policy by SAC, and demonstrations of it: three episodes of some ten steps
burnish scratch $rl $small stage=sac network=gaussian 'network.hidden_sizes=[8]' 'stage.critic_hidden_sizes=[8]' \
  stage.learning_starts=20 stage.train_freq=8 total_env_steps=64 run_dir=runs/sac
burnish data collect task=inverted_double_pendulum behaviour=runs/sac episodes=3 n_workers=1 out=demos.hdf5

# the runs of the comparison: the commands that --plan prints, one after another, are what the comparison would start
burnish compare compare.yaml --plan > plan.txt
sh -e plan.txt

# what the comparison has no run of
policy=comparison/inverted_double_pendulum/pretrain/seed3
burnish finetune $rl $small stage=best_of_n policy=$policy stage.learning_starts=16 stage.critic_warmup_updates=1 \
  stage.critic.hidden_dim=8 stage.critic.n_layers=1 stage.critic.layer_norm=false stage.demo_ratio=0.0 \
  stage.n_candidates=4 total_env_steps=64 run_dir=runs/best_of_n
pretrain="$each dataset=demos.hdf5 train.epochs=2 train.checkpoint_every=0 train.validation_fraction=0.0"
burnish pretrain $pretrain policy=gaussian 'policy.hidden_sizes=[8]' run_dir=runs/gaussian
burnish pretrain $pretrain policy=unet 'policy.denoiser.channels=[4,8]' policy.denoiser.time_dim=8 \
  policy.denoiser.n_groups=2 policy.horizon=4 policy.n_action_steps=2 policy.sampler=ddim run_dir=runs/unet

# small enough to commit: no figures, and no state of trainings that no test resumes
find . -name '*.png' -delete
find . -type d -empty -delete
rm plan.txt runs/gaussian/checkpoints/step_*/trainer.pt runs/unet/checkpoints/step_*/trainer.pt
$PYTHON - <<'PYTHON'
import gzip
import json
from pathlib import Path

import numpy as np
import torch

from burnish.policy_base import load_policy

actions = {}
for folder in sorted(path.parent for path in Path().rglob("policy.json")):
    policy = load_policy(folder)
    shape = (2, policy.config.n_obs_steps, policy.obs_dim)
    obs = policy.obs_normalizer.unnormalize(torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)).numpy()
    by_candidates = {}
    for n in (1, 4) if policy.critic is not None else (1,):
        shape = policy.noise_shape(n)
        noise = torch.linspace(-0.5, 0.5, 2 * int(np.prod(shape))).reshape(shape[0], 2, *shape[1:])
        by_candidates[n] = policy.act(obs, noise=noise, candidates=n).tolist()
    actions[str(folder)] = by_candidates
lines = (f"{json.dumps(folder)}: {json.dumps(found)}" for folder, found in actions.items())
Path("actions.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")

# Packed. DPPO's value network had a fixed size, most of its trainer.pt: with zeros instead it can be packed.
for path in Path().rglob("trainer.pt"):
    trainer = torch.load(path, weights_only=True)
    if "actor_optimizer" in trainer["state"].get("stage", {}) and "rollout" in trainer["state"]["stage"]:
        stage = trainer["state"]["stage"]
        for tensor in stage["critic"].values():
            tensor.zero_()
        for moments in stage["critic_optimizer"]["state"].values():
            moments["exp_avg"].zero_(), moments["exp_avg_sq"].zero_()
        torch.save(trainer, path)
    path.with_name("trainer.pt.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
PYTHON
