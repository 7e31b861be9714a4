"""The fine-tuning loop with a stage, a simulator, evaluations and a clock that are all known beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bandit import chunk_step, make_policy
from fake_simulator import Counter
from safetensors.torch import load_file

from burnish.envs.task import TaskConfig
from burnish.envs.vector.sync import SyncVectorEnv
from burnish.errors import Stopped
from burnish.evaluation.evaluate import Evaluation
from burnish.evaluation.temperatures import TrainingEvaluationConfig
from burnish.finetune import evaluations, loop, watch
from burnish.finetune.algorithms.dppo import DPPOConfig
from burnish.finetune.config import FinetuneConfig
from burnish.finetune.loop import Loop
from burnish.finetune.stage import Stage
from burnish.finetune.statistics import EpisodeStatistics
from burnish.runs.folder import Run
from burnish.runs.metrics import read_metrics

E, TA = 2, 2
ACT, UPDATE, EVALUATE = 1.0, 10.0, 1000.0  # seconds
SCORES = [(0.3, 3.0), (0.5, 1.0), (0.5, 1.0), (0.4, 9.0), (0.5, 0.75)]  # before, after 8, 20, 28 and 30 steps


class ScriptedStage(Stage):
    """Learns nothing; due after every second chunk, `rounds` times in a row."""

    def __init__(self, policy, clock, n_candidates=1, rounds=1):
        self.policy, self.clock, self.n_candidates, self.rounds = policy, clock, n_candidates, rounds
        self.chunks = self.done = self.cut = 0
        self.seen = 0.0  # sum of all that it was given
        self.acted: list[list[float]] = []  # episode and step of the first environment's observations

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.clock.now += ACT
        self.seen += float(obs.sum())
        self.acted.append(obs[0, 0, :2].tolist())
        return np.full((E, TA, 1), 0.5, np.float32)

    def observe(self, step) -> None:
        self.seen += float(step.final_obs.sum() + step.step_rewards.sum())
        self.chunks += 1

    def ready(self) -> bool:
        return self.chunks >= 2

    def update(self) -> dict[str, float]:
        self.clock.now += UPDATE
        self.done += 1
        self.chunks = self.chunks if self.done % self.rounds else 0
        return {"seen": self.seen}

    def cut_episodes(self) -> None:
        self.cut += 1

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("chunks", "done", "seen")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Course:
    """One run folder's runs; `run` starts it or goes on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, scores=SCORES, simulator=None, **settings):
        self.stage_settings = {name: settings.pop(name) for name in ("n_candidates", "rounds") if name in settings}
        self.folder, self.scores, self.simulator = folder, iter(scores), simulator or {}
        self.clock = SimpleNamespace(now=50.0, perf_counter=lambda: self.clock.now)
        self.evaluated: list[int] = []  # candidates of each evaluation
        self.saved: list[int] = []
        self.marked: list[int] = []
        self.stop_after = 0  # times that the loop looked
        suite = settings.pop("suite", "robosuite")
        policy = folder.parent / "policy"
        torch.manual_seed(0)
        make_policy().save(policy)
        self.settings = {
            "task": TaskConfig("counter", suite, "Counter", 5),
            "stage": DPPOConfig(),
            "policy": str(policy),
            "run_dir": str(folder),
            "evaluation": TrainingEvaluationConfig(episodes=4, n_envs=4, video=2, temperatures=[]),
            "total_env_steps": 30,
            "n_envs": E,
            "eval_every": 8,
            "checkpoint_every": 12,
        } | settings
        monkeypatch.setattr(loop, "time", self.clock)
        monkeypatch.setattr(evaluations, "evaluate", self.evaluate)
        self.filmed: list[Any] = []
        monkeypatch.setattr(loop, "record", lambda *given: self.filmed.append(given))
        monkeypatch.setattr(loop, "StopRequest", lambda: self)
        monkeypatch.setattr(watch, "FEW", E)  # one episode of each environment
        self.plotted: list[Any] = []
        monkeypatch.setattr(Run, "plot_curve", lambda _, *given, **__: self.plotted.append(given))

    def evaluate(self, policy, task, config, *, envs, progress=None) -> Evaluation:
        """The next of the scores; with selection 1 more."""
        assert policy is self.stage.policy and envs == "eval_envs" and config.episodes == 4
        self.clock.now += EVALUATE
        self.evaluated.append(config.candidates)
        if config.candidates == 1:
            self.last = next(self.scores)
        success, mean_return = self.last
        returns = np.full(10, mean_return + (config.candidates > 1))
        return Evaluation(list(range(10)), np.arange(10) < round(10 * success), returns, np.full(10, 5), 1.5, 0, 1.0, 1)

    def __enter__(self) -> Course:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def requested(self) -> bool:
        self.stop_after -= 1
        return self.stop_after == 0

    def run(self, resume: bool = False) -> dict[str, Any]:
        self.clock.now += 1e6  # another process's clock
        config = FinetuneConfig(**self.settings, resume=str(self.folder) if resume else None)
        torch.manual_seed(0)
        self.stage = ScriptedStage(make_policy(), self.clock, **self.stage_settings)
        sizes = {"n_envs": E, "n_obs_steps": 1, "n_action_steps": TA, "max_episode_steps": 5, "seed": 0}
        envs = SyncVectorEnv(lambda: Counter(**self.simulator), **sizes)
        with Run.open(config) as run:
            save, mark = run.save_checkpoint, run.checkpoints.mark_best
            run.save_checkpoint = lambda step, *rest: self.saved.append(step) or save(step, *rest)
            run.checkpoints.mark_best = lambda step: self.marked.append(step) or mark(step)
            self.loop = Loop(config, self.stage, envs, "eval_envs", run)
            return self.loop.run_to_end()

    def lines(self) -> list[dict[str, Any]]:
        lines = read_metrics(self.folder / "metrics.jsonl")
        return [{key: value for key, value in line.items() if key != "time/elapsed"} for line in lines]

    def column(self, key: str) -> list[Any]:
        return [line.get(key) for line in self.lines()]


