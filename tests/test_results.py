"""Tables of results run again from their commands, and what is said of their rows."""

import csv
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from configs.artifacts import ArtifactError
from configs.compose import ConfigError, Paths, compose_typed
from tests.test_sweep import SYNTHETIC
from train.config import ReproduceConfig, TrainConfig
from train.fit import fit
from train.results import (
    Column,
    Figure,
    Results,
    Row,
    Table,
    add_values,
    difference,
    figure,
    header_of,
    markdown,
    new_values,
    read_results,
    reproduce,
    verdict,
    write_results,
)
from train.trainings import Trainings

RECORDED = Figure(0.34, 0.3, 0.38, spread=0.002, tags=271)


def test_a_figure_is_the_mean_over_tags_with_the_spread_of_the_seeds_means():
    found = figure({"dog": [0.1, 0.3], "cat": [0.5, 0.7]})  # seeds 0.3 and 0.5, tags 0.2 and 0.6
    assert (found.mean, found.spread, found.tags) == (0.4, 0.141421, 2)
    assert found.low == 0.2
    assert found.high == 0.6


def test_a_difference_is_paired_by_tag_and_a_floor_has_one_value_for_all_seeds():
    found = difference({"dog": [0.1, 0.3], "cat": [0.5, 0.7], "own": [0.9, 0.9]}, {"dog": [0.1], "cat": [0.5]})
    assert (found.mean, found.low, found.high, found.spread, found.tags) == (0.1, 0.1, 0.1, 0.141421, 2)
    assert found.signed() == "+0.100 (+0.100 to +0.100)"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (0.34, "OK"),
        (0.3404, "OK"),
        (0.3396, "OK"),
        (0.3406, "CLOSE"),
        (0.344, "CLOSE"),  # two spreads
        (0.336, "CLOSE"),
        (0.3441, "DIFFERS"),
        (0.3359, "DIFFERS"),
    ],
)
def test_a_verdict_is_by_the_digits_printed_then_by_the_seeds(found, said):
    assert verdict(RECORDED, replace(RECORDED, mean=found)) == said


def test_a_floor_may_move_by_its_last_digit():
    floor = replace(RECORDED, spread=0.0)
    assert [verdict(floor, replace(floor, mean=mean)) for mean in (0.341, 0.3421)] == ["CLOSE", "DIFFERS"]


def test_other_tags_are_other_figures():
    assert verdict(RECORDED, replace(RECORDED, tags=270)) == "DIFFERS"
    assert verdict(RECORDED, None) == "DIFFERS"


def test_per_tag_values_go_under_the_rows_name_and_floors_count_once(tmp_path):
    table = tmp_path / "per_tag.csv"
    values = new_values()
    for seed in (1, 2):
        with table.open("w", newline="") as stream:
            rows = [["question", "system", "tag", "map", "auc"]]
            rows += [["gallery", system, "dog", seed / 10, 0.5] for system in ("trained", "ridge")]
            csv.writer(stream).writerows(rows)
        add_values(values, table, "wide", floors=not values)
    assert values["gallery", "wide", "map"] == {"dog": [0.1, 0.2]}
    assert values["gallery", "ridge", "map"] == {"dog": [0.1]}


def small_results():
    """A trained row of two seconds, floors, and a collection that nobody has."""
    small = {"hidden_dim": 8, "embed_dim": 8, "batch_size": 64, "max_epochs": 1, "device": "cpu"}
    overrides = [f"{key}={value}" for key, value in {**SYNTHETIC, **small}.items()]
    columns = [Column("small", "gallery", "map", "small: mAP ({tags} tags)"), Column("far", "gallery", "map", "far")]
    rows = [Row("class_mean", "floor"), Row("default", "**ours**", overrides), Row("wide", "far", [], ["far"])]
    return Results({}, [Table("quality", columns, [0, 1], ["class_mean"], rows)])


def test_a_table_is_shown_as_readme_has_it():
    results = small_results()
    results.tables[0].rows[1].figures = {"small/gallery/map": RECORDED}
    assert markdown(results.tables[0]).splitlines() == [
        "| system | small: mAP (271 tags) | far |",
        "| --- | --- | --- |",
        "| floor `class_mean` | - | - |",
        "| **ours** `default` | 0.340 (0.300-0.380) | - |",
        "| far `wide` | - | - |",
    ]


