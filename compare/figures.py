"""The report's figures: one panel an image, drawn small with large letters, to be read on a telephone as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter
from PIL import Image

from burnish.compare.results import SUCCESS, Axis, Measure, Point, RunResult, mean_curve
from burnish.compare.statistics import Estimate, Profile

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito (2008)
MARKERS = "os^DvpXP<"  # as many as make another pair with each colour for 63 methods
MOST_MARKERS = 20  # on one line
SIZE = (5.2, 4.0)  # inches, without the legend
LEGEND_ROW = 0.26  # inches
DPI = 160
FONT = 12

LABELS: dict[Axis, str] = {"env_steps": "environment steps", "minutes": "minutes of training"}


class Look(NamedTuple):
    colour: str
    marker: str


class Series(NamedTuple):
    """The finished runs of one method."""

    name: str
    look: Look
    runs: Sequence[RunResult]


class Row(NamedTuple):
    """An estimate to draw beside its name."""

    name: str
    look: Look
    estimate: Estimate


class ProfileLine(NamedTuple):
    name: str
    look: Look
    profile: Profile


def look(index: int) -> Look:
    """Of the method number `index`: colours first repeat with another marker."""
    return Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])


def draw_learning_curves(
    series: Sequence[Series], measure: Measure, over: Axis, pretrained: float | None, path: Path
) -> None:
    """A colour a method, thin a seed, thick their mean; dashed the best of N by Q, dotted episodes of training."""
    handles = _legend(series, pretrained)
    figure, panel = _panel(handles)
    if pretrained is not None:
        panel.axhline(pretrained, color="#666666", linestyle="-.", linewidth=1.2)
    for one in series:
        _draw_runs(panel, one, over)
    panel.set_xlabel(LABELS[over])
    panel.set_ylabel(measure.label)
    _format_value(panel, measure)
    if over == "env_steps":
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    _save(figure, path)


def draw_profiles(lines: Sequence[ProfileLine], path: Path) -> None:
    """Share of runs above each normalised score, with 95 % bands."""
    figure, panel = _panel([_handle(line.name, line.look, marker=False) for line in lines])
    for line in lines:
        of = line.profile
        panel.step(of.thresholds, of.share, where="post", color=line.look.colour, linewidth=2.2)
        panel.fill_between(of.thresholds, of.low, of.high, step="post", color=line.look.colour, alpha=0.15, linewidth=0)
    panel.set_xlabel("normalised score")
    panel.set_ylabel("share of runs above it")
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    _save(figure, path)


def draw_estimates(rows: Sequence[Row], label: str, path: Path) -> None:
    """One estimate below the other, with its interval where it has one."""
    figure, panel = _panel([], height=1.2 + 0.4 * len(rows))
    for place, row in enumerate(rows):
        value, interval = row.estimate
        errors = [[max(value - interval.low, 0)], [max(interval.high - value, 0)]] if interval else None
        panel.errorbar(
            value, place, xerr=errors, fmt=row.look.marker, color=row.look.colour, markersize=8, capsize=4, linewidth=2
        )
    panel.set_yticks(range(len(rows)), [row.name for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel(label)
    _save(figure, path)


def only_training(runs: Sequence[RunResult]) -> bool:
    """Whether the runs were evaluated before and after alone, which makes no curve."""
    return all(len(run.curve) <= 2 and run.curve_training for run in runs)


def _draw_runs(panel: Axes, series: Series, over: Axis) -> None:
    if not series.runs:
        return
    of_training = only_training(series.runs)
    thin = [run.curve_training if of_training else run.curve for run in series.runs]
    _draw_lines(panel, thin, series.look, over, ":" if of_training else "-")
    _draw_mean(panel, [run.curve for run in series.runs], series.look, over, "none" if of_training else "-")
    selected = [run.curve_selected for run in series.runs]
    _draw_lines(panel, selected, series.look, over, "--")
    _draw_mean(panel, selected, series.look, over, "--")


def _draw_lines(panel: Axes, curves: Sequence[Sequence[Point]], of: Look, over: Axis, style: str) -> None:
    for points in curves:
        x, y = _coordinates(points, over)
        panel.plot(x, y, linestyle=style, color=of.colour, linewidth=0.9, alpha=0.55)


def _draw_mean(panel: Axes, curves: Sequence[Sequence[Point]], of: Look, over: Axis, style: str) -> None:
    if not all(curves):
        return
    x, y = _coordinates(mean_curve(curves), over)
    panel.plot(
        x,
        y,
        linestyle=style,
        color=of.colour,
        linewidth=2.4,
        marker=of.marker,
        markersize=6,
        markerfacecolor="white" if style == "--" else of.colour,
        markevery=max(1, len(x) // MOST_MARKERS),
    )


def _coordinates(points: Sequence[Point], over: Axis) -> tuple[list[float], list[float]]:
    return [getattr(point, over) for point in points], [point.value for point in points]


def _legend(series: Sequence[Series], pretrained: float | None) -> list[Line2D]:
    handles = [_handle(one.name, one.look) for one in series if one.runs]
    runs = [run for one in series for run in one.runs]
    if len(runs) > len(handles):
        handles.append(Line2D([], [], color="grey", linewidth=0.9, label="single seeds"))
    if any(only_training(one.runs) for one in series if one.runs):
        handles.append(Line2D([], [], color="grey", linestyle=":", linewidth=0.9, label="training episodes"))
    if any(run.curve_selected for run in runs):
        handles.append(Line2D([], [], color="grey", linestyle="--", linewidth=2.4, label="best of N by Q"))
    if pretrained is not None:
        handles.append(Line2D([], [], color="#666666", linestyle="-.", linewidth=1.2, label="pretrained"))
    return handles


def _handle(name: str, of: Look, marker: bool = True) -> Line2D:
    return Line2D([], [], color=of.colour, marker=of.marker if marker else "", linewidth=2.4, markersize=6, label=name)


def _panel(handles: Sequence[Line2D], height: float = SIZE[1]) -> tuple[Figure, Axes]:
    """Figure without pyplot: no global state, no display, no backend to choose."""
    columns = 2 if max((len(str(handle.get_label())) for handle in handles), default=0) <= 22 else 1
    rows = -(-len(handles) // columns)
    figure = Figure(figsize=(SIZE[0], height + rows * LEGEND_ROW), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    panel.grid(alpha=0.3)
    panel.tick_params(labelsize=FONT)
    panel.xaxis.label.set_fontsize(FONT + 1)
    panel.yaxis.label.set_fontsize(FONT + 1)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=FONT, frameon=False)
    return figure, panel


def _format_value(panel: Axes, measure: Measure) -> None:
    if measure == SUCCESS:
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        panel.yaxis.set_major_formatter(EngFormatter(sep=""))


def _save(figure: Figure, path: Path) -> None:
    """With a palette of 256 colours: a third of the size, and reports are kept."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
