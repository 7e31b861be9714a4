"""Make a committed result of finished runs of several methods: a figure, every number, and Markdown rows.

    python results/curves.py NAME --method "DPMD=RUN,RUN,RUN" [--method "DPPO=RUN,..."] [--sac "SAC=FILE,..."]
        --commit COMMIT --machine TEXT --command TEXT

writes results/NAME.json and results/NAME.png (from the numbers in the JSON alone), and prints the rows for
results/README.md: one a method, then one a run. `--sac` takes what results/sac.py wrote. The first method is the one
that the others are compared with.

Three kinds of intervals, all 95 %:
    one evaluation of one run: over its episodes (Wilson for success, bootstrap for return), from the run folder;
    the mean over seeds: Student's t over the seeds (a bootstrap of three numbers would be too narrow);
    a difference, of before and after or of two methods: paired bootstrap over episodes, see `paired_difference`.

Minutes are those of training: acting and updates, without evaluations, checkpoints and the start; the loop logs them.
`elapsed_minutes` in the JSON has everything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from scipy.stats import t as student_t

from burnish.errors import BurnishError
from burnish.evaluation import CONFIDENCE, Difference, EvaluationConfig, bootstrap_interval
from burnish.run import load_config, read_metrics

FOLDER = Path(__file__).resolve().parent
STAGES = ("before", "after", "after_selected", "best")
EVALUATIONS = {"before": "evaluation_before.json", "after": "evaluation.json"}
STYLES = {"eval": "-", "eval_selected": "--"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito (2008)
MARKERS = "os^Dvpx"
AXES = ("env_steps", "minutes")  # the first columns of a curve, and what each panel goes over
BESIDE = 0.012  # final points stand so much of the longest run apart
SAME_STEP = 0.02  # evaluations of two seeds are of the same time where their steps differ by less of the whole run


class Measure(NamedTuple):
    """What is compared: its name in a summary, that of its value per episode, how it is written, its range."""

    key: str
    per_episode: str
    form: str
    low: float
    high: float


SUCCESS = Measure("success_rate", "success", "{:.1%}", 0.0, 1.0)
RETURN = Measure("return", "return", "{:,.0f}", -np.inf, np.inf)


@dataclass(frozen=True)
class RunResult:
    """One run: `content` goes into the JSON; `episodes[when]` is the measure by the episode's seed."""

    task: str
    content: dict[str, Any]
    episodes: dict[str, dict[int, float]]


def collect(folder: Path, measure: Measure) -> RunResult:
    """The numbers of one finished run folder. Raises BurnishError where it is none."""
    config = load_config(folder)
    summary = read_json(folder, "summary.json")
    saved = {when: read_json(folder, name) for when, name in EVALUATIONS.items()}
    if summary.get("after_selected"):
        saved["after_selected"] = read_json(folder, "evaluation_selected.json")
    episodes = {when: dict(zip(found["seeds"], found[measure.per_episode])) for when, found in saved.items()}
    if episodes["before"].keys() != episodes["after"].keys():
        raise BurnishError(f"{folder}: before and after were evaluated on other episodes, and cannot be compared")
    lines = with_minutes(folder)
    content = {
        "seed": config["seed"],
        "env_steps": summary["env_steps"],
        "minutes": lines[-1]["minutes"],
        "elapsed_minutes": lines[-1]["time/elapsed"] / 60,
        **{when: found["summary"] for when, found in saved.items()},
        "difference": difference(list(episodes["before"].values()), list(episodes["after"].values())),
        "curves": {kind: curve(lines, f"{kind}/{measure.key}") for kind in (*STYLES, "train")},
    }
    if summary.get("best"):
        content["best"] = best(lines, summary["best"]["env_steps"])
    return RunResult(config["task"]["name"], content, episodes)