def test_the_course_of_a_run(tmp_path, monkeypatch, capsys):
    """Chunks of 2, 2 and 1 steps in two environments: updates after 8, 14, 20 and 28 steps, the end after 30."""
    course = Course(tmp_path / "run", monkeypatch, n_candidates=3)
    summary = course.run()
    assert course.stage.acted == [[episode, t] for episode in (1, 2, 3) for t in (0, 2, 4)]
    assert course.column("step") == [0, 8, 14, 20, 28, 30]
    assert course.column("eval/return") == [3.0, 1.0, None, 1.0, 9.0, 0.75]
    assert course.column("eval_selected/return") == [None, 2.0, None, 2.0, 10.0, 1.75]
    assert course.evaluated == [1, 1, 3, 1, 3, 1, 3, 1, 3]
    assert course.column("updates") == [None, 1, 2, 3, 4, None]
    assert course.column("time/update") == [None, UPDATE, UPDATE, UPDATE, UPDATE, None]
    each = 2 * ACT + UPDATE  # without evaluations
    assert course.column("time/training") == [None, each, each, each, each, ACT]
    rates = [8 / each, 6 / each, 6 / each, 8 / each]
    assert course.column("time/env_steps_per_second") == [None, *rates, None]
    # of one episode in each environment, at the 10th and the 20th step: 0.5 a step, and 10 (1 + .. + 5)
    assert course.column("train/return") == [None, None, 152.5, 152.5, None, None]
    assert course.column("train/episodes") == [None, None, 2, 2, None, None]
    assert course.column("train/episode_length") == [None, None, 5, 5, None, None]
    # the best at once, others when a multiple of 12 was passed, the last at the end
    assert course.saved == [0, 8, 14, 20, 28, 30] and course.marked == [0, 8, 20]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*")) == [
        f"step_{step:08d}" for step in (20, 28, 30)
    ]
    assert summary["best"] == {"env_steps": 20, "success_rate": 0.5, "return": 1.0}  # of equals the later
    assert (summary["before"]["return"], summary["after"]["return"]) == (3.0, 0.75)
    assert summary["after_selected"]["return"] == 1.75
    assert (summary["env_steps"], summary["updates"]) == (30, 4)
    assert summary["time/training_minutes"] == pytest.approx((4 * each + ACT) / 60)
    assert summary["n_parameters"] == sum(p.numel() for p in course.stage.policy.parameters())
    paths = (tmp_path / "run" / f"evaluation{name}.json" for name in ("_before", "", "_selected"))
    files = [json.loads(path.read_text()) for path in paths]
    assert [content["summary"]["return"] for content in files] == [3.0, 0.75, 1.75]
    latest = str(tmp_path / "run" / "checkpoints" / "step_00000030")
    assert [content["policy"] for content in files] == [course.settings["policy"], latest, latest]
    assert [content["evaluation"]["candidates"] for content in files] == [1, 1, 3]
    ((policy, task, seeds, folder),) = course.filmed
    assert policy is course.stage.policy and task is course.settings["task"]
    assert (seeds, folder) == ([0, 1], tmp_path / "run" / "videos")
    ((x, curves),) = course.plotted
    kinds = ("eval", "eval_selected", "train")
    assert (x, set(curves)) == ("step", {f"{kind}/{key}" for kind in kinds for key in ("success_rate", "return")})
    assert capsys.readouterr().err.count("too much noise") == 1  # no success in training, 30 % before


