"""Nothing is silently wrong, nothing is lost: run folders that were copied, numbers that are none, keys written as people do."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from burnish.errors import BurnishError
from burnish.policies.folder import policy_folder
from burnish.runs.checkpoint import Checkpoints


def write(folder: Path) -> None:
    """What stands for a policy and for the rest of a run."""
    for name in ("policy.json", "policy.safetensors", "trainer.pt"):
        (folder / name).write_text(folder.name)


def saved(folder: Path, *steps: int, best: int | None = None, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, write)
        if step == best:
            checkpoints.mark_best(step)
    return checkpoints


def no_links(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "symlink_to", refuse)


def test_a_copy_that_followed_the_links_goes_on(tmp_path: Path) -> None:
    saved(tmp_path / "run/checkpoints", 1, 2, 3, best=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    folder = tmp_path / "copy/checkpoints"
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == folder / "step_00000003"
    assert checkpoints.best() == folder / "best"
    checkpoints.save(4, write)
    assert policy_folder(folder / "best") == folder / "best" and (folder / "best/policy.json").is_file()
    checkpoints.mark_best(4)
    assert policy_folder(folder / "latest").resolve().name == policy_folder(folder / "best").resolve().name
    assert checkpoints.best() == folder / "step_00000004"
    assert sorted(path.name for path in folder.iterdir()) == ["best", "latest", "step_00000003", "step_00000004"]


@pytest.mark.parametrize("kept", ["latest", "best"])
def test_of_a_copy_one_folder_is_enough(tmp_path: Path, kept: str) -> None:
    saved(tmp_path / "run/checkpoints", 1, best=1)
    shutil.copytree(tmp_path / "run/checkpoints/step_00000001", tmp_path / "copy/checkpoints" / kept)
    assert policy_folder(tmp_path / "copy/checkpoints" / kept).name == kept
    if kept == "latest":
        assert policy_folder(tmp_path / "copy") == tmp_path / "copy/checkpoints/latest"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EOPNOTSUPP, "Operation not supported"), PermissionError(errno.EPERM, "no"), NotImplementedError()],
)
def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    no_links(monkeypatch, error)
    checkpoints = saved(tmp_path, 1, 2, 3, best=1, keep=1)
    assert checkpoints.best() == tmp_path / "step_00000001"
    assert (tmp_path / "best").read_text().strip() == "step_00000001"
    assert policy_folder(tmp_path / "best") == tmp_path / "step_00000001"
    assert policy_folder(tmp_path / "latest") == tmp_path / "step_00000003"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "latest", "step_00000001", "step_00000003"]


def test_links_that_became_files_become_links_again(tmp_path: Path) -> None:
    """Git without core.symlinks writes the link's target into a file, without a line feed."""
    checkpoints = saved(tmp_path, 1, 2, best=1)
    for name in ("latest", "best"):
        target = (tmp_path / name).readlink()
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(str(target))
    assert checkpoints.best() == tmp_path / "step_00000001" == policy_folder(tmp_path / "best")
    checkpoints.save(3, write)
    assert (tmp_path / "latest").is_symlink() and checkpoints.best() == tmp_path / "step_00000001"


@pytest.mark.parametrize(
    "name",
    [
        "step_00000004_backup",
        "step_00000009.bak",
        "step_00000009 (copy)",
        "step_best",
        "step_9",
        "old",
        "step_-0000009",
    ],
)
def test_other_folders_are_neither_read_nor_deleted(tmp_path: Path, name: str) -> None:
    checkpoints = saved(tmp_path, 4)
    shutil.copytree(tmp_path / "step_00000004", tmp_path / name)
    assert checkpoints.latest() == tmp_path / "step_00000004"
    for step in (5, 6, 7):
        checkpoints.save(step, write)
    assert (tmp_path / name / "policy.json").is_file() and checkpoints.latest() == tmp_path / "step_00000007"


def test_what_is_no_folder_or_empty_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 4)
    (tmp_path / "step_00000008").mkdir()
    (tmp_path / "step_00000009").write_text("")
    assert checkpoints.latest() == tmp_path / "step_00000004"


def test_a_copy_cut_short_is_told_and_the_one_before_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "checkpoints", 4, 5)
    (tmp_path / "checkpoints/step_00000005/policy.safetensors").unlink()
    assert policy_folder(tmp_path).name == "step_00000004"
    assert "step_00000005 is no whole checkpoint, it lacks policy.safetensors" in capsys.readouterr().err
    (tmp_path / "checkpoints/step_00000004/policy.safetensors").unlink()
    with pytest.raises(BurnishError, match=r"step_00000005 is not a policy folder: policy\.safetensors is missing"):
        policy_folder(tmp_path)


def test_a_copy_without_links_keeps_its_best(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, best=1)
    (tmp_path / "best").unlink()
    (tmp_path / "best").symlink_to("step_00000099")  # dangling, as a copy of some folders has it
    assert checkpoints.best() is None
    checkpoints.keep_best(7)
    assert checkpoints.best() is None
    checkpoints.keep_best(1)
    for step in (4, 5):
        checkpoints.save(step, write)
    assert checkpoints.best() == tmp_path / "step_00000001"
