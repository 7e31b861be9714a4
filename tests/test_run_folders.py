"""A run folder: one writer, whole after any kill and on a full disk, and what is read is what was written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from killed import killed_before, tree
from safetensors.torch import save

from burnish.commands.cli import main
from burnish.commands.policy import set_policy
from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.fingerprint import fingerprint
from burnish.datasets.formats import d4rl, robomimic
from burnish.errors import BurnishError
from burnish.machine.checksums import CHECKSUMS, Damaged, replace_text, verify, verify_all, write_checksums
from burnish.machine.disk import save_folder
from burnish.machine.lock import LOCK, FolderLock, Held
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.folder import policy_folder
from burnish.policies.load import load_policy
from burnish.runs.checkpoint import TRAINER, Checkpoints, PretrainState, TrainerFile
from burnish.runs.folder import Run
from burnish.runs.metrics import read_metrics
from burnish.runs.state import load_state, save_state


@dataclass(frozen=True)
class Config:
    run_dir: str
    seed: int = 0
    resume: str | None = None
    wandb: str = "disabled"
    overwrite: bool = False
    policy: str | None = None


@dataclass(frozen=True)
class Allowing(Config):
    allow: tuple[str, ...] = ()


def writes(step: int) -> Callable[[Path], None]:
    """What stands for a policy."""

    def write(folder: Path) -> None:
        (folder / "policy.safetensors").write_bytes(save({"step": torch.full((3,), float(step))}))
        (folder / "policy.json").write_text(json.dumps({"step": step}))
        write_checksums(folder, ["policy.safetensors", "policy.json"])

    return write


def checkpoint(run: Run, step: int, *, best: bool = False) -> None:
    """A line, and the checkpoint after it, which is the best one, or that before it was."""
    run.log({"loss": 1.0 / step}, step)
    best_step = step if best else step - 1
    run.save_checkpoint(step, writes(step), PretrainState({"step": step}, (0.0, 0.0), best_step))
    if best:
        run.checkpoints.mark_best(step)


def loaded(run: Run) -> PretrainState | None:
    """The state that the run goes on from; None for one that has none."""
    taken: list[PretrainState] = []
    run.load_checkpoint(PretrainState, taken.append)
    return taken[0] if taken else None


def make_run(folder: Path, *steps: int, best: int = 0) -> Path:
    with Run.create(folder, Config(str(folder))) as run:
        for step in steps:
            checkpoint(run, step, best=step == best)
    return folder


def read_back(run: Path) -> int:
    """The step of the newest checkpoint, as someone reads it who only looks, all of whose files agree."""
    folder = policy_folder(run)
    verify_all(folder)
    step = json.loads((folder / "policy.json").read_text())["step"]
    assert TrainerFile.read(folder).state["trainer"] == {"step": step}
    return int(step)


# -- Checksums -------------------------------------------------------------------------------------------------------


def small_policy() -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(PolicyConfig(denoiser=DenoiserConfig(hidden_dim=8)), 3, 1, ["flat"])


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_a_flipped_bit_of_a_policy_is_told(tmp_path: Path, name: str) -> None:
    small_policy().save(tmp_path / "policy")
    load_policy(tmp_path / "policy")
    path = tmp_path / "policy" / name
    content = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 100):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(BurnishError) as error:
            load_policy(tmp_path / "policy")
        assert str(tmp_path / "policy") in str(error.value) and "\n" not in str(error.value)


def test_a_flipped_bit_of_a_state_is_told_or_changes_nothing(tmp_path: Path) -> None:
    """A zip file has bytes that mean nothing, such as those between its records."""
    state = {"a": torch.arange(300.0), "b": {"c": [1, 2.5, "text"]}}
    path = tmp_path / "state.pt"
    save_state(path, state)
    content = path.read_bytes()
    n_told = 0
    for bit in random.Random(0).sample(range(8 * len(content)), 400):
        path.write_bytes(flipped(content, bit))
        try:
            found = load_state(path)
        except BurnishError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            n_told += 1
        else:
            assert torch.equal(found.pop("a"), state["a"]) and found == {"b": state["b"]}
    assert n_told > 100  # 1200 of its 3000 bytes are the tensor's


def test_every_bit_of_a_tensor_counts(tmp_path: Path) -> None:
    """Torch alone reads them all without a word."""
    path = tmp_path / "state.pt"
    save_state(path, {"a": torch.full((8,), 3.25)})
    content = path.read_bytes()
    start = content.index(np.full(8, 3.25, np.float32).tobytes())
    for bit in range(8 * start, 8 * (start + 32)):
        path.write_bytes(flipped(content, bit))
        torch.load(path, weights_only=True)
        with pytest.raises(Damaged, match=r"state\.pt is damaged"):
            load_state(path)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_sha256sum_agrees(tmp_path: Path) -> None:
    small_policy().save(tmp_path / "policy")
    set_policy(str(tmp_path / "policy"), ["temperature=0.5"])
    done = subprocess.run(
        ["sha256sum", "-c", CHECKSUMS], check=False, cwd=tmp_path / "policy", capture_output=True, text=True
    )
    assert done.returncode == 0
    files = {path.name for path in (tmp_path / "policy").iterdir()} - {CHECKSUMS}
    assert {line.removesuffix(": OK") for line in done.stdout.splitlines()} == files
    assert load_policy(tmp_path / "policy").config.temperature == 0.5


def test_what_older_versions_wrote_is_read(tmp_path: Path) -> None:
    small_policy().save(tmp_path / "policy")
    (tmp_path / "policy" / CHECKSUMS).unlink()
    description = tmp_path / "policy" / "policy.json"
    description.write_text(description.read_text().replace('"task": ""', '"task": "mine"'))
    assert load_policy(tmp_path / "policy").task == "mine"
    set_policy(str(tmp_path / "policy"), ["temperature=0.5"])
    assert not (tmp_path / "policy" / CHECKSUMS).exists()


@pytest.mark.parametrize("torn", [False, True])
def test_killed_while_a_file_is_changed_its_checksum_fits(tmp_path: Path, torn: bool) -> None:
    n, seen = 1, set()
    while True:
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "policy.json").write_text("old")
        write_checksums(folder, ["policy.json"])
        killed = killed_before(n, lambda at=folder: replace_text(at / "policy.json", "new"), torn=torn)
        verify(folder / "policy.json")
        seen.add((folder / "policy.json").read_text())
        if not killed:
            break
        n += 1
    assert n == 7 and seen == {"old", "new"}  # three files are written, and renamed
    assert len((folder / CHECKSUMS).read_text().splitlines()) == 1


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if how == "cut" else flipped(content, 4 * len(content)))


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
@pytest.mark.parametrize("name", [TRAINER, "policy.safetensors", "policy.json"])
def test_a_resumed_run_goes_back_to_a_whole_checkpoint_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    run = make_run(tmp_path / "run", 1, 2, best=2)
    damage(run / "checkpoints" / "step_00000002" / name, how)
    with Run.resume(run) as resumed:
        state = loaded(resumed)
        assert state is not None and state.trainer == {"step": 1}
        assert [line["step"] for line in resumed.metrics()] == [1]
    said = capsys.readouterr().err
    assert f"step_00000002/{name}" in said and "going on from" in said and "step_00000002.damaged" in said
    assert read_back(run) == 1 and (run / "checkpoints" / "step_00000002.damaged").is_dir()


def test_of_damaged_checkpoints_alone_nothing_is_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1, 2)
    for step in ("step_00000001", "step_00000002"):
        damage(run / "checkpoints" / step / TRAINER, "flipped")
    before = tree(run)
    with pytest.raises(Damaged, match=r"step_00000002/trainer\.pt is damaged"):
        Run.resume(run, Config("other", seed=7))
    assert tree(run) == before


# -- A full disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file of this process may become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def no_hidden(folder: Path) -> None:
    assert list(folder.rglob(".*")) == []


@pytest.mark.parametrize("room", [0, 50, 100, 200, 1000, 2000])
def test_a_full_disk_is_one_line_and_costs_no_checkpoint(tmp_path: Path, room: int) -> None:
    folder = make_run(tmp_path / "run", 1, 2, best=1)
    with Run.resume(folder) as run:
        loaded(run)
        before = tree(folder / "checkpoints")
        state = PretrainState({"step": 3, "weights": torch.zeros(5000)}, (0.0, 0.0), 3)
        with (
            room_for(room),
            pytest.raises(BurnishError, match=r"cannot write .*step_00000003: File too large") as error,
        ):
            run.save_checkpoint(3, writes(3), state)
        assert f"resume={folder}" in str(error.value) and "\n" not in str(error.value)
        assert tree(folder / "checkpoints") == before
    no_hidden(folder)
    assert read_back(folder) == 2


@pytest.mark.parametrize("shape", [(10,), (3000,), (300_000,)])  # torch buffers what is small
def test_torch_says_what_the_disk_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with room_for(0), pytest.raises(OSError) as error:
        save_state(tmp_path / "state.pt", {"x": torch.zeros(shape)})
    assert error.value.errno == errno.EFBIG


def test_metrics_on_a_full_disk(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 1)
    with (
        pytest.raises(BurnishError, match=r"cannot write .*metrics\.jsonl: File too large; the checkpoints are as"),
        Run.resume(folder) as run,
    ):
        loaded(run)
        with room_for((folder / "metrics.jsonl").stat().st_size + 10):
            run.log({"loss": 0.5}, 2)
    with Run.resume(folder) as run:
        loaded(run)
        checkpoint(run, 2)
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [1, 2]


def test_a_full_disk_that_marks_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", 1, 2, best=1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with room_for(0), pytest.raises(BurnishError, match=r"cannot write .*checkpoints: File too large"):
        Checkpoints(folder / "checkpoints").mark_best(2)
    assert Checkpoints(folder / "checkpoints").best() == folder / "checkpoints" / "step_00000001"


def episodes(n: int = 2, T: int = 30, key: str = "object", seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [
        Episode(
            name=f"demo_{i}",
            obs={key: rng.normal(size=(T, 3)).astype(np.float32)},
            actions=rng.uniform(-1, 1, (T, 2)).astype(np.float32),
            rewards=np.ones(T, np.float32),
            terminated=np.zeros(T, bool),
            final_obs={key: rng.normal(size=3).astype(np.float32)},
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("write, key", [(robomimic.write, "object"), (d4rl.write, "flat")])
def test_demonstrations_on_a_full_disk(tmp_path: Path, write: Any, key: str) -> None:
    out = tmp_path / "demos.hdf5"
    write(out, Demonstrations(episodes(key=key)))
    before = out.read_bytes()
    for room in (0, 1000, len(before) - 1):
        with room_for(room), pytest.raises(BurnishError, match=r"demos\.hdf5: cannot be written \(File too large\)"):
            write(out, Demonstrations(episodes(key=key, seed=1)))
        assert tree(tmp_path) == {"demos.hdf5": before}
    with h5py.File(out) as file:
        assert len(file) >= 1


def test_whatever_else_meets_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(error: OSError) -> Any:
        def dispatch(arguments: list[str]) -> int:
            raise error

        return dispatch

    full = OSError(errno.ENOSPC, "No space left on device", "report.html")
    monkeypatch.setattr("burnish.commands.cli._dispatch", fail(full))
    assert main(["tasks"]) == 2
    said = capsys.readouterr().err
    assert said == "burnish: error: report.html: No space left on device; make room, or choose another folder\n"
    monkeypatch.setattr("burnish.commands.cli._dispatch", fail(OSError(errno.EBADF, "a bug of ours")))
    assert main(["tasks"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "a bug of ours" in said and "please report it" in said


# -- One writer ------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from burnish.machine.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
{}
print("held", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def held_elsewhere(folder: Path, more: str = "") -> Iterator[subprocess.Popen[str]]:
    code = HOLDER.format(more)
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_writer_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 1, 2, best=1)
    before = tree(folder)
    with held_elsewhere(folder) as process:
        holder = f"{folder} is being written by process {process.pid} on {socket.gethostname()}, since 20"
        for key, second in (
            ("resume", lambda: Run.resume(folder, Config("a", seed=3))),
            ("run_dir", lambda: Run.create(folder, Config("a"), overwrite=True)),
        ):
            with pytest.raises(Held) as error:
                second()
            assert str(error.value).startswith(f"{key}={holder}") and "\n" not in str(error.value)
        assert {name: what for name, what in tree(folder).items() if name != LOCK} == before
        assert read_back(folder) == 2  # reading needs no lock
        process.kill()  # SIGKILL
        process.wait()
        with Run.resume(folder) as run:
            checkpoint(run, 3)
    assert read_back(folder) == 3
    no_hidden(folder)


def test_children_of_a_killed_writer_do_not_hold_it(tmp_path: Path) -> None:
    child = (
        "import subprocess; pid = subprocess.Popen(['sleep', '60']).pid; Path(sys.argv[1], 'pid').write_text(str(pid))"
    )
    with held_elsewhere(tmp_path, child) as process:
        process.kill()
        process.wait()
        pid = int((tmp_path / "pid").read_text())
        try:
            FolderLock(tmp_path).release()
            os.kill(pid, 0)  # it lives
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_lasting_lock_is_held_by_whom_its_descriptor_was_handed_to(tmp_path: Path) -> None:
    with FolderLock(tmp_path, lasting=True) as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(lock.descriptor,))
    try:
        with pytest.raises(Held):
            FolderLock(tmp_path)
    finally:
        child.kill()
        child.wait()
    FolderLock(tmp_path).release()


def test_only_one_of_many_gets_it(tmp_path: Path) -> None:
    """Each takes it, looks whether it is alone, and releases it, which takes the file away, again and again."""

    def take_turns() -> None:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            try:
                lock = FolderLock(tmp_path)
            except Held:
                continue
            alone = os.open(tmp_path / "alone", os.O_CREAT | os.O_EXCL)
            os.close(alone)
            (tmp_path / "alone").unlink()
            with (tmp_path / "turns").open("ab") as file:
                file.write(b".")
            lock.release()

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                take_turns()
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    assert (tmp_path / "turns").stat().st_size > 20
    no_hidden(tmp_path)


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Run.create(tmp_path / "run", Config("a")) as run:
        checkpoint(run, 1)
    assert "knows no locks" in capsys.readouterr().err
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_policy_is_not_changed_while_its_run_is_written(tmp_path: Path) -> None:
    policy = small_policy()
    with Run.create(tmp_path / "run", Config("a")) as run:
        run.save_checkpoint(1, policy.write, PretrainState({}, (0.0, 0.0)))
        with pytest.raises(Held, match=r"run is being written by"):
            set_policy(str(tmp_path / "run"), ["temperature=0.5"])
    set_policy(str(tmp_path / "run" / "checkpoints" / "latest"), ["temperature=0.5"])
    assert load_policy(tmp_path / "run").config.temperature == 0.5
    no_hidden(tmp_path)


# -- Killed at any change --------------------------------------------------------------------------------------------


def train(folder: Path) -> None:
    """Go on to step 5, from wherever the run is: 3 is the best, 2 is deleted with step 4, and 1 as it was the best."""
    with Run.resume(folder) as run:
        state = loaded(run)
        step = 0
        if state is not None:
            step = state.trainer["step"]
            if state.best_step is not None:
                run.checkpoints.keep_best(state.best_step)
        for each in range(step + 1, 6):
            run.log({"loss": 1.0 / each}, each)
            state = PretrainState({"step": each}, (0.0, 0.0), each if each <= 1 else 1 if each < 3 else 3)
            run.save_checkpoint(each, writes(each), state)
            if each in (1, 3):
                run.checkpoints.mark_best(each)
        run.save_checkpoint(5, writes(5), PretrainState({"step": 5}, (0.0, 0.0), 3))  # once more, as a resume may
        run.finish({"steps": 5})


def comparable(folder: Path) -> dict[str, Any]:
    """The tree without what tells the time."""
    found = tree(folder)
    lines = [
        {key: value for key, value in line.items() if key != "time/elapsed"}
        for line in read_metrics(folder / "metrics.jsonl")
    ]
    trainers = {
        name: load_state(folder / name)["state"] for name in found if name.endswith(TRAINER) and "/best/" not in name
    }
    return {**found, **trainers, "metrics.jsonl": lines}


@pytest.fixture
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system survives a killed process, so nothing needs to reach the disk: these tests take less time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("unflushed")
@pytest.mark.parametrize(
    "every, torn",
    [(9, True), pytest.param(1, False, marks=pytest.mark.slow), pytest.param(1, True, marks=pytest.mark.slow)],
)
def test_killed_before_any_change_nothing_is_lost(tmp_path: Path, every: int, torn: bool) -> None:
    """Of saves, the mark of the best, deletions, the lock, and the cleaning of what the last kill left."""
    make_run(tmp_path / "base", 1, 2, best=1)
    shutil.copytree(tmp_path / "base", tmp_path / "undisturbed", symlinks=True)
    train(tmp_path / "undisturbed")
    expected = comparable(tmp_path / "undisturbed")
    expected["config.yaml"] = None  # it has the folder's name
    checkpoints = [name for name in expected if name.startswith("checkpoints/step_") and name.count("/") == 1]
    assert checkpoints == [f"checkpoints/step_0000000{step}" for step in (3, 4, 5)]
    n = 1
    while True:
        run = tmp_path / str(n)
        shutil.copytree(tmp_path / "base", run, symlinks=True)
        killed = killed_before(n, lambda at=run: train(at), torn=torn)
        before = tree(run)
        reached = read_back(run)
        best = Checkpoints(run / "checkpoints").best()
        assert best is not None
        assert json.loads((best / "policy.json").read_text())["step"] in ((1,) if reached < 3 else (1, 3))
        assert tree(run) == before  # who reads changes nothing
        if not killed:
            break
        killed_before(1 + n % 11, lambda at=run: train(at), torn=torn)  # once more, mostly while it cleans
        assert read_back(run) >= reached >= 2
        train(run)
        assert comparable(run) | {"config.yaml": None} == expected, n
        shutil.rmtree(run)
        n += every
    assert n > 60


def test_the_best_is_marked_again_where_a_kill_came_between(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 1, 2, best=1)
    with Run.resume(folder) as run:
        loaded(run)
        run.save_checkpoint(3, writes(3), PretrainState({"step": 3}, (0.0, 0.0), 3))
    checkpoints = Checkpoints(folder / "checkpoints")
    assert checkpoints.best() == folder / "checkpoints" / "step_00000001"
    checkpoints.keep_best(3)
    assert checkpoints.best() == folder / "checkpoints" / "step_00000003"
    checkpoints.keep_best(2)  # the last evaluation is judged after its checkpoint was written
    assert checkpoints.best() == folder / "checkpoints" / "step_00000003"


def test_leftovers_are_cleared_away_by_the_writer_and_read_by_others(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 1, 2, best=1)
    checkpoints = folder / "checkpoints"
    (checkpoints / "step_00000002").rename(checkpoints / ".step_00000002.previous")  # killed between two renames
    (checkpoints / "step_00000001").rename(checkpoints / ".step_00000001.previous")
    for left in (".step_00000000.unfinished", ".step_00000003.unfinished", ".step_00000000.previous"):
        shutil.copytree(checkpoints / ".step_00000002.previous", checkpoints / left)
    shutil.rmtree(checkpoints / ".step_00000000.previous")
    (checkpoints / ".latest.unfinished").symlink_to("step_00000002")
    (checkpoints / ".mine.unfinished").mkdir()
    (folder / ".summary.json.unfinished").write_text("{")
    before = tree(folder)
    assert policy_folder(folder) == checkpoints / ".step_00000002.previous"
    assert Checkpoints(checkpoints).best() == checkpoints / ".step_00000001.previous"
    assert read_back(folder) == 2 and tree(folder) == before
    Run.resume(folder).close()
    hidden = [path.name for path in folder.rglob(".*")]
    assert hidden == [".mine.unfinished"]  # not ours
    assert policy_folder(folder) == checkpoints / "step_00000002"
    assert Checkpoints(checkpoints).best() == checkpoints / "step_00000001"


def test_a_save_over_leftovers_of_its_own_step(tmp_path: Path) -> None:
    for name in ("a", ".a.previous", ".a.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text("old")
    save_folder(tmp_path / "a", lambda folder: (folder / "text").write_text("new"))
    assert tree(tmp_path) == {"a": None, "a/text": b"new"}


# -- Starting, and starting anew -------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [False, True])
def test_a_run_killed_as_it_starts_is_started_again_or_resumed(tmp_path: Path, torn: bool) -> None:
    n = 1
    again = 0
    while True:
        folder = tmp_path / str(n) / "run"
        killed = killed_before(n, lambda at=folder: Run.create(at, Config("a")).close(), torn=torn)
        if not killed:
            break
        if (folder / "config.yaml").is_file():
            Run.resume(folder).close()
        else:
            Run.create(folder, Config("a")).close()
            again += 1
        left = {path.name for path in folder.iterdir()}
        assert left == {"config.yaml", "metrics.jsonl", "checkpoints", "plots", "videos"}
        n += 1
    assert n > 8 and again >= 4


@pytest.mark.usefixtures("unflushed")
@pytest.mark.parametrize("torn", [False, True])
def test_a_run_killed_while_it_is_overwritten_is_overwritten_again(tmp_path: Path, torn: bool) -> None:
    make_run(tmp_path / "base", 1, 2, best=1)
    (tmp_path / "base" / "mine.txt").write_text("mine")

    def overwrite(folder: Path) -> None:
        Run.create(folder, Config("new", seed=5), overwrite=True).close()

    shutil.copytree(tmp_path / "base", tmp_path / "undisturbed", symlinks=True)
    overwrite(tmp_path / "undisturbed")
    expected = tree(tmp_path / "undisturbed")
    assert set(expected) == {"config.yaml", "metrics.jsonl", "checkpoints", "plots", "videos", "mine.txt"}
    n = 1
    while True:
        folder = tmp_path / str(n)
        shutil.copytree(tmp_path / "base", folder, symlinks=True)
        killed = killed_before(n, lambda at=folder: overwrite(at), torn=torn)
        if b"seed: 5" in (folder / "config.yaml").read_bytes():  # the new run has nothing of the old one
            assert Checkpoints(folder / "checkpoints").latest() is None and not read_metrics(folder / "metrics.jsonl")
        if not killed:
            break
        overwrite(folder)
        assert tree(folder) == expected
        n += 1
    assert n > 20


OWN = {
    "videos/holiday.mp4": "mine",
    "videos/seed7_end.txt": "mine",
    "checkpoints/step_00000001_backup/weights": "mine",
    "checkpoints/notes.txt": "mine",
    "plots/mine.png": "mine",
    "wandb/mine": "mine",
    "evaluation/lift/evaluation.json": "mine",
}


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    "files",
    [
        {"videos/holiday.mp4": "mine"},
        {"checkpoints/step_00000001/model.pt": "mine"},
        {"config.yaml": "model: resnet\nseed: 0\n", "checkpoints/last.ckpt": "mine"},
        {"config.yaml": "- a\n", "summary.json": "{}"},
        {"metrics.jsonl": '{"step": 1, "loss": 2}\n', "plots/curve.png": "mine"},
        {"metrics.jsonl": "not JSON", "evaluation.json": "{}"},
        {"thesis.tex": "mine"},
    ],
)
def test_a_folder_that_no_run_has_written_is_not_overwritten(tmp_path: Path, files: dict[str, str]) -> None:
    put(tmp_path, files)
    before = tree(tmp_path)
    with pytest.raises(BurnishError, match=r"is no run's: overwrite=true deletes runs alone") as error:
        Run.create(tmp_path, Config("a"), overwrite=True)
    assert "\n" not in str(error.value) and tree(tmp_path) == before


def test_of_a_run_only_what_runs_write_is_deleted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 1, 2, best=1)
    put(folder, OWN)
    put(folder, {"videos/seed7_end.mp4": "", "plots/curve.png": "", "summary.json": "{}", "evaluation.json": "{}"})
    Run.create(folder, Config("new"), overwrite=True).close()
    files = {name for name, content in tree(folder).items() if content is not None}
    assert files == {"config.yaml", "metrics.jsonl", *OWN}


def test_a_run_that_lost_its_config_is_overwritten(tmp_path: Path) -> None:
    """`burnish compare` takes it away where the policy to start from has changed."""
    folder = make_run(tmp_path / "run", 1)
    (folder / "config.yaml").unlink()
    Run.create(folder, Config("new"), overwrite=True).close()
    assert Checkpoints(folder / "checkpoints").latest() is None
    (folder / "config.yaml").unlink()  # before its first line
    Run.create(folder, Config("new"), overwrite=True).close()


# -- The data of a run -----------------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_what_is_learned_from() -> None:
    demos = episodes()
    first = fingerprint(demos, ["object"])
    assert list(first) == [
        *("episodes", "steps", "actions", "rewards", "terminated", "obs/object", "final_obs/object"),
    ]
    assert (first["episodes"], first["steps"]) == (2, 60)
    assert fingerprint(episodes(), ["object"]) == first
    renamed = [replace(demo, name="x", states=np.zeros((30, 4))) for demo in demos]
    assert fingerprint(renamed, ["object"]) == first
    more = [replace(demo, obs=demo.obs | {"other": demo.actions}) for demo in demos]
    assert fingerprint(more, ["object"]) == first

    def differing(others: list[Episode]) -> list[str]:
        found = fingerprint(others, ["object"])
        return [name for name in first if found.get(name) != first[name]]

    def changed(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values.flat[-1] = ~values.flat[-1] if values.dtype == bool else np.nextafter(values.flat[-1], np.float32(9))
        return values

    last = demos[-1]
    assert last.final_obs is not None
    for name, other in (
        ("actions", replace(last, actions=changed(last.actions))),
        ("rewards", replace(last, rewards=changed(last.rewards))),
        ("terminated", replace(last, terminated=changed(last.terminated))),
        ("obs/object", replace(last, obs={"object": changed(last.obs["object"])})),
        ("final_obs/object", replace(last, final_obs={"object": changed(last.final_obs["object"])})),
    ):
        assert differing([demos[0], other]) == [name]
    assert differing(demos[::-1]) == ["actions", "obs/object", "final_obs/object"]
    assert differing(demos[:1])[:2] == ["episodes", "steps"]
    split = [replace(demo, actions=demo.actions.reshape(60, 1)) for demo in demos]  # the same bytes
    assert "actions" in differing(split)


def test_a_resumed_run_notices_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = tmp_path / "run", fingerprint(episodes(), ["object"])
    with Run.open(Config(str(folder)), data) as run:
        checkpoint(run, 1)
    before = tree(folder)
    for other, said in (
        (fingerprint(episodes(3, 20), ["object"]), r"3 episodes, 2 then\): give"),
        (fingerprint(episodes(2, 20), ["object"]), r"40 steps, 60 then\): give"),
        (data | {"rewards": "0" * 16, "actions": "0" * 16}, r"other actions, rewards\): give it those of before, or"),
    ):
        with pytest.raises(BurnishError, match=rf"resume=.*demonstrations have changed since \({said}"):
            Run.open(Config(str(folder), seed=8, resume=str(folder)), other)
        assert tree(folder) == before
        with pytest.raises(BurnishError, match=r"or allow=\[data\]"):
            Run.open(Allowing(str(folder), resume=str(folder)), other)
    Run.open(Allowing(str(folder), resume=str(folder), allow=("data",)), other).close()
    assert "demonstrations have changed since" in capsys.readouterr().err
    with Run.open(Config(str(folder), resume=str(folder)), data) as run:
        loaded(run)
        checkpoint(run, 2)
    with pytest.raises(BurnishError, match="changed since"):
        Run.open(Config(str(folder), resume=str(folder)), other)


def test_a_run_that_does_not_know_its_data_goes_on(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 1)
    Run.open(Config(str(folder), resume=str(folder)), fingerprint(episodes(), ["object"])).close()


FORMAT1 = Path(__file__).resolve().parent / "data" / "format1"
SHORT = ("task=inverted_double_pendulum", "evaluation.episodes=1", "evaluation.backend=sync")
ONLINE = (*SHORT, "n_envs=2", "backend=sync", "total_env_steps=40", "eval_every=0")
CLONED = f"policy={FORMAT1}/comparison/inverted_double_pendulum/pretrain/seed3"
CRITIC = ("stage.batch_size=8", "stage.demos=demos.hdf5")
REPLAY = (*CRITIC, "stage.learning_starts=16")
TRAININGS = {
    "pretrain": ("pretrain", *SHORT, "dataset=demos.hdf5", "train.epochs=1"),
    "finetune": ("finetune", *ONLINE, CLONED, *REPLAY, "stage=dpmd", "stage.buffer_size=100"),
    "offline": ("offline", *SHORT, CLONED, *CRITIC, "stage=idql", "offline.steps=2", "eval_every=0"),
    "scratch": ("scratch", *ONLINE, *REPLAY, "stage=sac", "network=gaussian", "stage.buffer_size=5000"),
}


@pytest.mark.parametrize("training", TRAININGS)
def test_every_training_knows_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], training: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(FORMAT1 / "demos.hdf5", "demos.hdf5")
    command, *words = TRAININGS[training]
    assert main([command, *words, "run_dir=run"]) == 0
    with h5py.File("demos.hdf5", "a") as file:
        rewards = next(file[name] for name in ("rewards", "data/demo_0/rewards") if name in file)
        rewards[0] += 1
    command = "finetune" if training == "scratch" else command
    assert main([command, "resume=run"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("burnish: error: resume=run: its demonstrations have changed since (other rewards)")
