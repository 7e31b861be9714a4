"""The wheel has everything: each module, each YAML, each shipped file; and the import name is safe."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"burnish": "burnish", "datasets": "burnish/datasets", "pretrain": "burnish/pretrain"}
FOLDERS |= {"finetune": "burnish/finetune", "configs": "burnish/configs"}


def tracked_files() -> set[str]:
    """What git has of the packages, by its path inside the wheel."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = set()
    for path in map(Path, listed.stdout.splitlines()):
        if path.parts[0] in FOLDERS and (ROOT / path).is_file() and not (ROOT / path).is_symlink():
            files.add(str(Path(FOLDERS[path.parts[0]], *path.parts[1:])))
    return files


@pytest.mark.slow
def test_the_wheel_has_every_file(tmp_path: Path) -> None:
    for needed in ("build", "setuptools"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), "."],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    missing = {file for file in tracked_files() if not file.endswith(".md")} - inside
    assert not missing
    tops = {name.split("/")[0] for name in inside}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"burnish"}


def test_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {str(Path(file).parent).replace("/", ".") for file in tracked_files() if file.endswith(".py")}
    assert folders == set(project["tool"]["setuptools"]["packages"])


def test_the_folders_refuse_their_bare_names() -> None:
    code = "import datasets"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode and "import burnish.datasets" in result.stderr


def test_import_burnish_is_light_and_the_policy_is_there() -> None:
    code = (
        "import sys, burnish; assert 'torch' not in sys.modules;"
        "from burnish import DiffusionPolicy; assert DiffusionPolicy.__module__ == 'burnish.policy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_constraints_satisfy_the_dependencies() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    required = {Requirement(text).name.lower(): Requirement(text) for text in wanted}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    for pin in map(Requirement, lines):
        version = re.fullmatch(r"==([\w.]+)", str(pin.specifier))
        assert version, f"{pin} is not pinned"
        if pin.name.lower() in required:
            assert required[pin.name.lower()].specifier.contains(version[1])
