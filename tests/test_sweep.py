"""A sweep that is killed goes on with the rest, and a training that dies costs its point alone."""

import csv
import logging
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

import train.points
import train.search
import train.sweep
import train.trainings
from configs.artifacts import ArtifactError, exclusive, read_manifest, seal, verify
from configs.compose import CONFIG_DIR, ConfigError, Paths, compose_typed, run_stage
from tests.synthetic import copy_line
from tests.test_trainings import wait_until
from train.config import SweepConfig, TrainConfig
from train.points import experiment_yaml
from train.runs import open_run
from train.sweep import open_axes, sweep
from train.trainings import Trainings

SYNTHETIC = {  # the features of the line
    "backbone.name": "synthetic",
    "backbone.architecture": "synthetic",
    "backbone.weights": "''",
    "backbone.licence": "''",
    "backbone.width": "24",
}


class Killed(BaseException):
    """Ends a sweep in this process where a signal would."""


class Stub:
    """Trains nothing: val_map is the margin and a hundredth of the seed; margins above 0.6 die."""

    def __init__(self):
        self.trained = []

    def __call__(self, trainings, module, overrides):
        given = {key: value.strip("'") for key, _, value in (each.partition("=") for each in overrides)}
        self.trained.append((given["margin"], given["seed"], Path(given["paths.data"]).parent.name))
        if float(given["margin"]) > 0.6:
            return 1, "epoch 1\nerror: all pictures became one embedding\n"
        run_dir = Path(given["paths.runs"]) / given["run"]
        (run_dir / "checkpoints").mkdir(parents=True)
        facts = {"val_map": float(given["margin"]) + int(given["seed"]) / 100, "num_epochs": 3}
        seal(run_dir, "run", config={}, files=[], facts=facts)
        return 0, ""


@pytest.fixture
def stub(monkeypatch):
    stub = Stub()
    monkeypatch.setattr(Trainings, "_process", lambda *arguments: stub(*arguments))
    monkeypatch.setattr("configs.artifacts.library_versions", dict)  # slow, and told elsewhere
    monkeypatch.setattr("configs.artifacts.commit_id", str)
    composed = {}
    for module in (train.sweep, train.search, train.points):  # the same few configs again and again
        monkeypatch.setattr(module, "compose_typed", partial(once, composed))
    return stub


def once(composed, stage, schema, overrides):
    """Compose a config the first time that it is asked for."""
    if (key := tuple(overrides)) not in composed:
        composed[key] = compose_typed(stage, schema, overrides)
    return composed[key]


def config(line, runs, axes, **values):
    return SweepConfig(paths=Paths(line.data, str(runs)), name="margins", axes=SYNTHETIC | axes, **values)


