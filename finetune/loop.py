"""The one fine-tuning loop: act, step, observe, update, log, evaluate, save. Algorithms are stages.

A run has an offline phase, of gradient steps on demonstrations alone, and then an online one; either may be empty. Its
`step`, which numbers lines of metrics.jsonl and checkpoints, counts the gradient steps of the one and the environment
steps of the other.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from burnish.envs.base import VectorEnv
from burnish.envs.vector.checks import LEAST_EPISODES, require_finite
from burnish.errors import BurnishError, SimulatorsLost, warn
from burnish.evaluation.evaluate import Evaluation, about
from burnish.evaluation.video import record
from burnish.finetune.config import FinetuneConfig
from burnish.finetune.evaluations import Evaluations
from burnish.finetune.stage import Stage
from burnish.finetune.statistics import EpisodeStatistics
from burnish.finetune.watch import TrainingEpisodes, fall, values
from burnish.machine.memory import peak_memory_mib
from burnish.machine.stop import StopRequest
from burnish.networks.optimise import skipped_updates
from burnish.policies.folder import WEIGHTS
from burnish.runs.checkpoint import FinetuneState
from burnish.runs.course import Course, passed
from burnish.runs.evaluation_file import (
    AT_BEST_TEMPERATURE,
    BEFORE,
    EVALUATION,
    SELECTED,
    EvaluationFile,
    EvaluationSummary,
)
from burnish.runs.folder import Run
from burnish.runs.state import require_alike
from burnish.runs.summary import AtBestTemperature, Best, FinetuneSummary, converged

SAVES = "saves"  # in `Loop.unfinished`: whether a checkpoint is due as well
NOISY_SHARE = 0.2  # a training policy that succeeds less often than this share of the clean one learns nothing


class Loop:
    """State and course of one fine-tuning run."""

    def __init__(self, config: FinetuneConfig, stage: Stage, envs: VectorEnv | None, eval_envs: VectorEnv, run: Run):
        self.config, self.stage, self.envs, self.run = config, stage, envs, run
        self.evaluations = Evaluations(config, stage, eval_envs, run)
        self.course = Course(run, "finetune", self._save)
        self.statistics = EpisodeStatistics(config.n_envs)
        self.offline_steps = 0  # gradient steps of the offline phase
        self.env_steps = 0
        self.updates = 0
        self.training_seconds = 0.0  # acting and updating, as logged
        self.unlogged = (0.0, 0)  # seconds and environment steps since
        self.looked_at = 0  # environment steps when evaluations and checkpoints were last thought of
        self.noise_compared = False  # see _compare_noisy_with_clean
        self.episodes = TrainingEpisodes(config.n_envs)
        self.ended = 0  # training episodes since it was last looked whether they were cut
        self.cut_before = 0  # non-finite ones until then
        self.fallen: str | None = None  # what was said of the last evaluation, if it fell below the first
        self.best_env_steps = 0
        self.before: EvaluationSummary | None = None  # the first evaluation
        self.obs: Any = None  # the environments' last, where there are any
        self.unfinished: dict[str, Any] | None = None  # metrics whose line waits for the evaluation that belongs to it

    def run_to_end(self) -> dict[str, Any]:
        """Start or resume, and go on to the last step of the last phase."""
        with StopRequest() as stop, self.course.ending(self._done):  # the evaluations before and after included
            if not self.run.load_checkpoint(FinetuneState, self._load_state):
                if self.envs is not None:
                    self.obs = self.envs.reset()
                self._evaluate_pretrained()
            self.course.savable = True
            self._finish_line()
            if self.offline_steps < self.config.offline.steps:
                self._learn_offline(stop)
            if self.envs is not None:
                self._learn(self.envs, stop)
            return self._finish()

    @property
    def step(self) -> int:
        """Of both phases."""
        return self.offline_steps + self.env_steps

    def _done(self) -> str:
        """How far it is, in words."""
        if self.env_steps:
            return f"after {self.env_steps} environment steps"
        return f"after {self.offline_steps} offline gradient steps" if self.offline_steps else "before the first step"

    def _accounts(self, phase: str) -> dict[str, Any]:
        """What is added to a line of metrics.jsonl where `step` alone does not tell; nothing where it does."""
        if not self.config.offline.steps:
            return {}
        return {"phase": phase, "offline_steps": self.offline_steps, "env_steps": self.env_steps}

    def _learn_offline(self, stop: StopRequest) -> None:
        how, name = self.config.offline, self.config.stage.name
        with self.run.progress(how.steps, f"{name} offline", initial=self.offline_steps) as progress:
            while self.offline_steps < how.steps and not self._out_of_time():
                began, before = time.perf_counter(), self.offline_steps
                n = min(how.report_every, how.steps - before)
                metrics: dict[str, Any] = self.stage.update_offline(n) | skipped_updates(self.stage)
                self.offline_steps += n
                seconds = time.perf_counter() - began
                self.training_seconds += seconds
                metrics |= {"time/update": seconds, "time/training": seconds} | self._accounts("offline")
                self._after_offline(metrics, before)
                progress.update(n)
                self.course.stop_if_asked(stop, self._done())

    def _after_offline(self, metrics: dict[str, Any], before: int) -> None:
        """Evaluate, log and save what is due, also where an online phase follows; the end of the run does its own."""
        how, now = self.config.offline, self.offline_steps
        ends = now >= how.steps or self._out_of_time()
        evaluates = (ends and self.envs is not None) or (not ends and passed(how.eval_every, before, now))
        self._report(metrics, evaluates=evaluates, saves=ends or passed(how.checkpoint_every, before, now))

    def _report(self, metrics: dict[str, Any], *, evaluates: bool, saves: bool) -> None:
        """Evaluate and save what is due, and log a line. Where the evaluation is cut short, a checkpoint has the line,
        for a resumed run to begin with."""
        if evaluates:
            numbers = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
            self.unfinished = {**numbers, SAVES: saves}
            self._finish_line()
            return
        self.run.log(metrics, self.step)
        self.course.keep(self.step, is_best=False, due=saves)

    def _finish_line(self) -> None:
        """The evaluation that `unfinished` waits for, and what follows it."""
        if self.unfinished is None:
            return
        metrics = self.unfinished | self._evaluate_now()
        saves, self.unfinished = metrics.pop(SAVES), None
        self.run.log(metrics, self.step)
        self.course.keep(self.step, is_best=self.course.best_step == self.step, due=saves)

    def _learn(self, envs: VectorEnv, stop: StopRequest) -> None:
        total, name = self.config.total_env_steps, self.config.stage.name
        with self.run.progress(total, name, initial=self.env_steps) as progress:
            seconds, steps = self.unlogged  # of before a stop
            last_time, last_steps = time.perf_counter() - seconds, self.env_steps - steps
            while self.stage.learns and (not self._used_up() or self.stage.ready()):
                if not self.stage.ready():
                    if (seeds := self.stage.reset_seeds()) is not None:
                        self.obs = envs.reset(seeds)
                        self.statistics.forget_running()
                    step = envs.step(self.stage.act(self.obs))
                    self.stage.observe(step)
                    self.statistics.observe(step)
                    self.obs = step.obs
                    self.env_steps += int(step.steps.sum())
                    progress.update(int(step.steps.sum()))
                    self.unlogged = time.perf_counter() - last_time, self.env_steps - last_steps
                else:
                    acted = time.perf_counter()
                    metrics = self.stage.update() | skipped_updates(self.stage)
                    self.updates += 1
                    now = time.perf_counter()
                    metrics["time/update"] = now - acted
                    metrics["time/training"] = now - last_time  # acting and updating since the last evaluation or log
                    self.training_seconds += now - last_time
                    metrics["time/env_steps_per_second"] = (self.env_steps - last_steps) / (now - last_time)
                    self.unlogged = (0.0, 0)
                    self._after_update(metrics, envs.nonfinite_episodes)
                    shown = {"success": "train/success_rate", "ret": "train/return", "gradient_steps": "gradient_steps"}
                    progress.update(0, **{name: metrics[key] for name, key in shown.items() if key in metrics})
                    last_time, last_steps = time.perf_counter(), self.env_steps
                self.course.stop_if_asked(stop, self._done())

    def _used_up(self) -> bool:
        """Whether the budget, of environment steps or of minutes, is."""
        return self._out_of_time() or self.env_steps >= self.config.total_env_steps

    def _out_of_time(self) -> bool:
        minutes = self.config.max_minutes
        return minutes is not None and self.training_seconds >= 60 * minutes

    def _evaluate_now(self) -> dict[str, float]:
        """The evaluation between updates -> its metrics; remembers which was best."""
        evaluation = self.evaluations.now()
        metrics = evaluation.metrics()
        if selecting := self.evaluations.selecting:
            metrics |= self.evaluations.now(selecting).metrics("eval_selected")
        self._judge(evaluation)
        return metrics

    def _judge(self, evaluation: Evaluation) -> None:
        """Is it the best one, and has the policy fallen below where it began?"""
        if self.course.judge(evaluation.score, self.step):
            self.best_env_steps = self.env_steps
        if self.config.policy is None:
            return
        measure = self.config.task.measure
        before = np.array(EvaluationFile.read(self.run.folder / BEFORE).values(measure))
        fallen = fall(before, values(evaluation, measure), measure)
        if fallen and not self.fallen:
            warn(f'after {self.step} steps {fallen}: see docs/tuning.md, "When it falls"')
        self.fallen = fallen

    def _due(self, every: int) -> bool:
        """Whether a multiple of `every` environment steps was passed since this was last asked."""
        return passed(every, self.looked_at, self.env_steps)

    def _evaluate_pretrained(self) -> None:
        evaluation = self.evaluations.shown("before")
        self.before = evaluation.summary()
        evaluation.save(self.run.folder / BEFORE, about(self.config.policy, self.config.task, self.config.evaluation))
        self.run.log(evaluation.metrics() | self._accounts("offline"), 0)
        if self.config.policy and self.config.task.measure == "success_rate" and not evaluation.success.any():
            warn(
                f"the pretrained policy never succeeded in {len(evaluation.seeds)} episodes: with a sparse reward "
                "there is nothing to learn from. Pretrain longer or on more demonstrations first."
            )
        if self.config.policy:
            self.course.keep(0, is_best=self.course.judge(evaluation.score, 0), due=True)

    def _after_update(self, metrics: dict[str, Any], nonfinite_episodes: int) -> None:
        fallen = self.episodes.observe(self.statistics.successes())
        if fallen and self.config.policy:
            warn(f'after {self.env_steps} steps {fallen}: see docs/tuning.md, "When it falls"')
        metrics |= self.statistics.report()
        self._require_finite(int(metrics.get("train/episodes", 0)), nonfinite_episodes)
        metrics["updates"] = self.updates
        if not self.noise_compared and self.episodes.began_with is not None:
            self._compare_noisy_with_clean(self.episodes.began_with)
        metrics["nonfinite_episodes"] = nonfinite_episodes
        metrics |= self._accounts("online")
        if self.stage.ready():  # there is more to learn from the same steps
            self.run.log(metrics, self.step)
            return
        evaluates = self._due(self.config.eval_every) and not self._used_up()
        saves = self._due(self.config.checkpoint_every)
        self.looked_at = self.env_steps
        self._report(metrics, evaluates=evaluates, saves=saves)

    def _require_finite(self, ended: int, nonfinite_episodes: int) -> None:
        """Raise BurnishError where most of the latest training episodes were cut: there is nothing to learn from them.

        Args:
            ended: episodes since the last call.
            nonfinite_episodes: cut ones since the run began.
        """
        self.ended += ended
        if self.ended < LEAST_EPISODES:
            return
        require_finite(nonfinite_episodes - self.cut_before, self.ended, "training episodes")
        self.ended, self.cut_before = 0, nonfinite_episodes

    def _compare_noisy_with_clean(self, noisy: float) -> None:
        """Exploration noise that hides every success is the usual reason for no learning: say so."""
        assert self.before is not None
        clean = self.before.success_rate
        self.noise_compared = True
        key = self.config.stage.EXPLORATION
        if noisy < NOISY_SHARE * clean:
            warn(
                f"the training policy, with its exploration noise, succeeds in {noisy:.0%} of its episodes, the same "
                f"policy without in {clean:.0%}: too much noise{key and f' (stage.{key})'}"
            )

    def _save(self) -> None:
        self.run.save_checkpoint(self.step, self.stage.policy.write, self._state())

    def _state(self) -> FinetuneState:
        assert self.before is not None
        try:
            envs = None if self.envs is None else self.envs.state_dict()
        except (NotImplementedError, SimulatorsLost):  # the episodes start anew at resume
            envs = None
        return FinetuneState(
            stage=self.stage.state_dict(),
            envs=envs,
            obs=self.obs,
            statistics=self.statistics.state_dict(),
            episodes=self.episodes.state_dict(),
            env_steps=self.env_steps,
            updates=self.updates,
            training_seconds=self.training_seconds,
            unlogged=self.unlogged,
            looked_at=self.looked_at,
            noise_compared=self.noise_compared,
            best=self.course.best,
            best_step=self.course.best_step,
            before=self.before.to_json(),
            offline_steps=self.offline_steps,
            best_env_steps=self.best_env_steps,
            unfinished=self.unfinished,
        )

    def _load_state(self, state: FinetuneState) -> None:
        require_alike(state.stage, self.stage.state_dict(), "stage")
        require_alike(state.statistics, self.statistics.state_dict(), "statistics")
        require_alike(state.episodes or {}, self.episodes.state_dict(), "episodes")
        self.stage.load_state_dict(state.stage)
        self.statistics.load_state_dict(state.statistics)
        if state.episodes is not None:
            self.episodes.load_state_dict(state.episodes)
        self.env_steps, self.updates = state.env_steps, state.updates
        self.training_seconds, self.unlogged = state.training_seconds, state.unlogged
        self.looked_at, self.noise_compared = state.looked_at, state.noise_compared
        self.course.best, self.course.best_step = state.best, state.best_step
        self.run.checkpoints.keep_best(state.best_step)
        self.offline_steps = state.offline_steps
        self.best_env_steps = state.best_step if state.best_env_steps is None else state.best_env_steps
        self.before = EvaluationSummary.from_json(state.before)
        self.unfinished = state.unfinished
        if self.envs is None:
            return
        if state.envs is not None:
            self.envs.load_state_dict(state.envs)
            self.cut_before = self.envs.nonfinite_episodes
            if not isinstance(state.obs, np.ndarray):
                raise BurnishError(f"obs is {type(state.obs).__name__}, expected an array")
            require_alike(state.obs, self.envs.obs_spec.zeros(*state.obs.shape[:1], self.envs.n_obs_steps), "obs")
            self.obs = state.obs
        elif state.obs is None:  # the offline phase was to be the whole run
            self.obs = self.envs.reset()
        else:
            warn(f"task={self.config.task.name}: the simulator's state cannot be restored, its episodes start anew")
            self.obs = self.envs.reset()
            self.stage.cut_episodes()
            self.statistics = EpisodeStatistics(self.config.n_envs)

    def _finish(self) -> dict[str, Any]:
        """Last checkpoint, evaluations, videos, curve and summary.json."""
        self._save()  # first: killed from here on, a resumed run does all of this again
        self.course.savable = False
        evaluation = self.evaluations.shown("after")
        self._judge(evaluation)
        went_back_to = None
        if self.fallen and self.config.when_worse == "go_back" and self.run.checkpoints.best() is None:
            warn(f"{self.run.folder} has lost its best checkpoint: the policy stays as it is")
        elif self.fallen and self.config.when_worse == "go_back":
            went_back_to, evaluation = self.course.best_step, self._go_back()
        metrics = evaluation.metrics()
        metrics["time/training"] = self.unlogged[0]  # of a rollout that was not learned from
        self.training_seconds += self.unlogged[0]
        self.unlogged = (0.0, 0)
        selecting = self.evaluations.selecting
        selected = self.evaluations.now(selecting) if selecting else None
        if selected:
            metrics |= selected.metrics("eval_selected")
        at_best, tried = self.evaluations.at_best_temperature(evaluation)
        metrics |= at_best.metrics("eval_best_temperature")
        self.run.log(metrics | self._accounts("online" if self.env_steps else "offline"), self.step)
        if self.course.best_step == self.step:
            self.run.checkpoints.mark_best(self.step)
        latest = str(self.run.checkpoints.latest())
        evaluation.save(self.run.folder / EVALUATION, about(latest, self.config.task, self.config.evaluation))
        if selected and selecting:
            selected.save(self.run.folder / SELECTED, about(latest, self.config.task, selecting))
        self.evaluations.save(at_best, AT_BEST_TEMPERATURE)
        seeds = evaluation.seeds[: self.config.evaluation.video]
        record(self.stage.policy, self.config.task, seeds, self.run.folder / "videos")
        self.run.plot_curve(
            "step",
            [f"{kind}/{key}" for key in ("success_rate", "return") for kind in ("eval", "eval_selected", "train")],
            x_label="environment steps"
            if not self.config.offline.steps
            else "offline gradient steps, then environment steps",
        )
        assert self.before is not None
        content = FinetuneSummary(
            policy=latest,
            env_steps=self.env_steps,
            updates=self.updates,
            before=self.before,
            after=evaluation.summary(),
            after_selected=selected.summary() if selected else None,
            best=Best(self.best_env_steps, *self.course.best),
            at_best_temperature=AtBestTemperature(at_best.temperature, at_best.summary(), tried),
            fell=self.fallen,
            went_back_to=went_back_to,
            imitation_converged=converged(self.config.policy),
            offline_steps=self.offline_steps,
            n_parameters=sum(parameter.numel() for parameter in self.stage.policy.parameters()),
            peak_memory_mib=peak_memory_mib(),
            training_minutes=self.training_seconds / 60,
        ).to_json()
        self.run.finish(content)
        return content

    def _go_back(self) -> Evaluation:
        """Take the best checkpoint's policy for the last -> its evaluation."""
        best = self.run.checkpoints.best()
        assert best is not None
        self.stage.policy.load_weights(best / WEIGHTS)
        unit = "steps of both phases" if self.config.offline.steps else "environment steps"
        warn(f"went back to the policy after {self.course.best_step} {unit}, the best")
        evaluation = self.evaluations.shown("after going back")
        self._save()  # last: before, a resumed run would not know that it went back
        return evaluation
