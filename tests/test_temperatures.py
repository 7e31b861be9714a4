"""Evaluations over temperatures, and their table on the command line."""

import json

import numpy as np
import pytest
import torch

from burnish.commands.cli import main
from burnish.envs.task import TaskConfig
from burnish.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate
from burnish.evaluation.temperatures import Sampling, best, compare_samplings, samplings, table
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig

HOPPER = TaskConfig(name="hopper", suite="gymnasium", env_id="Hopper-v5", max_episode_steps=40)
EVALUATION = EvaluationConfig(episodes=5, n_envs=5, backend="sync")


@pytest.fixture
def policy() -> DiffusionPolicy:
    torch.manual_seed(0)
    config = PolicyConfig(denoiser=DenoiserConfig(hidden_dim=32), denoising_steps=5)
    return DiffusionPolicy(config, 11, 3, ["flat"], "hopper").eval()


def evaluation(successes: int, mean_return: float, temperature: float = 1.0) -> Evaluation:
    success, returns = np.arange(10) < successes, np.full(10, mean_return)
    return Evaluation(list(range(10)), success, returns, np.full(10, 7), 1.0, 0, temperature, 1)


def test_each_temperature_in_the_same_episodes(policy):
    found = compare_samplings(policy, HOPPER, EVALUATION, [Sampling(1.0), Sampling(0.0), Sampling(1.0, 4)])
    assert policy.config.temperature == 1 and policy.config.mean_of == 1
    own = evaluate(policy, HOPPER, EVALUATION)
    assert np.array_equal(found[Sampling(1.0)].returns, own.returns)
    policy.set_sampling(temperature=0.0)
    assert np.array_equal(found[Sampling(0.0)].returns, evaluate(policy, HOPPER, EVALUATION).returns)
    returns = [tuple(each.returns) for each in found.values()]
    assert len(set(returns)) == 3
    assert [(each.temperature, each.mean_of) for each in found.values()] == [(1, 1), (0, 1), (1, 4)]
    assert all(each.seeds == own.seeds for each in found.values())


def test_the_best_has_the_best_score_and_of_equals_the_first():
    found = {Sampling(1.0): evaluation(5, 1), Sampling(0.5): evaluation(7, 1), Sampling(0.0): evaluation(7, 1)}
    assert best(found) == Sampling(0.5)
    assert best({**found, Sampling(0.0): evaluation(7, 2)}) == Sampling(0.0)


def test_only_what_a_policy_can_act_with_is_tried(policy):
    wanted = [1.0, 0.5, 0.5, 0.0]
    assert samplings(policy, wanted, [1, 16]) == [Sampling(1), Sampling(0.5), Sampling(0), Sampling(1, 16)]
    squashed = GaussianPolicy(GaussianPolicyConfig(squash=True), 11, 3, ["flat"])
    assert samplings(squashed, wanted, [16]) == [Sampling(0)]


def test_the_table_has_the_task_s_measure():
    found = {Sampling(1.0): evaluation(5, 12.34), Sampling(0.5, 4): evaluation(7, 1)}
    first, second = table(found, "success_rate").splitlines()
    assert first.startswith("temperature=1") and "50.0%" in first and "[23.7%, 76.3%]" in first and "7.0 steps" in first
    assert second.startswith("temperature=0.5, mean of 4") and "70.0%" in second
    assert "12.3" in table(found, "return").splitlines()[0]


def test_the_command_prints_the_table_and_keeps_every_evaluation(policy, tmp_path, capsys):
    policy.save(tmp_path / "policy")
    words = ["evaluate", "task=hopper", f"policy={tmp_path / 'policy'}", "episodes=4", "n_envs=4", "backend=sync"]
    words += ["task.max_episode_steps=40", f"out={tmp_path / 'out'}"]
    assert main([*words, "temperature=[1,0.5]", "mean_of=[1,3]"]) == 0
    printed = capsys.readouterr().out
    for shown in ("temperature=1 ", "temperature=0.5, mean of 3", "burnish policy set"):
        assert shown in printed
    files = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert len(files) == 4 and "evaluation-temperature0.5-mean_of3.json" in files
    content = json.loads((tmp_path / "out" / "evaluation-temperature0.5-mean_of3.json").read_text())
    assert (content["temperature"], content["mean_of"]) == (0.5, 3)
    assert main([*words, "temperature=0.5"]) == 0
    alone = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    several = json.loads((tmp_path / "out" / "evaluation-temperature0.5-mean_of1.json").read_text())
    assert alone["return"] == several["return"] and alone["temperature"] == 0.5


def test_policy_set_changes_how_it_samples_and_nothing_else(policy, tmp_path, capsys):
    folder = tmp_path / "policy"
    policy.save(folder)
    before = json.loads((folder / "policy.json").read_text())
    assert main(["policy", "set", str(folder), "temperature=0.25", "mean_of=2"]) == 0
    assert "temperature from 1 to 0.25, mean_of from 1 to 2" in capsys.readouterr().out
    after = json.loads((folder / "policy.json").read_text())
    assert (after["config"].pop("temperature"), after["config"].pop("mean_of")) == (0.25, 2)
    del before["config"]["temperature"], before["config"]["mean_of"]
    assert after == before
    assert DiffusionPolicy.load(folder).config.temperature == 0.25


@pytest.mark.parametrize(
    ("setting", "message"),
    [("temperature=-1", "at least 0"), ("mean_of=0", "expected 1 to 10000"), ("eta=1", "temperature=..., mean_of=...")],
)
def test_policy_set_refuses_what_cannot_be(policy, tmp_path, capsys, setting, message):
    policy.save(tmp_path / "policy")
    before = (tmp_path / "policy" / "policy.json").read_bytes()
    assert main(["policy", "set", str(tmp_path / "policy"), setting]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "policy" / "policy.json").read_bytes() == before
