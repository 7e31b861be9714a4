"""What a GPU is checked with: trainings, updates and samplings on random numbers, made alike on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from burnish.datasets.episodes import Episode
from burnish.datasets.windows import Windows
from burnish.envs.base import ChunkStep
from burnish.envs.task import TaskConfig
from burnish.finetune.algorithms.dpmd import DPMDConfig
from burnish.finetune.algorithms.dppo import DPPOConfig
from burnish.finetune.algorithms.sdac import SDACConfig
from burnish.finetune.drawing import ReweightingConfig, ReweightingStage
from burnish.finetune.on_policy import OnPolicyStage
from burnish.finetune.stage import Setting, Stage, StageConfig, stage_class
from burnish.finetune.storage.replay import Transitions
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.pretrain.behaviour_cloning import BehaviourCloning, PretrainConfig, TrainConfig

OBS_DIM, ACTION_DIM = 19, 7  # Lift's
TASK = TaskConfig(name="gpu-check", suite="gymnasium", env_id="Hopper-v5", max_episode_steps=1000)
TOLERANCE = {"sample": 1e-4, "loss": 1e-4, "weights": 1e-2}  # weights: Adam makes much of what rounding leaves of a 0
BF16_TOLERANCE = {"loss": 2e-2, "weights": 0.5}
SEED = 0


class Workload(NamedTuple):
    """Something that a device does.

    Attributes:
        work: one unit of it, with random numbers of its own; what is timed.
        numbers: does it once -> what is compared: a key of `TOLERANCE` -> numbers.
        state: of its trainer; what `load` takes, on any device.
        waits: how often the host may wait for the device in one unit.
    """

    work: Callable[[], object]
    numbers: Callable[[], Mapping[str, Tensor]]
    state: Callable[[], dict[str, Any]]
    load: Callable[[dict[str, Any]], object]
    waits: int = 0


class Case(NamedTuple):
    name: str
    setting: str
    make: Callable[[torch.device], Workload]
    tolerance: Mapping[str, float] = TOLERANCE
    precision: torch.dtype = torch.float32
    reference: Callable[[torch.device], Workload] | None = None  # what the CPU does, if not the same


class Drawn(TorchFunctionMode):
    """Random numbers from one generator on the CPU, whatever the device: the same for all."""

    DRAWS = (torch.randn, torch.rand, torch.randint, torch.randperm)

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(SEED)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function not in self.DRAWS:
            return function(*args, **kwargs)
        device = kwargs.pop("device", None)
        kwargs["generator"] = self.generator
        return function(*args, **kwargs).to(device)


def make_policy(device: torch.device, network: str = "mlp", hidden_dim: int = 512) -> DiffusionPolicy:
    denoiser = DenoiserConfig(name=network, hidden_dim=hidden_dim, residual=True, activation="relu", channels=[64, 128])
    horizon = 16 if network == "unet" else 4
    torch.manual_seed(SEED)
    policy = DiffusionPolicy(PolicyConfig(denoiser=denoiser, horizon=horizon), OBS_DIM, ACTION_DIM, ["flat"])
    return policy.to(device).eval()


def moved(module: torch.nn.Module) -> Callable[[], Tensor]:
    """By how much the weights have moved since this call."""

    def flat() -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).cpu().double()

    before = flat()
    return lambda: flat() - before


def pretraining(device: torch.device, quick: bool, network: str = "mlp", precision: str = "float32") -> Workload:
    batch, steps = (32, 2) if quick else (256, 10)
    rng = np.random.default_rng(SEED)
    length = batch * 64  # one epoch: its end, where a permutation is made on the CPU, is not reached
    obs = {"flat": rng.normal(size=(length, OBS_DIM)).astype(np.float32)}
    actions = rng.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32)
    episode = Episode("demo_0", obs, actions, np.zeros(length, np.float32), np.zeros(length, bool))
    policy = make_policy(device, network)
    windows = Windows([episode], ["flat"], policy.config.n_obs_steps, policy.config.horizon, device)
    policy.obs_normalizer.fit(windows.obs, "min_max")
    policy.action_normalizer.fit(windows.actions, "min_max")
    train = TrainConfig(batch_size=batch, precision=precision, updates=10_000)  # type: ignore[arg-type]
    config = PretrainConfig(run_dir="none", task=TASK, policy=policy.config, train=train)  # type: ignore[arg-type]
    trainer = BehaviourCloning(config, policy, windows, None)

    def numbers() -> dict[str, Tensor]:
        movement = moved(policy)
        for _ in range(steps):
            trainer.update()
        return {"loss": trainer.loss_sum / steps, "weights": movement()}

    return Workload(trainer.update, numbers, trainer.state_dict, trainer.load_state_dict)


def sampling(device: torch.device, quick: bool, network: str = "mlp") -> Workload:
    rows = 8 if quick else 256
    policy = make_policy(device, network)
    with Drawn():
        obs = torch.randn(rows, OBS_DIM, device=device)

    @torch.no_grad()
    def sample() -> Tensor:
        return policy.sample(obs, policy.draw_noise(rows))[0]

    return Workload(sample, lambda: {"sample": sample()}, policy.state_dict, policy.load_state_dict)


def make_stage(device: torch.device, config: StageConfig, n_envs: int, hidden_dim: int) -> Stage:
    make: Any = stage_class(config.name)
    stage: Stage = make(make_policy(device, hidden_dim=hidden_dim), config, Setting(TASK, n_envs, SEED))
    return stage


def chunk_step(rng: np.random.Generator, n_envs: int, Ta: int) -> ChunkStep:
    """Of random numbers."""
    nothing = np.zeros(n_envs, bool)
    step_rewards = rng.normal(size=(n_envs, Ta)).astype(np.float32)
    obs, final_obs = rng.normal(size=(2, n_envs, 1, OBS_DIM)).astype(np.float32)
    steps = np.full(n_envs, Ta)
    return ChunkStep(obs, step_rewards.sum(1), nothing, nothing, final_obs, nothing, steps, step_rewards)


def on_policy(device: torch.device, quick: bool, config: StageConfig, work: str = "update") -> Workload:
    """A rollout, and the update on it: of one epoch, whose minibatches are fewer than those of a run."""
    n_envs = 4 if quick else 40
    stage: Any = make_stage(device, config, n_envs, 32 if quick else 512)
    assert isinstance(stage, OnPolicyStage)
    rng = np.random.default_rng(SEED)

    def collect() -> list[Tensor]:
        actions = []
        while not stage.ready():
            actions.append(torch.from_numpy(stage.act(rng.normal(size=(n_envs, 1, OBS_DIM)).astype(np.float32))))
            stage.observe(chunk_step(rng, n_envs, stage.policy.config.n_action_steps))
        return actions

    def numbers() -> dict[str, Tensor]:
        sample = torch.stack(collect())
        movement, of_critic = moved(stage.policy), moved(stage.critic)
        metrics = stage.update()
        losses = torch.tensor([metrics["value_loss"], metrics["policy_loss"]])
        return {"sample": sample, "loss": losses, "weights": torch.cat([movement(), of_critic()])}

    @torch.no_grad()
    def explore() -> None:
        stage.explore(stage.rollout.obs[0])

    def update() -> None:
        """On the same rollout again and again, whose first ratio is 1 but once."""
        stage.update_critic(returns)
        stage.update_actor(returns)

    if work == "explore":
        sampled = lambda: {"sample": torch.stack(collect())}  # noqa: E731
        return Workload(explore, sampled, stage.state_dict, stage.load_state_dict)
    returns = torch.randn(n_envs * stage.chunks_per_update, device=device)

    def prepared() -> None:
        if not stage.ready():
            collect()
            stage.check_first_ratio = lambda ratio: torch.zeros((), device=device)
        update()

    return Workload(prepared, numbers, stage.state_dict, stage.load_state_dict, waits=1)  # for the epoch's KL


def off_policy(device: torch.device, quick: bool, config: ReweightingConfig, work: str = "update") -> Workload:
    """Gradient steps on a replay of random transitions."""
    n_envs, stored, steps = 4, 64 if quick else 4096, 4
    stage: Any = make_stage(device, config, n_envs, 32 if quick else 256)
    assert isinstance(stage, ReweightingStage)
    stage.owed = 0.0
    with Drawn():
        obs, next_obs = torch.randn(2, stored, OBS_DIM, device=device)
        chunk = 2 * torch.rand(stored, stage.policy.config.horizon * ACTION_DIM, device=device) - 1
        reward = torch.randn(stored, device=device)
        stage.replay.store(Transitions(obs, chunk, reward, torch.full_like(reward, 0.99), next_obs))

    def numbers() -> dict[str, Tensor]:
        sample = stage.candidates(obs[:8], 4)
        movement, of_critic = moved(stage.actor), moved(stage.critic.network)
        losses = [stage._gradient_step() for _ in range(steps)]
        loss = torch.stack([value for each in losses for key, value in each.items() if key.endswith("_loss")])
        return {"sample": sample, "loss": loss, "weights": torch.cat([movement(), of_critic()])}

    @torch.no_grad()
    def candidates() -> None:
        stage.candidates(obs[:n_envs], 32)

    if work == "candidates":
        sampled = lambda: {"sample": stage.candidates(obs[:8], 4)}  # noqa: E731
        return Workload(candidates, sampled, stage.state_dict, stage.load_state_dict)
    return Workload(stage._gradient_step, numbers, stage.state_dict, stage.load_state_dict)


def cases(quick: bool) -> list[Case]:
    batch = 32 if quick else 256
    ppo = DPPOConfig(
        n_steps=2 if quick else 125,
        update_epochs=1,
        batch_size=80 if quick else 25_000,
        critic_warmup_iterations=0,
        target_kl=1e9,
        desired_kl=None,
    )
    off: dict[str, Any] = {"demo_ratio": 0.0, "bc_coef": 0.0, "critic_warmup_updates": 0, "batch_size": batch}
    off |= {"buffer_size": 4096, "draw_at": "current"}
    dpmd, sdac = DPMDConfig(**off), SDACConfig(**off)
    steps = "K = 20, 3x512" if not quick else "small"
    return [
        Case("pretraining step", f"batch {batch}, 3x512", partial(pretraining, quick=quick)),
        Case(
            "pretraining step",
            f"batch {batch}, 3x512, bf16",
            partial(pretraining, quick=quick, precision="bf16"),
            BF16_TOLERANCE,
            torch.bfloat16,
            partial(pretraining, quick=quick),
        ),
        Case("pretraining step", f"batch {batch}, U-Net", partial(pretraining, quick=quick, network="unet")),
        Case("sampling", f"{8 if quick else 256} chunks, {steps}", partial(sampling, quick=quick)),
        Case("sampling", f"{8 if quick else 256} chunks, U-Net", partial(sampling, quick=quick, network="unet")),
        Case("DPPO sampling with chain", steps, partial(on_policy, quick=quick, config=ppo, work="explore")),
        Case("DPPO update, one epoch", steps, partial(on_policy, quick=quick, config=ppo)),
        Case(
            "RSM acting",
            "4 environments, 32 candidates",
            partial(off_policy, quick=quick, config=dpmd, work="candidates"),
        ),
        Case("DPMD gradient step", f"batch {batch}", partial(off_policy, quick=quick, config=dpmd)),
        Case("SDAC gradient step", f"batch {batch}", partial(off_policy, quick=quick, config=sdac)),
    ]
