# ruff: noqa: F811
"""The offline phase: learning from demonstrations alone, then online, as one run that resumes bitwise."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from bandit import DA, TA, TASK, learns_from, make_policy, make_stage, observations, play, reward_of, score
from stopped import assert_same_run, untimed_metrics
from test_training import (  # noqa: F401 - fixtures
    dataset,
    finetune_config,
    pretrained,
    small_dppo,
    small_off_policy,
)

from burnish.commands.cli import main
from burnish.compare.results import curve, with_minutes
from burnish.datasets.episodes import Demonstrations, Episode
from burnish.errors import BurnishError, Stopped
from burnish.finetune import start
from burnish.finetune.algorithms.dpmd import DPMD
from burnish.finetune.algorithms.idql import IDQL
from burnish.finetune.config import OfflinePhaseConfig
from burnish.finetune.critics import ExpectileCriticConfig
from burnish.finetune.offline import OfflineConfig, OfflineStage
from burnish.finetune.stage import STAGES, Setting, StageConfig, stage_class
from burnish.finetune.start import finetune
from burnish.networks import CriticConfig, GaussianCriticConfig
from burnish.runs.metrics import read_metrics

OFFLINE = OfflinePhaseConfig(steps=12, eval_every=6, checkpoint_every=0, report_every=5)
SMALL = {"hidden_dim": 32, "n_layers": 2}


WITH_ACTOR = {
    "idql": {"critic": ExpectileCriticConfig(**SMALL), "n_candidates": 3},
    "qsm": {"critic": CriticConfig(**SMALL)},
    "qvpo": {"critic": CriticConfig(**SMALL), "draws": 4, "uniform_draws": 2},
    "dacer": {"critic": GaussianCriticConfig(**SMALL), "entropy_every": 8, "entropy_draws": 100},
    "dipo": {"critic": CriticConfig(**SMALL), "action_steps": 3},
}
"""Of `burnish.finetune.actor`, and what makes them small."""


def stage_config(name: str, dataset: Path | None, **settings) -> StageConfig:
    if name in WITH_ACTOR:
        few = {"batch_size": 32, "learning_starts": 200, "update_every": 5, "critic_warmup_updates": 4}
        few |= {"demos": str(dataset), "demo_ratio": 0.5}
        return stage_class(name).Config(**(few | WITH_ACTOR[name] | settings))
    return small_off_policy(name, dataset, **settings)


def two_phases(folder: Path, policy: Path, stage: StageConfig, **settings):
    settings = {"offline": OFFLINE, "total_env_steps": 700, "checkpoint_every": 0} | settings
    return finetune_config(folder, policy, stage, **settings)


def signal_at(monkeypatch: pytest.MonkeyPatch, cls: type, name: str, n: int) -> None:
    """SIGTERM comes to this process in call number `n` of a method, as from the outside."""
    method, calls = getattr(cls, name), itertools.count(1)

    def called(*given):
        if next(calls) == n:
            os.kill(os.getpid(), signal.SIGTERM)
        return method(*given)

    monkeypatch.setattr(cls, name, called)


@pytest.fixture(scope="module")
def whole(dataset, pretrained, tmp_path_factory) -> dict[str, Path]:
    """Runs that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("dpmd", "idql"):
        finetune(two_phases(folder / name, pretrained, stage_config(name, dataset)))
    return {name: folder / name for name in ("dpmd", "idql")}


