"""The evaluations of a fine-tuning run: along the way, selected by the critic, at the best temperature."""

from __future__ import annotations

from dataclasses import replace

from burnish.envs.base import VectorEnv
from burnish.evaluation.evaluate import Evaluation, EvaluationConfig, about, evaluate
from burnish.evaluation.temperatures import Sampling, best, compare_samplings, samplings
from burnish.finetune.config import FinetuneConfig
from burnish.finetune.stage import Stage
from burnish.runs.evaluation_file import AT_TEMPERATURE
from burnish.runs.folder import Run


class Evaluations:
    """Of the stage's policy as it is when they are asked for."""

    def __init__(self, config: FinetuneConfig, stage: Stage, envs: VectorEnv, run: Run):
        self.config, self.task, self.stage, self.envs, self.run = config.evaluation, config.task, stage, envs, run

    def now(self, config: EvaluationConfig | None = None) -> Evaluation:
        """As the config says, or as `config` does."""
        return evaluate(self.stage.policy, self.task, config or self.config, envs=self.envs)

    def shown(self, when: str) -> Evaluation:
        """`now` where nothing else shows that the run goes on: it takes longer than the first update."""
        with self.run.progress(self.config.episodes, f"evaluation {when}") as progress:
            return evaluate(self.stage.policy, self.task, self.config, envs=self.envs, progress=progress)

    @property
    def selecting(self) -> EvaluationConfig | None:
        """How to evaluate with selection among candidates by the critic, where the stage has one."""
        n = self.stage.n_candidates
        return replace(self.config, candidates=n) if n > 1 else None

    def at_best_temperature(self, own: Evaluation) -> tuple[Evaluation, dict[float, float]]:
        """At the temperature that is best in other episodes -> evaluation, and what was tried: temperature: measure.

        `own`: at the policy's own temperature, which it is where nothing else may be tried.
        """
        config, policy, task = self.config, self.stage.policy, self.task
        each = samplings(policy, config.temperatures)
        if not each:
            return own, {}
        elsewhere = replace(config, seed=config.selection_seed)
        found = compare_samplings(policy, task, elsewhere, each, envs=self.envs, shown="choosing among ")
        tried = {sampling.temperature: one.summary().value(task.measure) for sampling, one in found.items()}
        chosen, measured = best(found), {Sampling(own.temperature, own.mean_of): own}
        kept = [] if self.stage.learns else each  # a policy that stays as it is shows what each of them gives
        missing = [one for one in dict.fromkeys([chosen, *kept]) if one not in measured]
        measured |= compare_samplings(policy, task, config, missing, envs=self.envs, shown="evaluation at ")
        for one in kept:
            self.save(measured[one], AT_TEMPERATURE.format(f"{one.temperature:g}"))
        return measured[chosen], tried

    def save(self, evaluation: Evaluation, name: str) -> None:
        """Into the run's folder under `name`: of the last checkpoint, with how it sampled."""
        how = replace(self.config, temperature=evaluation.temperature, mean_of=evaluation.mean_of)
        evaluation.save(self.run.folder / name, about(str(self.run.checkpoints.latest()), self.task, how))
