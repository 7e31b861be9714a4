"""Mutants: the code with one line changed, and the tests that must fail then. `tests/mutants.yaml` has them.

    make mutants                          all of them, two at a time: exit status 1 if too many survive
    python tests/mutants.py gae -j 4      those with the word in their file or their lines, four at a time

Each runs in a copy of the checkout, in a temporary folder; the checkout itself is only read.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_suffix(".yaml")
PACKAGES = ("burnish", "compare", "configs", "datasets", "finetune", "pretrain")
COPIED = {*PACKAGES, "tests", "benchmarks", "docs", "examples", "pyproject.toml"}
ENOUGH = 0.95  # share of mutants that must be killed
SECONDS = 180  # for the tests of one; a mutant that hangs is killed as well
FAILED = (1, 2)  # pytest's exit status: a test failed, or could not even be imported


class Mutant(NamedTuple):
    """One line changed."""

    file: str
    before: str  # a part of one line, which is there once
    after: str
    tests: list[str]  # pytest's arguments; at least one of them must fail

    def __str__(self) -> str:
        return f"{self.file}: {self.before.strip()} -> {self.after.strip() or 'nothing'}"


def read(path: Path, word: str) -> list[Mutant]:
    """The mutants with `word` in them. Ends the program where an entry does not fit the code."""
    found, faults = [], []
    for number, entry in enumerate(yaml.safe_load(path.read_text()), 1):
        if set(entry) != {"file", "from", "to", "tests"}:
            sys.exit(f"{path.name}, entry {number}: expected file, from, to and tests, got {', '.join(entry)}")
        mutant = Mutant(entry["file"], entry["from"], entry["to"], entry["tests"])
        source = ROOT / mutant.file
        times = source.read_text().count(mutant.before) if source.is_file() else 0
        if times != 1:
            faults.append(f"entry {number}, {mutant.file}: {mutant.before!r} is there {times} times, expected once")
        elif word in str(mutant):
            found.append(mutant)
    if faults:
        sys.exit("\n".join([f"{path.name} does not fit the code:", *faults]))
    return found


def copy_checkout(folder: Path) -> Path:
    """What the tests need of the checkout."""

    def left_out(at: str, names: list[str]) -> set[str]:
        return {name for name in names if name == "__pycache__" or (Path(at) == ROOT and name not in COPIED)}

    return Path(shutil.copytree(ROOT, folder, symlinks=True, ignore=left_out))


def run_tests(checkout: Path, tests: Sequence[str], seconds: float = SECONDS) -> tuple[int | None, str]:
    """pytest's exit status in a copy, up to the first failure (None: it took too long), and what it printed."""
    shared = os.environ.get("BURNISH_SHARED_DATA", str(ROOT.parent / "shared" / "data"))
    variables = {"BURNISH_PARITY_DIR": str(Path(shared, "parity")), **os.environ, "BURNISH_SHARED_DATA": shared}
    # no bytecode: a mutant of the same length, within the same second, would not be seen
    variables |= {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, check=False, cwd=checkout, env=variables, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, f"more than {seconds} seconds"
    return done.returncode, done.stdout.decode() + done.stderr.decode()


def is_killed(mutant: Mutant, copies: queue.Queue[Path]) -> bool:
    """Whether the tests notice. Raises RuntimeError where pytest could not run them."""
    checkout, start = copies.get(), time.monotonic()
    path = checkout / mutant.file
    original = path.read_text()
    path.write_text(original.replace(mutant.before, mutant.after))
    status, printed = run_tests(checkout, mutant.tests)
    path.write_text(original)
    copies.put(checkout)
    if status not in (0, None, *FAILED):
        raise RuntimeError(f"{mutant}: pytest ended with status {status}\n{printed}")
    print(f"{'killed' if status != 0 else 'SURVIVED':8} {time.monotonic() - start:6.1f} s  {mutant}", flush=True)
    return status != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="only mutants with it in their file or their lines")
    parser.add_argument("-j", type=int, default=2, metavar="N", help="so many at a time (default: 2)")
    options = parser.parse_args()
    mutants = read(FILE, options.word)
    if not mutants:
        sys.exit(f"no mutant has {options.word!r} in it")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(options.j) as pool:
        copies: queue.Queue[Path] = queue.Queue()
        for i in range(options.j):
            copies.put(copy_checkout(Path(folder, str(i))))
        everything = sorted({test for mutant in mutants for test in mutant.tests})
        status, printed = run_tests(Path(folder, "0"), everything, 10 * SECONDS)
        if status != 0:
            sys.exit(f"{printed}\nthe tests do not even pass without a mutant (pytest's status: {status})")
        killed = list(pool.map(lambda mutant: is_killed(mutant, copies), mutants))
    share = sum(killed) / len(killed)
    print(f"{sum(killed)} of {len(killed)} mutants killed: {share:.1%}, expected at least {ENOUGH:.0%}")
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
