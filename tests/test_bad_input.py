"""Bad input through the command itself: one clear line, status 2, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from burnish.commands.cli import main
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

HOPPER = ("task=hopper", "device=cpu", "evaluation.episodes=1", "evaluation.backend=sync")


def write_robomimic(path: Path, actions: list[np.ndarray], obs_dim: int = 11) -> Path:
    """Hopper-like episodes in robomimic's layout."""
    with h5py.File(path, "w") as file:
        for i, array in enumerate(actions):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = array
            demo["obs/flat"] = np.random.default_rng(i).normal(size=(len(array), obs_dim))
            demo["rewards"], demo["dones"] = np.zeros(len(array)), np.zeros(len(array))
            demo.attrs["num_samples"] = len(array)
    return path


def good(path: Path) -> Path:
    return write_robomimic(path, [np.zeros((9, 3)), np.full((9, 3), 0.5)])


def not_hdf5(path: Path) -> Path:
    path.write_text("these are no demonstrations")
    return path


def truncated(path: Path) -> Path:
    good(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def without_actions(path: Path) -> Path:
    good(path)
    with h5py.File(path, "a") as file:
        del file["data/demo_1/actions"]
    return path


def with_nan(path: Path) -> Path:
    actions = np.zeros((9, 3))
    actions[4, 1] = np.nan
    return write_robomimic(path, [np.zeros((9, 3)), actions])


def wrong_action_dimension(path: Path) -> Path:
    return write_robomimic(path, [np.zeros((9, 2)), np.ones((9, 2))])


def wrong_obs_dimension(path: Path) -> Path:
    return write_robomimic(path, [np.zeros((9, 3)), np.ones((9, 3))], obs_dim=7)


def one_dimensional_actions(path: Path) -> Path:
    """D4RL's layout, with one number a step."""
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = np.zeros((18, 11)), np.zeros(18)
        file["rewards"] = np.zeros(18)
        file["terminals"], file["timeouts"] = np.zeros(18, bool), np.arange(18) % 9 == 8
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    *before, last = capsys.readouterr().err.strip().splitlines()
    assert all("of the action values are outside" in line for line in before), (
        before
    )  # of demonstrations that were read
    assert last.startswith("burnish: error: ")
    return last


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, ["demos.hdf5", "no such file"]),
        (not_hdf5, ["demos.hdf5", "HDF5"]),
        (truncated, ["demos.hdf5"]),
        (without_actions, ["demos.hdf5", "demo_1", "actions"]),
        (with_nan, ["demos.hdf5", "demo_1", "actions", "4"]),
        (wrong_action_dimension, ["action dimension 2", "hopper has 3"]),
        (one_dimensional_actions, ["demos.hdf5", "demo_0", "actions", "(9,)", "(steps, dimension)"]),
        (wrong_obs_dimension, ["observation dimension 7", "hopper has 11"]),
    ],
)
def test_demonstrations(tmp_path, capsys, make: Callable[[Path], Path], words: list[str]):
    dataset, run = make(tmp_path / "demos.hdf5"), tmp_path / "run"
    line = refused(capsys, "pretrain", *HOPPER, f"dataset={dataset}", f"run_dir={run}")
    assert all(word in line for word in words), line
    assert not run.exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task=hoper", ["hoper", "hopper"]),
        ("train.epoch=3", ["train.epoch", "train.epochs"]),
        ("policy.n_action_steps=5", ["n_action_steps=5", "horizon=4"]),
        ("task.obs_keys=[flatt]", ["no observation 'flatt'", "flat"]),
        ("task.obs_keys=[flat,flat]", ["task.obs_keys=['flat', 'flat']", "each observation once"]),
        ("device=tpu", ["device=tpu"]),
        ("train.epochs=0", ["train.epochs=0"]),
        ("wandb=maybe", ["wandb=maybe", "offline"]),
    ],
)
def test_settings(tmp_path, capsys, override: str, words: list[str]):
    dataset, run = good(tmp_path / "demos.hdf5"), tmp_path / "run"
    line = refused(capsys, "pretrain", *HOPPER, f"dataset={dataset}", f"run_dir={run}", override)
    assert all(word in line for word in words), line
    assert not run.exists()


@pytest.mark.parametrize(
    "override", ["n_groups=0", "n_groups=-8", "channels=[0,64]", "channels=[-8]", "kernel_size=0", "kernel_size=-3"]
)
def test_impossible_unets(tmp_path, capsys, override: str):
    dataset, run = good(tmp_path / "demos.hdf5"), tmp_path / "run"
    words = ("policy=unet", f"policy.denoiser.{override}", f"dataset={dataset}", f"run_dir={run}")
    line = refused(capsys, "pretrain", *HOPPER, *words)
    assert f"policy.denoiser.{override.replace(',', ', ')}: expected" in line
    assert not run.exists()


