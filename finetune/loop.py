"""The one fine-tuning loop: act, step, observe, update, log, evaluate, save. Algorithms are stages."""

from __future__ import annotations

import math
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.checkpoint import Checkpoints
from burnish.device import resolve_device
from burnish.envs import make_simulator, make_vector_env
from burnish.envs.base import ChunkStep, VectorEnv
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError, Stopped
from burnish.evaluation import Evaluation, EvaluationConfig, about, evaluate, evaluation_envs
from burnish.finetune.stage import Setting, Stage, StageConfig, stage_class
from burnish.gaussian_policy import GaussianPolicyConfig
from burnish.memory import peak_memory_mib
from burnish.policy import DiffusionPolicy, PolicyConfig
from burnish.policy_base import Policy, load_policy, policy_class
from burnish.run import Run, StopRequest
from burnish.video import record

NOISY_SHARE = 0.2  # a training policy that succeeds less often than this share of the clean one learns nothing


@dataclass(frozen=True)
class FinetuneConfig:
    """One run of `burnish finetune` or `burnish scratch`; see their config files for what each key means.

    Either `policy` (the folder of a pretrained one) or `network` (what a fresh one shall be) is given.
    """

    task: TaskConfig
    stage: StageConfig
    run_dir: str
    policy: str | None = None
    network: PolicyConfig | GaussianPolicyConfig | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    total_env_steps: int = 51_200
    max_minutes: float | None = None
    n_envs: int = 16
    backend: str = "auto"
    n_workers: int | None = None
    eval_every: int = 0
    checkpoint_every: int = 12_800
    seed: int = 0
    device: str = "auto"
    torch_threads: int = 1
    resume: str | None = None
    wandb: str = "disabled"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.policy is None and self.network is None:
            raise BurnishError(
                "policy=null: expected the folder of a pretrained policy (burnish scratch starts without one)"
            )
        if self.policy is not None and self.network is not None:
            raise BurnishError(f"policy={self.policy}: burnish scratch starts without one (burnish finetune with one)")
        if self.network is not None:
            for key in ("obs_normalization", "action_normalization"):
                if getattr(self.network, key) != "none":
                    raise BurnishError(
                        f"network.{key}={getattr(self.network, key)}: expected none, there are no data to take it from"
                    )
        self.evaluation.require_single()
        for key in ("total_env_steps", "n_envs"):
            if getattr(self, key) < 1:
                raise BurnishError(f"{key}={getattr(self, key)}: expected at least 1")
        for key in ("eval_every", "checkpoint_every", "seed"):
            if getattr(self, key) < 0:
                raise BurnishError(f"{key}={getattr(self, key)}: expected at least 0")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise BurnishError(f"max_minutes={self.max_minutes}: expected more than 0, or null for no limit")


class EpisodeStatistics:
    """Success, return and length of the training episodes that ended since the last report."""

    def __init__(self, n_envs: int):
        self.success = np.zeros(n_envs, bool)
        self.returns = np.zeros(n_envs)
        self.lengths = np.zeros(n_envs, np.int64)
        self.finished: list[tuple[float, float, float]] = []

    def observe(self, step: ChunkStep) -> None:
        self.success |= step.success
        self.returns += step.reward
        self.lengths += step.steps
        for e in np.flatnonzero(step.terminated | step.truncated):
            self.finished.append((float(self.success[e]), float(self.returns[e]), float(self.lengths[e])))
            self.success[e], self.returns[e], self.lengths[e] = False, 0.0, 0

    def report(self) -> dict[str, float]:
        """Means over the episodes that ended, which are then forgotten; nothing if none did."""
        if not self.finished:
            return {}
        success, returns, lengths = np.mean(self.finished, axis=0)
        report = {
            "train/success_rate": float(success),
            "train/return": float(returns),
            "train/episode_length": float(lengths),
            "train/episodes": len(self.finished),
        }
        self.finished.clear()
        return report

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Improve a policy online, evaluate before and after, and leave a run folder -> the content of summary.json.

    Raises:
        BurnishError: bad input; nothing was started.
        Stopped: asked to stop; the run folder can be resumed.
    """
    device = resolve_device(config.device, config.torch_threads)
    torch.manual_seed(config.seed)
    latest = Checkpoints(Path(config.resume) / "checkpoints").latest() if config.resume else None
    source = latest or config.policy
    policy = load_policy(source, device) if source else fresh_policy(config, device)
    check_kind(config, policy.config.kind)
    with ExitStack() as stack:
        eval_envs = stack.enter_context(evaluation_envs(policy, config.task, config.evaluation))
        make_stage: Any = stage_class(config.stage.name)
        setting = Setting(config.task, config.n_envs, config.seed, pretrained=config.policy is not None)
        stage = make_stage(policy, config.stage, setting)
        check_budget(config, stage)
        check_whole_chain(config, stage)
        envs = make_vector_env(
            config.task,
            n_envs=config.n_envs,
            n_obs_steps=policy.config.n_obs_steps,
            n_action_steps=policy.config.n_action_steps,
            seed=config.seed,
            backend=config.backend,
            n_workers=config.n_workers,
            beside=eval_envs,
        )
        stack.callback(envs.close)
        run = stack.enter_context(Run.open(config))
        return Loop(config, stage, envs, eval_envs, run).run_to_end()


def fresh_policy(config: FinetuneConfig, device: torch.device) -> Policy:
    """A policy that knows nothing but the sizes of the task's observations and actions."""
    assert config.network is not None
    simulator = make_simulator(config.task)
    sizes = simulator.obs_dim, simulator.action_dim
    simulator.close()
    make_policy: Any = policy_class(config.network.kind)
    return make_policy(config.network, *sizes, config.task.obs_keys, config.task.name).to(device).eval()


