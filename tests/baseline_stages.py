"""What the tests of Stable-Baselines3's stages share: small ones on the bandit, of policies whose normalizers act."""

from functools import partial

import bandit
import numpy as np
import torch
from bandit import DA, TA, TASK

from burnish.finetune.baselines.ppo import PPO, PPOConfig
from burnish.finetune.baselines.sac import SAC, SACConfig
from burnish.finetune.baselines.td3 import TD3, TD3Config
from burnish.finetune.stage import Setting
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig

E = 8
STAGES = {"sac": (SAC, SACConfig), "td3": (TD3, TD3Config), "ppo": (PPO, PPOConfig)}
SMALL = {
    "sac": {"critic_hidden_sizes": [32], "batch_size": 32, "learning_starts": 2 * E * TA, "buffer_size": 2000},
    "td3": {"critic_hidden_sizes": [32], "batch_size": 32, "learning_starts": 2 * E * TA, "buffer_size": 2000},
    "ppo": {"critic_hidden_sizes": [32], "batch_size": 64, "n_steps": 16, "learning_rate": 3e-4},
}
NOTHING = np.zeros((E, 1, 2), np.float32)  # observations that do not matter
observations = partial(bandit.observations, n=E)
play = partial(bandit.play, n=E)
score = partial(bandit.score, n=500)


def make_policy(name="ppo", **kwargs) -> GaussianPolicy:
    """Whose normalizers do something."""
    torch.manual_seed(0)
    settings = {"hidden_sizes": [32, 16], "n_action_steps": TA, "squash": name != "ppo", "log_std_init": -0.7}
    policy = GaussianPolicy(GaussianPolicyConfig(**(settings | kwargs)), 2, DA, ["flat"], "bandit").eval()
    policy.obs_normalizer.offset.fill_(0.25)
    policy.action_normalizer.scale.fill_(0.5)
    return policy


def make_stage(name, policy=None, pretrained=False, task=TASK, **kwargs):
    make, config = STAGES[name]
    setting = Setting(task, E, 0, pretrained)
    return make(policy or make_policy(name), config(**(SMALL[name] | kwargs)), setting)