def rows(directory):
    with (directory / "table.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def columns(directory, *names):
    return [tuple(row[name] for name in names) for row in rows(directory)]


def test_a_grid_ends_as_a_table_with_the_best_point_first(line, tmp_path, stub):
    directory = sweep(config(line, tmp_path, {"margin": "0.2,0.4,0.3", "max_epochs": "5"}, seeds=[0, 2]))
    assert directory == tmp_path / ".sweeps" / "margins"
    names = ("number", "state", "val_map", "spread", line.data, "epochs", "margin", "max_epochs", "reason")
    assert columns(directory, *names) == [
        ("2", "done", "0.410000", "0.014142", "0.410000", "3.0", "0.4", "5", ""),
        ("3", "done", "0.310000", "0.014142", "0.310000", "3.0", "0.3", "5", ""),
        ("1", "done", "0.210000", "0.014142", "0.210000", "3.0", "0.2", "5", ""),
    ]
    assert [each[:2] for each in stub.trained] == [(m, s) for m in ("0.2", "0.4", "0.3") for s in ("0", "2")]
    assert verify(directory) == []
    facts = read_manifest(directory).facts
    assert (facts["num_points"], facts["val_map"]) == (3, pytest.approx(0.41))


def test_a_finished_sweep_says_so_and_trains_nothing(line, tmp_path, stub, caplog):
    caplog.set_level(logging.INFO)
    cfg = config(line, tmp_path, {"margin": "0.2,0.4"})
    sealed = (sweep(cfg) / "manifest.json").read_bytes()
    stub.trained.clear()
    assert (sweep(cfg) / "manifest.json").read_bytes() == sealed
    assert stub.trained == []
    assert "already done" in caplog.text


def test_a_value_is_the_mean_over_collections(line, tmp_path, stub):
    second = copy_line(Paths(line.data, str(tmp_path / "none")), tmp_path / "second")
    Path(second.data, "collection", "tag_relations.csv").write_text("tag,relation,other\ndog,broader,animal\n")
    cfg = config(line, tmp_path, {"margin": "0.2,0.4"}, collections=[line.data, second.data])
    found = columns(sweep(cfg), "val_map", line.data, second.data)
    assert found == [("0.400000", "0.400000", "0.400000"), ("0.200000", "0.200000", "0.200000")]
    assert [each[2] for each in stub.trained] == [Path(line.data).parent.name, "second"] * 2


def test_seed_repeats_points_and_is_no_axis(line, tmp_path):
    axes, seeds = open_axes(config(line, tmp_path, {"margin": "0.2,0.4", "seed": "range(3)"}))
    assert seeds == [0, 1, 2]
    assert "seed" not in {axis.key for axis in axes}


def test_a_training_that_dies_costs_its_point_alone(line, tmp_path, stub):
    cfg = config(line, tmp_path, {"margin": "0.7,0.3"}, seeds=[0, 1])
    directory = sweep(cfg)
    why = f"seed 0 of {line.data}: all pictures became one embedding"
    assert columns(directory, "margin", "state", "reason") == [("0.3", "done", ""), ("0.7", "failed", why)]
    assert stub.trained == [(m, s, Path(line.data).parent.name) for m, s in (("0.7", "0"), ("0.3", "0"), ("0.3", "1"))]
    name = rows(directory)[1]["point"]
    assert "epoch 1" in (directory / "failures" / f"{name}.txt").read_text()


def test_what_failed_is_tried_again_only_on_demand(line, tmp_path, stub):
    cfg = config(line, tmp_path, {"margin": "0.7,0.3"})
    sweep(cfg)
    stub.trained.clear()
    sweep(cfg)
    assert stub.trained == []
    cfg.retry = True
    sweep(cfg)
    assert [margin for margin, *_ in stub.trained] == ["0.7"]


def test_a_sweep_without_a_point_that_trains_is_an_error(line, tmp_path, stub):
    cfg = config(line, tmp_path, {"margin": "0.7,0.8"})
    with pytest.raises(ArtifactError, match=r"no point of 2 could be trained, the first: .*one embedding.*retry=true"):
        sweep(cfg)
    assert read_manifest(tmp_path / ".sweeps" / "margins") is None


SWEPT = {
    "grid": ({"margin": "0.2,0.4,0.7"}, {}),
    "tpe": ({"margin": "interval(0.1,0.8)"}, {"sampler": "tpe", "trials": 4}),
}


def outcome(directory):
    """What must not depend on kills: the table without its seconds, the best point, the content_id."""
    table = [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows(directory)]
    return table, (directory / "best.yaml").read_text(), read_manifest(directory).content_id


@pytest.mark.parametrize("kind", SWEPT)
def test_a_sweep_killed_anywhere_ends_as_one_that_was_not(line, tmp_path, stub, monkeypatch, kind):
    axes, values = SWEPT[kind]
    writes = []
    real = train.sweep.atomic_write
    monkeypatch.setattr(train.sweep, "atomic_write", lambda *given: (writes.append(given), real(*given)))
    undisturbed = outcome(sweep(config(line, tmp_path / "whole", axes, **values)))
    trained = sorted(stub.trained)
    for at in range(1, len(writes), 4):
        stub.trained.clear()
        left = iter(range(at + 1))

        def write(*given, left=left):
            if next(left, None) is None:
                raise Killed
            real(*given)

        cfg = config(line, tmp_path / f"killed-{at}", axes, **values)
        with monkeypatch.context() as patch:
            patch.setattr(train.sweep, "atomic_write", write)
            with pytest.raises(Killed):
                sweep(cfg)
                raise Killed  # the last kill comes too late
        assert outcome(sweep(cfg)) == undisturbed
        died = [each for each in stub.trained if float(each[0]) > 0.6]
        assert sorted(set(stub.trained)) == trained
        assert len(stub.trained) - len(trained) <= len(died) / 2  # only what died unrecorded is trained twice


def test_the_table_names_all_points_of_a_grid_at_any_time(line, tmp_path, stub, monkeypatch):
    cfg = config(line, tmp_path, {"margin": "0.4,0.2,0.3"})
    real = stub.__call__

    def second_is_killed(trainings, module, overrides):
        if len(stub.trained) == 1:
            raise Killed
        return real(trainings, module, overrides)

    with monkeypatch.context() as patch:
        patch.setattr(Trainings, "_process", second_is_killed)
        with pytest.raises(Killed):
            sweep(cfg)
    found = columns(tmp_path / ".sweeps" / "margins", "margin", "state", "val_map")
    assert found == [("0.4", "done", "0.400000"), ("0.2", "open", ""), ("0.3", "open", "")]


KILL_9 = """
import sys
import train.trainings
from configs.compose import Paths
from tests.test_sweep import config
from train.sweep import sweep
train.trainings.TRAIN = "tests.stub_trainer"
sweep(config(Paths(sys.argv[1]), sys.argv[2], {"margin": "0.2,0.99,0.3"}))
"""


def test_kill_9_leaves_a_sweep_that_goes_on_with_the_rest(line, tmp_path, monkeypatch):
    """The training that the killed sweep leaves behind is waited for and used."""
    monkeypatch.setattr(train.trainings, "TRAIN", "tests.stub_trainer")
    monkeypatch.setattr(train.trainings, "LOOK_AGAIN_S", 0.02)
    command = [sys.executable, "-c", KILL_9, line.data, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=CONFIG_DIR.parent) as process:
        wait_until(lambda: len(list(tmp_path.glob("*/held"))) == 2)  # the second of three waits
        process.kill()
    first = next(tmp_path.glob("*/manifest.json"))
    trained_at = first.stat().st_mtime_ns
    orphan = next(each.parent for each in tmp_path.glob("*/held") if each.parent != first.parent)
    threading.Timer(0.3, (orphan / "go").touch).start()
    found = columns(sweep(config(line, tmp_path, {"margin": "0.2,0.99,0.3"})), "margin", "state")
    assert found == [("0.99", "done"), ("0.3", "done"), ("0.2", "done")]
    assert first.stat().st_mtime_ns == trained_at


def test_two_sweeps_of_one_name_exclude_each_other(line, tmp_path, stub):
    cfg = config(line, tmp_path, {"margin": "0.4,0.2"})
    with (
        exclusive(tmp_path / ".sweeps" / "margins"),
        pytest.raises(ArtifactError, match="another process is writing"),
    ):
        sweep(cfg)
    assert stub.trained == []
    assert [path.name for path in (tmp_path / ".sweeps" / "margins").iterdir()] == [".lock"]


def test_another_sweep_does_not_overwrite_one_of_its_name_and_shares_runs(line, tmp_path, stub):
    directory = sweep(config(line, tmp_path, {"margin": "0.4,0.2"}))
    table = (directory / "table.csv").read_bytes()
    other = config(line, tmp_path, {"margin": "0.4,0.3"})
    with pytest.raises(ArtifactError, match=r"axes: .*'margin': '0.4,0.2'.* -> .*'margin': '0.4,0.3'.*name=<name>"):
        sweep(other)
    assert (directory / "table.csv").read_bytes() == table
    other.name = "others"
    stub.trained.clear()
    sweep(other)
    assert [margin for margin, *_ in stub.trained] == ["0.3"]


def test_more_trials_go_on_with_the_same_search(line, tmp_path, stub):
    axes = {"margin": "interval(0.1,0.5)", "depth": "1,2"}
    cfg = config(line, tmp_path, axes, sampler="tpe", trials=3)
    first = rows(sweep(cfg))
    cfg.trials = 6
    found = rows(sweep(cfg))
    assert len(stub.trained) == len(found) == 6
    assert [row for row in found if int(row["number"]) <= 3] == first
    assert len({(row["margin"], row["depth"]) for row in found}) == 6


def test_points_may_be_trained_side_by_side(line, tmp_path, stub):
    directory = sweep(config(line, tmp_path, {"margin": "0.1,0.2,0.3,0.4,0.5"}, jobs=3))
    assert columns(directory, "margin") == [("0.5",), ("0.4",), ("0.3",), ("0.2",), ("0.1",)]


def test_checkpoints_of_all_but_the_best_may_go(line, tmp_path, stub):
    directory = sweep(config(line, tmp_path, {"margin": "0.2,0.4,0.3"}, keep="best"))
    best = rows(directory)[0]["point"]
    kept = [path.parent.name.partition("-")[0] for path in tmp_path.glob("*/checkpoints")]
    assert kept == [best]
    assert len(list(tmp_path.glob("*/manifest.json"))) == 3


def test_the_best_point_is_an_experiment_that_composes_to_what_was_trained(tmp_path, line, stub):
    chosen = {"objective": "full_vocabulary", "temperature": "0.05", "optimizer": "sgd", "depth": "2"}
    text = experiment_yaml("found", chosen, "val_map 0.4")
    assert text.splitlines()[4:] == [
        "defaults:",
        "  - override /objective: full_vocabulary",
        "run: found",
        "temperature: 0.05",
        "optimizer: sgd",
    ]
    assert composed_with(tmp_path, text) == compose_typed(
        "train", TrainConfig, [*(f"{key}={value}" for key, value in chosen.items()), "run=found"]
    )


def test_a_best_point_on_top_of_an_experiment_holds_all_of_it(tmp_path):
    chosen = {"experiment": "original", "margin": "0.2", "backbone": "efficientnet_lite0"}
    text = experiment_yaml("found", chosen, "val_map 0.4")
    expected = [*(f"{key}={value}" for key, value in chosen.items()), "run=found"]
    assert composed_with(tmp_path, text) == compose_typed("train", TrainConfig, expected)


def composed_with(folder, text):
    """Compose train with a text as its experiment `found`."""
    (folder / "experiment").mkdir()
    (folder / "experiment" / "found.yaml").write_text(text)
    return compose_typed("train", TrainConfig, ["experiment=found", f"hydra.searchpath=[file://{folder}]"])


@pytest.mark.parametrize(
    ("axes", "values", "words"),
    [
        ({}, {}, "nothing to vary"),
        ({"margin": "0.3"}, {}, "nothing to vary"),
        ({"margni": "0.2,0.3"}, {}, "margni"),
        ({"margni": "interval(0,1)"}, {"sampler": "tpe"}, "margni"),
        ({"margin": "0.2,wide"}, {}, "margin"),
        ({"margin": "0.2,2.5"}, {}, r"margin must lie in \(0, 2\), got 2.5"),
        ({"margin": "interval(0.1,2.5)"}, {"sampler": "tpe"}, r"margin must lie in \(0, 2\), got 2.5"),
        ({"depth": "1.5,2"}, {}, "depth"),
        ({"temperature": "0.1,0.2"}, {}, "temperature means nothing to objective=hinge"),
        ({"objective": "hinge,hnge"}, {}, "hnge"),
        ({"margin": "interval(0.1,0.5)"}, {}, "margin is an interval, which has no grid"),
        ({"hidden_dim": "range(1,900)"}, {}, "the grid has 899 points, more than 500"),
        ({"run": "a,b"}, {}, "runs are named by their points"),
        ({"seed": "interval(0,3)", "depth": "1,2"}, {}, "whole numbers"),
        ({"pca": "0,16"}, {}, "pca16"),
    ],
)
def test_a_sweep_that_cannot_go_is_refused_before_the_first_training(line, tmp_path, stub, axes, values, words):
    with pytest.raises((ConfigError, ArtifactError), match=words):
        sweep(config(line, tmp_path, axes, **values))
    assert stub.trained == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sampler": "random"}, "sampler must be one of grid, tpe, got 'random'"),
        ({"keep": "none"}, "keep must be one of all, best, got 'none'"),
        ({"trials": 0}, "trials must be 1 or more, got 0"),
        ({"jobs": 0}, "jobs must be 1 or more, got 0"),
        ({"seeds": []}, "seeds must be different numbers"),
        ({"seeds": [1, 1]}, "seeds must be different numbers"),
        ({"collections": ["a", "a"]}, "collections must be different"),
        ({"name": "../a"}, "name must be a name"),
    ],
)
def test_values_out_of_range_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        SweepConfig(**values)


