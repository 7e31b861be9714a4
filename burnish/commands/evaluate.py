"""`burnish evaluate`: a policy folder and a task -> evaluation.json and videos, or a table over ways to sample."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from burnish.config import MOST_SEED, key
from burnish.envs.same_environment import AllowConfig, require_trained_in
from burnish.envs.task import TaskConfig
from burnish.errors import warn
from burnish.evaluation.evaluate import EpisodesConfig, EvaluationConfig, about, evaluate
from burnish.evaluation.temperatures import Sampling, best, compare_samplings, table
from burnish.evaluation.video import record
from burnish.machine.device import DeviceConfig, resolve_device
from burnish.machine.disk import require_writable
from burnish.plugins import PluginsConfig
from burnish.policies.base import Policy
from burnish.policies.load import load_policy
from burnish.runs.evaluation_file import EVALUATION
from burnish.runs.progress import Progress


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EpisodesConfig, AllowConfig, DeviceConfig, PluginsConfig):
    """What to evaluate, in which episodes (the keys of `EpisodesConfig`), and how it samples."""

    policy: str = key(doc="folder of the policy, e.g. runs/dppo-lift-seed0/checkpoints/best")
    task: TaskConfig = key()
    seed: int = key(
        200_000,
        "of the first episode; not those from 100000 on, by which trainings choose their best checkpoint: measured on "
        "them it would seem better than it is",
        least=0,
        most=MOST_SEED,
    )
    out: str | None = key(None, "folder for the results (null: evaluation/ in the run folder, or beside the policy)")

    temperature: float | list[float] | None = key(
        None, "factor on all noise of the policy's sampler (null: its own); of several, [1,0.5,0], a table", least=0
    )
    mean_of: int | list[int] | None = key(
        None, "chunks whose mean is executed (null: the policy's own number); of several, [1,16], a table", least=1
    )
    sampler: str | list[str] | None = key(
        None,
        "with which the policy acts: ddpm, ddim, euler, flow_sde, or a scheduler of diffusers, "
        "diffusers:DPMSolverMultistepScheduler (null: its own; docs/samplers.md); of several a table",
    )
    sampler_steps: int | list[int] | None = key(
        None, "denoising steps of it (null: the policy's own number); of several, [5,10], a table", least=1
    )

    def check(self) -> None:
        super().check()
        self.task.require_simulator()

    def evaluation(self) -> EvaluationConfig:
        """How to evaluate, but for how to sample."""
        return EvaluationConfig(**{field.name: getattr(self, field.name) for field in fields(EpisodesConfig)})

    def samplings(self, policy: Policy) -> list[Sampling]:
        """All combinations of what was given."""
        own = policy.config
        temperatures, means = _listed(self.temperature, own.temperature), _listed(self.mean_of, own.mean_of)
        samplers, steps = _listed(self.sampler, None), _listed(self.sampler_steps, None)
        return [
            Sampling(temperature, n, sampler, S)
            for sampler, S, n, temperature in itertools.product(samplers, steps, means, temperatures)
        ]


def _listed(given: Any, own: Any) -> list[Any]:
    """What was given as a list; the policy's `own` where nothing was."""
    if given is None:
        return [own]
    return list(dict.fromkeys(given)) if isinstance(given, list) else [given]


def evaluate_policy(config: EvaluateConfig) -> dict[str, float]:
    """Evaluate -> the summary, which is also written to evaluation.json, with every episode.

    Raises BurnishError where the policy cannot be read or does not fit the task, or `out` cannot be written.
    """
    policy = load_policy(config.policy, resolve_device(config.device, config.torch_threads))
    require_trained_in(policy, config.task, config.allow)
    each, how = config.samplings(policy), config.evaluation()
    for sampling in each:
        with policy.sampling(*sampling):
            policy.check_candidates(how.candidates)
            if policy.doubt:
                warn(policy.doubt)
    folder = Path(config.out) if config.out else default_folder(config)
    require_writable(folder)
    if len(each) > 1:
        return evaluate_samplings(config, policy, each, folder)
    policy.set_sampling(*each[0])
    with Progress(config.episodes, f"evaluate {config.task.name}") as progress:
        evaluation = evaluate(policy, config.task, how, progress=progress)
    evaluation.save(folder / EVALUATION, about(config.policy, config.task, replace(how, **each[0]._asdict())))
    record(policy, config.task, evaluation.seeds[: config.video], folder, config.candidates)
    return evaluation.summary().to_json()


def evaluate_samplings(config: EvaluateConfig, policy: Policy, each: list[Sampling], folder: Path) -> dict[str, float]:
    """Evaluate in several ways, print the table, write evaluation-HOW.json for each -> the summary of the best."""
    how, measure = config.evaluation(), config.task.measure
    found = compare_samplings(policy, config.task, how, each, shown=f"evaluate {config.task.name}, ")
    for sampling, evaluation in found.items():
        parts = [f"{name}{value.removeprefix('diffusers:')}" for name, value in sampling.settings.items()]
        file = f"evaluation-{'-'.join(parts)}.json"
        evaluation.save(folder / file, about(config.policy, config.task, replace(how, **sampling._asdict())))
    print(f"{config.task.name}, {measure}, {how.episodes} episodes from seed {how.seed} on, 95 % intervals\n")
    print(table(found, measure))
    first = best(found)
    keys = " ".join(f"{name}={value}" for name, value in first.settings.items())
    print(f"\nThe policy's own is {Sampling(policy.config.temperature, policy.config.mean_of)}. Best here: {first}.")
    print(f"To keep it: burnish policy set {config.policy} {keys}\n")
    return found[first].summary().to_json()


def default_folder(config: EvaluateConfig) -> Path:
    """evaluation/ in the run folder the policy is a checkpoint of, or else beside the policy."""
    policy = Path(config.policy)
    if (policy / "checkpoints").is_dir():
        root = policy
    else:
        root = policy.parent.parent if policy.parent.name == "checkpoints" else policy.parent
    return root / "evaluation" / f"{policy.name}-{config.task.name}-seed{config.seed}"
