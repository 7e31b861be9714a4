"""Behaviour cloning of a policy of any kind: the whole of `burnish pretrain`.

Symbols: N windows, B batch, To, Tp, Do, Da as in `burnish.policies.diffusion`.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.config import Checked, WrongValue, key, to_dict
from burnish.datasets.episodes import Episode
from burnish.datasets.fingerprint import fingerprint
from burnish.datasets.for_task import clamped_share, demonstrations_for
from burnish.datasets.sources import demonstrations_of
from burnish.datasets.split import split_episodes
from burnish.datasets.windows import Windows
from burnish.envs.base import VectorEnv
from burnish.envs.same_environment import AllowConfig, versions_of
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError, warn
from burnish.evaluation.evaluate import Evaluation, about, evaluate, evaluation_envs
from burnish.evaluation.temperatures import (
    Sampling,
    TrainingEvaluationConfig,
    best,
    compare_samplings,
    samplings,
    table,
)
from burnish.evaluation.video import record
from burnish.machine.allocation import AtMost
from burnish.machine.device import resolve_device
from burnish.machine.memory import free_memory
from burnish.machine.stop import StopRequest
from burnish.networks.averages import EMA
from burnish.networks.optimise import clipped_step, load_optimizer, skipped_updates
from burnish.policies.base import ChunkConfig, Policy, policy_class
from burnish.policies.diffusion import PolicyConfig
from burnish.pretrain.convergence import still_improving
from burnish.pretrain.held_out import ActionError, HeldOutActions
from burnish.runs.checkpoint import PretrainState
from burnish.runs.config import RunConfig
from burnish.runs.course import Course, passed
from burnish.runs.evaluation_file import EVALUATION
from burnish.runs.folder import Run
from burnish.runs.state import generator_state, require_alike, restore_generator
from burnish.runs.summary import PretrainSummary

LEAST_REPORTED = 100  # gradient steps that a line of metrics.jsonl is the mean of


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Optimisation, by AdamW."""

    updates: int | None = key(20_000, "gradient steps; small data need as many as large ones", least=1)
    epochs: int | None = key(None, "passes over the training windows, in place of updates (null: updates)", least=1)
    batch_size: int = key(256, "windows per update", least=1)
    learning_rate: float = key(1e-3, "of AdamW", above=0)
    weight_decay: float = key(1e-6, "of AdamW", least=0)
    warmup_steps: int = key(
        100,
        "updates until the learning rate is reached, linearly; then a cosine down to a tenth at the last (DPPO)",
        least=0,
    )
    ema_decay: float = key(
        0.995, "of the averaged weights, which are the policy that is evaluated and saved", least=0, below=1
    )
    max_grad_norm: float = key(1.0, "longer gradients are shortened to it", above=0, most=math.inf)
    precision: Literal["float32", "bf16"] = key("float32", "bf16 runs the network under autocast")
    validation_fraction: float = key(0.05, "part of the episodes that is held out", least=0, below=1)
    eval_every: int = key(5000, "updates between evaluations in the simulator (0: only at the end)", least=0)
    checkpoint_every: int = key(5000, "updates between checkpoints (0: only at the end)", least=0)
    max_demos: int | None = key(None, "use only the first so many episodes (null: all)", least=1)

    def check(self) -> None:
        if self.updates is None and self.epochs is None:
            raise WrongValue("updates=null: expected a number, or epochs=...")

    def steps(self, per_epoch: int) -> int:
        """Gradient steps in all, of `per_epoch` a pass."""
        if self.epochs is not None:
            return self.epochs * per_epoch
        assert self.updates is not None
        return self.updates


@dataclass(frozen=True)
class PretrainEvaluationConfig(TrainingEvaluationConfig):
    """How pretraining evaluates its policy: in the simulator, or by the held-out demonstrations alone."""

    episodes: int = key(
        100,
        "with fixed seeds: episode i starts from seed + i (0, or a task without a simulator: the best checkpoint is "
        "that whose actions are nearest to those of the held-out demonstrations)",
        least=0,
    )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig, AllowConfig):
    """One run of `burnish pretrain`."""

    task: TaskConfig = key()
    policy: ChunkConfig = key(factory=PolicyConfig)
    train: TrainConfig = key(factory=TrainConfig)
    evaluation: PretrainEvaluationConfig = key(factory=PretrainEvaluationConfig)
    dataset: str | None = key(None, "demonstrations: a file, or shipped:NAME (null: those the task names)")
    filter_key: str | None = key(None, "robomimic filter key of the episodes to train on, e.g. better (null: all)")

    def check(self) -> None:
        self.evaluation.require_single()
        if not self.in_simulator and self.train.validation_fraction == 0:
            raise BurnishError(
                "train.validation_fraction=0: without evaluations in a simulator the best checkpoint is chosen by "
                "held-out episodes, expected more than 0"
            )
        if self.evaluation.video:
            self.task.require_simulator()

    @property
    def in_simulator(self) -> bool:
        """Whether the policy is evaluated in one."""
        return self.task.has_simulator and self.evaluation.episodes > 0


