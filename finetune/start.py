"""The start of a run: the policy, the stage, the environments, and whether they fit together."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from burnish.config import to_dict
from burnish.envs import make_simulator, make_vector_env
from burnish.envs.same_environment import require_trained_in, versions_of
from burnish.errors import BurnishError, warn
from burnish.evaluation.evaluate import evaluation_envs
from burnish.finetune.config import FinetuneConfig
from burnish.finetune.loop import Loop
from burnish.finetune.stage import Setting, Stage, stage_class
from burnish.machine.allocation import AtMost
from burnish.machine.device import resolve_device
from burnish.machine.memory import free_memory
from burnish.policies.base import Policy, policy_class
from burnish.policies.load import load_policy
from burnish.runs.checkpoint import Checkpoints
from burnish.runs.folder import Run
from burnish.runs.summary import converged


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Improve a policy, offline, online or both, evaluate before and after, and leave a run folder -> the content of
    summary.json.

    Raises:
        BurnishError: bad input; nothing was started.
        Stopped: asked to stop; the run folder can be resumed.
    """
    device = resolve_device(config.device, config.torch_threads)
    torch.manual_seed(config.seed)
    newest = Checkpoints(Path(config.resume) / "checkpoints").newest_undamaged()[0] if config.resume else None
    source = newest or config.policy
    policy = load_policy(source, device) if source else fresh_policy(config, device)
    check_kind(config, policy.config.kind)
    require_trained_in(policy, config.task, config.allow)
    policy.trained_in, policy.plugins = to_dict(config.task), config.plugins
    policy.trained_with = versions_of(config.task.suite)
    with ExitStack() as stack:
        eval_envs = stack.enter_context(evaluation_envs(policy, config.task, config.evaluation))
        make_stage: Any = stage_class(config.stage.name)
        ends_at_success = config.ends_at_success and config.task.measure == "success_rate"
        setting = Setting(
            config.task, config.n_envs, config.seed, config.policy is not None, ends_at_success, config.allow
        )
        stage = make_stage(policy, config.stage, setting)
        if policy.doubt:
            warn(policy.doubt)
        check_phases(config, stage)
        envs = None
        if config.total_env_steps:
            check_budget(config, stage)
            envs = make_vector_env(
                config.task,
                n_envs=config.n_envs,
                n_obs_steps=policy.config.n_obs_steps,
                n_action_steps=policy.config.n_action_steps,
                seed=config.seed,
                backend=config.backend,
                n_workers=config.n_workers,
                ends_at_success=ends_at_success,
                beside=eval_envs,
                worker_timeout=config.worker_timeout,
            )
            stack.callback(envs.close)
        run = stack.enter_context(Run.open(config, stage.data))
        if config.resume is None and converged(config.policy) is False:
            warn(
                f"policy={config.policy} had not converged when its pretraining ended: part of what fine-tuning gains, "
                "longer imitation would have given for less"
            )
        return Loop(config, stage, envs, eval_envs, run).run_to_end()


def fresh_policy(config: FinetuneConfig, device: torch.device) -> Policy:
    """A policy that knows nothing but the sizes of the task's observations and actions."""
    assert config.network is not None
    simulator = make_simulator(config.task)
    sizes = simulator.obs_spec, simulator.action_dim
    simulator.close()
    make_policy: Any = policy_class(config.network.kind)
    with AtMost(free_memory(), "network"):
        return make_policy(config.network, *sizes, config.task.obs_keys, config.task.name).to(device).eval()


def check_kind(config: FinetuneConfig, kind: str) -> None:
    """Raise BurnishError where the stage does not train policies of `kind`, the kind that it would be given."""
    name, stage = config.stage.name, stage_class(config.stage.name)
    if not stage.trains(kind):
        expected = stage.kinds or ()
        option = policy_class(expected[0]).Config.OPTION
        given, instead = f"policy={config.policy}", f"pretrain one: burnish pretrain policy={option}"
        if config.policy is None:
            given, instead = "the network", f"give network={option}"
        trained = " or a ".join(expected)
        raise BurnishError(f"stage={name} trains a {trained} policy, but {given} is a {kind} one: {instead}")


def check_phases(config: FinetuneConfig, stage: Stage) -> None:
    """Raise BurnishError where the stage does not learn in a phase of the run."""
    name, reason = config.stage.name, stage.why_not_offline()
    if config.offline.steps and reason is not None:
        raise BurnishError(
            f"offline.steps={config.offline.steps}, but stage={name} has no offline phase ({reason}): expected "
            "offline.steps=0, or another stage"
        )
    if config.total_env_steps and not stage.online:
        raise BurnishError(
            f"total_env_steps={config.total_env_steps}, but stage={name} learns offline alone: expected 0, as "
            "`burnish offline` has"
        )


def check_budget(config: FinetuneConfig, stage: Stage) -> None:
    """Raise BurnishError where the steps do not suffice for one update."""
    Ta = stage.policy.config.n_action_steps
    per_update = config.n_envs * stage.chunks_per_update * Ta
    keys = " and ".join(f"stage.{key}" for key in config.stage.FIRST_UPDATE) or "the stage"
    if config.total_env_steps < per_update:
        raise BurnishError(
            f"total_env_steps={config.total_env_steps} is too few for one update, which takes {per_update} = n_envs * "
            f"chunks * n_action_steps = {config.n_envs} * {stage.chunks_per_update} * {Ta}; the chunks are of {keys}"
        )
    if config.total_env_steps <= stage.random_steps:
        raise BurnishError(
            f"total_env_steps={config.total_env_steps}, but the first stage.random_steps={stage.random_steps} are "
            "random actions: expected more steps, or fewer random ones"
        )
