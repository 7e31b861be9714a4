"""Curves of a run's metrics, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_curve(
    lines: Sequence[dict[str, Any]],
    x_key: str,
    y_keys: Sequence[str],
    path: Path,
    *,
    x_label: str | None,
    title: str,
) -> bool:
    """Draw one panel for each of `y_keys` found in `lines`, over `x_key`, into `path` (PNG).

    A band is drawn between `<key>_low` and `<key>_high` where both are there. False where nothing was drawn.
    """
    # Figure without pyplot: no global state, no display, no backend to choose.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {}
    for key in y_keys:
        points = [line for line in lines if line.get(x_key) is not None and line.get(key) is not None]
        if points:
            curves[key] = points
    if not curves:
        return False
    figure = Figure(figsize=(6.4, 0.6 + 3.0 * len(curves)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(curves), 1, squeeze=False, sharex=True)[:, 0]
    for panel, (key, points) in zip(panels, curves.items()):
        x = [point[x_key] for point in points]
        panel.plot(x, [point[key] for point in points], marker="o" if len(points) < 50 else None, markersize=3)
        if all(point.get(f"{key}{side}") is not None for point in points for side in ("_low", "_high")):
            low, high = ([point[f"{key}{side}"] for point in points] for side in ("_low", "_high"))
            panel.fill_between(x, low, high, alpha=0.2, linewidth=0)
        panel.set_ylabel(key)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel(x_label or x_key)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    return True
