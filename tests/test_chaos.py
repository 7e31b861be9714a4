"""Short forms of `make chaos`: runs that are killed, files that are damaged, trainings that are watched.

Each is the command itself, in a process of its own: it forks, which a process with pytest's threads should not.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos import mutations, soak, tiny_runs
from chaos.damage import GOOD
from chaos.readers import READERS

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")


def chaos(folder: Path, *words: str) -> Any:
    """Run the command -> the JSON that it wrote."""
    command = [sys.executable, str(ROOT / "tests" / "chaos"), *words, "--folder", str(folder)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=600)
    printed = done.stdout[-6000:] + done.stderr[-3000:]
    assert done.returncode in (0, 1) and "harness itself failed" not in printed, printed
    print(printed)
    return json.loads((folder / f"{words[0]}.json").read_text())


@pytest.mark.slow
def test_killed_runs_end_as_unbroken_ones_do(tmp_path: Path) -> None:
    tries = ["bc:moment:0", "bc:at:2", "dppo:moment:0", "dppo:change:0", "dppo:at:40", "dpmd-workers:moment:0"]
    tries += ["offline:moment:0", "offline:change:0"]
    found = chaos(tmp_path, "kills", "-j", "2", *(word for one in tries for word in ("--only", one)))["results"]
    assert [one["name"] for one in found if one["faults"]] == []
    assert sorted(one["name"] for one in found) == sorted(tries) and all(one["kills"] for one in found)


@pytest.mark.slow
def test_damaged_files_are_read_right_or_refused(tmp_path: Path) -> None:
    found = chaos(tmp_path, "damage", "--tries", "20", "-j", "2")["results"]
    assert {one["reader"] for one in found} >= READERS.keys() - {"minari"} and len(found) >= 20 * (len(READERS) - 1)
    faults = [one for one in found if one["verdict"] not in GOOD]
    assert [f"{one['reader']} {one['number']}: {one['verdict']}: {one['what']}" for one in faults] == []
    assert sum(one["verdict"] == "refused" for one in found) > len(found) / 4


@pytest.mark.slow
def test_a_training_keeps_its_processes_and_leaves_none(tmp_path: Path) -> None:
    found = chaos(tmp_path, "soak", "dpmd", "--minutes", "0.15", "--every", "0.2")["dpmd"]
    assert found["faults"] == []
    assert found["slopes"]["processes"]["level"] >= 3  # with the two workers


# The harness itself: it can fail


def test_damage_is_decided_by_its_seed() -> None:
    data = random.Random(0).randbytes(2048)
    once, again, other = (mutations.bytes_of(data, random.Random(seed)) for seed in (3, 3, 4))
    assert once == again != other
    assert all(mutations.bytes_of(data, random.Random(seed))[0] != data for seed in range(40, 60))


def test_a_line_through_what_grows_is_not_flat() -> None:
    times = [10.0 * i for i in range(270)]
    noise = random.Random(0)
    level = [500 + noise.gauss(0, 1) for _ in times]
    flat = soak.slope(times, level, "rss_mib")
    assert flat.flat and flat.low < 0 < flat.high and flat.level == pytest.approx(500, abs=0.5)
    grows = soak.slope(times, [value + 60 * t / 3600 for t, value in zip(times, level)], "rss_mib")
    assert not grows.flat and grows.low < 60 < grows.high and grows.an_hour == pytest.approx(60, abs=2)
    leaks = soak.slope(times, [40 + i // 27 for i in range(270)], "files")  # ten files in three quarters of an hour
    assert not leaks.flat
    assert soak.slope(times, [40.0] * 270, "files") == (0, 0, 0, 40, True)


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "other"):
        checkpoint = tmp_path / name / "checkpoints" / "step_00000010"
        checkpoint.mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5, "time/elapsed": len(name)}))
        (checkpoint / "policy.json").write_text('{"kind": "diffusion"}')
        (tmp_path / name / "checkpoints" / "latest").symlink_to("step_00000010")
    return tmp_path / "one", tmp_path / "other"


def test_the_same_run_but_for_the_clock(two_runs: tuple[Path, Path]) -> None:
    assert tiny_runs.differences(*two_runs) == []


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": 0.25}', "metrics.jsonl differs"),
        ("checkpoints/step_00000010/policy.json", '{"kind": "flow"}', "policy.json differs"),
        ("checkpoints/step_00000010/policy.json", "{", "policy.json cannot be read"),
        ("checkpoints/.step_00000010.unfinished", "", "it has left checkpoints/.step_00000010.unfinished"),
        ("checkpoints/latest", None, "it lacks checkpoints/latest"),
    ],
)
def test_what_differs_is_told(two_runs: tuple[Path, Path], path: str, text: str | None, said: str) -> None:
    found, expected = two_runs
    if text is None:
        (found / path).unlink()
    else:
        (found / path).write_text(text)
    assert any(said in each for each in tiny_runs.differences(found, expected))


def test_the_page_names_tests_that_there_are() -> None:
    file, named = "", 0
    for name in re.findall(r"`([\w./:]+)`", (ROOT / "docs" / "reliability.md").read_text()):
        file = name.partition("::")[0] if ".py" in name else file
        test = name.partition("::")[2] if "::" in name else name
        if name.endswith(".py"):
            assert (ROOT / "tests" / name.removeprefix("tests/")).is_file(), name
        elif test.startswith("test_"):
            named += 1
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
    assert named > 40


def test_the_page_has_every_case() -> None:
    """The issue's scripts are numbered 01 to 42."""
    numbers = re.findall(r"^\|[^|]*\| (\d\d) ", (ROOT / "docs" / "reliability.md").read_text(), re.M)
    assert sorted(numbers) == [f"{number:02}" for number in range(1, 43)]
