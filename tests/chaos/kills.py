"""Kill -9 at any moment: a run that goes on afterwards ends with the very numbers of an unbroken one.

A try runs one of `tiny_runs.KINDS` in a fork, kills it (the process alone, or with all that it started) one to three
times at random moments, or before a chosen change of the file system, goes on as a user would, and compares with the
unbroken run of the same seed: metrics, weights, trainer's state, links, files. What it leaves running is a fault, too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from chaos import warm
from chaos.file_changes import FileChanges
from chaos.tiny_runs import KINDS, MADE_FIRST, comparison, differences

CHANGES_OF = ("bc", "dppo", "dpmd", "sdac", "offline", "sac")
CHANGES_TRIES = 12  # of each of these in the long form
MOST_KILLS = 3
SECONDS_TO_END = {"compare-ray": 60.0}
"""After a kill -9 of the main process, for what it had started; others: 15."""


class Try(NamedTuple):
    """One that is to be made: the kind, what decides the moments, and its number."""

    kind: str
    by: str  # "moment"; "change", a random one of the file system; "at", once, before the change of that number
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.by}:{self.number}"


class Result(NamedTuple):
    """How a try ended."""

    name: str
    kills: int
    faults: list[str]
    seconds: float


class Unbroken(NamedTuple):
    """The run that nothing happened to."""

    folder: Path
    seconds: float
    changes: int


def planned(words: Sequence[str], tries: int | None, by_change: int | None) -> list[Try]:
    """Those of the kinds that have one of `words` in their names; so many of each kind (None: as many as it says)."""
    kinds = [name for name in KINDS if not words or any(word in name for word in words)]
    found = [Try(kind, "moment", i) for kind in kinds for i in range(KINDS[kind].tries if tries is None else tries)]
    each = CHANGES_TRIES if by_change is None else by_change
    return found + [Try(kind, "change", i) for kind in kinds if kind in CHANGES_OF for i in range(each)]


class Killer:
    """Makes tries in a folder; `seed` decides all moments."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder.absolute(), seed
        self.base = self.folder / "base"
        self.known: dict[str, Unbroken] = {}

    def prepare(self, kinds: Sequence[str]) -> None:
        """Make what runs start from, and the unbroken runs."""
        self.base.mkdir(parents=True, exist_ok=True)
        for name, words in MADE_FIRST.items():
            if not (self.base / name).exists():
                self._run_whole(words, self.base, name)
        for runner in ("local", "ray"):
            (self.base / f"{runner}.yaml").write_text(comparison(runner, self.base))
        for kind in kinds:
            at = self.folder / "unbroken" / kind
            shutil.rmtree(at, ignore_errors=True)
            at.mkdir(parents=True)
            changes = FileChanges(at / "run", at / "changes.txt")
            watched = None if kind.startswith("compare") else changes.watch
            seconds = self._run_whole(self._words(kind), at, kind, watched)
            self.known[kind] = Unbroken(at / "run", seconds, len((at / "changes.txt").read_text().splitlines()))

    def _run_whole(self, words: Sequence[str], at: Path, name: str, before: object = None) -> float:
        began = time.monotonic()
        pid = warm.start_burnish(words, at, at / f"{name}.log", f"whole-{name}", before)  # type: ignore[arg-type]
        status = warm.wait(pid, 300)
        if status is None:
            warm.kill_all(pid, f"whole-{name}")
        if status != 0:
            raise SystemExit(f"chaos: the unbroken {name} ended with status {status}: see {at / name}.log")
        return time.monotonic() - began

    def _words(self, kind: str) -> list[str]:
        return [word.format(base=self.base) for word in KINDS[kind].words]

    def _go_on(self, kind: str, run: Path) -> list[str]:
        """What a user would type: resume=RUN where there is a run, else the same command again."""
        command = KINDS[kind].goes_on
        if command is not None and (run / "config.yaml").exists():
            return [command, "resume=run"]
        return self._words(kind)

    def make(self, one: Try) -> Result:
        """Kill, go on, compare. What is lost keeps its folder."""
        began, span = time.monotonic(), self.known[one.kind].seconds
        rng = random.Random(f"{self.seed} {one}")
        while True:
            at = self.folder / "tries" / str(one).replace(":", "-")
            shutil.rmtree(at, ignore_errors=True)
            at.mkdir(parents=True)
            kills, faults = self._killed(one, at, rng, span)
            if kills or faults or span < 0.2:
                break
            span /= 2  # it had ended before
        if faults:
            (at / "faults.txt").write_text("\n".join([*faults, f"again: make chaos CHAOS='{self.again(one)}'", ""]))
        else:
            shutil.rmtree(at)
        return Result(str(one), kills, faults, time.monotonic() - began)

    def _killed(self, one: Try, at: Path, rng: random.Random, span: float) -> tuple[int, list[str]]:
        """Kill it and go on, to its end -> how often it was killed, and what is wrong then."""
        kills, unbroken = 0, self.known[one.kind]
        patience = 120 + 20 * unbroken.seconds
        for _ in range(1 if one.by == "at" else rng.randint(1, MOST_KILLS)):
            moment, alone, before = rng.uniform(0, span), rng.random() < 0.5, None
            if one.by != "moment":
                kill_at = one.number if one.by == "at" else rng.randrange(unbroken.changes)
                before, moment = FileChanges(at / "run", at / "changes.txt", kill_at).watch, patience
            status, left = self._kill(one, at, moment, alone, before)
            if status not in (None, -signal.SIGKILL):
                break  # it was quicker
            if status is None and one.by != "moment":
                return kills, ["hung"]
            kills += 1
            if left:
                return kills, [left]
            span *= 0.7
        else:
            status, left = self._kill(one, at, patience, False, None)
        if left:
            return kills, [left]
        if status != 0:
            return kills, ["hung" if status is None else f"does not go on: status {status}, {last_line(at)}"]
        return kills, differences(at / "run", unbroken.folder)

    def again(self, one: Try) -> str:
        """The words of the command that makes a try once more."""
        return f"kills --seed {self.seed} --only {one}"

    def _kill(self, one: Try, at: Path, moment: float, alone: bool, before: object) -> tuple[int | None, str | None]:
        """Run until it ends, or kill it at that moment -> its status (None: killed here), and what it left running."""
        words = self._go_on(one.kind, at / "run")
        mark = f"{self.seed}-{one}-{os.getpid()}"
        pid = warm.start_burnish(words, at, at / "log.txt", mark, before)  # type: ignore[arg-type]
        status = warm.wait(pid, moment)
        if status is None:
            if not alone:
                warm.kill_all(pid, mark)
            os.kill(pid, signal.SIGKILL)
            warm.wait(pid, 10)
        left = warm.left_after(pid, mark, SECONDS_TO_END.get(one.kind, 15.0))
        if left:
            warm.kill_all(pid, mark)
        return status, f"left running: {', '.join(f'{p.name} ({p.pid})' for p in left)}" if left else None


