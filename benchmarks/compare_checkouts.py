"""Costs of two checkouts of Burnish, measured in turn in one run: is anything slower than it was?

    python benchmarks/compare_checkouts.py ../before . --threads 2 --repeats 10

Each checkout makes the costs of its own `benchmarks/bench_costs.py` in a process of its own, which waits while the
other one works. One turn of a cost follows the other checkout's of the same cost, and which of them goes first
alternates; the ratio (after over before) is taken turn by turn, so that other programs on the machine disturb both
alike. A ratio is of the time of one unit, also where the table of bench_costs.py shows steps per second; the ratio of
CPU time is without that of environments' workers, and on a busy machine the one that says more.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Key = tuple[str, str]  # a cost's name and setting


class Turn(NamedTuple):
    ms: float  # of one unit, as the next
    cpu_ms: float  # of the process with its threads, without environment workers
    times_floor: float


class Checkout:
    """The process that has a checkout's costs; it takes a turn whenever it is asked to."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        if not (folder / "benchmarks" / "bench_costs.py").is_file():
            raise SystemExit(f"{folder}: expected a checkout of Burnish with benchmarks/bench_costs.py")
        command = [sys.executable, __file__, "--serve", str(folder), "--threads", str(options.threads)]
        self.process = subprocess.Popen(
            [*command, *(["--quick"] if options.quick else [])],
            env={**os.environ, "PYTHONPATH": str(folder.resolve())},  # before what is installed
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.folder = folder
        self.package, names = self._answer()
        self.keys: list[Key] = [(name, setting) for name, setting in names]

    def turn(self, key: Key) -> Turn:
        assert self.process.stdin is not None
        print(self.keys.index(key), file=self.process.stdin, flush=True)
        return Turn(*self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.folder}: its costs ended with status {self.process.wait()}")
        return json.loads(line)


class Clock:
    """A cost's `run` that also tells its CPU time."""

    def __init__(self, run: Callable[[], int]) -> None:
        self.run, self.cpu_ms = run, 0.0

    def __call__(self) -> int:
        started = time.process_time()
        done = self.run()
        self.cpu_ms = 1e3 * (time.process_time() - started) / done
        return done


def serve(folder: Path, threads: int, quick: bool) -> None:
    """Names of the costs on the standard output, then a turn for every index on the standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the costs print is no answer
    sys.path.insert(0, str(folder / "benchmarks"))
    bench_costs: Any = importlib.import_module("bench_costs")
    bench_costs.resolve_device("cpu", threads)
    costs = [cost for cost in all_costs(bench_costs, quick) if hasattr(cost, "turn")]  # not those left out
    package = str(Path(importlib.import_module("burnish").__file__ or "").parent)
    print(json.dumps([package, [(cost.name, cost.setting) for cost in costs]]), file=answers, flush=True)
    clocks = [Clock(cost.run) for cost in costs]
    for cost, clock in zip(costs, clocks):
        cost.run = clock
    for index in map(int, sys.stdin):
        costs[index].turn()
        turn = Turn(costs[index].ms[-1], clocks[index].cpu_ms, costs[index].times_floor[-1])
        print(json.dumps(turn), file=answers, flush=True)
    for cost in costs:
        cost.close()


def all_costs(bench_costs: Any, quick: bool) -> list[Any]:
    rate = bench_costs.ProductRate()
    if hasattr(bench_costs, "all_costs"):
        return bench_costs.all_costs(rate, quick)
    return [  # up to a90f0bf
        *bench_costs.rsm_costs(rate, quick),
        *bench_costs.dppo_costs(rate, quick),
        bench_costs.pretraining_cost(rate),
        *bench_costs.latency_costs(rate),
        *bench_costs.environment_costs(quick),
    ]


def take_turns(before: Checkout, after: Checkout, keys: list[Key], repeats: int) -> dict[Key, list[tuple[Turn, Turn]]]:
    """Of each cost, before and after."""
    turns: dict[Key, list[tuple[Turn, Turn]]] = {key: [] for key in keys}
    for i in range(repeats):
        for key in keys:
            if i % 2:
                second = after.turn(key)
                turns[key].append((before.turn(key), second))
            else:
                first = before.turn(key)
                turns[key].append((first, after.turn(key)))
        print(f"turn {i + 1} of {repeats}", file=sys.stderr)
    return turns


def row(key: Key, turns: list[tuple[Turn, Turn]]) -> dict[str, Any]:
    before, after = zip(*turns)
    ratios = [new.ms / old.ms for old, new in turns]
    return {
        "cost": key[0],
        "setting": key[1],
        "before_ms": statistics.median(turn.ms for turn in before),
        "after_ms": statistics.median(turn.ms for turn in after),
        "before_times_floor": statistics.median(turn.times_floor for turn in before),
        "after_times_floor": statistics.median(turn.times_floor for turn in after),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_ratio": statistics.median(new.cpu_ms / old.cpu_ms for old, new in turns),
    }


def print_table(rows: list[dict[str, Any]], limit: float) -> None:
    print(
        "| cost | setting | before, ms | after, ms | after / before (range) | of CPU time |\n|---|---|---|---|---|---|"
    )
    for r in rows:
        ratio = f"{r['ratio']:.3f} ({min(r['ratios']):.3f} to {max(r['ratios']):.3f}) | {r['cpu_ratio']:.3f}"
        print(f"| {r['cost']} | {r['setting']} | {r['before_ms']:.4g} | {r['after_ms']:.4g} | {ratio} |")
    slower = [f"{r['cost']}, {r['setting']}" for r in rows if r["ratio"] > limit]
    print(f"\nslower by more than {limit - 1:.0%}: {'; '.join(slower) or 'none'}")


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    before, after = (Checkout(folder, options) for folder in (options.before, options.after))
    print(f"before: {before.package}\nafter: {after.package}", file=sys.stderr)
    keys = [key for key in before.keys if key in after.keys and options.only.lower() in ", ".join(key).lower()]
    for checkout, other in ((before, after), (after, before)):
        for key in checkout.keys:
            if key not in other.keys:
                print(f"not compared, as {other.folder} has none: {', '.join(key)}", file=sys.stderr)
    turns = take_turns(before, after, keys, 1 if options.quick else options.repeats)
    before.close()
    after.close()
    return [row(key, turns[key]) for key in keys]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?", help="a checkout")
    parser.add_argument("after", type=Path, nargs="?", help="another")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--repeats", type=int, default=10, help="turns of each cost")
    parser.add_argument("--only", default="", help="costs with this in their names or settings")
    parser.add_argument("--limit", type=float, default=1.03, help="a larger ratio is told below the table")
    parser.add_argument("--quick", action="store_true", help="does it run: small batches, one turn")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.threads, options.quick)
        return
    if options.after is None:
        parser.error("expected two checkouts")
    load_before = os.getloadavg()[0]
    rows = compare(options)
    print(f"{options.threads} threads on {os.cpu_count()} CPUs, load {load_before:.1f} to {os.getloadavg()[0]:.1f}\n")
    print_table(rows, options.limit)
    if options.json:
        report = {"threads": options.threads, "load": (load_before, os.getloadavg()[0]), "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
