"""Panels of lines as a file of SVG, which also stands inside a page; look and colours are those of `train/plots.py`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.plots import DASHES, INK, SERIES, STYLE, inline

# A page in which the plot stands decides by its own `color`; as a file or an image it goes by the reader's choice.
ALONE = (
    "svg.plot:root{font-family:sans-serif;color:#1a1a1a}@media(prefers-color-scheme:dark){svg.plot:root{color:#e8e8e8}}"
)


@dataclass(frozen=True)
class Line:
    """A line by its points, or points with intervals where `low` and `high` are given; one label has one colour."""

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = field(default_factory=list)
    log_x: bool = False
    diagonal: bool = False  # where a promise is kept


def svg(panels: Sequence[Panel], name: str, title: str) -> str:
    """Draw panels side by side with one legend; the same panels give the same bytes.

    Args:
        panels: left to right.
        name: unlike that of other plots of a page.
        title: what the plot shows, for who cannot see it.
    """
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(3.4 * len(panels), 3.1 + 0.2 * -(-len(labels) // 4)), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(axes, panel, labels)
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=4)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    drawn = inline(stream.getvalue(), name, title)
    head, rest = drawn.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg" class="plot"><style>{ALONE}</style>{rest}\n'


def _draw(axes: Axes, panel: Panel, labels: list[str]) -> None:
    if panel.diagonal:
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=0.8)
    for line in panel.lines:
        number = labels.index(line.label)
        colour, dash = SERIES[number % len(SERIES)], DASHES[number % len(DASHES)]
        if line.low is None or line.high is None:
            axes.plot(line.x, line.y, color=colour, linestyle=dash, linewidth=1.6, label=line.label)
            continue
        reach = np.abs(np.array([line.low, line.high]) - np.array(line.y))
        axes.errorbar(line.x, line.y, reach, color=colour, fmt="o", markersize=3, linewidth=1, label=line.label)
    if panel.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
