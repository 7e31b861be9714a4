"""The burnish command: help, exit statuses, one-line errors, sweeps, resume."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from burnish.commands import table as commands
from burnish.commands.cli import choose_opengl, main
from burnish.commands.configure import configure
from burnish.commands.evaluate import EvaluateConfig
from burnish.commands.printing import report
from burnish.commands.sweep import plan, run_sweep
from burnish.commands.table import COMMANDS, Command
from burnish.compare import start as comparing
from burnish.compose import config_groups, group_options
from burnish.envs.task import load_task
from burnish.errors import BurnishError, Stopped
from burnish.pretrain.behaviour_cloning import PretrainConfig
from burnish.runs.folder import Run


def command(name: str) -> Command:
    return next(command for command in COMMANDS if command.name == name)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from burnish.commands.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'torch', 'numpy', 'hydra', 'mujoco', 'rich'} & set(sys.modules)"
    )
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 3  # 0.1 s on an idle machine
    for name in ("pretrain", "finetune", "evaluate", "data", "tasks", "doctor", "demo", "toy"):
        assert name in result.stdout


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_the_demo_is_a_comparison_with_the_frozen_policy(quick, capsys, monkeypatch, tmp_path) -> None:
    compared: list[Any] = []
    monkeypatch.setattr(comparing, "compare", lambda config: compared.append(config) or 1)
    status, out, _ = run(capsys, "demo", "--seed=3", f"--dir={tmp_path}", *quick)
    (config,) = compared
    assert status == 1 and list(config.methods) == ["frozen", "dppo", "dpmd"] and config.seeds == [3]
    words = [line.split() for line in out.splitlines() if line.startswith("  burnish")]
    assert [line[1] for line in words] == ["pretrain", "finetune", "finetune", "finetune", "evaluate"]
    assert all("seed=3" in line for line in words[:4]) and f"policy={tmp_path}/lift/dppo/seed3" in words[4]
    assert ("total_env_steps=1000" in words[3]) == bool(quick)


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_each_help_has_groups_keys_and_examples_that_compose(
    entry: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, *entry.name.split(), "--help")
    assert status == 0
    assert "task=" in out and "hopper" in out and "--multirun" in out and "examples:" in out
    assert max(map(len, out.splitlines())) <= 120
    for example in entry.examples:
        words = example.removeprefix(f"burnish {entry.name} ").split()
        overrides = [word for word in words if not word.startswith("-")]
        if "--multirun" in words:
            assert len(plan(entry, overrides)) == 3
        elif not any(word.startswith("resume=") for word in words):
            entry.parse(configure(entry, overrides))


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["finetune", "stage=dpmd_gym"],
            [
                r"  stage.critic_lr=0.001 +of Adam \[more than 0\]",
                r"  stage.rsm.kl_target=1.0 +nats by which",
                r"  policy=\.\.\. +folder of the pretrained policy",
                r"  stage.resample=2 +R, so many of a state's draws",
                r"  total_env_steps=51200 +primitive \(not chunk\) steps ",
            ],
        ),
        (
            ["pretrain", "policy=gaussian"],
            [r"  policy.log_std_init=-1.5 ", r"  task.fast=true +robosuite's control step"],
        ),
        (["scratch", "network=gaussian", "stage=sac"], [r"  network.squash=true ", r"  stage.ent_coef=auto "]),
    ],
)
def test_help_reads_the_dataclasses_of_the_chosen_options(
    arguments: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, *arguments, "--help")
    assert status == 0
    for line in lines:
        assert re.search(f"^{line}", out, re.MULTILINE), line


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_a_composed_configuration_has_every_key_of_its_dataclass(entry: Command) -> None:
    for group in {"policy", "network", "stage"} & set(config_groups(entry.config)):
        for option in group_options(group):
            check_keys(entry, [f"{group}={option}"])
    check_keys(entry, [])


TEN_TASKS = ["ant", "halfcheetah", "hopper", "humanoid", "inverted_double_pendulum", "inverted_pendulum", "pusher"]
TEN_TASKS += ["reacher", "swimmer", "walker2d"]


@pytest.mark.parametrize("stage", ["dpmd_paper", "sdac_paper"])
@pytest.mark.parametrize("task", TEN_TASKS)
def test_the_paper_setting_from_scratch(task: str, stage: str) -> None:
    """The hyperparameters of Ma et al. 2025."""
    entry = next(entry for entry in COMMANDS if entry.name == "scratch")
    config = entry.parse(configure(entry, [f"task={task}", f"stage={stage}"]))
    network, algorithm = config.network, config.stage
    assert (network.denoising_steps, network.schedule, network.horizon) == (20, "cosine", 1)
    assert (network.denoiser.hidden_dim, network.denoiser.n_layers, network.denoiser.activation) == (256, 3, "mish")
    assert (config.n_envs, config.total_env_steps, config.evaluation.episodes) == (5, 1_000_000, 20)
    assert (algorithm.batch_size, algorithm.buffer_size, algorithm.reward_scale) == (256, 1_000_000, 0.2)
    assert (algorithm.random_steps, algorithm.n_candidates, algorithm.gamma) == (30_000, 32, 0.99)
    assert algorithm.utd_ratio * config.n_envs == 1  # one gradient step for five environment steps
    assert config.policy is None and algorithm.rsm.weights == "paper"


def check_keys(entry: Command, overrides: list[str]) -> None:
    required: dict[str, Any] = {
        "policy": "x",
        "out": {"collect": "x.hdf5", "behaviour": "x.safetensors"}.get(entry.config),
    }
    required["target_return"] = 1
    raw = configure(entry, overrides)
    config = entry.parse({key: required[key] if value == "???" else value for key, value in raw.items()})
    assert keys(raw) == keys(dataclasses.asdict(config))


def keys(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: keys(value) if isinstance(value, dict) else None for name, value in tree.items()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "task=lft"], ["task=lft", "lift"]),
        (["pretrain", "train.epoch=3"], ["train.epoch", "train.epochs"]),
        (["pretrain", "train.epochs=x", "--cfg"], ["train.epochs=x", "whole number"]),
        (["pretrain", "--epochs"], ["--epochs", "key=value"]),
        (["finetune", "task=lift"], ["policy is missing"]),
        (["finetune", "policy=x", "stage=dpo"], ["stage=dpo", "dppo"]),
        (["evaluate", "task=lift", "policy=/nowhere"], ["/nowhere", "policy"]),
        (["pretrain", "resume=/nowhere"], ["/nowhere", "config.yaml"]),
        (["data", "inspect", "/nowhere.hdf5"], ["/nowhere.hdf5"]),
        (["data", "validate", "/nowhere.hdf5", "--task", "lft"], ["lft", "lift"]),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == ""
    assert err.startswith("burnish: error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_unknown_commands_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["pretain"])
    assert caught.value.code == 2 and "pretrain" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("burnish ")


def test_cfg_prints_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "pretrain", "--cfg", "task=hopper", "seed=7", "dataset=shipped:lift")
    config = yaml.safe_load(out)
    assert status == 0
    assert config["task"]["name"] == "hopper" and config["run_dir"] == "runs/pretrain-hopper-seed7"
    assert config["dataset"] == "shipped:lift"
    assert run(capsys, "finetune", "--cfg")[0] == 0  # policy is still to be given


def test_summaries_are_printed_a_number_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    report({"policy": "runs/a", "before": {"success_rate": 0.25}, "after": {"success_rate": 2 / 3}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["policy", "runs/a"], ["before/success_rate", "0.25"], ["after/success_rate", "0.666667"]]


def test_reported_and_selecting_episodes_differ() -> None:
    """The best checkpoint is chosen on the seeds of `evaluation`, with up to a hundred thousand episodes."""
    seed = configure(command("evaluate"), [])["seed"]
    assert seed == EvaluateConfig(policy="x", task=load_task("hopper")).seed
    for name in ("pretrain", "finetune"):
        assert seed - configure(command(name), [])["evaluation"]["seed"] >= 100_000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MuJoCo draws offscreen as it is")
@pytest.mark.parametrize(
    ("given", "libraries", "chosen"),
    [
        ({}, {"EGL", "OSMesa"}, "egl"),
        ({}, {"OSMesa"}, "osmesa"),
        ({}, set(), None),
        ({"DISPLAY": ":0"}, {"EGL"}, None),
        ({"MUJOCO_GL": "glfw"}, {"EGL"}, "glfw"),
    ],
)
def test_opengl_is_chosen_among_what_is_there(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], libraries: set[str], chosen: str | None
) -> None:
    monkeypatch.setattr(os, "environ", given)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: name if name in libraries else None)
    choose_opengl()
    assert given.get("MUJOCO_GL") == chosen


def test_all_tasks_are_sound_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "tasks")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert status in (0, 1) and {"lift", "hopper", "walker2d", "transport"} <= set(names)
    for name in names:
        assert load_task(name).name == name


@pytest.fixture
def fake_pretrain(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`pretrain` that only writes its run folder: seed 1 fails, seed 2 is defective, seed 9 is stopped."""

    def pretrain(config: PretrainConfig) -> dict[str, Any]:
        if config.seed == 1:
            raise BurnishError("seed=1: unlucky")
        if config.seed == 2:
            raise ZeroDivisionError("defect")
        if config.seed == 9:
            raise Stopped("stopped; go on with resume=...")
        with Run.open(config) as training:
            training.finish({"seed": config.seed})
        return {"seed": config.seed, "rate": 0.25}

    monkeypatch.setattr(commands, "load", {"fake:pretrain": pretrain}.__getitem__)
    fake = dataclasses.replace(command("pretrain"), function="fake:pretrain")
    monkeypatch.setattr("burnish.commands.cli.COMMANDS", (fake,))
    return fake