@pytest.mark.parametrize("last", [(0.5, 1.0), (0.6, 0.0)])
def test_the_last_evaluation_can_be_the_best(tmp_path, monkeypatch, last):
    course = Course(tmp_path / "run", monkeypatch, scores=[*SCORES[:-1], last])
    summary = course.run()
    assert (summary["best"]["env_steps"], summary["best"]["return"]) == (30, last[1])
    assert course.marked == [0, 8, 20, 30] and summary["after_selected"] is None


@pytest.mark.parametrize("option", ["warn", "go_back"])
@pytest.mark.parametrize(("best", "step"), [((0.9, 1.0), 8), ((0.1, 1.0), 0)])
def test_a_run_that_falls_says_so_and_can_go_back(tmp_path, monkeypatch, capsys, option, best, step):
    """From 80 to 10 %, by way of a better or a worse evaluation after 8 steps; its weights come back then."""
    scores = [(0.8, 1.0), best, (0.1, 1.0), (0.1, 1.0), (0.1, 0.5), (0.8, 2.0)]
    course = Course(tmp_path / "run", monkeypatch, scores=scores, when_worse=option)
    update = ScriptedStage.update

    def learning(stage) -> dict[str, float]:
        with np.errstate(all="ignore"):
            stage.policy.denoiser.out.bias.data += 1.0
        return update(stage)

    monkeypatch.setattr(ScriptedStage, "update", learning)
    torch.manual_seed(0)
    start = make_policy().denoiser.out.bias.detach().clone()
    summary = course.run()
    errors = capsys.readouterr().err
    assert errors.count("success_rate is 10% where it began with 80%") == 1
    assert "10% where it began with 80%" in summary["fell"]
    moved = round(float((course.stage.policy.denoiser.out.bias - start).mean()), 4)
    if option == "warn":
        assert summary["went_back_to"] is None and moved == 4 and summary["after"]["success_rate"] == 0.1
        return
    assert (summary["went_back_to"], summary["best"]["env_steps"]) == (step, step)
    assert moved == (1 if step else 0) and summary["after"]["success_rate"] == 0.8
    assert f"went back to the policy after {step} environment steps" in errors and course.saved[-2:] == [30, 30]
    saved = load_file(tmp_path / "run" / "checkpoints" / "latest" / "policy.safetensors")["denoiser.out.bias"]
    assert torch.equal(saved, course.stage.policy.denoiser.out.bias)


