"""Run folders, metrics, progress, wandb offline, stop requests."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.envs.task import load_task
from burnish.errors import BurnishError
from burnish.evaluation import video
from burnish.machine.stop import StopRequest
from burnish.networks import DenoiserConfig
from burnish.observations import ObsSpec
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.runs import progress as progress_module
from burnish.runs.folder import Run, load_config
from burnish.runs.metrics import read_metrics


@dataclass(frozen=True)
class Config:
    run_dir: str
    seed: int = 0
    rate: float = 1e-3
    resume: str | None = None
    wandb: str = "disabled"
    overwrite: bool = False


def test_a_run_writes_config_metrics_summary_and_curve(tmp_path: Path) -> None:
    config = Config(str(tmp_path / "run"))
    with Run.open(config) as run:
        for step in range(5):
            run.log(
                {
                    "loss": torch.tensor(1.0 / (step + 1)),
                    "n": np.int64(step),
                    "r_low": 0.0,
                    "r": 0.5,
                    "r_high": 1.0,
                },
                step,
            )
        run.log({"loss": float("nan")}, 5)
        curve = run.plot_curve("step", ["loss", "r", "absent"], x_label="updates")
        run.finish({"r": 0.5})
    assert load_config(run.folder) == {
        "run_dir": str(tmp_path / "run"),
        "seed": 0,
        "rate": 0.001,
        "resume": None,
        "wandb": "disabled",
        "overwrite": False,
    }
    lines = read_metrics(run.folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5] and run.n_metric_lines == 6
    assert lines[3]["loss"] == 0.25 and lines[3]["n"] == 3 and lines[5]["loss"] is None
    assert "time/elapsed" in lines[0]
    assert json.loads((run.folder / "summary.json").read_text()) == {"r": 0.5}
    assert curve == run.folder / "plots" / "curve.png" and curve.read_bytes().startswith(b"\x89PNG")
    assert {"checkpoints", "plots", "videos"} <= {path.name for path in run.folder.iterdir()}


def test_a_run_does_not_import_wandb_unless_asked(tmp_path: Path) -> None:
    code = (
        "import sys; from dataclasses import make_dataclass; from burnish.runs.folder import Run;"
        "run = Run.create(sys.argv[1], make_dataclass('C', [])()); run.log({'x': 1}, 0); run.finish({});"
        "assert 'wandb' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)


def test_a_used_folder_is_refused_then_overwritten_then_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Run.create(folder, Config("a", seed=1)).close()
    (folder / "mine.txt").write_text("not a run's")
    with pytest.raises(BurnishError, match=r"is not empty.*resume=.*run_dir=.*overwrite=true"):
        Run.create(folder, Config("a"))
    with Run.create(folder, Config("a", seed=2), overwrite=True) as run:
        run.log({"loss": 1.0}, 0)
    assert load_config(folder)["seed"] == 2
    assert (folder / "mine.txt").exists()
    with Run.resume(folder) as run:
        assert run.n_metric_lines == 1


def test_overwriting_leaves_no_results_of_the_old_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Run.create(folder, Config("a")).close()
    for name in ("evaluation.json", "evaluation_before.json", "evaluation_temperature0.5.json", "summary.json"):
        (folder / name).write_text("{}")
    Run.create(folder, Config("a"), overwrite=True).close()
    left = {path.name for path in folder.iterdir()}
    assert left == {"config.yaml", "metrics.jsonl", "checkpoints", "plots", "videos"}


def test_a_setting_changed_on_resume_stays_changed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Run.create(folder, Config(str(folder), rate=0.5)).close()
    Run.open(Config(str(folder), rate=2.0, resume=str(folder))).close()
    Run.resume(folder).close()
    assert load_config(folder)["rate"] == 2.0
    assert load_config(folder)["run_dir"] == str(folder) and load_config(folder)["resume"] is None
    assert [path.name for path in folder.glob(".*")] == []


def test_metrics_go_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", Config("a")) as run:
        for step in range(4):
            run.log({"loss": float(step)}, step)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    with Run.resume(tmp_path / "run") as run:
        assert run.n_metric_lines == 4
        run.truncate_metrics(2)
        run.log({"loss": 7.0}, 2)
        assert run.n_metric_lines == 3
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["loss"] for line in lines] == [0.0, 1.0, 7.0]
    elapsed = [line["time/elapsed"] for line in lines]
    assert elapsed == sorted(elapsed)


@pytest.mark.parametrize("content", [None, "a: [", "just text"])
def test_what_is_not_a_run_is_not_resumed(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(BurnishError, match=str(tmp_path)):
        Run.resume(tmp_path)


def test_impossible_folders_and_modes_are_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(BurnishError, match="cannot be written"):
            Run.create(folder, Config("a"))
    with pytest.raises(BurnishError, match=r"wandb=on: expected one of disabled, offline, online"):
        Run.create(tmp_path / "run", Config("a"), wandb="on")
    assert not (tmp_path / "run").exists()


class NoSimulator:
    obs_spec, action_dim = ObsSpec.of_state(3), 1

    def close(self) -> None:
        pass


@dataclass
class Recorded:
    success: list[bool]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("ffmpeg\nended")])
def test_videos_that_cannot_be_written_cost_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def mimwrite(path: Path, *frames: object, **settings: object) -> None:
        path.write_text("half")
        raise error

    monkeypatch.setattr(video, "make_simulator", lambda task: NoSimulator())
    monkeypatch.setattr(video, "run_episodes", lambda policy, envs, seeds: Recorded([True]))
    monkeypatch.setattr("imageio.v2.mimwrite", mimwrite)
    policy = DiffusionPolicy(PolicyConfig(denoiser=DenoiserConfig(hidden_dim=8)), 3, 1, ["flat"])
    assert video.record(policy, load_task("hopper"), [1, 2], tmp_path) == []
    said = capsys.readouterr().err
    assert said.startswith("no videos: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_wandb_offline_writes_into_the_run_folder(tmp_path: Path) -> None:
    code = (
        "from dataclasses import make_dataclass; from burnish.runs.folder import Run;"
        "run = Run.create('run', make_dataclass('C', [])(), wandb='offline');"
        "run.log({'my_loss': 1.0}, 0); run.finish({'my_summary': 1.0})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"my_loss" in written.read_bytes() and b"my_summary" in written.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_progress_is_plain_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "PLAIN_INTERVAL", 0.0)
    with progress_module.Progress(1000, "pretrain", initial=200) as progress:
        progress.update(100, loss=0.25)
    text = capsys.readouterr().err
    assert "\x1b" not in text and "\r" not in text
    assert "pretrain: 300/1,000 (30 %)" in text and "left" in text and "loss 0.25" in text


def test_progress_is_silent_between_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_module.Progress(1000, "pretrain") as progress:
        for _ in range(1000):
            progress.update()
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_interrupts(kind: signal.Signals) -> None:
    before = signal.getsignal(kind)
    with StopRequest() as stop:
        os.kill(os.getpid(), kind)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), kind)
    assert signal.getsignal(kind) is before


def test_stop_requests_nest() -> None:
    with StopRequest() as sweep:
        with StopRequest() as job:
            os.kill(os.getpid(), signal.SIGTERM)
            assert job.requested and not sweep.requested
        assert sweep.requested
        with StopRequest() as next_job:
            assert next_job.requested


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc's allocator")
def test_the_memory_of_large_arrays_is_used_again():
    """In a process of its own: page faults of the tenth allocation of 64 MiB."""
    code = """
import resource, sys, torch
from burnish.machine.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(10)][-1])
"""
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("give", "keep")
    )
    assert kept < 100 < given_back