def test_a_sweep_reports_failed_jobs_and_goes_on(
    fake_pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    status, out, err = run(capsys, "pretrain", "-m", "seed=0,1,2,3", "task=hopper", f"run_dir={sweep}")
    assert status == 1
    assert sorted(path.name for path in sweep.iterdir()) == ["0_seed=0", "3_seed=3"]
    assert yaml.safe_load((sweep / "3_seed=3" / "config.yaml").read_text())["seed"] == 3
    assert out.endswith("--- sweep\ndone        seed=0\nfailed      seed=1\nfailed      seed=2\ndone        seed=3\n")
    assert "burnish: error: seed=1: unlucky" in err and "ZeroDivisionError: defect" in err


def test_a_sweep_is_checked_before_its_first_job(fake_pretrain: Command, tmp_path: Path) -> None:
    with pytest.raises(BurnishError, match="seed=x"):
        run_sweep(fake_pretrain, ["seed=0,x", f"run_dir={tmp_path}/sweep"])
    assert not (tmp_path / "sweep").exists()


def test_a_stopped_run_gives_130(fake_pretrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "pretrain", "seed=9")
    assert status == 130 and "go on with resume=" in err


def test_ctrl_c_gives_130(
    fake_pretrain: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: PretrainConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "load", {"fake:pretrain": interrupted}.__getitem__)
    status, _, err = run(capsys, "pretrain")
    assert status == 130 and "Traceback" not in err


def test_resume_takes_the_old_configuration(
    fake_pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a b=c,(1)"  # a path nobody needs to quote
    assert run(capsys, "pretrain", "seed=5", "train.epochs=7", f"run_dir={folder}")[0] == 0
    moved = folder.rename(tmp_path / "moved")
    config = configure(fake_pretrain, [f"resume={moved}", "train.epochs=9", "wandb=offline"])
    assert config["seed"] == 5 and config["train"]["epochs"] == 9 and config["wandb"] == "offline"
    assert config["run_dir"] == config["resume"] == str(moved)
    assert run(capsys, "pretrain", f"resume={moved}", "train.epochs=9")[0] == 0
    assert configure(fake_pretrain, [f"resume={moved}"])["train"]["epochs"] == 9  # not forgotten
    assert yaml.safe_load((moved / "config.yaml").read_text())["run_dir"] == str(moved)
    with pytest.raises(BurnishError, match=r"seed=6: .*only wandb, device, torch_threads, train.updates, train.epochs"):
        configure(fake_pretrain, [f"resume={moved}", "seed=6"])
    with pytest.raises(BurnishError, match="not a run of burnish finetune"):
        configure(command("finetune"), [f"resume={moved}"])
    with pytest.raises(BurnishError, match="takes no resume"):
        configure(command("evaluate"), [f"resume={moved}"])


PENDULUM = """name: mine
suite: gymnasium
env_id: InvertedPendulum-v5
max_episode_steps: 20
"""


def test_a_task_can_be_a_file_of_one_s_own(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(PENDULUM)
    status, out, _ = run(capsys, "tasks", str(file), "--check")
    assert status == 0 and re.search(r"^mine +gymnasium +InvertedPendulum-v5 +20 .* yes$", out, re.M)
    status, out, _ = run(capsys, "scratch", f"task={file}", "stage=dppo_scratch", "task.max_episode_steps=30", "--cfg")
    config = yaml.safe_load(out)
    assert status == 0 and config["task"] == {
        **dict.fromkeys(("dataset",)),
        **{"name": "mine", "suite": "gymnasium", "env_id": "InvertedPendulum-v5", "max_episode_steps": 30},
        **{"obs_keys": ["flat"], "env_kwargs": {}, "fast": True, "judged_by": "suite"},
        **{"sensors": [], "success_key": None},
    }
    assert "mine" in config["run_dir"]


def test_what_shows_a_task_makes_a_file_of_it(tmp_path, capsys):
    status, out, _ = run(capsys, "tasks", "lift", "--show")
    (tmp_path / "mine.yaml").write_text(out)
    assert status == 0 and load_task(str(tmp_path / "mine.yaml")) == load_task("lift")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("- a", "expected keys and values, as `burnish tasks lift --show` prints them"),
        (PENDULUM.replace("suite", "suit"), "suit"),
        (PENDULUM.replace("gymnasium", "gymnasia"), "suite=gymnasia"),
        (PENDULUM.replace("name: mine\n", ""), "task.name is missing"),
    ],
)
@pytest.mark.parametrize("words", [["tasks"], ["scratch", "stage=dppo_scratch"]], ids=lambda words: words[0])
def test_a_bad_file_of_a_task_is_told(tmp_path, capsys, words, content, said):
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_text(content)
    status, _, err = run(capsys, *words, str(file) if words == ["tasks"] else f"task={file}")
    assert status == 2 and said in err and "Traceback" not in err