def test_whole_numbers_are_searched_where_the_key_takes_no_others(line, tmp_path):
    axes, _ = open_axes(config(line, tmp_path, {"hidden_dim": "interval(64,2048)", "margin": "interval(0.1,1)"}))
    assert {axis.key: axis.whole for axis in axes if not axis.values} == {"hidden_dim": True, "margin": False}


def test_overrides_of_train_become_axes_on_the_command_line(monkeypatch):
    given = ["margin=0.2,0.3", "backbone.name='a b'", "experiment=original", "trials=3", "paths.runs=elsewhere"]
    found = []
    monkeypatch.setattr(sys, "argv", ["sweep", *given, "learning_rate=tag(log, interval(1e-4, 1e-2))"])
    run_stage(found.append, SweepConfig, "sweep", rest="axes")
    logging.captureWarnings(False)
    assert (found[0].trials, found[0].paths.runs) == (3, "elsewhere")
    assert found[0].axes == {
        "margin": "0.2,0.3",
        "backbone.name": "'a b'",
        "experiment": "original",
        "learning_rate": "tag(log, interval(1e-4, 1e-2))",
    }


def test_an_axis_on_the_command_line_wins_over_the_recorded_sweep(monkeypatch):
    found = []
    monkeypatch.setattr(sys, "argv", ["sweep", "sweep=objectives", "learning_rate=1e-3", "max_epochs=2"])
    run_stage(found.append, SweepConfig, "sweep", rest="axes")
    logging.captureWarnings(False)
    assert (found[0].name, found[0].seeds) == ("objectives", [0, 1, 2])
    assert (found[0].axes["learning_rate"], found[0].axes["max_epochs"]) == ("1e-3", "2")
    assert "full_vocabulary" in found[0].axes["objective"]


@pytest.mark.parametrize("argument", ["+margni=0.3", "++margin=0.3", "a b=3"])
def test_only_plain_overrides_become_axes(argument, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep", argument])
    with pytest.raises(SystemExit, match="takes plain `key=value`"):
        run_stage(print, SweepConfig, "sweep", rest="axes")


def test_real_trainings_in_a_sweep_are_ordinary_runs(line, tmp_path):
    small = {"hidden_dim": "8", "embed_dim": "8", "batch_size": "64", "max_epochs": "1", "device": "cpu"}
    cfg = config(line, tmp_path, small | {"learning_rate": "1e30,0.01"}, jobs=2)  # the first diverges
    good, bad = rows(sweep(cfg))
    assert (good["state"], good["learning_rate"], bad["state"]) == ("done", "0.01", "failed")
    assert bad["reason"].startswith(f"seed 0 of {line.data}: ")
    run = open_run(Paths(line.data, str(tmp_path)), next(tmp_path.glob("*/manifest.json")).parent.name)[1]
    assert f"{run.facts['val_map']:.6f}" == good["val_map"]