@pytest.mark.parametrize("name", ["qsm", "qvpo", "dacer", "dipo"])
def test_every_other_run_stopped_and_stopped_again_goes_on_bitwise(dataset, pretrained, tmp_path, monkeypatch, name):
    """In the offline phase, and in the online one."""
    run, stage, cls = tmp_path / "run", stage_config(name, dataset), stage_class(name)
    few = {"total_env_steps": 400}
    finetune(two_phases(tmp_path / "whole", pretrained, stage, **few))
    resume = {}
    for method, n in (("update_offline", 2), ("update", 1)):
        with monkeypatch.context() as patch:
            signal_at(patch, cls, method, n)
            with pytest.raises(Stopped, match=f"go on with: burnish finetune resume={run}"):
                finetune(two_phases(run, pretrained, stage, **few, **resume))
        resume = {"resume": str(run)}
        torch.manual_seed(99)
    finetune(two_phases(run, pretrained, stage, **few, **resume))
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize(
    ("method", "n", "where"),
    [
        ("update_offline", 2, "after 10 offline gradient steps"),
        ("update_offline", 3, "after 12 offline gradient steps"),  # its last
        ("act", 3, "environment steps"),
        ("update", 2, "environment steps"),
    ],
)
@pytest.mark.parametrize("name", ["dpmd", "idql"])
def test_a_run_stopped_in_either_phase_goes_on_bitwise(
    dataset, pretrained, whole, tmp_path, monkeypatch, name, method, n, where
):
    run, stage = tmp_path / "run", stage_config(name, dataset)
    with monkeypatch.context() as patch:
        signal_at(patch, {"dpmd": DPMD, "idql": IDQL}[name], method, n)
        with pytest.raises(Stopped, match=f"{where}; go on with: burnish finetune resume={run}"):
            finetune(two_phases(run, pretrained, stage))
    torch.manual_seed(99)  # another process would start from another state
    finetune(two_phases(run, pretrained, stage, resume=str(run)))
    assert_same_run(run, whole[name])
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, whole[name])]
    for key in ("env_steps", "offline_steps", "updates", "best"):
        assert summaries[0][key] == summaries[1][key]


def test_the_accounts_of_two_phases(whole):
    """12 gradient steps in reports of 5, 5 and 2; the evaluation due after 6 comes with the second report, the one of
    the phase's end with the third. Of the critic's warm-up of 10, none is left to be made up for online."""
    lines = untimed_metrics(whole["dpmd"])
    before, online, after = lines[:4], lines[4:-1], lines[-1]
    assert [line["phase"] for line in lines] == ["offline"] * 4 + ["online"] * (len(online) + 1)
    assert [line["step"] for line in before] == [line["offline_steps"] for line in before] == [0, 5, 10, 12]
    assert [line.get("gradient_steps") for line in before] == [None, 5, 10, 12]
    assert ["eval/return" in line for line in before] == [True, False, True, True]
    assert all(line["env_steps"] == 0 for line in before)
    assert all(line["offline_steps"] == 12 and line["step"] == 12 + line["env_steps"] for line in [*online, after])
    assert online and online[-1]["env_steps"] > 200
    # utd_ratio 1: one for each chunk stored since learning_starts, in four environments
    first = online[0]
    assert 12 < first["gradient_steps"] <= 12 + first["replay_size"]
    summary = json.loads((whole["dpmd"] / "summary.json").read_text())
    assert (summary["offline_steps"], summary["env_steps"]) == (12, after["env_steps"])
    folders = sorted(path.name for path in (whole["dpmd"] / "checkpoints").glob("step_*"))
    assert f"step_{after['step']:08d}" in folders and len(folders) <= 3


