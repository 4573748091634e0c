"""README tells the truth: its commands, overrides, reasons and files exist."""

import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from crawl.config import CrawlConfig, TakedownConfig
from crawl.ingest import Reason
from crawl.source_config import SOURCES
from features.config import ImageFeaturesConfig, IndexConfig, ReduceConfig, TagVectorsConfig
from serve.config import JudgementsConfig, PublishConfig, ServeConfig
from train.config import (
    AuditConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    ReproduceConfig,
    ReverseConfig,
    SweepConfig,
    TrainConfig,
)
from train.results import markdown, read_results

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCHEMAS = (
    CrawlConfig,
    TakedownConfig,
    IndexConfig,
    TagVectorsConfig,
    ImageFeaturesConfig,
    ReduceConfig,
    AuditConfig,
    TrainConfig,
    EvaluateConfig,
    ExportConfig,
    CompareConfig,
    ReverseConfig,
    SweepConfig,
    ReproduceConfig,
    PublishConfig,
    JudgementsConfig,
    ServeConfig,
)
GROUPS = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir() and not path.name.startswith("__")}


def keys_of(schema, prefix=""):
    found = set()
    for name, hint in get_type_hints(schema).items():
        if name in {field.name for field in fields(schema)}:
            found.add(prefix + name)
            found |= keys_of(hint, f"{prefix}{name}.") if is_dataclass(hint) else set()
    return found


KEYS = set().union(*map(keys_of, SCHEMAS), GROUPS) | {
    f"source.{field.name}" for source in SOURCES for field in fields(source)
}
RESULTS = read_results(ROOT / "train" / "results.yaml")
KEYS |= {column.collection for table in RESULTS.tables for column in table.columns}  # of reproduce
TYPOS_ON_PURPOSE = {"margni"}


def test_every_make_target_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"make ([a-z_]+)", README))
    assert named
    assert named <= set(re.findall(r"^([a-z_]+):", makefile, re.M))


def test_every_override_named_is_a_key_of_some_stage():
    quoted = " ".join(re.findall(r"`[^`\n]+`|\"[^\"\n]+\"", README))
    named = set(re.findall(r"(?<![\w?&/])([a-z][a-z0-9_.]*)=", quoted))
    assert len(named) > 15
    assert named - TYPOS_ON_PURPOSE - {"q", "page", "cursor", "limit"} <= KEYS


@pytest.mark.parametrize("group", ["source", "backbone", "words", "objective", "executor"])
def test_every_option_of_a_group_is_told(group):
    options = {path.stem for path in (ROOT / "configs" / group).glob("*.yaml")}
    assert {option for option in options if option not in README} == set()


def test_every_reason_of_a_refusal_is_told():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "crawl" / "sources").glob("*.py"))
    reasons = {str(reason) for reason in Reason} | set(re.findall(r'Unreadable\(\s*"([a-z_]+)"', sources))
    assert {reason for reason in reasons if f"`{reason}`" not in README} == set()


def test_every_file_that_readme_shows_or_links_exists():
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert linked
    assert [name for name in linked if not (ROOT / name).exists()] == []


def test_benchmarks_named_exist():
    named = set(re.findall(r"B=([a-z_]+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert {name for name in named if not (ROOT / "tests" / "bench" / f"{name}.py").exists()} == set()


def test_no_figure_is_left_to_fill_in():
    assert "@@" not in README


def test_the_speed_table_shows_what_the_benchmark_found():
    found = json.loads((ROOT / "tests" / "reference" / "features.json").read_text(encoding="utf-8"))
    rates, ratios = found["figures"], found["ratios"]
    assert f"**Tagtower**, float32 | {rates['images_per_s']:.1f} | {ratios['plain_loop']:.2f} |" in README
    gated = next(line for line in README.splitlines() if f"`precision={rates['gated_precision']}`, " in line)
    assert f"{rates['neighbours_kept']:.1%}".replace("%", " %") in gated
    assert gated.endswith(f"| {rates['gated_images_per_s']:.1f} | {ratios['plain_loop_gated']:.2f} |")


@pytest.mark.parametrize("table", RESULTS.tables, ids=lambda table: table.name)
def test_the_tables_of_results_show_what_is_recorded(table):
    assert markdown(table) in README
