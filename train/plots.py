"""Plots of a comparison as SVG to stand in a page: texts stay texts, axes take the page's colour.

Equal values give equal bytes. Colours of lines are 3:1 above a light and a dark ground alike.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

INK = "#010203"  # stands for the page's own colour
BETTER, WORSE = "#1f8f5f", "#d1502f"
SERIES = ("#2f7fc1", "#d1502f", "#1f8f5f", "#9a6bc4", "#a87a1c", "#c2558f", "#5f7d8c", "#6f8a1f")
DASHES = ("-", "--", "-.", ":")
WIDTH_IN = 4.6
SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}


def _draw(name: str, label: str, height_in: float, draw: Callable[[Axes], None]) -> str:
    """Return the figure that `draw` puts on an axis, named so that several can stand in one page."""
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure.add_subplot())
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return inline(stream.getvalue(), name, label)


def inline(svg: bytes, name: str, label: str) -> str:
    """Return matplotlib's SVG as a part of a page: no style of its own, and no id that another figure has too.

    A page that allows no inline style still shows it, because styles become attributes.
    """
    root = ElementTree.fromstring(svg)  # noqa: S314 - written by ourselves a moment ago
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    wanted = set(re.findall(r"#([\w-]+)", " ".join(_references(root))))
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        identity = element.attrib.pop("id", "")
        if identity in wanted:
            element.set("id", f"{name}-{identity}")
        if target := element.attrib.pop(LINK, ""):
            element.set("href", f"#{name}-{target[1:]}")
        if path := element.attrib.get("clip-path"):
            element.set("clip-path", path.replace("url(#", f"url(#{name}-"))
        for key, value in _declarations(element.attrib.pop("style", "")).items():
            element.set(key, "currentColor" if value == INK else value)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _references(root: ElementTree.Element) -> list[str]:
    return [each.get(LINK, "") + each.get("clip-path", "") for each in root.iter()]


def _declarations(style: str) -> dict[str, str]:
    pairs = (each.split(":", 1) for each in style.split(";") if ":" in each)
    found = {key.strip(): value.strip() for key, value in pairs}
    if font := found.pop("font", ""):  # the family is the page's
        found["font-size"] = font.split()[0]
    return found


def _look(systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return how the line of each system looks; dashes beside colours, for those who do not see these apart."""
    return {
        name: {"color": SERIES[at % len(SERIES)], "linestyle": DASHES[at % len(DASHES)]}
        for at, name in enumerate(systems)
    }


def forest(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Draw each difference with its interval around the line of no difference.

    Args:
        rows: (label, difference with mean, low, high and told_apart), the uppermost first.
    """

    def draw(axis: Axes) -> None:
        axis.axvline(0, color=INK, linewidth=0.8)
        for place, (label, row) in enumerate(rows):
            colour = INK if not row["told_apart"] else BETTER if row["mean"] > 0 else WORSE
            if row["low"] is not None:
                axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2)
            axis.plot([row["mean"]], [place], color=colour, marker="o" if row["told_apart"] else "D", markersize=5)
            axis.text(0, place - 0.3, label, transform=axis.get_yaxis_transform(), fontsize=9)
        axis.set_ylim(len(rows) - 0.5, -0.9)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.set_xlabel("difference (95 % interval)")

    return _draw("forest", "differences with their intervals", 0.8 + 0.42 * len(rows), draw)


def curves(histories: Sequence[Mapping[str, Any]], systems: Sequence[str], column: str, label: str) -> str:
    """Draw a column of the training histories by epoch, a line a run, a colour a system."""
    look = _look(systems)

    def draw(axis: Axes) -> None:
        named: set[str] = set()
        for history in histories:
            name = history["system"]
            axis.plot(
                history["epoch"],
                history[column],
                linewidth=1.5,
                marker="o" if len(history["epoch"]) == 1 else None,
                label=None if name in named else name,
                **look[name],
            )
            named.add(name)
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if column == "train_loss" and all(value > 0 for history in histories for value in history[column]):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.legend(loc="best", handlelength=3)

    return _draw(column.replace("_", "-"), f"{label} by epoch", 3.2, draw)


def moved(movers: Sequence[Mapping[str, Any]], systems: Sequence[str], label: str) -> str:
    """Draw the difference of every tag, the greatest gain first, a line a system."""
    look = _look(systems)

    def draw(axis: Axes) -> None:
        axis.axhline(0, color=INK, linewidth=0.8)
        for each in movers:
            look_of = look[each["system"]] if len(movers) > 1 else {"color": INK}
            axis.plot(range(1, len(each["sorted"]) + 1), each["sorted"], label=each["system"], **look_of)
        axis.set_xlabel("tags, by gain")
        axis.set_ylabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(movers) > 1:
            axis.legend(loc="best", handlelength=3)

    return _draw("moved", "differences of all tags, sorted", 2.8, draw)