def test_an_offline_run_steps_no_environment_and_goes_on_online(dataset, pretrained, tmp_path, monkeypatch):
    """By the commands: `burnish offline`, longer with its own resume, then `burnish finetune` from there."""
    run = tmp_path / "run"
    few = [
        "stage.batch_size=32",
        "stage.learning_starts=200",
        "stage.critic_warmup_updates=4",
        f"stage.demos={dataset}",
    ]
    evaluation = [
        "evaluation.episodes=2",
        "evaluation.n_envs=2",
        "evaluation.backend=sync",
        "evaluation.temperatures=[]",
    ]
    words = [f"run_dir={run}", f"policy={pretrained}", "stage=dpmd", *few, *evaluation, "n_envs=4", "backend=sync"]

    def refuse(*_, **__):
        raise AssertionError("no environment is needed")

    with monkeypatch.context() as patch:
        patch.setattr(start, "make_vector_env", refuse)
        kind = ["stage.critic.kind=expectile", "stage.critic.expectile=0.8"]
        assert main(["offline", *words, *kind, "offline.steps=6"]) == 0
        assert main(["offline", f"resume={run}", "offline.steps=9"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["offline_steps"], summary["env_steps"], summary["updates"]) == (9, 0, 0)
    lines = read_metrics(run / "metrics.jsonl")
    assert {line["phase"] for line in lines} == {"offline"} and lines[-1]["step"] == 9
    assert all("value_loss" in line for line in lines if "critic_loss" in line)
    assert main(["finetune", f"resume={run}", "total_env_steps=400"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["offline_steps"] == 9 and summary["env_steps"] >= 400 and summary["updates"] > 0


def test_a_comparison_counts_environment_steps_alone(whole):
    lines = with_minutes(whole["dpmd"])
    assert [line["step"] for line in lines] == [line["env_steps"] for line in lines]
    assert [line["minutes"] for line in lines] == sorted(line["minutes"] for line in lines) and lines[3]["minutes"] > 0
    points = curve(lines, "eval/return")
    assert points[0].env_steps == points[1].env_steps == 0 and points[-1].env_steps == lines[-1]["env_steps"]


# -- what is learned ---------------------------------------------------------------------------------------------------


def bandit_demonstrations(source, sensors=()) -> Demonstrations:
    """Chunks at random and what they gave: some are good, their mean is not."""
    rng = np.random.default_rng(0)
    obs = observations(rng, 1500)
    actions = rng.uniform(-1, 1, (1500, TA, DA)).astype(np.float32)
    rewards = reward_of(actions, obs).astype(np.float32)
    episodes = [
        Episode(
            f"demo_{i}",
            {"flat": obs[i].repeat(TA, 0)},
            actions[i],
            np.array([r, 0], np.float32),
            np.array([0, 1], bool),
        )
        for i, r in enumerate(rewards)
    ]
    return Demonstrations(episodes, source=str(source))


@pytest.mark.parametrize(("name", "kind"), [("dpmd", "q"), ("dpmd", "expectile"), ("idql", "expectile")])
def test_a_bandit_is_learned_from_demonstrations_alone(pretrained_weights, monkeypatch, name, kind):
    learns_from(monkeypatch, bandit_demonstrations)
    critic = {"q": CriticConfig, "expectile": ExpectileCriticConfig}[kind](hidden_dim=64, n_layers=2)
    settings = {"critic": critic, "demos": "demos.hdf5", "demo_ratio": 0.5, "actor_tau": 0.02, "actor_lr": 1e-3}
    settings |= {"temperature": 0.2} if name == "idql" else {"train_on": "executed", "draw_at": "current"}
    stage = make_stage(name, pretrained_weights, **settings)
    assert abs(score(stage.policy)) < 0.05
    for _ in range(6):
        metrics = stage.update_offline(100)
    assert metrics["gradient_steps"] == stage.gradient_steps == 600 and stage.env_steps == 0
    assert score(stage.policy) > 0.15
    assert score(stage.policy, candidates=8) > score(stage.policy) + 0.1


def test_constant_weights_are_plain_cloning(pretrained_weights, monkeypatch):
    """And single samples do not improve; the best of N does."""
    learns_from(monkeypatch, bandit_demonstrations)
    settings = {"demos": "demos.hdf5", "demo_ratio": 0.5, "actor_lr": 1e-3, "actor_tau": 0.02}
    stage = make_stage("idql", pretrained_weights, **settings)
    stage.config = replace(stage.config, weights="constant")
    stage.update_offline(100)
    batch = stage.demos.sample(64, stage.generator)
    state = stage.generator.get_state()
    output, target = stage.policy.denoise_noised(
        stage.actor, batch.obs, stage.chunks(batch), torch.Generator().set_state(state), 10
    )
    expected = torch.nn.functional.mse_loss(output, target)
    assert float(stage.update_actor(batch)["actor_loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    for _ in range(3):
        stage.update_offline(100)
    assert abs(score(stage.policy)) < 0.1 < score(stage.policy, candidates=16)


def test_what_was_learned_offline_acts_online(pretrained_weights, monkeypatch):
    """From the first chunk on the critic chooses, and the warm-up is over."""
    learns_from(monkeypatch, bandit_demonstrations)
    settings = {"demos": "demos.hdf5", "demo_ratio": 0.5, "critic_warmup_updates": 30}
    stage = make_stage("dpmd", pretrained_weights, **settings)
    stage.update_offline(20)
    assert stage.owed == 10
    stage.update_offline(20)
    assert stage.owed == 0
    asked, candidates = [], stage.candidates
    monkeypatch.setattr(stage, "candidates", lambda obs, n: asked.append(n) or candidates(obs, n))
    play(stage, np.random.default_rng(0), 1)
    assert asked[0] == stage.config.n_candidates


# -- an algorithm that learns offline alone ----------------------------------------------------------------------------


def the_docs_example() -> tuple[type[OfflineStage], type[OfflineConfig]]:
    """`Cloned` of docs/offline.md, and its config."""
    text = (Path(__file__).resolve().parent.parent / "docs" / "offline.md").read_text()
    module = ModuleType("cloned")
    sys.modules["cloned"] = module  # where dataclasses look up what annotations mean
    exec(text.split("```python\n")[1].split("```")[0], vars(module))
    return module.Cloned, module.ClonedConfig


Cloned, ClonedConfig = the_docs_example()


def test_an_algorithm_of_ones_own_learns_offline_alone(dataset, pretrained, tmp_path, monkeypatch):
    """One class: `learn`. It resumes bitwise as all do, and is refused an online phase."""
    monkeypatch.setitem(STAGES, "cloned", "cloned:Cloned")
    stage = ClonedConfig(demos=str(dataset), batch_size=32, critic=CriticConfig(**SMALL))
    how = {"total_env_steps": 0, "offline": OFFLINE}
    finetune(two_phases(tmp_path / "whole", pretrained, stage, **how))
    with monkeypatch.context() as patch:
        signal_at(patch, Cloned, "learn", 7)
        with pytest.raises(Stopped, match="after 10 offline"):
            finetune(two_phases(tmp_path / "run", pretrained, stage, **how))
    finetune(two_phases(tmp_path / "run", pretrained, stage, **how, resume=str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(BurnishError, match="total_env_steps=700, but stage=cloned learns offline alone: expected 0"):
        finetune(two_phases(tmp_path / "online", pretrained, stage))


@pytest.mark.parametrize(
    ("make_stage_config", "settings", "message"),
    [
        (lambda data: small_dppo(), {}, r"stage=dppo has no offline phase \(it learns from its own steps alone\)"),
        (
            lambda data: small_off_policy("dpmd", None, demos=None, demo_ratio=0.0, bc_coef=0.0),
            {},
            "demo_ratio=0 leaves",
        ),
        (
            small_dppo,
            {"offline": OfflinePhaseConfig(), "total_env_steps": 0},
            "expected steps of one of the two phases",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    pretrained, dataset, tmp_path, make_stage_config, settings, message
):
    stage = small_dppo() if make_stage_config is small_dppo else make_stage_config(dataset)
    with pytest.raises(BurnishError, match=message):
        finetune(two_phases(tmp_path / "run", pretrained, stage, **settings))
    assert not (tmp_path / "run").exists()


def test_demonstrations_that_there_are_not():
    with pytest.raises(BurnishError, match="stage=cloned learns from demonstrations, but task=bandit names none"):
        Cloned(make_policy(), ClonedConfig(), Setting(TASK, 4, 0))
