"""What the tests of RSM's losses share: a known Q on [-1, 1], the densities that it promises, and their distance."""

import numpy as np
import torch

from burnish.envs.task import TaskConfig
from burnish.finetune.algorithms.dpmd import DPMD, DPMDConfig
from burnish.finetune.algorithms.sdac import SDAC, SDACConfig
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Transitions
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

STAGES = {"dpmd": (DPMD, DPMDConfig), "sdac": (SDAC, SDACConfig)}
TEMPERATURE = 0.3
BINS = np.linspace(-1, 1, 41)


def make_policy(Do=1, Tp=1, Da=1, **kwargs) -> DiffusionPolicy:
    settings = {"denoiser": DenoiserConfig(hidden_dim=64, n_layers=3), "horizon": Tp, "n_action_steps": Tp}
    return DiffusionPolicy(PolicyConfig(**(settings | kwargs)), Do, Da, ["flat"]).eval()


def make_stage(name: str, policy: DiffusionPolicy, **kwargs):
    make, config = STAGES[name]
    settings = {"demo_ratio": 0.0, "bc_coef": 0.0, "demos": None, "sampler": "inherit", "buffer_size": 1000}
    if name == "dpmd":
        settings |= {"train_on": "all", "draw_at": "next"}
    return make(policy, config(**(settings | kwargs)), Setting(TaskConfig("bandit", "gymnasium", "Bandit-v0", 1), 4, 0))


def known_q(a: torch.Tensor) -> torch.Tensor:
    """Bimodal, in [0, 1]."""
    return (-(((a + 0.5) / 0.25) ** 2)).exp() + 0.8 * (-(((a - 0.5) / 0.2) ** 2)).exp()


def values(obs, x, critic=None):
    """In place of `DiffusionPolicy.values`: (B, N, 1, 1) -> (B, N)"""
    return known_q(x.clamp(-1, 1))[..., 0, 0]


def density(log_density) -> np.ndarray:
    """Probabilities of the bins for an unnormalised density on [-1, 1]."""
    fine = np.linspace(-1, 1, 4001)
    p = np.add.reduceat(np.exp(log_density(fine))[:-1], np.arange(0, 4000, 100))
    return p / p.sum()


def log_target(a: np.ndarray) -> np.ndarray:
    return known_q(torch.from_numpy(a)).numpy() / TEMPERATURE


def histogram(actions: np.ndarray, weights=None) -> np.ndarray:
    counts = np.histogram(actions, BINS, weights=weights)[0]
    return counts / counts.sum()


def total_variation(actions: np.ndarray, p: np.ndarray) -> float:
    return 0.5 * float(np.abs(histogram(actions) - p).sum())


@torch.no_grad()
def sample(policy: DiffusionPolicy, network, n=20_000) -> np.ndarray:
    noise = policy.draw_noise(n, generator=torch.Generator().manual_seed(1))
    return policy.sample(torch.zeros(n, 1), noise, finetuned=network)[0].flatten().clamp(-1, 1).numpy()


def batch_of(n: int, chunk: torch.Tensor | None = None) -> Transitions:
    obs, zeros = torch.zeros(n, 1), torch.zeros(n)
    return Transitions(obs, torch.zeros(n, 1) if chunk is None else chunk, zeros, zeros, obs)


def train(parameters, steps: int, lr: float, loss) -> None:
    """Adam, its rate falling to zero."""
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        schedule.step()