def check_kind(config: FinetuneConfig, kind: str) -> None:
    """Raise BurnishError where the stage does not train policies of `kind`, the kind that it would be given."""
    name, expected = config.stage.name, stage_class(config.stage.name).kind
    if kind != expected:
        option = {"diffusion": "mlp", "gaussian": "gaussian"}[expected]
        given, instead = f"policy={config.policy}", f"pretrain one: burnish pretrain policy={option}"
        if config.policy is None:
            given, instead = "the network", f"give network={option}"
        raise BurnishError(f"stage={name} trains a {expected} policy, but {given} is a {kind} one: {instead}")


def check_budget(config: FinetuneConfig, stage: Stage) -> None:
    """Raise BurnishError where the steps do not suffice for one update."""
    Ta = stage.policy.config.n_action_steps
    per_update = config.n_envs * stage.chunks_per_update * Ta
    keys = " and ".join(
        f"stage.{key}"
        for key in ("n_steps", "learning_starts", "update_every", "train_freq")
        if hasattr(config.stage, key)
    )
    if config.total_env_steps < per_update:
        raise BurnishError(
            f"total_env_steps={config.total_env_steps} is too few for one update, which takes {per_update} = n_envs * "
            f"chunks * n_action_steps = {config.n_envs} * {stage.chunks_per_update} * {Ta}; the chunks are of {keys}"
        )
    random_steps = getattr(config.stage, "random_steps", 0)
    if config.total_env_steps <= random_steps:
        raise BurnishError(
            f"total_env_steps={config.total_env_steps}, but the first stage.random_steps={random_steps} are random "
            "actions: expected more steps, or fewer random ones"
        )


def check_whole_chain(config: FinetuneConfig, stage: Stage) -> None:
    """Raise BurnishError where a part of a fresh policy's chain would stay random."""
    if config.network is None or not isinstance(stage.policy, DiffusionPolicy):
        return
    K, S = stage.policy.ft_denoising_steps, len(stage.policy.sampler)
    if K < S:
        raise BurnishError(
            f"stage.ft_denoising_steps={K}: from scratch expected {S}, all of the sampler's steps; "
            "the others would stay random"
        )


