"""The commands that take `key=value`: what they are called, what they run, what their help says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from burnish.commands.explain import explain, row
from burnish.compose import compose, config_class, config_groups, split
from burnish.config import parse
from burnish.registry import load


@dataclass(frozen=True)
class Command:
    """A command behind a YAML file of burnish.configs.

    Attributes:
        name: as typed ("data collect").
        summary: one line.
        description: what it does and what it writes.
        config: the YAML file's name.
        function: "module:name" of what takes the configuration, see `burnish.compose.CONFIGS`.
        examples: command lines.
        lengths: keys of the total length, which may be raised on resume, each in place of the others; none where there
            is no resume.
        section: a key only such runs' config.yaml has, to tell whose run folder it is.
    """

    name: str
    summary: str
    description: str
    config: str
    function: str
    examples: tuple[str, ...]
    lengths: tuple[str, ...] = ()
    section: str | None = None

    def parse(self, config: dict[str, Any]) -> Any:
        """The command's dataclass from plain data. Raises BurnishError naming the first wrong key."""
        return parse(config_class(self.config), config)

    def run(self, config: Any) -> Any:
        """Do the work of the command."""
        return load(self.function)(config)

    def help(self, overrides: Sequence[str] = ()) -> str:
        """The text of --help: all keys, with the values that they have after `overrides`, such as `stage=dpmd`."""
        values = compose(self.config, list(overrides))  # first: it imports the plugins, which may have options
        groups = config_groups(self.config)
        given = dict(map(split, overrides))
        chosen = [f"{group}={given.get(group, options[0])}" for group, options in groups.items()]
        lines = [
            f"usage: burnish {self.name} [key=value ...] [--multirun] [--cfg] [--help]",
            "",
            self.description,
        ]
        lines += ["", "config groups (the first is the default):"]
        lines += [row(f"{group}=", ", ".join(options)) for group, options in groups.items()]
        lines += ["", f"keys with {' '.join(chosen)} (others: burnish {self.name} GROUP=OPTION --help):"]
        lines += explain(config_class(self.config), values)
        lines += ["", "options:"]
        lines += [
            row("-m, --multirun", "run all combinations of key=a,b or key=range(0,3), one after another"),
            row("--cfg", "print the resolved configuration and stop"),
        ]
        lines += ["", "examples:", *(f"  {example}" for example in self.examples)]
        return "\n".join(lines)


