"""One entrance for all formats: a source named on the command line -> demonstrations in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from burnish.datasets.consistency import require_consistent
from burnish.datasets.episodes import Demonstrations, listed
from burnish.datasets.sources import resolve
from burnish.errors import BurnishError


def load(source: str | Path, filter_key: str | None = None, sensors: Sequence[str] = ()) -> Demonstrations:
    """Read demonstrations of any supported format and make sure that they can be trained on.

    Formats, told apart by their contents: robomimic HDF5, D4RL HDF5, a Minari dataset folder, DPPO npz.
    "shipped:NAME" is the package's own `datasets/shipped/NAME.hdf5`. A filter key (robomimic only) selects a
    subset of the episodes. `sensors` (robomimic only) names the observations that are pictures and the like.

    Raises BurnishError, naming file, episode, key and step, for whatever could not be trained on: see
    `require_consistent` and the readers.
    """
    demos = read(source, filter_key, sensors)
    require_consistent(demos)
    missing = [name for name in sensors if name not in demos.episodes[0].obs]
    if missing:
        others = listed(demos.left_out) or "none"
        raise BurnishError(
            f"{demos.source}: no observation {missing[0]!r} of task.sensors; beside flat ones it has: {others}"
        )
    return demos


def read(source: str | Path, filter_key: str | None = None, sensors: Sequence[str] = ()) -> Demonstrations:
    """Like `load`, but without looking at the values: for `inspect` and `check`, which report them."""
    from burnish.datasets.formats import d4rl, dppo_npz, minari_local, robomimic  # here, as training needs no h5py

    path = resolve(source)
    if not path.exists():
        raise BurnishError(f"{path}: no such file or folder")
    if path.is_dir():
        file_format = "Minari"
        if not minari_local.is_dataset(path):
            raise BurnishError(f"{path}: is a folder without Minari data; expected an HDF5 or npz file")
    elif path.suffix == ".npz":
        file_format = "DPPO npz"
    else:
        file_format = _hdf5_format(path)
    if file_format == "robomimic":
        return robomimic.read(path, filter_key, sensors)
    if filter_key is not None:
        raise BurnishError(f"{path}: filter key {filter_key!r}: only robomimic files have them, this is {file_format}")
    if file_format == "D4RL":
        return d4rl.read(path)
    return minari_local.read(path) if file_format == "Minari" else dppo_npz.read(path)


def _hdf5_format(path: Path) -> str:
    import h5py

    from burnish.datasets.formats import d4rl, hdf5

    with hdf5.reading(path) as file:
        if d4rl.is_layout(file):
            return "D4RL"
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            found = listed(file) or "nothing"
            raise BurnishError(
                f"{path}: unknown layout; found {found} at the top level, expected data/demo_N (robomimic) "
                f"or observations and actions (D4RL)"
            )
        return "robomimic"
