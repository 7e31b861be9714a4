"""What a name of demonstrations or of an actor stands for: a path, or a file of the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError

SHIPPED = "shipped:"
SHIPPED_FOLDER = Path(str(resources.files("burnish.datasets"))) / "shipped"


def demonstrations_of(task: TaskConfig, source: str | None = "task") -> str | None:
    """The demonstrations that `source` names: "task" stands for those the task names, of which there may be none."""
    return task.dataset if source == "task" else source


def resolve(source: str | Path, suffix: str = ".hdf5") -> Path:
    """The path that a source stands for; "shipped:NAME" is the package's own `datasets/shipped/NAME.SUFFIX`.

    Raises:
        BurnishError: there is no shipped file of that name; it lists those there are.
    """
    if not str(source).startswith(SHIPPED):
        return Path(source).expanduser()
    path = SHIPPED_FOLDER / (str(source).removeprefix(SHIPPED) + suffix)
    if not path.is_file():
        present = ", ".join(sorted(file.stem for file in SHIPPED_FOLDER.glob(f"*{suffix}"))) or "none"
        raise BurnishError(f"{source}: no such file in the package; it has: {present}")
    return path
