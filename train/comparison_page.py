"""The page of a comparison: one file that asks no host, with plots, and pictures of the tags that moved."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from crawl.shards import Collection, JpegReader
from features.inverted_index import InvertedIndex
from features.pictures import thumbnail
from train import plots
from train.comparison_text import (
    FEW_RELEVANT,
    METRIC_NAMES,
    difference_with_interval,
    notes,
    p_value,
    title_of,
    with_interval,
)

TEMPLATES = Path(__file__).resolve().parent / "templates"
THUMBNAIL_PX = 144  # at the longer side; shown at half of it on most screens
MAX_ALT_TAGS = 6


@dataclass(frozen=True)
class Picture:
    """A picture as a page shows it."""

    address: str  # a data URI
    tags: str  # for those who do not see it
    credit: str


def shown_pictures(found: Mapping[str, Any], index: InvertedIndex, collection: Collection) -> dict[str, Picture]:
    """Return image_id -> picture for all that a comparison shows; those taken down since are not among them."""
    rows = (row for each in found["movers"] for row in (*each["gained"], *each["lost"]))
    tops = (top for row in rows for each in row["top"].values() for top in each)
    ids = sorted({top["image_id"] for top in tops})
    credits = credits_of(collection, ids)
    reader, pictures = JpegReader(collection.directory), {}
    for image_id in (each for each in ids if each in credits):
        row = index.image_row(image_id)
        if row is not None:
            jpeg = thumbnail(reader.read(index.locations[row], image_id), THUMBNAIL_PX)
            address = f"data:image/jpeg;base64,{b64encode(jpeg).decode('ascii')}"
            pictures[image_id] = Picture(address, tags_of(index, row), credits[image_id])
    reader.close()
    return pictures


def tags_of(index: InvertedIndex, row: int) -> str:
    """Return the first tags of an image, as a description of it."""
    offsets, tag_rows = index.by_image
    own = tag_rows[offsets[row] : offsets[row + 1]]
    named = ", ".join(index.tags[tag_row] for tag_row in own[:MAX_ALT_TAGS])
    return f"{named} and {len(own) - MAX_ALT_TAGS} more" if len(own) > MAX_ALT_TAGS else named


def credits_of(collection: Collection, ids: list[str]) -> dict[str, str]:
    """Return image_id -> title, author, licence and source of the images that are still there."""
    columns = ["title", "author", "licence", "page_url", "offset"]
    table = collection.table(columns)
    wanted = pc.and_(pc.is_in(table["image_id"], pa.array(ids, pa.string())), pc.greater_equal(table["offset"], 0))
    return {
        row["image_id"]: ", ".join(filter(None, (row[column] for column in columns[:-1])))
        for row in table.filter(wanted).to_pylist()
    }


def page(found: Mapping[str, Any], pictures: Mapping[str, Picture]) -> str:
    """Return the page: HTML with its style and plots inside, and a policy that lets it load nothing else."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "title": title_of,
        "metric": METRIC_NAMES.__getitem__,
        "interval": with_interval,
        "difference": lambda row: minus(difference_with_interval(row)),
        "minus": minus,
        "p": p_value,
    }
    systems = [system["name"] for system in found["systems"]]
    style = (TEMPLATES / "comparison.css").read_text(encoding="utf-8")
    return environment.get_template("comparison.html").render(
        found=found,
        systems=systems,
        subject=f"{', '.join(name for name in systems if name != found['baseline'])} against {found['baseline']}",
        headings=headings(found),
        pictures=pictures,
        plots={name: Markup(svg) for name, svg in draw(found).items()},  # noqa: S704 - matplotlib escapes
        style=Markup(style),  # noqa: S704 - our own file
        style_digest=b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii"),
        notes=notes(found),
        few=FEW_RELEVANT,
        shares=band_shares(found),
    )


def minus(text: str) -> str:
    """Return a text with true minus signs before its numbers."""
    return text.replace("-0.", "\N{MINUS SIGN}0.").replace("(\N{MINUS SIGN}", "(\N{MINUS SIGN}")


def headings(found: Mapping[str, Any]) -> dict[str, str]:
    """Return system -> what heads its column: its name, and how many seeds it has."""
    return {
        system["name"]: system["name"] + (f" ({len(system['runs'])} seeds)" if len(system["runs"]) > 1 else "")
        for system in found["systems"]
    }


def draw(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the plots by name."""
    systems = [system["name"] for system in found["systems"]]
    several = len({(row["system"], row["reference"]) for row in found["differences"]}) > 1
    labelled = [
        (
            f"{title_of(row['question'])}, {METRIC_NAMES[row['metric']]}"
            + (f": {row['system']} against {row['reference']}" if several else ""),
            row,
        )
        for row in found["differences"]
    ]
    return {
        "forest": plots.forest(labelled),
        "val_map": plots.curves(found["histories"], systems, "val_map", "mAP on val"),
        "train_loss": plots.curves(found["histories"], systems, "train_loss", "training loss"),
        "moved": plots.moved(found["movers"], systems, "difference in AP"),
    }


def band_shares(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return question -> for each pair the sum of what the bands add, which is the difference over all tags."""
    return {
        question: np.sum([[each["share"] for each in row["differences"]] for row in rows], axis=0).tolist()
        for question, rows in found["bands"].items()
    }