def test_a_run_ends_at_its_best_temperature(tmp_path, monkeypatch):
    """Chosen in other episodes, measured in the usual ones; where it is the policy's own, that has been done."""
    asked = []

    def compare(policy, task, config, each, *, envs, shown):
        asked.append((config.seed, [sampling.temperature for sampling in each]))
        success = {1.0: 0.2, 0.5: best, 0.0: 0.3}
        return {
            sampling: Evaluation(
                [0] * 10, np.arange(10) < 10 * success[sampling.temperature], np.ones(10), np.ones(10), 1, 0, *sampling
            )
            for sampling in each
        }

    monkeypatch.setattr(evaluations, "compare_samplings", compare)
    how = TrainingEvaluationConfig(episodes=4, n_envs=4, temperatures=[1.0, 0.5, 0.0], selection_seed=7)
    for name, best, temperature, measured in (("a", 0.9, 0.5, [(100_000, [0.5])]), ("b", 0.1, 0.0, [(100_000, [0.0])])):
        asked.clear()
        summary = Course(tmp_path / name / "run", monkeypatch, evaluation=how).run()["after_best_temperature"]
        assert asked == [(7, [1.0, 0.5, 0.0]), *measured]
        assert (summary["temperature"], summary["success_rate"]) == (temperature, max(best, 0.3))
        assert summary["tried"] == {"1": 0.2, "0.5": pytest.approx(best), "0": 0.3}
        file = json.loads((tmp_path / name / "run" / "evaluation_best_temperature.json").read_text())
        assert file["temperature"] == temperature and file["evaluation"]["temperature"] == temperature
    asked.clear()
    how = TrainingEvaluationConfig(episodes=4, n_envs=4, temperatures=[1.0])
    summary = Course(tmp_path / "c" / "run", monkeypatch, evaluation=how).run()
    assert asked == [(300_000, [1.0]), (100_000, [])]
    own = {
        key: value for key, value in summary["after_best_temperature"].items() if key not in ("temperature", "tried")
    }
    assert own == summary["after"]


@pytest.mark.parametrize("stop_after", [1, 4, 5, 9, 13])  # in a rollout and after an update
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, capsys, stop_after):
    """With the seconds and the steps that were not logged yet; what was warned of is not warned of again."""
    whole = Course(tmp_path / "whole", monkeypatch)
    expected = whole.run()
    capsys.readouterr()
    course = Course(tmp_path / "run", monkeypatch)
    course.stop_after = stop_after
    with pytest.raises(Stopped, match=f"go on with: burnish finetune resume={tmp_path / 'run'}"):
        course.run()
    summary = course.run(resume=True)
    assert capsys.readouterr().err.count("too much noise") == 1
    assert course.lines() == [pytest.approx(line) for line in whole.lines()]
    assert course.stage.seen == whole.stage.seen and course.stage.cut == 0
    changed = {"policy", "peak_memory_mib"}
    assert {k: v for k, v in summary.items() if k not in changed} == {
        k: pytest.approx(v) if isinstance(v, float) else v for k, v in expected.items() if k not in changed
    }
    assert course.evaluated == whole.evaluated and course.marked == whole.marked


def test_a_stage_can_have_all_episodes_begin_anew(tmp_path, monkeypatch):
    """Here after each update, with one seed for both environments: the same initial states, the same again at a resume;
    and what the running episodes gave is forgotten."""
    starts, act = [], ScriptedStage.act

    def watched(stage, obs):
        starts.append(obs[:, 0, 2].tolist())
        return act(stage, obs)

    monkeypatch.setattr(ScriptedStage, "act", watched)
    monkeypatch.setattr(ScriptedStage, "reset_seeds", lambda stage: None if stage.chunks else [7 + stage.done] * E)
    course = Course(tmp_path / "run", monkeypatch)
    course.run()
    assert course.stage.acted == [[1, t] for _ in range(4) for t in (0, 2)]  # never as far as the end
    assert all(first == second for first, second in starts)
    assert len({tuple(start) for start in starts}) == 4
    assert not any("train/return" in line for line in course.lines())
    assert course.loop.statistics.returns.tolist() == [102, 102]  # of the last two chunks: 4 / 2 + 10 (1 + 2 + 3 + 4)


def test_episodes_start_anew_where_a_simulator_cannot_be_restored(tmp_path, monkeypatch, capsys):
    course = Course(tmp_path / "run", monkeypatch, simulator={"fault": "unsupported"})
    course.stop_after = 1  # after two steps of the first episodes
    with pytest.raises(Stopped):
        course.run()
    course.run(resume=True)
    assert course.stage.cut == 1
    assert "the simulator's state cannot be restored" in capsys.readouterr().err
    # one chunk before, then anew 2, 2 and 1 steps: the statistics forgot the two steps of before
    assert course.column("step")[:3] == [0, 8, 14]
    assert course.column("train/episode_length")[2] == 5 and course.column("train/return")[2] == 152.5