def collect_sac(file: Path) -> RunResult:
    """The same of what results/sac.py wrote; its episodes have the seeds of an evaluation by default."""
    found = read_json(file.parent, file.name)
    try:
        evaluations = [(e["step"], e["minutes"], np.array(e["return"], float)) for e in found["evaluations"]]
    except (KeyError, TypeError) as error:
        raise BurnishError(f"{file} is not what results/sac.py writes: it has no evaluations") from error
    if not evaluations:
        raise BurnishError(f"{file} has no evaluation yet")
    steps, minutes, returns = evaluations[-1]
    best_steps, _, best_returns = max(evaluations, key=lambda evaluation: evaluation[2].mean())
    content = {
        "seed": found["seed"],
        "env_steps": steps,
        "minutes": minutes,
        "elapsed_minutes": minutes,
        "after": return_summary(returns),
        "best": {"env_steps": best_steps, **return_summary(best_returns)},
        "curves": {"eval": [[s, m, float(r.mean())] for s, m, r in evaluations], "eval_selected": [], "train": []},
    }
    return RunResult(found["task"], content, {"after": dict(enumerate(returns.tolist(), EvaluationConfig.seed))})


def read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise BurnishError(f"{folder} is no finished run: it has no {name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BurnishError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise BurnishError(f"{path} is damaged: expected keys and values")
    return found


def with_minutes(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, each with the `minutes` of training up to it."""
    path = folder / "metrics.jsonl"
    lines = read_metrics(path) if path.is_file() else []
    steps, seconds = 0, 0.0
    for line in lines:
        if "time/training" in line:
            seconds += line["time/training"]
        elif "time/env_steps_per_second" in line:  # runs of commits before ff38ebb log no more
            seconds += (line["step"] - steps) / line["time/env_steps_per_second"]
            steps = line["step"]
        line["minutes"] = seconds / 60
    if not seconds:
        raise BurnishError(f"{folder} is no finished run: its metrics.jsonl has no update")
    return lines


def curve(lines: list[dict[str, Any]], key: str) -> list[list[float]]:
    """[environment steps, minutes, value] for each line that has the key."""
    return [[line["step"], line["minutes"], line[key]] for line in lines if line.get(key) is not None]


def best(lines: list[dict[str, Any]], env_steps: int) -> dict[str, Any]:
    """The summary, with intervals, of the evaluation after `env_steps`."""
    line = next(line for line in reversed(lines) if line["step"] == env_steps and "eval/return" in line)
    evaluated = {key.removeprefix("eval/"): value for key, value in line.items() if key.startswith("eval/")}
    return {"env_steps": env_steps, **evaluated}


def return_summary(returns: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap_interval(returns)
    return {"episodes": len(returns), "return": float(returns.mean()), "return_low": low, "return_high": high}


def difference(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """Mean of after - before with its paired bootstrap interval."""
    gain = Difference.between(np.array(before), np.array(after))
    return {"mean": gain.mean, "low": gain.interval.low, "high": gain.interval.high}


def paired_difference(first: list[RunResult], other: list[RunResult], when: str) -> dict[str, Any] | None:
    """other - first over the run seeds and episodes that both have; None where there are none.

    The runs of all seeds are evaluated from the same initial states, so what is drawn again is the initial state, in
    all runs at once. The seeds are taken as given: how another seed would do is not in the interval.
    """
    mine, theirs = (
        {r.content["seed"]: r.episodes[when] for r in runs if when in r.episodes} for runs in (first, other)
    )
    seeds = sorted(mine.keys() & theirs.keys())
    compared = [[method[seed] for seed in seeds] for method in (mine, theirs)]
    states = sorted(set.intersection(*(set(run) for runs in compared for run in runs))) if seeds else []
    if not states:
        return None
    means = [np.mean([[run[state] for state in states] for run in runs], axis=0) for runs in compared]
    return {**difference(*means), "seeds": seeds, "episodes": len(states)}


def seed_mean(values: list[float], measure: Measure) -> dict[str, float | None]:
    """Mean over seeds with Student's t interval, cut to the measure's range; no interval for one seed.

    mean -+ t_{n-1} s / sqrt(n), s the standard deviation with n - 1
    """
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return {"mean": mean, "low": None, "high": None}
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return {"mean": mean, "low": max(mean - half, measure.low), "high": min(mean + half, measure.high)}


def compare(methods: dict[str, list[RunResult]], measure: Measure) -> list[dict[str, Any]]:
    """One entry a method: its runs, the means over its seeds, and the differences from the first method."""
    first = next(iter(methods.values()))
    entries = []
    for name, runs in methods.items():
        contents = [run.content for run in runs]
        means = {when: [c[when][measure.key] for c in contents if when in c] for when in STAGES}
        entry = {
            "method": name,
            "mean": {when: seed_mean(values, measure) for when, values in means.items() if len(values) == len(runs)},
            "runs": contents,
        }
        if runs is not first:
            entry["from_first"] = {when: paired_difference(first, runs, when) for when in ("after", "after_selected")}
        entries.append(entry)
    return entries


def table(entries: list[dict[str, Any]], measure: Measure) -> str:
    """Markdown: a row a method (mean over seeds), then a row a run."""
    head = ["method", "seeds", "before", "after, one sample", "after, best of N by Q", "env steps", "minutes"]
    rows = [head, ["---"] * len(head)]
    for entry in entries:
        runs = entry["runs"]
        seeds = ", ".join(str(run["seed"]) for run in runs)
        cells = [cell(entry["mean"].get(when), measure) for when in STAGES[:3]]
        rows.append([entry["method"], seeds, *cells, *amounts(runs)])
    for entry in entries:
        for run in entry["runs"]:
            cells = [cell(estimate(run.get(when), measure), measure) for when in STAGES[:3]]
            rows.append([entry["method"], str(run["seed"]), *cells, *amounts([run])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def estimate(summary: dict[str, Any] | None, measure: Measure) -> dict[str, float] | None:
    """Mean, low and high of an evaluation's summary."""
    return summary and {side or "mean": summary[measure.key + "_" * bool(side) + side] for side in ("", "low", "high")}


def cell(value: dict[str, Any] | None, measure: Measure) -> str:
    if value is None:
        return ""
    mean = measure.form.format(value["mean"])
    return (
        mean
        if value["low"] is None
        else f"{mean} [{', '.join(measure.form.format(value[s]) for s in ('low', 'high'))}]"
    )


def amounts(runs: list[dict[str, Any]]) -> list[str]:
    """Environment steps and minutes: means, but both ends where some runs are much longer than others."""
    steps = [run["env_steps"] for run in runs]
    alike = max(steps) - min(steps) <= SAME_STEP * max(steps)
    shown = f"{np.mean(steps):,.0f}" if alike else f"{min(steps):,} to {max(steps):,}"
    return [shown, f"{np.mean([run['minutes'] for run in runs]):.1f}"]


def draw(entries: list[dict[str, Any]], measure: Measure, path: Path) -> None:
    """The measure over environment steps and over minutes: a colour a method, thin a seed, thick their mean.

    The last evaluations stand to the right of where they were made, side by side, for their intervals to be seen.
    """
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, x, label in zip(panels, AXES, ("environment steps", "minutes of training")):
        beside = BESIDE * max(run[x] for entry in entries for run in entry["runs"])
        n_before = 0
        for entry, colour, marker in zip(entries, COLOURS, MARKERS):
            draw_curves(panel, entry["runs"], AXES.index(x), colour, marker)
            for index, run in enumerate(entry["runs"], n_before + 1):
                draw_end(panel, run, measure, run[x] + index * beside, colour, marker)
            n_before += len(entry["runs"]) if x == "env_steps" else 0  # methods end at minutes of their own
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(measure.key.replace("_", " "))
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(handles=legend(entries), loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)


def draw_curves(panel: Axes, runs: list[dict[str, Any]], x: int, colour: str, marker: str) -> None:
    """Evaluations over column `x` of the curves; of a run without any in between, its training episodes (dotted)."""
    for kind, style in STYLES.items():
        curves = [np.array(run["curves"][kind]) for run in runs if run["curves"][kind]]
        thin, thin_style, thick_style = curves, style, style
        if kind == "eval" and only_training(runs):
            thin, thin_style, thick_style = [np.array(run["curves"]["train"]) for run in runs], ":", "none"
        for points in thin:
            panel.plot(points[:, x], points[:, 2], linestyle=thin_style, color=colour, linewidth=0.8, alpha=0.6)
        if len(curves) == len(runs):
            points = mean_curve(curves)
            panel.plot(
                points[:, x], points[:, 2], linestyle=thick_style, color=colour, linewidth=2.2, marker=marker, ms=4
            )


def only_training(runs: list[dict[str, Any]]) -> bool:
    """Whether the runs were evaluated before and after alone, which makes no curve."""
    return all(len(run["curves"]["eval"]) <= 2 and run["curves"]["train"] for run in runs)


def draw_end(panel: Axes, run: dict[str, Any], measure: Measure, at: float, colour: str, marker: str) -> None:
    """The last evaluations of one run with their intervals, open where Q chose."""
    for when, fill in (("after", colour), ("after_selected", "white")):
        if value := estimate(run.get(when), measure):
            errors = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
            bar = panel.errorbar(
                at, value["mean"], errors, fmt=marker, color=colour, ms=3.5, capsize=1.5, linewidth=0.8
            )
            bar[0].set_markerfacecolor(fill)


def mean_curve(curves: list[np.ndarray]) -> np.ndarray:
    """(n, 3) means over seeds of [steps, minutes, value], where each seed was evaluated at about the same step."""
    tolerance = SAME_STEP * max(points[-1, 0] for points in curves)
    rows = []
    for step in curves[0][:, 0]:
        nearest = [points[np.abs(points[:, 0] - step).argmin()] for points in curves]
        if all(abs(point[0] - step) <= tolerance for point in nearest):
            rows.append(np.mean(nearest, axis=0))
    return np.array(rows).reshape(-1, 3)


def legend(entries: list[dict[str, Any]]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, marker=marker, linewidth=2.2, markersize=5, label=entry["method"])
        for entry, colour, marker in zip(entries, COLOURS, MARKERS)
    ]
    handles.append(Line2D([], [], color="grey", linewidth=0.8, label="single seeds, last with 95 %"))
    if any(only_training(entry["runs"]) for entry in entries):
        handles.append(
            Line2D([], [], color="grey", linestyle=":", linewidth=0.8, label="training episodes, with noise")
        )
    if any(run["curves"]["eval_selected"] for entry in entries for run in entry["runs"]):
        handles.append(Line2D([], [], color="grey", linestyle="--", linewidth=2.2, label="best of N by Q"))
    return handles


def named_paths(text: str) -> tuple[str, list[Path]]:
    """NAME=PATH,PATH -> the name and its paths."""
    name, equals, paths = text.partition("=")
    if not (name and equals and paths):
        raise BurnishError(f"{text!r}: expected NAME=PATH,PATH,...")
    return name, [Path(path) for path in paths.split(",")]


def collect_all(options: argparse.Namespace) -> tuple[dict[str, list[RunResult]], Measure]:
    """All runs by method, and what they are compared by. Raises BurnishError where they do not belong together."""
    named = [named_paths(text) for text in options.method]
    if not named:
        raise BurnishError("nothing to compare: give --method NAME=RUN,RUN,...")
    measure = SUCCESS if load_config(named[0][1][0])["task"]["suite"] == "robosuite" else RETURN
    parts = [(name, [collect(path, measure) for path in paths]) for name, paths in named]
    parts += [(name, [collect_sac(path) for path in paths]) for name, paths in map(named_paths, options.sac)]
    methods = dict(parts)
    if not len(parts) == len(methods) <= len(COLOURS):
        raise BurnishError(f"expected at most {len(COLOURS)} methods of different names, found {len(parts)}")
    tasks = {run.task for runs in methods.values() for run in runs}
    if len(tasks) > 1:
        raise BurnishError(f"the runs are of different tasks: {', '.join(sorted(tasks))}")
    for name, runs in methods.items():
        seeds = [run.content["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            raise BurnishError(f"{name}: two runs have the same seed (found {seeds})")
    return methods, measure


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    for option in ("method", "sac"):
        parser.add_argument(f"--{option}", action="append", default=[], metavar="NAME=PATH,PATH,...")
    for option in ("commit", "machine", "command"):
        parser.add_argument(f"--{option}", required=True)
    options = parser.parse_args(argv)
    try:
        methods, measure = collect_all(options)
    except BurnishError as error:
        print(f"curves.py: error: {error}", file=sys.stderr)
        return 2
    about = {name: getattr(options, name) for name in ("command", "commit", "machine")}
    entries = compare(methods, measure)
    content = {**about, "measure": measure.key, "confidence": CONFIDENCE, "methods": entries}
    (FOLDER / f"{options.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(entries, measure, FOLDER / f"{options.name}.png")
    print(table(entries, measure))
    return 0


if __name__ == "__main__":
    sys.exit(main())
