"""Damaged on purpose: every reader either reads right or refuses in one line, quickly and in little memory.

Each variant is made and read in a fork, with limits. Its verdict is one of:

    same      read, equal to the undamaged contents     differs   read, another valid content
    refused   a BurnishError of one line
    crashed   another exception                         wordy     refused in several lines or thousands of letters
    hung      too much time                             grew      more memory than the file justifies
    died      ended by a signal                         silent    read wrong, where it could be told

The first three are right, all others are faults.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from chaos import mutations, warm
from chaos.readers import READERS, ReadWrong

VERDICTS = ("same", "differs", "refused", "crashed", "wordy", "hung", "grew", "died", "silent")
GOOD = VERDICTS[:3]
CPU_SECONDS, WALL_SECONDS = 30, 120
MEBIBYTE = 2**20
JUSTIFIED = 320 * MEBIBYTE, 250
"""What reading may take beside what the undamaged one takes: so much, and so many times the size of what is read."""
MOST_LETTERS = 4000


class Variant(NamedTuple):
    """One damaged thing and how reading it ended."""

    reader: str
    number: int
    verdict: str
    what: str
    said: str


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())


def _status(key: str) -> int:
    """Bytes that /proc/self/status has under a key."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


class Undamaged(NamedTuple):
    """What reading the good one gave, and the bytes of memory that it took."""

    content: bytes
    grown: int


def read_in_fork(reader: str, path: Path, number: int, good: Undamaged | None, out: Path, seed: str) -> None:
    """In the fork: damage it, unless there is nothing to compare with yet, read it, and write what
    `Damager._fork` reads to `out`."""
    what, allowed = "nothing", JUSTIFIED[0] + JUSTIFIED[1] * size_of(path)
    if good is not None:
        what = _damaged(reader, path, number, seed)
        out.write_text(json.dumps(["died", what, "while reading", 0]))  # what stands if nothing more is written
        allowed += good.grown
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _status("VmSize") + max(2 * 2**30, 4 * allowed)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak, from now on
    before = _status("VmRSS")
    verdict, said = _read(reader, path, number, good and good.content, mutations.MUST_REFUSE in what)
    grown = _status("VmHWM") - before
    if good is not None and grown > allowed and verdict != "grew":
        verdict, said = "grew", f"by {grown / MEBIBYTE:.0f} MiB, allowed {allowed / MEBIBYTE:.0f}: {said}"
    out.write_text(json.dumps([verdict, what, said, grown]))


def _damaged(reader: str, path: Path, number: int, seed: str) -> str:
    """What could not be made of it: other damage is tried."""
    for attempt in range(20):
        with suppress(Exception):
            return READERS[reader].damage(path, random.Random(f"{seed} {attempt}"), number)
    raise RuntimeError(f"no damage could be done to {path}")


def _read(reader: str, path: Path, number: int, expected: bytes | None, must_refuse: bool) -> tuple[str, str]:
    """-> the verdict and what was said."""
    try:
        found = READERS[reader].read(path, number)
    except Exception as error:
        return _refused(error)
    if expected is None:
        return "same", found.hex()
    if found == expected:
        return "same", ""
    return ("silent", "another content was read") if must_refuse else ("differs", "")


def _refused(error: Exception) -> tuple[str, str]:
    from burnish.errors import BurnishError

    said = str(error)
    if _lack_of_memory(error):
        verdict = "grew"
    elif isinstance(error, ReadWrong):
        verdict = "silent"
    elif isinstance(error, BurnishError):
        printed, status = _printed(error)
        wordy = "\n" in printed.strip() or len(printed) > MOST_LETTERS
        verdict = "crashed" if status != 2 else "wordy" if wordy else "refused"
    else:
        verdict, said = "crashed", "".join(traceback.format_exception(error))[-1500:]
    return verdict, said[-1500:]


def _printed(error: Exception) -> tuple[str, int]:
    """What the command says of it, and its status."""
    from burnish.commands import cli

    def fail(arguments: list[str]) -> int:
        raise error

    cli._dispatch = fail
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        status = cli.main([])
    return printed.getvalue(), status


def _lack_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed on the way to it: without our limit it would have been made."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or "can't allocate memory" in text or "not enough memory" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