@pytest.mark.parametrize(("minutes", "steps"), [(23.9 / 60, [0, 8, 14, 14]), (24.1 / 60, [0, 8, 14, 20, 20])])
def test_a_budget_of_minutes(tmp_path, monkeypatch, minutes, steps):
    """Of training, 12 seconds for an update and its two chunks; no evaluation before the last one at the same step."""
    course = Course(tmp_path / "run", monkeypatch, max_minutes=minutes, eval_every=6)
    summary = course.run()
    assert course.column("step") == steps
    assert [step for step, value in zip(steps, course.column("eval/return")) if value is not None] == [
        0,
        *steps[1:-2],
        steps[-1],
    ]
    assert summary["time/training_minutes"] == pytest.approx(12 * (len(steps) - 2) / 60)


def test_several_updates_of_the_same_steps(tmp_path, monkeypatch):
    """All are made, also at the end of the budget; it is evaluated after the last of them."""
    course = Course(tmp_path / "run", monkeypatch, rounds=3, total_env_steps=14)
    course.run()
    assert course.column("step") == [0, 8, 8, 8, 14, 14, 14, 14]
    assert course.column("eval/return") == [3.0, None, None, 1.0, None, None, None, 1.0]
    assert course.column("updates") == [None, 1, 2, 3, 4, 5, 6, None]
    assert course.column("time/training") == [None, 12, 10, 10, 12, 10, 10, 0]
    assert course.column("train/episodes") == [None, None, None, None, 2, None, None, None]


@pytest.mark.parametrize(
    ("settings", "scores", "told"),
    [
        ({}, [(0.0, 1.0)], "never succeeded in 10 episodes"),
        ({"suite": "gymnasium"}, [(0.0, 1.0)], ""),
        ({"simulator": {"success_at": 3}}, [(0.5, 1.0)], ""),
        ({"simulator": {"nan_at": 4}}, [(0.5, 1.0)], "too much noise"),
    ],
)
def test_warnings(tmp_path, monkeypatch, capsys, settings, scores, told):
    """Of a pretrained policy that never succeeds, where success is what counts, and of noise that hides it."""
    course = Course(tmp_path / "run", monkeypatch, scores=scores * 9, eval_every=0, **settings)
    course.run()
    errors = capsys.readouterr().err
    assert told in errors and ("WARNING" in errors) == bool(told)
    ended = settings.get("simulator") == {"nan_at": 4}  # by a number that is not finite
    assert course.column("nonfinite_episodes")[1:-1] == ([2, 4, 6, 8] if ended else [0, 0, 0, 0])


def scripted_steps() -> Iterator[Any]:
    """Three chunks in three environments: the first ends in the second chunk, with its success in the first one; the
    second ends at once and again in the third; the third never ends."""
    for rewards, steps, success, terminated, truncated in (
        ([1.0, 2.0, 4.0], [2, 1, 2], [True, False, False], [False, True, False], [False] * 3),
        ([10.0, 20.0, 40.0], [1, 2, 2], [False, True, True], [False] * 3, [True, False, False]),
        ([100.0, 200.0, 400.0], [2, 2, 2], [False, False, False], [False, True, False], [False] * 3),
    ):
        arrays = [np.array(each) for each in (rewards, terminated, truncated, steps, success)]
        step = chunk_step(np.zeros((3, 1, 2), np.float32), arrays[0], *arrays[1:3], steps=arrays[3])
        yield step._replace(success=arrays[4])


@pytest.mark.parametrize("restored_after", [None, 0, 1])
def test_statistics_of_training_episodes(restored_after):
    statistics = EpisodeStatistics(3)
    for i, step in enumerate(scripted_steps()):
        statistics.observe(step)
        if i == restored_after:
            state = {name: value.copy() for name, value in statistics.state_dict().items()}
            statistics = EpisodeStatistics(3)
            statistics.load_state_dict(state)
    assert statistics.successes() == [(1, False), (0, True), (1, True)]
    # (success, return, length): (0, 2, 1), (1, 11, 3), (1, 220, 4)
    assert statistics.report() == pytest.approx(
        {
            "train/success_rate": 2 / 3,
            "train/return": 233 / 3,
            "train/episode_length": 8 / 3,
            "train/episodes": 3,
        }
    )
    assert statistics.report() == {} and statistics.successes() == []
    assert statistics.returns.tolist() == [100, 0, 444] and statistics.lengths.tolist() == [2, 0, 6]
    assert statistics.success.tolist() == [False, False, True]
