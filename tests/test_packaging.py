"""The wheel has everything: each module, each YAML, each shipped file; and the import name is safe."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from burnish.finetune.stage import STAGES, Stage, stage_class

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"burnish": "burnish", "datasets": "burnish/datasets", "pretrain": "burnish/pretrain"}
FOLDERS |= {"finetune": "burnish/finetune", "compare": "burnish/compare", "configs": "burnish/configs"}


def tracked() -> list[Path]:
    """What git has, relative to the root."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [Path(line) for line in listed.stdout.splitlines() if os.path.lexists(ROOT / line)]


def package_files() -> set[str]:
    """The files of the packages, by their paths inside the wheel."""
    return {
        str(Path(FOLDERS[path.parts[0]], *path.parts[1:]))
        for path in tracked()
        if path.parts[0] in FOLDERS and not (ROOT / path).is_symlink() and path.suffix != ".md"
    }


@pytest.mark.slow
def test_the_wheel_has_every_file(tmp_path: Path) -> None:
    """Built from a copy, offline: a build/ folder left in the checkout would hide what is missing."""
    for name, least in (("build", "1"), ("setuptools", "77")):
        if importlib.util.find_spec(name) is None or Version(metadata.version(name)) < Version(least):
            pytest.skip(f"needs {name}>={least}")
    source = tmp_path / "source"
    for path in tracked():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, source / path, follow_symlinks=False)
    result = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert not package_files() - inside
    assert {name.split("/")[0] for name in inside if ".dist-info/" not in name} == {"burnish"}


def test_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {str(Path(file).parent).replace("/", ".") for file in package_files() if file.endswith(".py")}
    assert folders == set(project["tool"]["setuptools"]["packages"])


def test_the_folders_refuse_their_bare_names() -> None:
    code = "import datasets"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode and "import burnish.datasets" in result.stderr


def test_import_burnish_is_light_and_the_policy_is_there() -> None:
    code = (
        "import sys, burnish; assert 'torch' not in sys.modules;"
        "from burnish import DiffusionPolicy; assert DiffusionPolicy.__module__ == 'burnish.policies.diffusion'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_constraints_satisfy_the_dependencies() -> None:
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


GENERAL = (
    "burnish/compose.py",
    "burnish/policies",
    "burnish/evaluation",
    "burnish/runs",
    "burnish/envs",
    "compare",
    "pretrain",
)
GENERAL += (
    "finetune/loop.py",
    "finetune/evaluations.py",
    "finetune/start.py",
    "finetune/watch.py",
    "finetune/statistics.py",
    "finetune/config.py",
)


def test_no_algorithm_is_known_outside_its_file_and_the_registry():
    """Neither by its name nor by a key of its own, where a run is made, compared, saved or evaluated."""
    own = {name: {field.name for field in fields(stage_class(name).Config)} - {"name"} for name in STAGES}
    keys = {f"stage.{key}" for one in own.values() for key in one if not hasattr(Stage, key)}
    found = []
    for path in tracked():
        if path.suffix != ".py" or not str(path).startswith(GENERAL):
            continue
        for line, text in words_of(path):
            if text in own or any(re.search(rf"\b{re.escape(key)}\b", text) for key in keys):
                found.append(f"{path}:{line}: {text}")
    assert not found


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """A module's texts, docstrings too, and the keys of a stage that it reads, with their lines."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("config.stage"):
            yield node.lineno, f"stage.{node.attr}"


ABOUT = {  # benchmarks, and the algorithms whose cost is what they measure
    "bench_costs.py": {"dppo", "dpmd", "sdac", "qsm", "qvpo", "dacer", "dipo", "dsrl", "residual", "ogpo"},
    "bench_growth.py": {"dppo", "dpmd"},
    "bench_offline_to_online.py": {"dql", "idql", "qc", "calql", "rlpd"},
    "bench_rsm.py": {"dpmd", "sdac"},
    "bench_threads.py": {"dppo", "dpmd"},
    "gpu_workloads.py": {"dppo", "dpmd", "sdac"},
    "rsm_steps.py": {"dpmd", "sdac", "qsm"},
}


def test_a_benchmark_knows_no_algorithm_but_those_that_it_is_about():
    """Neither by name, nor by a key that no other has, nor by its module."""
    modules = {target.split(":")[0]: name for name, target in STAGES.items()}
    own = {name: {field.name for field in fields(stage_class(name).Config)} for name in STAGES}
    for path in tracked():
        if path.suffix != ".py" or path.parts[0] != "benchmarks":
            continue
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        example = ast.get_docstring(tree, clean=False)  # the command lines that it shows
        known = {modules[node.module] for node in ast.walk(tree) if getattr(node, "module", None) in modules}
        for _, text in words_of(path):
            if text == example:
                continue
            known |= {name for name in STAGES if re.search(rf"(?<![a-z]){name}(?![a-z])", text)}
            for key in re.findall(r"\bstage\.(\w+)", text):
                having = [name for name in STAGES if key in own[name]]
                known |= set(having) if len(having) == 1 else set()
        assert known == ABOUT.get(path.name, set()), path