def test_a_file_of_results_is_read_as_it_was_written(tmp_path):
    results, file = small_results(), tmp_path / "results.yaml"
    results.tables[0].rows[1].figures = {"small/gallery/map": RECORDED}
    write_results(file, results, "# why\n# how\n")
    assert read_results(file) == results
    assert header_of(file) == "# why\n# how\n"
    assert "      small/gallery/map: {mean: 0.34, low: 0.3, high: 0.38, spread: 0.002, tags: 271}\n" in file.read_text()


@pytest.mark.parametrize("text", ["tables: {", "tabels: []", "tables: [{name: a, columns: 3}]"])
def test_a_file_of_another_form_is_refused_by_name(text, tmp_path):
    (tmp_path / "results.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"results\.yaml' is no file of results"):
        read_results(tmp_path / "results.yaml")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no file '.*none\.yaml'"):
        read_results(tmp_path / "none.yaml")


@pytest.fixture
def trained(monkeypatch):
    """Train in this process, and count."""
    runs = []

    def train(trainings, run_dir, overrides):
        if "margin=0.9" in overrides:
            return None, "error: all pictures became one embedding"
        if not (run_dir / "manifest.json").exists():
            runs.append(run_dir.name)
        fit(compose_typed("train", TrainConfig, overrides))
        return object(), ""

    monkeypatch.setattr(Trainings, "train", train)
    return runs


@pytest.fixture
def asked(line, tmp_path):
    """A config over small results, in a file that may be changed."""
    file = tmp_path / "results.yaml"
    write_results(file, small_results(), "# kept\n")
    return ReproduceConfig(Paths(runs=str(tmp_path / "runs")), file=str(file), collections={"small": line.data})


@pytest.mark.usefixtures("one_thread")
def test_what_is_recorded_is_reproduced_without_training_it_again(asked, trained, caplog):
    caplog.set_level(logging.INFO)
    asked.record = True
    file = reproduce(asked)
    assert file == Path(asked.file)
    assert len(trained) == 2
    assert file.read_text().startswith("# kept\n")
    floor, ours, _ = read_results(file).tables[0].rows
    assert set(floor.figures) == {"small/gallery/map"}
    assert set(ours.figures) == {"small/gallery/map", "small/gallery/map over class_mean"}
    gap = ours.figures["small/gallery/map"].mean - floor.figures["small/gallery/map"].mean
    assert ours.figures["small/gallery/map over class_mean"].mean == pytest.approx(gap, abs=2e-6)
    caplog.clear()
    asked.record = False
    reproduce(asked)
    assert len(trained) == 2
    assert "SKIPPED  quality on far: name it: far=<its paths.data>" in caplog.text
    assert "OK       default on small" in caplog.text
    assert "2 rows: 2 OK" in caplog.text

    results = read_results(file)
    results.tables[0].rows[1].figures["small/gallery/map"].mean += 0.5
    write_results(file, results)
    with pytest.raises(ArtifactError, match=r"1 of 2 rows differ from .*record=true"):
        reproduce(asked)
    found = read_results(Path(asked.paths.runs) / ".reproduced" / "results.yaml")
    assert found.tables[0].rows[1].figures == ours.figures


@pytest.mark.usefixtures("one_thread")
def test_a_training_that_dies_fails_its_row_alone(asked, trained, caplog):
    caplog.set_level(logging.INFO)
    results = small_results()
    dying = Row("dying", "one that dies", [*results.tables[0].rows[1].train, "margin=0.9"])
    results.tables[0].rows.insert(1, dying)
    write_results(Path(asked.file), results)
    with pytest.raises(ArtifactError, match="1 of 3 rows"):
        reproduce(asked)
    assert "FAILED   dying on small: seed 0: all pictures became one embedding" in caplog.text
    assert "NEW      default on small" in caplog.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"collections": {"smal": "."}}, "no table has a collection 'smal'; there are small, far"),
        ({"collections": {"small": "no/such"}}, "no such folder: small=no/such"),
        ({"tables": ["speed"]}, "no table 'speed'; there are quality"),
        ({"rows": ["class_mean"]}, "no row 'class_mean' that is trained; there are default, wide"),
    ],
)
def test_what_is_not_in_the_tables_is_named(asked, trained, values, words):
    with pytest.raises(ConfigError, match=words):
        reproduce(replace(asked, **values))
    assert trained == []