def last_line(at: Path) -> str:
    """The last words of a try's log."""
    lines = (at / "log.txt").read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def make_all(killer: Killer, tries: Sequence[Try], jobs: int) -> list[Result]:
    """Make the tries in so many processes at a time."""
    out = killer.folder / "results"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    def work(job: int) -> None:
        with (out / f"{job}.jsonl").open("w") as file:
            for one in tries[job::jobs]:
                result = killer.make(one)
                print(line(result), flush=True)
                file.write(json.dumps(result) + "\n")
                file.flush()

    if not warm.in_jobs(work, jobs):
        raise SystemExit("chaos: the harness itself failed, see above")
    lines = [each for path in sorted(out.iterdir()) for each in path.read_text().splitlines()]
    return [Result(*json.loads(each)) for each in lines]


def line(result: Result) -> str:
    """A try in one line."""
    how = "survived" if not result.faults else f"LOST: {'; '.join(result.faults)[:300]}"
    return f"{result.name:24} killed {result.kills} times {result.seconds:6.1f} s  {how}"


def table(results: Sequence[Result]) -> str:
    """Tries, kills, survived, lost, for each kind."""
    lines = [f"{'kind':24}{'tries':>7}{'kills':>7}{'survived':>10}{'lost':>6}"]
    counts: dict[str, Counter[str]] = {}
    for result in results:
        kind, by, _ = result.name.split(":")
        lost = bool(result.faults)
        name = kind if by == "moment" else f"{kind}, at changes"
        for each in (name, "all"):
            counts.setdefault(each, Counter()).update(tries=1, kills=result.kills, survived=not lost, lost=lost)
    for name in sorted(counts, key=lambda name: (name == "all", name)):
        count = counts[name]
        lines.append(f"{name:24}{count['tries']:7}{count['kills']:7}{count['survived']:10}{count['lost']:6}")
    return "\n".join(lines)


def run(folder: Path, words: Sequence[str], seed: int, tries: int | None, by_change: int | None, jobs: int) -> int:
    """The tries of the kinds that are asked for, and their table -> 1 if something was lost."""
    one_by_one = [Try(kind, by, int(number)) for kind, by, number in (w.split(":") for w in words if ":" in w)]
    todo = one_by_one or planned(words, tries, by_change)
    if not any(KINDS[one.kind].words for one in todo):
        raise SystemExit(f"chaos: no kind of run has {' or '.join(words)} in its name: {', '.join(KINDS)}")
    try:
        import ray  # noqa: F401
    except ImportError:
        todo = [one for one in todo if one.kind != "compare-ray"]
        print("chaos: Ray is not installed, compare-ray is left out")
    killer = Killer(folder / "kills", seed)
    killer.prepare(list(dict.fromkeys(one.kind for one in todo)))
    results = make_all(killer, todo, jobs)
    print(f"\n{table(results)}")
    lost = [result for result in results if result.faults]
    for result in lost:
        print(f"lost: {killer.folder / 'tries' / result.name.replace(':', '-')}: {'; '.join(result.faults)[:400]}")
    report = {"seed": seed, "results": [result._asdict() for result in results]}
    (folder / "kills.json").write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(lost))