class BehaviourCloning:
    """The optimisation of one policy on one set of windows; one call of `update` is one gradient step."""

    def __init__(self, config: PretrainConfig, policy: Policy, windows: Windows, validation: Windows | None):
        self.config, self.policy, self.windows, self.validation = config.train, policy, windows, validation
        self.seed = config.seed
        self.device = policy.device
        self.steps_per_epoch = math.ceil(len(windows) / self.config.batch_size)
        self.total_steps = self.config.steps(self.steps_per_epoch)
        self.report_every = math.ceil(LEAST_REPORTED / self.steps_per_epoch) * self.steps_per_epoch
        self.ema = EMA(policy, self.config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.learning_rate_factor)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.step = 0
        self.loss_sum = torch.zeros((), device=self.device)  # of the steps since the last report
        self.skipped = torch.zeros((), device=self.device)  # among them, which are not in the sum
        self._permutation: tuple[int, Tensor] | None = None

    def learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then a cosine from 1 to 0.1 at the last step."""
        warmup = self.config.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.total_steps - warmup)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def indices(self) -> Tensor:
        """The present step's part of its epoch's permutation (B,), which depends on seed and epoch alone."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self._permutation is None or self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._permutation = epoch, torch.randperm(len(self.windows), generator=generator).to(self.device)
        start = position * self.config.batch_size
        return self._permutation[1][start : start + self.config.batch_size]

    def update(self) -> None:
        """One gradient step; the loss stays on the device."""
        if self.step % self.report_every == 0:
            self.loss_sum.zero_()
            self.skipped.zero_()
        batch = self.windows.batch(self.indices())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = self.policy.loss(batch.obs, batch.actions, self.generator)
        skipped = clipped_step(self.optimizer, loss, self.config.max_grad_norm)
        self.scheduler.step()
        self.ema.update(self.policy)
        self.loss_sum += torch.where(skipped > 0, 0, loss.detach())
        self.skipped += skipped
        self.step += 1

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Loss of the averaged weights on the held-out episodes, always with the same noise."""
        assert self.validation is not None
        generator = torch.Generator(self.device).manual_seed(0)
        total = 0.0
        for indices in torch.arange(len(self.validation), device=self.device).split(4096):
            batch = self.validation.batch(indices)
            total += len(indices) * float(self.ema.module.loss(batch.obs, batch.actions, generator))
        return total / len(self.validation)

    @property
    def report_due(self) -> bool:
        """Whether whole epochs, of at least `LEAST_REPORTED` steps, were made since the last report, or all steps."""
        return self.step % self.report_every == 0 or self.step == self.total_steps

    def metrics(self) -> dict[str, float]:
        """Of the steps since the last report that was due."""
        made = (self.step % self.report_every or self.report_every) - int(self.skipped)
        metrics: dict[str, float] = {
            "epoch": self.step / self.steps_per_epoch,
            "loss": float(self.loss_sum) / made if made else math.nan,
            "learning_rate": float(self.scheduler.get_last_lr()[0]),
        }
        if self.validation is not None:
            metrics["validation_loss"] = self.validation_loss()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "policy": self.policy.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": generator_state(self.generator),
            "loss_sum": self.loss_sum,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.policy.load_state_dict(state["policy"])
        self.ema.load_state_dict(state["ema"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        restore_generator(self.generator, state["generator"])
        self.loss_sum.copy_(state["loss_sum"])
        self.skipped.copy_(state.get("skipped", self.skipped))


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train a policy on demonstrations, evaluate it, and leave a run folder -> the content of summary.json.

    Raises:
        BurnishError: bad input; nothing was started.
        Stopped: asked to stop; the run folder can be resumed.
    """
    device = resolve_device(config.device, config.torch_threads)
    torch.manual_seed(config.seed)
    source = demonstrations_of(config.task, config.dataset or "task")
    if source is None:
        raise BurnishError(f"task={config.task.name} has no default demonstrations: give dataset=FILE")
    demos = demonstrations_for(config.task, source, config.filter_key, allow=config.allow)
    train, valid = split_episodes(demos, config.train.validation_fraction, config.seed)
    train = train[: config.train.max_demos]
    try:
        windows = _windows(config, train, device)
        validation = _windows(config, valid, device) if valid else None
    except BurnishError as error:
        raise BurnishError(f"{demos.source or source}: {error}") from error
    make_policy: Any = policy_class(config.policy.kind)
    sizes = windows.spec, windows.actions.shape[1]
    with AtMost(free_memory(), "policy"):
        policy: Policy = make_policy(config.policy, *sizes, config.task.obs_keys, config.task.name).to(device)
    policy.trained_in, policy.plugins = to_dict(config.task), config.plugins
    if policy.doubt:
        warn(policy.doubt)
    policy.trained_with = versions_of(config.task.suite)
    policy.fit_normalizers(windows.obs, windows.actions)
    trainer = BehaviourCloning(config, policy, windows, validation)
    held_out = HeldOutActions(valid, validation) if validation and not config.in_simulator else None
    if not config.in_simulator and held_out is None:
        raise BurnishError(f"{demos.source or source}: one episode, expected at least two, as some are held out")
    with ExitStack() as stack:
        envs = None
        if held_out is None:
            envs = stack.enter_context(evaluation_envs(policy, config.task, config.evaluation, f"dataset={source}"))
        data = fingerprint([*train, *valid], [*config.task.obs_keys, *config.task.sensors])
        run = stack.enter_context(Run.open(config, data))
        clamped = clamped_share(demos.episodes)
        return Pretraining(config, trainer, envs, run, held_out, clamped).run_to_end()


