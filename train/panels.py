"""Panels of lines as SVG that stands alone or inside a page, and is legible on light and dark ground."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# At least 3 to 1 against white and against #161616, so that one file serves both; dashes help who sees no colours.
COLOURS = ("#3b82f6", "#d97706", "#8b5cf6", "#16a34a", "#db2777", "#0d9488", "#dc2626", "#808080")
DASHES = ("-", "--", "-.", ":")
INK = "#010203"  # stands for the page's own text colour until the file is written
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "tagtower", "font.family": "sans-serif", "font.size": 9}
SETTINGS |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
# A page in which the file stands decides by its own `color`; as a file or an image it goes by the reader's choice.
STYLE = "svg.plot:root{color:#1a1a1a}@media(prefers-color-scheme:dark){svg.plot:root{color:#e8e8e8}}"


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


def svg(panels: Sequence[Panel], title: str) -> str:
    """Draw panels side by side with one legend; the same panels give the same bytes.

    Args:
        panels: left to right.
        title: what the plot shows, for who cannot see it.
    """
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(3.4 * len(panels), 3.1 + 0.2 * -(-len(labels) // 4)), layout="constrained")
        figure.patch.set_visible(False)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(axes, panel, labels)
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(name, handle)
        figure.legend([handles[name] for name in labels], labels, loc="outside lower center", ncols=4, frameon=False)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
    drawn = stream.getvalue()
    head = f'<svg class="plot" role="img" aria-label="{escape(title)}"'
    drawn = drawn[drawn.index("<svg") :].replace("<svg", head, 1).replace(INK, "currentColor")
    return re.sub(r"(<svg[^>]*>)", rf"\1<style>{STYLE}</style>", drawn, count=1)


def _draw(axes: Axes, panel: Panel, labels: list[str]) -> None:
    axes.patch.set_visible(False)
    if panel.diagonal:
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=0.8)
    for line in panel.lines:
        number = labels.index(line.label)
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
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
    axes.spines[["top", "right"]].set_visible(False)
