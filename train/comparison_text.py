"""How a comparison reads in a terminal, and the words that its page shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from train.galleries import MIN_RELEVANT

METRIC_NAMES = {"map": "mAP", "auc": "AUC"}
FEW_RELEVANT = 2 * MIN_RELEVANT  # below it a tag moves far by one picture
TITLES = {
    "gallery": "A, gallery",
    "unseen_tags": "A, unseen tags",
    "within_tag": "B, within the tag",
    "labels": "B, by labels",
}


def title_of(question: str) -> str:
    """Return a question as people read it."""
    kind = question.removeprefix("gallery_")
    return TITLES.get(question, f"A, gallery of {unquote(kind)}" if kind != question else question.replace("_", " "))


def with_interval(found: Mapping[str, Any]) -> str:
    """Return a mean with its interval."""
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


def difference_with_interval(found: Mapping[str, Any]) -> str:
    """Return a difference with its interval, signed."""
    if found["low"] is None:
        return f"{found['mean']:+.3f}"
    return f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def p_value(p: float) -> str:
    """Return a corrected p-value without false precision."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def notes(found: Mapping[str, Any]) -> list[str]:
    """Return what a reader has to know of what was left out, and of single seeds."""
    counted = [f"{each['left_out']} of {title_of(each['name'])}" for each in found["questions"] if each["left_out"]]
    told = [f"Tags left out, because not all were judged on them: {'; '.join(counted)}."] if counted else []
    told += [
        f"{title_of(each['name'])}: not asked of {', '.join(each['absent'])}."
        for each in found["questions"]
        if each["absent"]
    ]
    told += [
        f"{title_of(name)} is left out: {', '.join(missing)} {'was' if len(missing) == 1 else 'were'} not asked it."
        for name, missing in found["not_shared"].items()
    ]
    single = [system["name"] for system in found["systems"] if len(system["runs"]) == 1]
    if single:
        told.append(
            f"One seed of {', '.join(single)}: verdicts are on {'this run' if len(single) == 1 else 'these runs'}, "
            "and how far another seed would be is not known."
        )
    return told


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def text(found: Mapping[str, Any]) -> str:
    """Return a comparison as the terminal shows it."""
    systems = [system["name"] for system in found["systems"]]
    parts = [heading(found), config_table(found, systems)]
    parts += [question_block(question, found, systems) for question in found["questions"]]
    parts += [bands_table(name, rows, systems) for name, rows in found["bands"].items()]
    parts += [movers_block(moved) for moved in found["movers"]]
    parts += [hubs_table(found["hubs"]), *notes(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(found: Mapping[str, Any]) -> str:
    """Return who is compared with whom."""
    named = [f"{s['name']} ({len(s['runs'])} seeds)" if len(s["runs"]) > 1 else s["name"] for s in found["systems"]]
    return (
        f"\n{', '.join(named)} on {found['split']}; baseline {found['baseline']}; "
        f"{len(found['differences'])} comparisons, corrected together after Holm"
    )


def config_table(found: Mapping[str, Any], systems: Sequence[str]) -> str:
    """Return the keys that differ."""
    if not found["config"]:
        return "configuration: no difference"
    return columns(
        [
            ["configuration", *systems],
            *([key, *(row[name] for name in systems)] for key, row in found["config"].items()),
        ]
    )


def question_block(question: Mapping[str, Any], found: Mapping[str, Any], systems: Sequence[str]) -> str:
    """Return a question with the means of its systems and the verdicts."""
    shown = [name for name in systems if name in question["means"]]
    rows = [["", "mAP (95 % interval)", "AUC (95 % interval)"]]
    rows += [[name, *(_mean(question["means"][name][metric]) for metric in METRIC_NAMES)] for name in shown]
    lines = [f"{title_of(question['name'])}: {question['num_tags']} tags", columns(rows)]
    for row in found["differences"]:
        if row["question"] == question["name"]:
            metric = METRIC_NAMES[row["metric"]]
            lines.append(
                f"{row['system']} against {row['reference']}, {metric}: {row['verdict']}; {p_value(row['corrected_p'])}"
            )
    return "\n".join(lines)


def _mean(found: Mapping[str, Any]) -> str:
    spread = "" if found["spread"] is None else f" seeds +-{found['spread']:.3f}"
    return f"{with_interval(found)}{spread}"


def bands_table(question: str, rows: Sequence[Mapping[str, Any]], systems: Sequence[str]) -> str:
    """Return head, middle and tail."""
    pairs = [(each["system"], each["reference"]) for each in rows[0]["differences"]]
    head = [title_of(question), "tags", "train pictures", *systems, *(f"{ours} - {theirs}" for ours, theirs in pairs)]
    return columns(
        [
            head,
            *(
                [
                    row["band"],
                    str(row["num_tags"]),
                    f"{row['least_images']} to {row['most_images']}",
                    *(f"{row['means'][name]:.3f}" for name in systems),
                    *(difference_with_interval(each) for each in row["differences"]),
                ]
                for row in rows
            ),
        ]
    )


def movers_block(moved: Mapping[str, Any]) -> str:
    """Return the tags that moved most, without pictures."""
    lines = [
        f"{moved['system']} against {moved['reference']}: {moved['num_gained']} tags gained, {moved['num_lost']} lost, "
        f"{moved['num_equal']} are equal"
    ]
    for side in ("gained", "lost"):
        named = [f"{row['tag']} {row['difference']:+.3f}{_few(row)}" for row in moved[side]]
        if named:
            lines.append(f"{side} most: {', '.join(named)}")
    if any(row["num_relevant"] < FEW_RELEVANT for side in ("gained", "lost") for row in moved[side]):
        lines.append(f"* fewer than {FEW_RELEVANT} relevant pictures: one picture moves such a tag far")
    return "\n".join(lines)


def _few(row: Mapping[str, Any]) -> str:
    return "*" if row["num_relevant"] < FEW_RELEVANT else ""


def hubs_table(hubs: Mapping[str, Any]) -> str:
    """Return how unequally pictures share the places in the top lists."""
    rows = [[f"top {hubs['depth']} lists", "skewness", "never shown", "most lists of one picture"]]
    for name, row in hubs["systems"].items():
        spread = "" if row["spread"] is None else f" +-{row['spread']:.2f}"
        rows.append([name, f"{row['skew']:.2f}{spread}", _share(row["never"], hubs), f"{row['most']:.0f}"])
    rows.append(["random order", f"{hubs['random']['skew']:.2f}", _share(hubs["random"]["never"], hubs), ""])
    return columns(rows)


def _share(never: float, hubs: Mapping[str, Any]) -> str:
    return f"{never:.0f} of {hubs['gallery']} ({100 * never / hubs['gallery']:.0f} %)"