class Loop:
    """State and course of one fine-tuning run."""

    def __init__(self, config: FinetuneConfig, stage: Stage, envs: VectorEnv, eval_envs: VectorEnv, run: Run):
        self.config, self.stage, self.envs, self.eval_envs, self.run = config, stage, envs, eval_envs, run
        self.statistics = EpisodeStatistics(config.n_envs)
        self.env_steps = 0
        self.updates = 0
        self.training_seconds = 0.0  # acting and updating, as logged
        self.unlogged = (0.0, 0)  # seconds and environment steps since
        self.looked_at = 0  # environment steps when evaluations and checkpoints were last thought of
        self.noise_compared = False  # see _compare_noisy_with_clean
        self.best = (-math.inf, -math.inf)  # see Evaluation.score
        self.best_step = 0
        self.before: dict[str, float] = {}
        self.obs = np.empty(0, np.float32)

    def run_to_end(self) -> dict[str, Any]:
        """Start or resume, and go on to the last environment step."""
        with StopRequest() as stop:  # the evaluations before and after included
            state = self.run.load_checkpoint()
            if state is None:
                self.obs = self.envs.reset()
                self._evaluate_pretrained()
            else:
                self._load_state_dict(state)
            self._learn(stop)
            return self._finish()

    def _learn(self, stop: StopRequest) -> None:
        total, name = self.config.total_env_steps, self.config.stage.name
        with self.run.progress(total, name, initial=self.env_steps) as progress:
            seconds, steps = self.unlogged  # of before a stop
            last_time, last_steps = time.perf_counter() - seconds, self.env_steps - steps
            while not self._used_up() or self.stage.ready():
                if not self.stage.ready():
                    step = self.envs.step(self.stage.act(self.obs))
                    self.stage.observe(step)
                    self.statistics.observe(step)
                    self.obs = step.obs
                    self.env_steps += int(step.steps.sum())
                    progress.update(int(step.steps.sum()))
                    self.unlogged = time.perf_counter() - last_time, self.env_steps - last_steps
                else:
                    acted = time.perf_counter()
                    metrics = self.stage.update()
                    self.updates += 1
                    now = time.perf_counter()
                    metrics["time/update"] = now - acted
                    metrics["time/training"] = now - last_time  # acting and updating since the last evaluation or log
                    self.training_seconds += now - last_time
                    metrics["time/env_steps_per_second"] = (self.env_steps - last_steps) / (now - last_time)
                    self.unlogged = (0.0, 0)
                    self._after_update(metrics)
                    shown = {"success": "train/success_rate", "ret": "train/return", "gradient_steps": "gradient_steps"}
                    progress.update(0, **{name: metrics[key] for name, key in shown.items() if key in metrics})
                    last_time, last_steps = time.perf_counter(), self.env_steps
                if stop.requested:
                    self._save()
                    raise Stopped(
                        f"stopped after {self.env_steps} environment steps; "
                        f"go on with: burnish finetune resume={self.run.folder}"
                    )

    def _used_up(self) -> bool:
        """Whether the budget, of environment steps or of minutes, is."""
        minutes = self.config.max_minutes
        out_of_time = minutes is not None and self.training_seconds >= 60 * minutes
        return out_of_time or self.env_steps >= self.config.total_env_steps

    def _evaluate(self, config: EvaluationConfig | None = None) -> Evaluation:
        return evaluate(self.stage.policy, self.config.task, config or self.config.evaluation, envs=self.eval_envs)

    def _evaluate_shown(self, when: str) -> Evaluation:
        """`_evaluate` where nothing else shows that the run goes on: it takes longer than the first update."""
        config = self.config.evaluation
        with self.run.progress(config.episodes, f"evaluation {when}") as progress:
            return evaluate(self.stage.policy, self.config.task, config, envs=self.eval_envs, progress=progress)

    def _selecting(self) -> EvaluationConfig | None:
        """How to evaluate with selection among candidates by the critic, where the stage has one."""
        n = self.stage.n_candidates
        return replace(self.config.evaluation, candidates=n) if n > 1 else None

    def _evaluate_now(self) -> dict[str, float]:
        """The evaluation between updates -> its metrics; remembers which was best."""
        evaluation = self._evaluate()
        metrics = evaluation.metrics()
        if selecting := self._selecting():
            metrics |= self._evaluate(selecting).metrics("eval_selected")
        if evaluation.score >= self.best:  # of equals the later
            self.best, self.best_step = evaluation.score, self.env_steps
        return metrics

    def _due(self, every: int) -> bool:
        """Whether a multiple of `every` environment steps was passed since this was last asked."""
        return bool(every) and self.env_steps // every > self.looked_at // every

    def _evaluate_pretrained(self) -> None:
        evaluation = self._evaluate_shown("before")
        self.before = evaluation.summary()
        evaluation.save(
            self.run.folder / "evaluation_before.json",
            **about(self.config.policy, self.config.task, self.config.evaluation),
        )
        self.run.log(evaluation.metrics(), 0)
        if self.config.policy and self.config.task.suite == "robosuite" and not evaluation.success.any():
            warn(
                f"the pretrained policy never succeeded in {len(evaluation.seeds)} episodes: with a sparse reward "
                "there is nothing to learn from. Pretrain longer or on more demonstrations first."
            )

    def _after_update(self, metrics: dict[str, float]) -> None:
        metrics |= self.statistics.report()
        metrics["updates"] = self.updates
        if not self.noise_compared and "train/success_rate" in metrics:
            self._compare_noisy_with_clean(metrics["train/success_rate"])
        metrics["nonfinite_episodes"] = self.envs.nonfinite_episodes
        if self.stage.ready():  # there is more to learn from the same steps
            self.run.log(metrics, self.env_steps)
            return
        is_best = False
        if self._due(self.config.eval_every) and not self._used_up():
            metrics |= self._evaluate_now()
            is_best = self.best_step == self.env_steps
        self.run.log(metrics, self.env_steps)
        due = self._due(self.config.checkpoint_every)
        self.looked_at = self.env_steps
        if is_best or due:
            self._save()
        if is_best:
            self.run.checkpoints.mark_best(self.env_steps)

    def _compare_noisy_with_clean(self, noisy: float) -> None:
        """Exploration noise that hides every success is the usual reason for no learning: say so."""
        clean = self.before["success_rate"]
        self.noise_compared = True
        if noisy < NOISY_SHARE * clean:
            warn(
                f"the training policy, with its exploration noise, succeeds in {noisy:.0%} of its episodes, the same "
                f"policy without in {clean:.0%}: too much noise "
                "(dppo: stage.min_sampling_denoising_std; ppo: stage.log_std_init; dpmd, sdac: stage.exploration_noise)"
            )

    def _save(self) -> None:
        self.run.save_checkpoint(self.env_steps, self.stage.policy.write, self._state_dict())

    def _state_dict(self) -> dict[str, Any]:
        try:
            envs = self.envs.state_dict()
        except NotImplementedError:  # the episodes start anew at resume
            envs = None
        return {
            "stage": self.stage.state_dict(),
            "envs": envs,
            "obs": self.obs,
            "statistics": self.statistics.state_dict(),
            "env_steps": self.env_steps,
            "updates": self.updates,
            "training_seconds": self.training_seconds,
            "unlogged": self.unlogged,
            "looked_at": self.looked_at,
            "noise_compared": self.noise_compared,
            "best": self.best,
            "best_step": self.best_step,
            "before": self.before,
        }

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        self.stage.load_state_dict(state["stage"])
        self.statistics.load_state_dict(state["statistics"])
        self.env_steps, self.updates = state["env_steps"], state["updates"]
        self.training_seconds = state["training_seconds"]
        self.unlogged = state.get("unlogged", (0.0, 0))  # older checkpoints do not say
        self.looked_at, self.noise_compared = state["looked_at"], state["noise_compared"]
        self.best, self.best_step, self.before = tuple(state["best"]), state["best_step"], state["before"]
        if state["envs"] is not None:
            self.envs.load_state_dict(state["envs"])
            self.obs = state["obs"]
        else:
            warn(f"task={self.config.task.name}: the simulator's state cannot be restored, its episodes start anew")
            self.obs = self.envs.reset()
            self.stage.cut_episodes()
            self.statistics = EpisodeStatistics(self.config.n_envs)

    def _finish(self) -> dict[str, Any]:
        """Last checkpoint, evaluation, videos, curve and summary.json."""
        self._save()  # first: killed from here on, a resumed run does all of this again
        evaluation = self._evaluate_shown("after")
        metrics = evaluation.metrics()
        metrics["time/training"] = self.unlogged[0]  # of a rollout that was not learned from
        self.training_seconds += self.unlogged[0]
        self.unlogged = (0.0, 0)
        selecting = self._selecting()
        selected = self._evaluate(selecting) if selecting else None
        if selected:
            metrics |= selected.metrics("eval_selected")
        if evaluation.score >= self.best:  # of equals the later
            self.best, self.best_step = evaluation.score, self.env_steps
        self.run.log(metrics, self.env_steps)
        if self.best_step == self.env_steps:
            self.run.checkpoints.mark_best(self.env_steps)
        latest = str(self.run.checkpoints.latest())
        evaluation.save(self.run.folder / "evaluation.json", **about(latest, self.config.task, self.config.evaluation))
        if selected and selecting:
            selected.save(self.run.folder / "evaluation_selected.json", **about(latest, self.config.task, selecting))
        seeds = evaluation.seeds[: self.config.evaluation.video]
        record(self.stage.policy, self.config.task, seeds, self.run.folder / "videos")
        self.run.plot_curve(
            "step",
            [f"{kind}/{key}" for key in ("success_rate", "return") for kind in ("eval", "eval_selected", "train")],
            x_label="environment steps",
        )
        success, mean_return = self.best
        summary = {
            "policy": latest,
            "env_steps": self.env_steps,
            "updates": self.updates,
            "before": self.before,
            "after": evaluation.summary(),
            "after_selected": selected and selected.summary(),
            "best": {"env_steps": self.best_step, "success_rate": success, "return": mean_return},
            "n_parameters": sum(parameter.numel() for parameter in self.stage.policy.parameters()),
            "peak_memory_mib": peak_memory_mib(),
            "time/training_minutes": self.training_seconds / 60,
        }
        self.run.finish(summary)
        return summary


def warn(message: str) -> None:
    """A line that is hard to miss, on stderr."""
    print(f"\nWARNING: {message}\n", file=sys.stderr, flush=True)
