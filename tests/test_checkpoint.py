"""Checkpoints: whole after any kill, and nothing in them runs code."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from burnish.errors import BurnishError
from burnish.machine.disk import restore_folder, save_folder
from burnish.runs.checkpoint import Checkpoints
from burnish.runs.state import load_state, random_states, restore_random_states, save_state


def write_without_end(folder: Path, printed: Any) -> None:
    """The process that is killed: checkpoint after checkpoint, every second one replacing the one before."""
    checkpoints = Checkpoints(folder)
    latest = checkpoints.latest()
    step = load_state(latest / "state.pt")["step"] if latest else 0
    while True:
        step += 1

        def write(unfinished: Path, step: int = step) -> None:
            save_state(unfinished / "state.pt", {"step": step, "weights": torch.full((50_000,), float(step))})
            (unfinished / "last.txt").write_text(str(step))

        checkpoints.save(step // 2, write)
        printed.send(step)


def write_text(text: str) -> Any:
    return lambda folder: (folder / "text.txt").write_text(text)


def test_what_a_killed_deletion_left_is_no_hindrance(tmp_path: Path) -> None:
    """Killed before an old version of step 1 was gone, later in deleting step 1: what was kept of both is deleted."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, write_text("new"))
    for name in (".step_00000001.unfinished", ".step_00000001.previous"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text("old")
    checkpoints.save(2, write_text("next"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000002"]
    assert Checkpoints(tmp_path).latest() == tmp_path / "step_00000002"


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_kill_9_at_any_moment_leaves_a_whole_latest_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(0)
    context = multiprocessing.get_context("fork")
    reached = 0
    for _ in range(15):
        receiver, sender = context.Pipe(duplex=False)
        writer = context.Process(target=write_without_end, args=(tmp_path, sender))
        writer.start()
        sender.close()
        printed = receiver.recv()
        time.sleep(rng.uniform(0, 0.1))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        with contextlib.suppress(EOFError):
            while True:
                printed = receiver.recv()
        latest = Checkpoints(tmp_path).latest()
        assert latest is not None
        state = load_state(latest / "state.pt")
        assert state["step"] >= printed > reached  # nothing finished is lost, and it went on
        assert (state["weights"] == state["step"]).all()
        assert (latest / "last.txt").read_text() == str(state["step"])
        reached = printed


def test_a_kill_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, write_text("old"))
    (tmp_path / "step_00000003").rename(tmp_path / ".step_00000003.previous")  # what a replacing save does first
    latest = checkpoints.latest()
    assert latest is not None and (latest / "text.txt").read_text() == "old"
    restore_folder(latest)
    assert (latest / "text.txt").read_text() == "old"


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None and checkpoints.best() is None
    for step in (100, 200, 300, 1_000_000_000):
        checkpoints.save(step, write_text(str(step)))
        if step == 100:
            checkpoints.mark_best(100)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "best",
        "latest",
        "step_00000100",
        "step_00000300",
        "step_1000000000",
    ]
    assert (tmp_path / "best" / "text.txt").read_text() == "100"
    assert (tmp_path / "latest" / "text.txt").read_text() == "1000000000"
    assert checkpoints.latest() == tmp_path / "step_1000000000"
    with pytest.raises(ValueError, match="step_00000007"):
        checkpoints.mark_best(7)


def test_a_failing_write_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "policy", write_text("old"))

    def fail(unfinished: Path) -> None:
        write_text("new")(unfinished)
        raise RuntimeError("defect")

    with pytest.raises(RuntimeError, match="defect"):
        save_folder(folder, fail)
    assert (folder / "text.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BurnishError, match=r"cannot write .*file"):
        save_folder(tmp_path / "file" / "policy", write_text("x"))


def test_state_round_trip_is_exact(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "tensor": torch.randn(3, dtype=torch.float64),
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "bools": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.float64(0.1),
        "nested": [{"a": (1, None, "x")}, 2**100, {3: 1.5}],
        "generator": np.random.default_rng(3).bit_generator.state,
    }
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    assert torch.equal(loaded["tensor"], state["tensor"])
    for key in ("array", "bools", "empty"):
        assert loaded[key].dtype == state[key].dtype
        np.testing.assert_array_equal(loaded[key], state[key])
    for key in ("scalar", "nested", "generator"):
        assert loaded[key] == state[key]


def test_only_plain_data_is_saved(tmp_path: Path) -> None:
    for value in (object(), lambda: None, np.array([object()])):
        with pytest.raises(TypeError, match="cannot save"):
            save_state(tmp_path / "state.pt", {"x": value})


def test_a_state_never_runs_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "attacked",)

    torch.save({"x": Attack()}, tmp_path / "zip.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"x": Attack()}, protocol=2))
    for name in ("zip.pt", "pickle.pt"):
        with pytest.raises(BurnishError, match=name):
            load_state(tmp_path / name)
    assert not (tmp_path / "attacked").exists()


def test_missing_and_damaged_states_are_told(tmp_path: Path) -> None:
    with pytest.raises(BurnishError, match="does not exist"):
        load_state(tmp_path / "none.pt")
    save_state(tmp_path / "state.pt", {"x": torch.zeros(1000)})
    content = (tmp_path / "state.pt").read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"text" * 100):
        (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(BurnishError, match="damaged"):
            load_state(tmp_path / "state.pt")


def test_random_states_come_back(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    random.gauss(0, 1)  # leaves a second number in the state
    save_state(tmp_path / "state.pt", random_states())
    first = draw(), random.gauss(0, 1)
    restore_random_states(load_state(tmp_path / "state.pt"))
    assert (draw(), random.gauss(0, 1)) == first
