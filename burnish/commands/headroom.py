"""`burnish headroom`: what a frozen policy leaves for learning, once noise removal and selection took theirs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from burnish.compose import compose
from burnish.config import MOST_SEED, key, parse
from burnish.datasets.for_task import demonstrations_for
from burnish.datasets.sources import demonstrations_of
from burnish.envs.same_environment import AllowConfig, require_trained_in
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.evaluation.evaluate import EpisodesConfig, EvaluationConfig
from burnish.evaluation.intervals import Interval, bootstrap_interval, wilson_interval
from burnish.evaluation.temperatures import compare_samplings, samplings
from burnish.finetune.config import FinetuneConfig
from burnish.finetune.stage import stage_class
from burnish.finetune.start import finetune
from burnish.machine.device import DeviceConfig, resolve_device
from burnish.machine.disk import require_writable
from burnish.plugins import PluginsConfig
from burnish.policies.load import load_policy
from burnish.runs.evaluation_file import SELECTED, EvaluationFile
from burnish.runs.json_file import write_json

ENOUGH_SUCCESS = 0.25  # left above the best frozen row, for a fine-tuning to be told apart from noise removal
ENOUGH_RETURN = 1 / 3  # likewise, of the expert's return


@dataclass(frozen=True, kw_only=True)
class HeadroomConfig(EpisodesConfig, AllowConfig, DeviceConfig, PluginsConfig):
    """Which policy, in which episodes, against which expert."""

    policy: str = key(doc="folder of the pretrained policy")
    task: TaskConfig = key()
    seed: int = key(200_000, "of the first episode", least=0, most=MOST_SEED)
    temperatures: list[float] = key([1.0, 0.75, 0.5, 0.25, 0.0], "of the frozen policy", least=0)
    means_of: list[int] = key([4, 16], "chunks whose mean is executed, at temperature 1", least=2)
    critic_steps: int = key(
        12_800, "environment steps by which a critic of the frozen policy is learned, to choose by (0: none)", least=0
    )
    demos: str | None = key("task", "demonstrations for the critic: a file, or task (those the task names); null: none")
    expert: str | float | None = key(
        "expert",
        "expert (scripted, robosuite), a SAC actor's .safetensors, a policy's folder, or its success rate or return as "
        "a number (null: none)",
    )
    out: str | None = key(None, "folder for headroom.json and the critic's run (null: headroom/ beside the policy)")

    def check(self) -> None:
        super().check()
        self.task.require_simulator()


class Row(NamedTuple):
    """What was measured of one way to act."""

    name: str
    value: float
    interval: Interval | None


def headroom(config: HeadroomConfig) -> dict[str, Any]:
    """Measure, print the table and the verdict -> the content of headroom.json.

    Raises BurnishError where the policy cannot be read or does not fit, or there is no such expert.
    """
    policy = load_policy(config.policy, resolve_device(config.device, config.torch_threads))
    require_trained_in(policy, config.task, config.allow)
    folder = Path(config.out) if config.out else Path(config.policy) / "headroom"
    require_writable(folder)
    measure, seeds = config.task.measure, [config.seed + i for i in range(config.episodes)]
    how = EvaluationConfig(**{field.name: getattr(config, field.name) for field in fields(EpisodesConfig)})
    chooses = stage_class("best_of_n").trains(policy.config.kind)
    choosing = _choosing(config, folder) if config.critic_steps and chooses else None
    expert = _expert(config, measure)
    each = samplings(policy, config.temperatures, config.means_of)
    found = compare_samplings(policy, config.task, how, each, shown="frozen, ")
    rows = []
    for sampling, evaluation in found.items():
        values = evaluation.success if measure == "success_rate" else evaluation.returns
        rows.append(row(f"frozen, {sampling}", values, measure))
    if choosing:
        rows.append(_best_of_n(choosing, measure))
    said = verdict(rows, expert, measure)
    print(f"\n{config.task.name}, {measure}, {len(seeds)} episodes from seed {config.seed} on, 95 % intervals\n")
    for line in [*rows, *([expert] if expert else [])]:
        print(shown(line, measure))
    print(f"\n{said}\n")
    content = {
        "policy": config.policy,
        "measure": measure,
        "episodes": len(seeds),
        "seed": config.seed,
        "rows": {line.name: {"value": line.value, "interval": line.interval} for line in rows},
        "expert": expert and {"name": expert.name, "value": expert.value, "interval": expert.interval},
        "verdict": said,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "headroom.json", content)
    return {"headroom": str(folder / "headroom.json")}


def row(name: str, values: np.ndarray, measure: str) -> Row:
    """Of what each episode gave (n,)."""
    if measure == "success_rate":
        return Row(name, float(values.mean()), wilson_interval(int(values.sum()), len(values)))
    return Row(name, float(values.mean()), bootstrap_interval(values))


def shown(line: Row, measure: str) -> str:
    number = "{:.1%}".format if measure == "success_rate" else "{:.1f}".format
    interval = "" if line.interval is None else f"[{number(line.interval.low)}, {number(line.interval.high)}]"
    return f"{line.name:<36}{number(line.value):>9}  {interval}"


def verdict(rows: list[Row], expert: Row | None, measure: str) -> str:
    """Whether a fine-tuning could be told apart from noise removal and selection here, in a sentence."""
    best = max(rows, key=lambda line: line.value)
    number = "{:.0%}".format if measure == "success_rate" else "{:.0f}".format
    most = expert.value if expert else 1.0 if measure == "success_rate" else None
    if most is None:
        return (
            f"The best without training is {number(best.value)} ({best.name}); without an expert nobody knows the most."
        )
    left = most - best.value
    enough = ENOUGH_SUCCESS if measure == "success_rate" else ENOUGH_RETURN * most
    whose = "the expert" if expert else "always succeeding"
    facts = f"{best.name} has {number(best.value)}, {whose} {number(most)}: {number(left)} are left"
    if left >= enough:
        return f"{facts}. A fine-tuning can be told apart from noise removal here."
    return (
        f"{facts}, less than {number(enough)}. A fine-tuning cannot be told apart from noise removal here: take fewer "
        "demonstrations, or ones with faults that averaging does not remove (docs/data.md)."
    )


def _expert(config: HeadroomConfig, measure: str) -> Row | None:
    from burnish.datasets.collecting.collect import record_all
    from burnish.datasets.collecting.config import CollectConfig

    if config.expert is None:
        return None
    if not isinstance(config.expert, str):
        return Row("expert (given)", float(config.expert), None)
    if config.expert == "expert" and config.task.suite != "robosuite":
        raise BurnishError(
            f"expert=expert: there is no scripted one of {config.task.name}: give its return as a number, a SAC "
            "actor's .safetensors, a policy's folder, or null"
        )
    collecting = CollectConfig(
        task=config.task,
        out="none.hdf5",  # nothing is written
        behaviour=config.expert,
        episodes=config.episodes,
        seed=config.seed,
        states=False,
        n_workers=config.n_workers or 2,
        allow=config.allow,
        plugins=config.plugins,
    )
    found = record_all(collecting)
    values = [one.success if measure == "success_rate" else one.episode.rewards.sum() for one in found]
    return row(f"expert ({config.expert})", np.array(values), measure)


def _choosing(config: HeadroomConfig, folder: Path) -> FinetuneConfig:
    """The run that learns a critic of the frozen policy. Raises BurnishError of bad demonstrations."""
    if config.demos is not None:
        source = demonstrations_of(config.task, config.demos)
        if source is None:
            raise BurnishError(f"demos=task: task={config.task.name} names none: give a file, or demos=null")
        demonstrations_for(config.task, source, allow=config.allow, rewards_matter=True)
    words = [
        f"policy={config.policy}",
        "stage=best_of_n",
        f"total_env_steps={config.critic_steps}",
        f"evaluation.seed={config.seed}",
        f"evaluation.episodes={config.episodes}",
        f"evaluation.n_envs={config.n_envs}",
        f"allow=[{','.join(config.allow)}]",
        "evaluation.temperatures=[]",
        f"run_dir={folder / 'best-of-n'}",
        "overwrite=true",
        f"plugins=[{','.join(config.plugins)}]",
        *(["stage.demos=null", "stage.demo_ratio=0"] if config.demos is None else [f"stage.demos={config.demos}"]),
    ]
    composed = compose("finetune", words)
    composed["task"] = config.task  # as it was given here
    return parse(FinetuneConfig, composed)


def _best_of_n(choosing: FinetuneConfig, measure: str) -> Row:
    finetune(choosing)
    file = EvaluationFile.read(Path(choosing.run_dir) / SELECTED)
    name = f"frozen, best of {file.candidates} by its critic"
    return row(name, np.array(file.values(measure)), measure)
