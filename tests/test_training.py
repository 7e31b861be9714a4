"""Pretraining and fine-tuning on Hopper: resumed runs are bitwise those that were never interrupted."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stopped import StopAfter, assert_same_run, untimed_metrics, weights

from burnish.commands.cli import main
from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.formats import d4rl
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError, Stopped
from burnish.evaluation import evaluate as evaluation_module
from burnish.evaluation.evaluate import evaluate
from burnish.evaluation.temperatures import TrainingEvaluationConfig
from burnish.finetune import loop, off_policy
from burnish.finetune.algorithms.dpmd import DPMDConfig
from burnish.finetune.algorithms.dppo import DPPO, DPPOConfig
from burnish.finetune.algorithms.sdac import SDACConfig
from burnish.finetune.config import FinetuneConfig
from burnish.finetune.losses.rsm import RSMConfig
from burnish.finetune.stage import Setting, StageConfig
from burnish.finetune.start import finetune
from burnish.networks import CriticConfig, DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.folder import fingerprint
from burnish.pretrain import behaviour_cloning
from burnish.pretrain.behaviour_cloning import PretrainConfig, TrainConfig, pretrain
from burnish.runs.evaluation_file import EvaluationSummary
from burnish.runs.metrics import read_metrics

HOPPER = TaskConfig(name="hopper", suite="gymnasium", env_id="Hopper-v5", max_episode_steps=60)
POLICY = PolicyConfig(denoiser=DenoiserConfig(hidden_dim=32), denoising_steps=5, n_obs_steps=2)
EVALUATION = TrainingEvaluationConfig(episodes=3, n_envs=3, backend="sync", temperatures=[1.0, 0.0])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A few Hopper-shaped episodes of smooth actions."""
    rng = np.random.default_rng(0)
    episodes = []
    for i in range(6):
        steps = int(rng.integers(20, 40))
        episodes.append(
            Episode(
                name=f"episode_{i}",
                obs={"flat": rng.normal(size=(steps, 11)).astype(np.float32)},
                actions=np.tanh(np.cumsum(rng.normal(size=(steps, 3)), axis=0)).astype(np.float32),
                rewards=np.ones(steps, np.float32),
                terminated=np.zeros(steps, bool),
            )
        )
    path = tmp_path_factory.mktemp("data") / "hopper.hdf5"
    d4rl.write(path, Demonstrations(episodes))
    return path


def pretrain_config(folder: Path, dataset: Path, **kwargs) -> PretrainConfig:
    train = TrainConfig(epochs=6, batch_size=32, eval_every=10, checkpoint_every=10, validation_fraction=0.2)
    return PretrainConfig(
        task=HOPPER,
        policy=POLICY,
        train=train,
        evaluation=EVALUATION,
        dataset=str(dataset),
        run_dir=str(folder),
        device="cpu",
        **kwargs,
    )


def finetune_config(folder: Path, policy: Path | None, stage: StageConfig | None = None, **kwargs) -> FinetuneConfig:
    settings = {
        "total_env_steps": 1500,
        "n_envs": 4,
        "backend": "sync",
        "eval_every": 512,
        "checkpoint_every": 256,
    }
    return FinetuneConfig(
        task=HOPPER,
        stage=stage or small_dppo(),
        policy=policy and str(policy),
        run_dir=str(folder),
        evaluation=EVALUATION,
        device="cpu",
        **(settings | kwargs),
    )


def small_dppo(**kwargs) -> DPPOConfig:
    settings = {"ft_denoising_steps": 3, "n_steps": 16, "update_epochs": 2, "batch_size": 64}
    return DPPOConfig(**(settings | kwargs))


def small_off_policy(name: str, dataset: Path | None, **kwargs) -> StageConfig:
    settings = {"batch_size": 32, "draws": 4, "learning_starts": 200, "critic_warmup_updates": 10, "update_every": 5}
    settings |= {"policy_delay": 3, "old_policy_every": 7, "bc_coef": 0.1, "exploration_noise": 0.1}
    settings |= {
        "rsm": RSMConfig(kl_target=0.5),
        "demos": str(dataset),
        "critic": CriticConfig(hidden_dim=32, n_layers=2),
    }
    return {"dpmd": DPMDConfig, "sdac": SDACConfig}[name](**(settings | kwargs))


