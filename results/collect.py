"""Make a committed result of finished fine-tuning runs: a table row per seed, a figure, and where they come from.

    python results/collect.py NAME RUN [RUN ...] --commit COMMIT --machine TEXT --command TEXT

writes results/NAME.json and results/NAME.png, and prints the Markdown rows for results/README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from burnish.evaluation import Difference
from burnish.run import load_config, read_metrics

FOLDER = Path(__file__).resolve().parent


def collect(run: Path, measure: str) -> dict[str, Any]:
    """Before, after and their paired difference of one run; `measure` is "success" or "return"."""
    before, after = (json.loads((run / name).read_text()) for name in ("evaluation_before.json", "evaluation.json"))
    assert before["seeds"] == after["seeds"]
    gain = Difference.between(np.array(before[measure]), np.array(after[measure]))
    lines = read_metrics(run / "metrics.jsonl")
    return {
        "seed": load_config(run)["seed"],
        "episodes": len(before["seeds"]),
        "env_steps": lines[-1]["step"],
        "minutes": round(lines[-1]["time/elapsed"] / 60, 1),
        "before": before["summary"],
        "after": after["summary"],
        "difference": {"mean": gain.mean, "low": gain.interval.low, "high": gain.interval.high},
    }


def row(result: dict[str, Any], key: str) -> str:
    """One Markdown row: seed, before, after, difference, with 95 % intervals."""
    style = "{:.1%}" if key == "success_rate" else "{:.0f}"
    signed = style.replace(":", ":+")

    def interval(summary: dict[str, Any], name: str, form: str) -> str:
        low, high = (summary[f"{name}_{side}" if name != "mean" else side] for side in ("low", "high"))
        return f"{form.format(summary[name])} [{form.format(low)}, {form.format(high)}]"

    cells = [interval(result[when], key, style) for when in ("before", "after")]
    return f"| {result['seed']} | {cells[0]} | {cells[1]} | {interval(result['difference'], 'mean', signed)} |"


def draw(runs: list[Path], results: list[dict[str, Any]], key: str, path: Path) -> None:
    """Training episodes (lines, with exploration noise) and evaluations (points with intervals) over the steps."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, (run, result) in enumerate(zip(runs, results)):
        lines = [line for line in read_metrics(run / "metrics.jsonl") if f"train/{key}" in line]
        colour = f"C{index}"
        axes.plot([line["step"] for line in lines], [line[f"train/{key}"] for line in lines], colour, alpha=0.35)
        values = [result[when][key] for when in ("before", "after")]
        lows, highs = ([result[when][f"{key}_{side}"] for when in ("before", "after")] for side in ("low", "high"))
        errors = np.abs(np.array([lows, highs]) - values)
        shift = (index - 1) * 0.004 * result["env_steps"]
        axes.errorbar(
            np.array([0, result["env_steps"]]) + shift,
            values,
            errors,
            fmt="o",
            color=colour,
            capsize=3,
            label=f"seed {result['seed']}",
        )
    axes.set_xlabel("environment steps")
    axes.set_ylabel(key.replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend(title="evaluation (95 %)\nlines: noisy training", fontsize="small", title_fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("runs", nargs="+", type=Path)
    for option in ("commit", "machine", "command"):
        parser.add_argument(f"--{option}", required=True)
    options = parser.parse_args()
    success = load_config(options.runs[0])["task"]["suite"] == "robosuite"
    key = "success_rate" if success else "return"
    results = [collect(run, "success" if success else "return") for run in options.runs]
    about = {name: getattr(options, name) for name in ("command", "commit", "machine")}
    (FOLDER / f"{options.name}.json").write_text(json.dumps({**about, "runs": results}, indent=1) + "\n")
    draw(options.runs, results, key, FOLDER / f"{options.name}.png")
    print("\n".join(row(result, key) for result in results))


if __name__ == "__main__":
    main()