def test_observation_key_that_the_robot_task_lacks(tmp_path, capsys):
    """The demonstrations have it, the simulator does not."""
    path = tmp_path / "demos.hdf5"
    good(path)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo["obs/camera_pose"] = np.zeros((9, 3))
    words = ("task=lift", "task.obs_keys=[camera_pose]", "device=cpu", f"dataset={path}", f"run_dir={tmp_path / 'run'}")
    line = refused(capsys, "pretrain", *words, "evaluation.backend=sync", "evaluation.episodes=1")
    assert "camera_pose" in line and "robot0_eef_pos" in line


def test_unwritable_run_folder(tmp_path, capsys):
    dataset = good(tmp_path / "demos.hdf5")
    (tmp_path / "file").write_text("in the way")
    line = refused(capsys, "pretrain", *HOPPER, f"dataset={dataset}", f"run_dir={tmp_path / 'file' / 'run'}")
    assert "run_dir=" in line and "cannot be written" in line


@pytest.fixture
def policy_folder(tmp_path) -> Path:
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(denoiser=DenoiserConfig(hidden_dim=16)), 11, 3, ["flat"], "hopper")
    policy.save(tmp_path / "policy")
    return tmp_path / "policy"


def test_more_finetuned_than_denoising_steps(tmp_path, capsys, policy_folder):
    words = ("finetune", *HOPPER, f"policy={policy_folder}", f"run_dir={tmp_path / 'run'}", "backend=sync")
    for stage in ("dppo", "dpmd"):  # from scratch
        few = ["scratch", "task=hopper", f"stage={stage}", "stage.ft_denoising_steps=19"]
        assert "from scratch expected 20, all" in refused(capsys, *few)
    line = refused(capsys, *words, "stage.ft_denoising_steps=21")
    assert "ft_denoising_steps=21" in line and "1 to 20" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_policy_folders(tmp_path, capsys, policy_folder, command: str, name: str, damage: str):
    path = policy_folder / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40])
    out = tmp_path / "run"
    line = refused(
        capsys,
        command,
        "task=hopper",
        f"policy={policy_folder}",
        f"{'out' if command == 'evaluate' else 'run_dir'}={out}",
    )
    assert name in line and damage in line
    assert not out.exists()


def test_policy_of_another_task(tmp_path, capsys, policy_folder):
    line = refused(
        capsys, "evaluate", "task=reacher", f"policy={policy_folder}", f"out={tmp_path / 'out'}", "episodes=1"
    )
    assert "observation dimension 11" in line and "reacher" in line


@pytest.mark.parametrize(("override", "word"), [("episodes=0", "at least 1"), ("video=101", "episodes=100")])
def test_evaluation_settings_are_checked_before_the_policy_is_read(tmp_path, capsys, override: str, word: str):
    line = refused(capsys, "evaluate", "task=hopper", f"policy={tmp_path}", override)
    assert line.startswith(f"burnish: error: {override}") and word in line and "evaluation." not in line


def no_work(*arguments, **settings):
    raise AssertionError("work was begun")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("burnish.commands.evaluate.evaluate", ("evaluate", "task=hopper", "out={}/results", "device=cpu")),
        ("burnish.datasets.collecting.collect.record_all", ("data", "collect", "task=lift", "out={}/demos.hdf5")),
        (
            "burnish.datasets.collecting.sac_actor._new_sac",
            ("data", "train-behaviour", "task=hopper", "out={}/a.safetensors", "target_return=1"),
        ),
    ],
)
def test_unwritable_results(tmp_path, capsys, monkeypatch, policy_folder, target: str, words: tuple[str, ...]):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(target, no_work)
    words = tuple(word.format(tmp_path / "file") for word in words)
    extra = (f"policy={policy_folder}",) if words[0] == "evaluate" else ()
    line = refused(capsys, *words, *extra)
    assert "cannot be written" in line and f"{tmp_path / 'file'} is not a folder" in line and "out=" in line


def test_overwriting_the_policy_to_start_from(tmp_path, capsys, policy_folder):
    run = tmp_path / "run"
    source = (run / "checkpoints").mkdir(parents=True) or policy_folder.rename(run / "checkpoints" / "step_1")
    words = (f"policy={source}", f"run_dir={run}", "backend=sync", "n_envs=1", "overwrite=true")
    line = refused(capsys, "finetune", *HOPPER, *words)
    assert f"would delete policy={source}" in line
    assert (source / "policy.json").exists()
