"""What the tests of stages with a squashed Gaussian actor share: small ones on the bandit, of policies whose
normalizers act."""

from __future__ import annotations

from bandit import TA, TASK, E
from baseline_stages import make_policy

from burnish.finetune.algorithms.calql import CalQL, CalQLConfig
from burnish.finetune.algorithms.rlpd import RLPD, RLPDConfig
from burnish.finetune.stage import Setting
from burnish.networks import CriticConfig

STAGES = {"rlpd": (RLPD, RLPDConfig), "calql": (CalQL, CalQLConfig)}


def make_stage(name: str, policy=None, pretrained=False, **kwargs):
    """With another's layers where a policy is given; `kwargs` are keys of its config."""
    make, config = STAGES[name]
    settings = {"critic": CriticConfig(hidden_dim=64, n_layers=2, n_critics=4 if name == "rlpd" else 2)}
    settings |= {"batch_size": 64, "buffer_size": 2000, "learning_starts": 2 * E * TA, "critic_warmup_updates": 20}
    settings |= {"critic_lr": 1e-3, "actor_lr": 1e-3, "alpha": 0.1, "demos": None, "demo_ratio": 0.0}
    settings["utd_ratio"] = 1.0
    return make(policy or make_policy("sac"), config(**(settings | kwargs)), Setting(TASK, E, 0, pretrained))