COMMANDS = (
    Command(
        name="pretrain",
        summary="clone demonstrations into a diffusion policy",
        description="Clones demonstrations into a diffusion (or Gaussian) policy (behaviour cloning) and\n"
        "evaluates it in the simulator. Writes a run folder; its checkpoints are policy folders.",
        config="pretrain",
        function="burnish.pretrain.behaviour_cloning:pretrain",
        examples=(
            "burnish pretrain task=lift",
            "burnish pretrain task=hopper dataset=data/hopper.hdf5 train.updates=10000 run_dir=runs/hopper",
            "burnish pretrain task=can policy=unet --multirun seed=0,1,2 run_dir=runs/can-seeds",
            "burnish pretrain task=lift policy=gaussian run_dir=runs/gaussian-lift",
            "burnish pretrain resume=runs/hopper train.updates=40000",
        ),
        lengths=("train.updates", "train.epochs"),
        section="train",
    ),
    Command(
        name="finetune",
        summary="improve a pretrained policy by reinforcement learning",
        description="Improves a pretrained policy by RL in the simulator. Writes a run folder;\n"
        "its checkpoints are policy folders.",
        config="finetune",
        function="burnish.finetune.start:finetune",
        examples=(
            "burnish finetune task=lift policy=runs/pretrain-lift-seed0/checkpoints/best",
            "burnish finetune task=lift policy=runs/a/checkpoints/best total_env_steps=2e6 run_dir=runs/b",
            "burnish finetune task=lift stage=dpmd policy=runs/a total_env_steps=25600",
            "burnish finetune task=lift stage=dpmd policy=runs/a offline.steps=20000 total_env_steps=51200",
            "burnish finetune resume=runs/b",
        ),
        lengths=("total_env_steps",),
        section="stage",
    ),
    Command(
        name="offline",
        summary="improve a pretrained policy on demonstrations with rewards alone",
        description="Improves a pretrained policy by RL on demonstrations alone; no environment is stepped, but in\n"
        "evaluations. Writes a run folder; burnish finetune resume=RUN total_env_steps=N goes on online.",
        config="offline",
        function="burnish.finetune.start:finetune",
        examples=(
            "burnish offline task=lift policy=runs/pretrain-lift-seed0 stage.demos=data/lift.hdf5",
            "burnish offline task=hopper policy=runs/a stage=dpmd_gym stage.critic.kind=expectile offline.steps=50000",
            "burnish finetune resume=runs/offline-dpmd-lift-seed0 total_env_steps=51200",
        ),
        lengths=("offline.steps",),
        section="stage",
    ),
    Command(
        name="scratch",
        summary="train a policy by reinforcement learning alone",
        description="Trains a policy by RL from nothing: a diffusion policy in the setting of the RSM paper\n"
        "(Ma et al. 2025), or a Gaussian one by Stable-Baselines3's SAC, TD3 or PPO.\n"
        "Writes a run folder; its checkpoints are policy folders.",
        config="scratch",
        function="burnish.finetune.start:finetune",
        examples=(
            "burnish scratch task=halfcheetah",
            "burnish scratch task=hopper stage=sdac_paper total_env_steps=200000 --multirun seed=0,1,2",
            "burnish scratch task=hopper stage=sac network=gaussian n_envs=1 total_env_steps=100000",
            "burnish finetune resume=runs/scratch-dpmd-halfcheetah-seed0",
        ),
        lengths=("total_env_steps",),
        section="stage",
    ),
    Command(
        name="evaluate",
        summary="roll out a saved policy with fixed seeds",
        description="Rolls out a saved policy with fixed seeds: success rate and return, with confidence\n"
        "intervals. Writes evaluation.json, and videos if asked for.",
        config="evaluate",
        function="burnish.commands.evaluate:evaluate_policy",
        examples=(
            "burnish evaluate task=lift policy=runs/dppo-lift-seed0/checkpoints/best",
            "burnish evaluate task=lift policy=runs/pretrain-lift-seed0 temperature=[1,0.5,0]",
            "burnish evaluate task=lift policy=runs/a/checkpoints/best episodes=20 video=3 out=results/lift",
        ),
    ),
    Command(
        name="headroom",
        summary="what a frozen policy leaves for learning",
        description="Measures a pretrained policy without training it: at several temperatures, by means of several\n"
        "chunks, and the best of several by a critic that is learned for it; and an expert. Says whether a\n"
        "fine-tuning could be told apart from noise removal there. Writes headroom.json.",
        config="headroom",
        function="burnish.commands.headroom:headroom",
        examples=(
            "burnish headroom task=stack policy=runs/pretrain-stack-seed0 demos=data/stack.hdf5",
            "burnish headroom task=hopper policy=runs/pretrain-hopper-seed0 expert=3500 demos=data/hopper.hdf5",
        ),
    ),
    Command(
        name="data collect",
        summary="collect demonstrations in simulation",
        description="Collects demonstrations in simulation: of a scripted expert, an actor or a policy.",
        config="collect",
        function="burnish.datasets.collecting.collect:collect",
        examples=(
            "burnish data collect task=lift out=data/lift.hdf5",
            "burnish data collect task=hopper behaviour=sac episodes=200 out=data/hopper-medium.hdf5",
        ),
    ),
    Command(
        name="data train-behaviour",
        summary="train an actor to collect demonstrations with",
        description="Trains a SAC actor (Stable-Baselines3) on a Gymnasium task until it reaches a return,\n"
        "to collect demonstrations with.",
        config="behaviour",
        function="burnish.datasets.collecting.sac_actor:train_behaviour",
        examples=("burnish data train-behaviour task=hopper target_return=1500 out=data/hopper.safetensors",),
    ),
)
"""All of them, in the order of the help."""