@pytest.fixture(scope="module")
def pretrained(dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(pretrain_config(folder, dataset))
    return folder


@pytest.mark.parametrize("stop_after", [7, 12])  # in the middle of an epoch and at the end of one, of 4 steps each
def test_interrupted_pretraining_is_bitwise_the_uninterrupted(dataset, pretrained, tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr(StopAfter, "n", stop_after)
    monkeypatch.setattr(behaviour_cloning, "StopRequest", StopAfter)
    with pytest.raises(Stopped, match=f"stopped at step {stop_after}"):
        pretrain(pretrain_config(tmp_path / "run", dataset))
    monkeypatch.setattr(StopAfter, "n", -1)
    torch.manual_seed(99)  # another process would start from another state
    pretrain(pretrain_config(tmp_path / "run", dataset, resume=str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", pretrained)


@pytest.fixture(scope="module")
def finetuned(pretrained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    finetune(finetune_config(folder, pretrained))
    return folder


def test_killed_after_its_last_evaluation_a_run_ends_the_same(pretrained, finetuned, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("burnish.finetune.loop.record", killed)
        finetune(finetune_config(tmp_path / "run", pretrained))
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(finetuned)  # all is logged
    assert not (tmp_path / "run" / "summary.json").exists()
    finetune(finetune_config(tmp_path / "run", pretrained, resume=str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", finetuned)
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (tmp_path / "run", finetuned))
    assert (ours["after"]["return"], ours["best"]) == (theirs["after"]["return"], theirs["best"])


@pytest.mark.parametrize("stop_after", [21, 34])  # in the middle of a rollout and right after an update
@pytest.mark.parametrize("backend", ["sync", "workers"])
def test_interrupted_dppo_is_bitwise_the_uninterrupted(
    pretrained, finetuned, tmp_path, monkeypatch, stop_after, backend
):
    monkeypatch.setattr(StopAfter, "n", stop_after)
    monkeypatch.setattr(loop, "StopRequest", StopAfter)
    with pytest.raises(Stopped, match="go on with: burnish finetune resume="):
        finetune(finetune_config(tmp_path / "run", pretrained, backend=backend, n_workers=2))
    monkeypatch.setattr(StopAfter, "n", -1)
    torch.manual_seed(99)
    config = finetune_config(tmp_path / "run", pretrained, resume=str(tmp_path / "run"), backend=backend, n_workers=2)
    finetune(config)
    assert_same_run(tmp_path / "run", finetuned)


@pytest.mark.parametrize("stop_after", [20, 32])  # in the middle of a round, and after the second update
def test_interrupted_groups_are_bitwise_the_uninterrupted(pretrained, tmp_path, monkeypatch, stop_after):
    """Episodes of at most 15 chunks in two groups of two environments; a round begins with seeds of its own."""
    stage = small_dppo(n_steps=None, rollout_episodes=4, advantages="group", group_size=2)
    finetune(finetune_config(tmp_path / "whole", pretrained, stage))
    monkeypatch.setattr(StopAfter, "n", stop_after)
    monkeypatch.setattr(loop, "StopRequest", StopAfter)
    with pytest.raises(Stopped, match="go on with: burnish finetune resume="):
        finetune(finetune_config(tmp_path / "run", pretrained, stage))
    monkeypatch.setattr(StopAfter, "n", -1)
    torch.manual_seed(99)
    finetune(finetune_config(tmp_path / "run", pretrained, stage, resume=str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(line["kl"] >= 0 for line in lines if "groups_that_differ" in line)
    assert sum("groups_that_differ" in line for line in lines) >= 5


@pytest.mark.parametrize(("name", "stop_after"), [("dpmd", 40), ("sdac", 40), ("dpmd", 15)])  # 15: in the warm-up
def test_interrupted_rsm_is_bitwise_the_uninterrupted(dataset, pretrained, tmp_path, monkeypatch, name, stop_after):
    monkeypatch.setattr(off_policy, "MOST_GRADIENT_STEPS", 3)
    stage = small_off_policy(name, dataset)
    finetune(finetune_config(tmp_path / "whole", pretrained, stage))
    monkeypatch.setattr(StopAfter, "n", stop_after)
    monkeypatch.setattr(loop, "StopRequest", StopAfter)
    with pytest.raises(Stopped, match="go on with: burnish finetune resume="):
        finetune(finetune_config(tmp_path / "run", pretrained, stage))
    if stop_after == 15:
        steps = [line.get("gradient_steps") for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
        assert steps[0] is None and 0 < steps[-1] < stage.critic_warmup_updates
    monkeypatch.setattr(StopAfter, "n", -1)
    torch.manual_seed(99)
    finetune(finetune_config(tmp_path / "run", pretrained, stage, resume=str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    evaluated = {line["step"]: line.get("gradient_steps") for line in lines[1:-1] if "eval/return" in line}
    assert evaluated == {s: max(line["gradient_steps"] for line in lines[1:-1] if line["step"] == s) for s in evaluated}
    trained = [line for line in lines if "ess" in line]
    assert trained and all(1 <= line["ess"] <= 32 and line["temperature"] > 0 for line in trained)
    assert "eval_selected/return" in lines[-1] and (tmp_path / "run" / "evaluation_selected.json").is_file()
    policy = DiffusionPolicy.load(tmp_path / "run")
    single, best = (evaluate(policy, HOPPER, replace(EVALUATION, candidates=n)) for n in (1, 8))
    assert single.returns.tolist() == json.loads((tmp_path / "run" / "evaluation.json").read_text())["return"]
    assert best.returns.tolist() == json.loads((tmp_path / "run" / "evaluation_selected.json").read_text())["return"]
    with pytest.raises(BurnishError, match="candidates=2: this policy has no critic"):
        evaluate(DiffusionPolicy.load(pretrained), HOPPER, replace(EVALUATION, candidates=2))


@pytest.mark.parametrize("name", ["dpmd", "sdac", "dppo"])
def test_from_scratch(tmp_path, name):
    network = replace(POLICY, n_obs_steps=1, horizon=1, n_action_steps=1, obs_normalization="none")
    network = replace(network, action_normalization="none")
    scratch = {"rsm": RSMConfig(weights="paper"), "random_steps": 100, "demos": None, "demo_ratio": 0.0, "bc_coef": 0.0}
    stage = small_dppo(ft_denoising_steps=5) if name == "dppo" else small_off_policy(name, None, **scratch)
    finetune(finetune_config(tmp_path / "run", None, stage, network=network, total_env_steps=400))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best"]["env_steps"] in range(1, summary["env_steps"] + 1)
    assert summary["best"]["return"] >= summary["after"]["return"]
    with pytest.raises(BurnishError, match="policy=null: expected the folder"):
        finetune_config(tmp_path / "run", None, stage)


def test_of_equally_good_checkpoints_the_last_is_best(dataset, pretrained, tmp_path):
    """With a frozen policy all are, and the last has the most trained critic."""
    stage = small_off_policy("dpmd", dataset, freeze_actor=True)
    finetune(finetune_config(tmp_path / "run", pretrained, stage))
    evaluated = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval/return" in line]
    assert len(evaluated) > 2 and len({line["eval/return"] for line in evaluated}) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best"]["env_steps"] == summary["env_steps"]


def test_same_seed_same_run_and_another_seed_another(pretrained, finetuned, tmp_path):
    finetune(finetune_config(tmp_path / "same", pretrained))
    assert_same_run(tmp_path / "same", finetuned)
    finetune(finetune_config(tmp_path / "other", pretrained, seed=1))
    assert untimed_metrics(tmp_path / "other")[1:] != untimed_metrics(finetuned)[1:]


def test_finetuning_moves_the_finetuned_net_alone(pretrained, finetuned):
    before, after = weights(pretrained), weights(finetuned)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    moved = [name for name in after if name.startswith("finetuned.")]
    assert any(not torch.equal(after[name], before[name.replace("finetuned.", "denoiser.")]) for name in moved)


def test_a_run_folder_is_complete(finetuned):
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "evaluation.json", "evaluation_before.json"):
        assert (finetuned / name).is_file(), name
    assert (finetuned / "plots" / "curve.png").stat().st_size > 1000
    summary = json.loads((finetuned / "summary.json").read_text())
    policy = DiffusionPolicy.load(finetuned)
    assert policy.ft_denoising_steps == 3
    assert summary["env_steps"] >= 1500 and summary["before"].keys() == summary["after"].keys()
    lines = read_metrics(finetuned / "metrics.jsonl")
    updates = [line for line in lines if "policy_loss" in line]
    assert updates and all(line["first_ratio_error"] <= 1e-5 for line in updates)
    assert lines[-1]["step"] > updates[-1]["step"] and lines[-1]["time/training"] > 0  # a rollout cut by the budget
    seconds = sum(line.get("time/training", 0.0) for line in lines)
    assert seconds == pytest.approx(60 * summary["time/training_minutes"])
    before = json.loads((finetuned / "evaluation_before.json").read_text())
    assert before["weights"] == fingerprint(before["policy"])


@pytest.mark.parametrize(
    "settings",
    [
        {"ft_denoising_steps": 1},
        {"ft_denoising_steps": 5},
        {"sampler": "ddim", "ddim_steps": 5, "ft_denoising_steps": 2},
        {"log_prob": "joint", "clip_coef": 0.2, "bc_coef": 0.1},
        {"adv_quantile_low": 0.05, "adv_quantile_high": 0.95, "max_sampling_denoising_std": 0.3},
    ],
)
def test_variants_of_dppo_run_and_stay_finite(pretrained, tmp_path, settings):
    config = finetune_config(tmp_path / "run", pretrained, small_dppo(**settings), total_env_steps=600, eval_every=0)
    finetune(config)
    for line in untimed_metrics(tmp_path / "run"):
        assert all(value is None or np.isfinite(value) for value in line.values())
        assert line.get("policy_loss", 0.0) is not None
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(tmp_path / "run").values())


def test_sigterm_to_the_whole_group_saves_and_resume_goes_on(pretrained, tmp_path):
    """The real command with worker processes, signalled as Slurm, systemd and `timeout` do it."""
    run = tmp_path / "run"
    words = ["task=hopper", f"policy={pretrained}", f"run_dir={run}", "n_envs=4", "backend=workers", "n_workers=2"]
    words += ["stage.n_steps=16", "stage.ft_denoising_steps=3", "checkpoint_every=256", "eval_every=0"]
    words += ["total_env_steps=10000000", "evaluation.episodes=3", "evaluation.n_envs=3", "evaluation.backend=sync"]
    process = subprocess.Popen(
        [sys.executable, "-m", "burnish.commands.cli", "finetune", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    while process.poll() is None and not (run / "checkpoints" / "latest").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"go on with: burnish finetune resume={run}" in errors
    assert "Traceback" not in errors
    steps = read_metrics(run / "metrics.jsonl")[-1]["step"]
    assert main(["finetune", f"resume={run}", f"total_env_steps={steps + 400}"]) == 0
    assert json.loads((run / "summary.json").read_text())["env_steps"] >= steps + 400


def test_bad_input_is_refused_before_anything_is_written(dataset, pretrained, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(BurnishError, match="no such file"):
        pretrain(pretrain_config(run, tmp_path / "missing.hdf5"))
    with pytest.raises(BurnishError, match="ft_denoising_steps=6"):
        finetune(finetune_config(run, pretrained, small_dppo(ft_denoising_steps=6)))
    with pytest.raises(BurnishError, match="not a policy folder"):
        finetune(finetune_config(run, tmp_path))
    with pytest.raises(BurnishError, match="biased"):
        small_dppo(min_sampling_denoising_std=0.04)
    walker = TaskConfig(name="walker2d", suite="gymnasium", env_id="Walker2d-v5", max_episode_steps=60)
    config = finetune_config(run, pretrained)
    object.__setattr__(config, "task", walker)
    with pytest.raises(BurnishError, match=r"name: Hopper-v5 in the policy's, Walker2d-v5 in the task"):
        finetune(config)
    object.__setattr__(config, "allow", ["env_id"])
    with pytest.raises(BurnishError, match="observation dimension 11, but task=walker2d has 17"):
        finetune(config)
    assert not run.exists()


@pytest.mark.parametrize(
    ("measure", "asked", "ends"),
    [("success_rate", True, True), ("success_rate", False, False), ("return", True, False)],
)
def test_training_ends_at_success_where_there_is_one(pretrained, tmp_path, monkeypatch, measure, asked, ends):
    """Both the stage and the environments are told."""

    class Made(Exception):
        pass

    def make_stage_setting(*fields):
        assert Setting(*fields).ends_at_success is ends
        return Setting(*fields)

    def make_envs(*_, ends_at_success, **__):
        assert ends_at_success is ends
        raise Made

    monkeypatch.setattr(TaskConfig, "measure", measure)
    monkeypatch.setattr("burnish.finetune.start.Setting", make_stage_setting)
    monkeypatch.setattr("burnish.finetune.start.make_vector_env", make_envs)
    with pytest.raises(Made):
        finetune(finetune_config(tmp_path / "run", pretrained, ends_at_success=asked))


def test_too_much_noise_is_said_loudly(capsys):
    instance = loop.Loop.__new__(loop.Loop)
    instance.before = EvaluationSummary(10, 0.5, 0.2, 0.8, 5.0, 2.0, 8.0, 30.0, 0, None)
    instance.noise_compared = False
    instance.config = SimpleNamespace(stage=DPPOConfig())
    instance._compare_noisy_with_clean(0.05)
    assert "too much noise (stage.min_sampling_denoising_std)" in capsys.readouterr().err
    instance._compare_noisy_with_clean(0.4)
    assert not capsys.readouterr().err


def test_too_few_steps_for_one_update_are_refused(pretrained, tmp_path):
    with pytest.raises(BurnishError, match=r"total_env_steps=255 is too few .* 256 = n_envs \* chunks"):
        finetune(finetune_config(tmp_path / "run", pretrained, total_env_steps=255))
    assert not (tmp_path / "run").exists()


def test_bf16_pretraining_is_close_to_float32(dataset, pretrained, tmp_path):
    config = pretrain_config(tmp_path / "run", dataset)
    pretrain(replace(config, train=replace(config.train, precision="bf16")))
    ours, theirs = untimed_metrics(tmp_path / "run"), untimed_metrics(pretrained)
    assert ours[-1]["loss"] != theirs[-1]["loss"]
    assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=0.02)


@pytest.fixture
def asked_in(monkeypatch) -> Callable[[int], None]:
    """Says in which evaluation of a training, counted from 0, SIGTERM comes: in its first chunk."""
    begun, acted = itertools.count(), [0]
    real_evaluation, real_act = evaluation_module._evaluate, evaluation_module.act

    def asked(number: int) -> None:
        def counted(*arguments):
            acted[0] = 0 if next(begun) == number else 1000
            return real_evaluation(*arguments)

        def act(*arguments):
            acted[0] += 1
            if acted[0] == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            assert acted[0] < 2 or acted[0] > 1000  # it is given up, not finished
            return real_act(*arguments)

        monkeypatch.setattr(evaluation_module, "_evaluate", counted)
        monkeypatch.setattr(evaluation_module, "act", act)

    return asked


@pytest.mark.parametrize("number", [0, 1, 2, 4])  # before, in between, and after the last update
def test_an_evaluation_that_a_signal_cuts_short_is_made_again(pretrained, finetuned, tmp_path, asked_in, number):
    asked_in(number)
    run = tmp_path / "run"
    with pytest.raises(Stopped, match=r"stopped (before the first step|after [0-9]+ environment steps); go on"):
        finetune(finetune_config(run, pretrained))
    assert (run / "checkpoints" / "latest").exists() == (number > 0)
    torch.manual_seed(99)
    finetune(finetune_config(run, pretrained, resume=str(run)))
    assert_same_run(run, finetuned)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, finetuned))
    assert (ours["after"]["return"], ours["best"]) == (theirs["after"]["return"], theirs["best"])


@pytest.mark.parametrize("number", [0, 1, 2])  # the last one is that after the last step
def test_so_is_one_of_a_pretraining(dataset, pretrained, tmp_path, asked_in, number):
    asked_in(number)
    run = tmp_path / "run"
    with pytest.raises(Stopped, match=f"stopped at step {[10, 20, 30][number]}; go on with: burnish pretrain"):
        pretrain(pretrain_config(run, dataset))
    assert (run / "checkpoints" / "latest").exists()
    torch.manual_seed(99)
    pretrain(pretrain_config(run, dataset, resume=str(run)))
    assert_same_run(run, pretrained)


def test_an_update_that_takes_too_long_is_interrupted(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr("burnish.machine.stop.SECONDS_TO_STOP", 0.5)

    def update(self) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        raise AssertionError

    monkeypatch.setattr(DPPO, "update", update)
    began = time.monotonic()
    with pytest.raises(Stopped, match="what came after the last checkpoint is lost; go on with"):
        finetune(finetune_config(tmp_path / "run", pretrained))
    assert time.monotonic() - began < 30
    assert (tmp_path / "run" / "checkpoints" / "step_00000000" / "policy.json").is_file()