class Damager:
    """Makes and reads variants in a folder; `seed` decides all damage."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.good: dict[str, Path] = {}
        self.expected: dict[tuple[str, int], Undamaged] = {}

    def prepare(self, reader: str) -> None:
        """Write the good one and read it, in every way that it is read."""
        at = self.folder / "good" / reader
        shutil.rmtree(at, ignore_errors=True)
        at.mkdir(parents=True)

        def make() -> int:
            (self.folder / f"{reader}.path").write_text(str(READERS[reader].make(at)))
            return 0

        if reader == "checkpoint":  # it forks itself
            make()
        else:
            status = warm.wait(warm.start(make, at, self.folder / f"{reader}.log", "damage"), 300)
            if status != 0:
                raise SystemExit(f"chaos: no good {reader}: see {self.folder / reader}.log")
        self.good[reader] = Path((self.folder / f"{reader}.path").read_text())
        for number in range(3):
            result, grown = self._fork(reader, self._copy(reader, f"good-{number}"), number, None)
            if result.verdict != "same":
                raise SystemExit(f"chaos: the undamaged {reader} is {result.verdict}: {result.said}")
            self.expected[reader, number] = Undamaged(bytes.fromhex(result.said), grown)

    def _copy(self, reader: str, name: str) -> Path:
        good = self.good[reader]
        root = self.folder / "good" / reader
        at = self.folder / "variants" / f"{reader}-{name}"
        shutil.rmtree(at, ignore_errors=True)
        shutil.copytree(root, at, symlinks=True)
        return at / good.relative_to(root)

    def make(self, reader: str, number: int) -> Variant:
        """One variant, which is kept where it is a fault."""
        path = self._copy(reader, str(number))
        result, _ = self._fork(reader, path, number, self.expected[reader, number % 3])
        at = self.folder / "variants" / f"{reader}-{number}"
        if result.verdict in GOOD:
            shutil.rmtree(at, ignore_errors=True)
        return result

    def _fork(self, reader: str, path: Path, number: int, good: Undamaged | None) -> tuple[Variant, int]:
        """-> how it ended, and the bytes that it took."""
        name = f"{reader}-{number}-{os.getpid()}"
        out = self.folder / f"{name}.json"
        log = self.folder / f"{name}.log"

        def work() -> int:
            read_in_fork(reader, path, number, good, out, f"{self.seed} {reader} {number}")
            return 0

        pid = warm.start(work, path if path.is_dir() else path.parent, log, name)
        status = warm.wait(pid, WALL_SECONDS)
        if status is None:
            warm.kill_all(pid, name)
            warm.wait(pid, 10)
        verdict, what, said, grown = json.loads(out.read_text()) if out.exists() else ("died", "", "before reading", 0)
        printed = log.read_text(errors="replace")[-1500:] if log.exists() else ""
        if status is None or status in (-signal.SIGXCPU, -signal.SIGKILL):
            verdict, said = "hung", f"after {WALL_SECONDS if status is None else CPU_SECONDS} s"
        elif status < 0:
            verdict, said = "died", f"by {signal.Signals(-status).name}"
        elif status > 0:
            verdict, said = "crashed", printed
        for each in (out, log):
            each.unlink(missing_ok=True)
        return Variant(reader, number, verdict, what, said), grown


def table(results: Sequence[Variant]) -> str:
    """How many of each verdict, for each reader."""
    lines = [f"{'reader':12}" + "".join(f"{verdict:>9}" for verdict in ("tried", *VERDICTS))]
    for reader in dict.fromkeys(result.reader for result in results):
        counts = Counter(result.verdict for result in results if result.reader == reader)
        lines.append(f"{reader:12}" + "".join(f"{n:9}" for n in (counts.total(), *(counts[v] for v in VERDICTS))))
    return "\n".join(lines)


def run(folder: Path, words: Sequence[str], seed: int, tries: int, only: Sequence[int], jobs: int) -> int:
    """The variants of the readers that are asked for, and their table -> 1 if there is a fault."""
    chosen = [name for name in READERS if not words or any(word in name for word in words)]
    if not chosen:
        raise SystemExit(f"chaos: no reader has {' or '.join(words)} in its name: {', '.join(READERS)}")
    damager = Damager(folder / "damage", seed)
    (damager.folder / "variants").mkdir(parents=True, exist_ok=True)
    if "minari" in chosen:
        try:
            import minari  # noqa: F401
        except ImportError:
            chosen.remove("minari")
            print("chaos: Minari is not installed, it is left out")
    began = time.monotonic()
    for reader in chosen:
        damager.prepare(reader)
    todo = [(reader, number) for reader in chosen for number in (only or range(tries))]

    def work(job: int) -> None:
        with (damager.folder / f"job-{job}.jsonl").open("w") as file:
            for reader, number in todo[job::jobs]:
                file.write(json.dumps(damager.make(reader, number)) + "\n")
                file.flush()

    ended = warm.in_jobs(work, jobs)
    files = [damager.folder / f"job-{job}.jsonl" for job in range(jobs)]
    results = sorted(Variant(*json.loads(line)) for file in files for line in file.read_text().splitlines())
    results.sort(key=lambda result: (chosen.index(result.reader), result.number))
    faults = [result for result in results if result.verdict not in GOOD]
    for fault in faults if only or len(faults) < 400 else faults[:400]:
        said = fault.said if only else fault.said.strip().splitlines()[-1][:200] if fault.said.strip() else ""
        print(f"{fault.verdict:8} {fault.reader} {fault.number}: {fault.what[:160]}: {said}")
        print(f"         again: make chaos CHAOS='damage --seed {seed} --reader {fault.reader} --only {fault.number}'")
    print(f"\n{table(results)}\n{len(results)} variants in {time.monotonic() - began:.0f} s, {len(faults)} faults")
    report = {"seed": seed, "results": [result._asdict() for result in results]}
    (folder / "damage.json").write_text(json.dumps(report, indent=1) + "\n")
    if not ended:
        print("chaos: the harness itself failed, see above", file=sys.stderr)
    return int(bool(faults) or not ended)
