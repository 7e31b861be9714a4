"""SIGTERM and Ctrl-C: whatever runs ends in time, with a checkpoint or one line, and a second signal ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from burnish.commands import cli
from burnish.commands.cli import main
from burnish.commands.sweep import run_sweep
from burnish.commands.table import Command
from burnish.machine import stop
from burnish.machine.stop import GivenUp, Overdue, StopRequest, asked_to_stop, interrupted_by_signals

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_command_is_interrupted_by_either_in_one_line(kind: signal.Signals, monkeypatch, capsys) -> None:
    def dispatch(arguments: list[str]) -> int:
        os.kill(os.getpid(), kind)
        time.sleep(60)
        return 0

    monkeypatch.setattr(cli, "_dispatch", dispatch)
    before = signal.getsignal(kind), signal.getsignal(signal.SIGALRM)
    assert main(["evaluate"]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert (signal.getsignal(kind), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_interrupt_that_foreign_code_swallows_comes_again(monkeypatch) -> None:
    monkeypatch.setattr(stop, "SECONDS_TO_STOP", 0.3)
    began = time.monotonic()
    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert 0.2 < time.monotonic() - began < 10


def test_a_handler_of_somebody_else_stays() -> None:
    with StopRequest() as request:
        with interrupted_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.requested


def test_whoever_looks_knows_that_it_was_asked() -> None:
    assert not asked_to_stop()
    with StopRequest():
        assert not asked_to_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked_to_stop()
    assert not asked_to_stop()


def test_what_does_not_look_is_interrupted_after_a_while_but_not_a_checkpoint(monkeypatch) -> None:
    monkeypatch.setattr(stop, "SECONDS_TO_STOP", 0.3)
    with StopRequest(), pytest.raises(Overdue):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        stop.no_longer_overdue()
        time.sleep(0.6)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and issubclass(GivenUp, stop.Stopped)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_in_the_start_of_a_job_says_so(kind: signal.Signals, monkeypatch, capsys) -> None:
    def start(self: Command, config: object) -> object:
        os.kill(os.getpid(), kind)
        time.sleep(60)
        return None

    from burnish.commands.table import COMMANDS

    monkeypatch.setattr(Command, "run", start)
    command = next(command for command in COMMANDS if command.name == "pretrain")
    with interrupted_by_signals():
        assert run_sweep(command, ["task=hopper", "dataset=x.hdf5", "seed=0,1"]) == 130
    assert "stopped     seed=0\nnot started seed=1" in capsys.readouterr().out


def hopper(path: Path) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(60, 11)), rng.uniform(-1, 1, (60, 3))
        file["rewards"], file["terminals"] = np.ones(60), np.zeros(60, bool)
        file["timeouts"] = np.isin(np.arange(60), (19, 39, 59))
    return path


FEW = ["evaluation.episodes=2000", "evaluation.n_envs=2", "evaluation.backend=workers", "evaluation.n_workers=2"]


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])  # Slurm and Ctrl-C reach the workers as well
@pytest.mark.parametrize("after", [0.5, 2.0, 5.0, 12.0])
@pytest.mark.parametrize(
    "words",
    [["pretrain", "train.updates=20", *FEW], ["data", "collect", "behaviour=sac", "out=a.hdf5", "episodes=5000"]],
    ids=["pretrain", "collect"],
)
def test_commands_end_with_one_line_whenever_it_comes(
    words: list[str], after: float, group: bool, tmp_path: Path
) -> None:
    if words[0] == "pretrain":
        words = [*words, f"dataset={hopper(tmp_path / 'hopper.hdf5')}", "run_dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "burnish.commands.cli", *words, "task=hopper"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    time.sleep(after)
    began = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode in ((130, -signal.SIGTERM) if after < 1 else (130,)), said  # Python itself starts
    assert time.monotonic() - began < 10 and "Traceback" not in said
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
    if process.returncode == 130:
        assert said.strip().splitlines()[-1].startswith("burnish: ")