def _windows(config: PretrainConfig, episodes: list[Episode], device: torch.device) -> Windows:
    task, policy = config.task, config.policy
    return Windows(episodes, task.obs_keys, policy.n_obs_steps, policy.horizon, device, task.sensors)


class Pretraining:
    """Course of one run: updates, evaluations, checkpoints, and going on where an earlier one stopped.

    It evaluates by `held_out`, where that is given, else in `envs`. `clamped` is for the summary.
    """

    def __init__(
        self,
        config: PretrainConfig,
        trainer: BehaviourCloning,
        envs: VectorEnv | None,
        run: Run,
        held_out: HeldOutActions | None = None,
        clamped: float | None = None,
    ):
        self.config, self.trainer, self.envs, self.run, self.held_out = config, trainer, envs, run, held_out
        self.clamped = clamped
        self.course = Course(run, "pretrain", self._save)
        self.evaluation: Evaluation | ActionError | None = None
        self.unfinished: dict[str, float] | None = None  # metrics whose line waits for its evaluation

    def run_to_end(self) -> dict[str, Any]:
        """Start or resume, and go on to the last gradient step."""
        with StopRequest() as stop, self.course.ending(self._done):
            self.run.load_checkpoint(PretrainState, self._load_state)
            self.course.savable = True
            self._train(stop)
            self.course.savable = False
            return self._finish()

    def _train(self, stop: StopRequest) -> None:
        trainer, total = self.trainer, self.trainer.total_steps
        with self.run.progress(total, "pretrain", initial=trainer.step) as progress:
            self._finish_line()
            last_time, last_step = time.perf_counter(), trainer.step
            while trainer.step < total:
                trainer.update()
                progress.update(1)
                evaluation_due = self._due(self.config.train.eval_every)
                if trainer.report_due or evaluation_due:
                    now = time.perf_counter()
                    skipped = skipped_updates(trainer)
                    metrics = trainer.metrics() | skipped
                    metrics["time/steps_per_second"] = (trainer.step - last_step) / (now - last_time)
                    progress.update(0, loss=metrics["loss"])
                    self._report(metrics, evaluation_due)
                    last_time, last_step = time.perf_counter(), trainer.step
                elif self._due(self.config.train.checkpoint_every):
                    self._save()
                if trainer.step < total:
                    self.course.stop_if_asked(stop, self._done())

    def _done(self) -> str:
        """How far it is, in words."""
        return f"at step {self.trainer.step}"

    def _due(self, every: int) -> bool:
        """Whether this is the last step, or one of each `every`."""
        step = self.trainer.step
        return step == self.trainer.total_steps or passed(every, step - 1, step)

    def _report(self, metrics: dict[str, float], evaluation_due: bool) -> None:
        """Where the evaluation is cut short, a checkpoint has the line, for a resumed run to begin with."""
        if evaluation_due:
            self.unfinished = metrics
            self._finish_line()
            return
        self.run.log(metrics, self.trainer.step)
        self.course.keep(self.trainer.step, is_best=False, due=self._due(self.config.train.checkpoint_every))

    def _finish_line(self) -> None:
        """The evaluation that `unfinished` waits for, and what follows it."""
        if self.unfinished is None:
            return
        evaluation = self._evaluate()
        metrics, self.unfinished = self.unfinished | evaluation.metrics(), None
        is_best = self.course.judge(evaluation.score, self.trainer.step)
        self.run.log(metrics, self.trainer.step)
        self.course.keep(self.trainer.step, is_best=is_best, due=self._due(self.config.train.checkpoint_every))

    def _evaluate(self) -> Evaluation | ActionError:
        policy = self.trainer.ema.module
        if self.held_out is not None:
            self.evaluation = self.held_out.measure(policy, self.trainer.validation_loss())
        else:
            self.evaluation = evaluate(policy, self.config.task, self.config.evaluation, envs=self.envs)
        return self.evaluation

    def _save(self) -> None:
        course = self.course
        state = PretrainState(self.trainer.state_dict(), course.best, course.best_step, self.unfinished)
        self.run.save_checkpoint(self.trainer.step, self.trainer.ema.module.write, state)

    def _load_state(self, state: PretrainState) -> None:
        require_alike(state.trainer, self.trainer.state_dict(), "trainer")
        self.trainer.load_state_dict(state.trainer)
        self.course.best = state.best
        if state.best_step is not None:
            self.course.best_step = state.best_step
            self.run.checkpoints.keep_best(state.best_step)
        self.unfinished = state.unfinished

    def _finish(self) -> dict[str, Any]:
        """Evaluation file, videos, curve, the table over temperatures and summary.json."""
        evaluation = self.evaluation or self._evaluate()  # a run resumed after its end has none yet
        policy = str(self.run.checkpoints.latest())
        simulated = evaluation if isinstance(evaluation, Evaluation) else None
        if simulated:
            simulated.save(self.run.folder / EVALUATION, about(policy, self.config.task, self.config.evaluation))
            seeds = simulated.seeds[: self.config.evaluation.video]
            record(self.trainer.ema.module, self.config.task, seeds, self.run.folder / "videos")
        keys = ["loss", "validation_loss", "eval/success_rate", "eval/return", "held_out/action_error"]
        self.run.plot_curve("step", keys, x_label="gradient steps")
        parameters = sum(p.numel() for p in self.trainer.policy.parameters())
        improving = still_improving(self.run.metrics(), self.config.task.measure if simulated else None)
        for reason in improving:
            warn(f"not converged: {reason}. Train longer (train.updates=...) before fine-tuning: that gain is cheaper")
        content = PretrainSummary(
            policy=policy,
            steps=self.trainer.step,
            parameters=parameters,
            evaluation=simulated.summary() if simulated else None,
            improving=improving,
            temperatures=self._over_temperatures(simulated) if simulated else None,
            held_out=evaluation.to_json() if isinstance(evaluation, ActionError) else None,
            clamped_actions=self.clamped,
        ).to_json()
        self.run.finish(content)
        return content

    def _over_temperatures(self, own: Evaluation) -> dict[float, float]:
        """Print what less noise gives, in the episodes of the evaluation -> temperature: measure."""
        config, policy, task = self.config.evaluation, self.trainer.ema.module, self.config.task
        each = samplings(policy, config.temperatures)
        as_it_is = Sampling(policy.config.temperature, policy.config.mean_of)
        others = [sampling for sampling in each if sampling != as_it_is]
        found = compare_samplings(policy, task, config, others, envs=self.envs, shown="evaluation at ")
        found = {sampling: own if sampling == as_it_is else found[sampling] for sampling in each}
        if found:
            print(f"\n{task.name}, {task.measure} of the policy with less noise, {len(own.seeds)} episodes")
            print(table(found, task.measure))
            keys = f"temperature={best(found).temperature:g}"
            print(f"Before you fine-tune, turn the noise down: burnish policy set {self.run.folder} {keys}\n")
        return {sampling.temperature: each.summary().value(task.measure) for sampling, each in found.items()}
