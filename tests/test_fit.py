"""A training that is killed anywhere ends as one that was not."""

import csv
import errno
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger
from tensorboard.summary.writer.record_writer import RecordWriter

import configs.artifacts
import train.fit
import train.module
from configs.artifacts import ArtifactError, read_manifest
from configs.compose import Paths
from crawl.records import TRAIN
from features.image_features import FeatureStore
from features.inverted_index import open_index
from tests.synthetic import TAGS, copy_line, train_config
from train.batches import ResidentFeatures, is_withheld, open_batches
from train.config import OBJECTIVES
from train.fit import fit, judge_on, open_training_set, train_towers, validation
from train.module import AtomicCheckpoints, TwoTowerModule
from train.runs import open_inputs, open_run
from train.towers import embed_tags, load_towers

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """Ends a training in this process where a signal would."""


def outcome(run_dir):
    """What must not depend on interruptions: weights, history, content_id."""
    files = [(run_dir / name).read_bytes() for name in ("towers.safetensors", "history.csv")]
    return [*files, read_manifest(run_dir).content_id]


def killed(cfg, monkeypatch, target, name, at_call, after):
    """Run `fit` and end it before or after the given call of a function."""
    real, calls = getattr(target, name), []

    def counted(*arguments, **options):
        calls.append(name)
        if len(calls) == at_call and not after:
            raise Killed
        result = real(*arguments, **options)
        if len(calls) == at_call:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(target, name, counted)
        with pytest.raises(Killed):
            fit(cfg)


@pytest.fixture(scope="module")
def undisturbed(line):
    return outcome(fit(train_config(line, run="undisturbed")))


@pytest.mark.parametrize("at_call", range(1, 7))  # three epochs, each the best so far, then the last
def test_a_training_killed_at_a_checkpoint_ends_as_one_that_was_not(line, undisturbed, monkeypatch, at_call):
    cfg = train_config(line, run=f"killed-{at_call}")
    killed(cfg, monkeypatch, AtomicCheckpoints, "save_checkpoint", at_call, after=True)
    assert outcome(fit(cfg)) == undisturbed


@pytest.mark.parametrize("name", ["save_towers", "atomic_write", "seal"])
@pytest.mark.parametrize("after", [False, True])
def test_a_training_killed_while_it_is_written_down_ends_as_one_that_was_not(
    line,
    undisturbed,
    monkeypatch,
    name,
    after,
):
    cfg = train_config(line, run=f"killed-{name}-{after}")
    killed(cfg, monkeypatch, train.fit, name, 1, after)
    assert outcome(fit(cfg)) == undisturbed


def test_a_training_killed_in_the_middle_of_an_epoch_ends_as_one_that_was_not(line, undisturbed, monkeypatch):
    cfg = train_config(line, run="killed-step")
    killed(cfg, monkeypatch, TwoTowerModule, "step", 8, after=True)  # the third step of the second epoch
    assert outcome(fit(cfg)) == undisturbed


def short_config(line, run):
    """All that a run can carry from step to step, in two epochs of four steps."""
    return train_config(line, run=run, batch_size=80, **{**EXTRAS, "max_epochs": 2, "patience": 1})


@pytest.fixture(scope="module")
def short(line):
    return outcome(fit(short_config(line, "short")))


@pytest.mark.parametrize("step", range(1, 9))
@pytest.mark.parametrize("after", [False, True])
def test_a_training_killed_at_any_step_ends_as_one_that_was_not(line, short, monkeypatch, after, step):
    cfg = short_config(line, f"short-{after}-{step}")
    killed(cfg, monkeypatch, TwoTowerModule, "step", step, after=after)
    assert outcome(fit(cfg)) == short


def test_a_training_killed_again_and_again_ends_as_one_that_was_not(line, short, monkeypatch):
    cfg = short_config(line, "short-again")
    for step in (2, 3, 6, 1, 2):
        killed(cfg, monkeypatch, TwoTowerModule, "step", step, after=False)
    assert outcome(fit(cfg)) == short


def test_a_kill_within_an_epoch_loses_neither_the_best_score_nor_the_patience_spent(line, stopped_early, monkeypatch):
    cfg = early_config(line, "early-mid-epoch")
    best = max(rows_of(stopped_early), key=lambda row: row[1])[0]
    steps = len(open_training_set(open_inputs(cfg), cfg).pairs[0]) // cfg.batch_size
    killed(cfg, monkeypatch, TwoTowerModule, "step", (best + 2) * steps + 2, after=True)
    assert outcome(fit(cfg)) == outcome(stopped_early)


WRITES = ["config", "best.ckpt", "last.ckpt", "towers", "history", "manifest"]


@pytest.mark.parametrize("at_write", range(len(WRITES)), ids=WRITES)
def test_a_full_disk_stops_a_training_wherever_it_strikes_and_the_next_start_ends_it(line, monkeypatch, at_write):
    cfg = train_config(line, run=f"full-{at_write}", max_epochs=1)
    written, real = [], configs.artifacts.atomic_open

    @contextmanager
    def full(path):
        written.append(path.name)
        with real(path) as stream:
            yield stream
            if len(written) == at_write + 1:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(configs.artifacts, "atomic_open", full)
        with pytest.raises((ArtifactError, OSError), match="No space left on device"):
            fit(cfg)
    run_dir = line.run(cfg.run)
    assert WRITES[at_write] in written[-1]
    assert read_manifest(run_dir) is None
    assert not list(run_dir.rglob(".partial-*"))
    if not (line.run("one-epoch") / "manifest.json").exists():
        fit(train_config(line, run="one-epoch", max_epochs=1))
    assert outcome(fit(cfg)) == outcome(line.run("one-epoch"))


@pytest.mark.parametrize(("target", "name"), [(CSVLogger, "save"), (RecordWriter, "write")])
def test_a_log_that_cannot_be_written_stops_a_training_too(line, monkeypatch, target, name):
    cfg = train_config(line, run=f"full-log-{name}")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(target, name, full)
        patch.setattr(threading, "excepthook", lambda _: None)  # TensorBoard writes in a thread, and asks how it fares
        with pytest.raises(OSError, match="No space left on device"):
            fit(cfg)
    assert read_manifest(line.run(cfg.run)) is None


@pytest.mark.parametrize("name", ["config.yaml", "history.csv", "manifest.json"])
def test_an_armed_file_in_a_run_fires_nothing(line, undisturbed, tmp_path, name):
    paths = Paths(line.data, str(tmp_path / "runs"))
    shutil.copytree(line.run("undisturbed"), paths.run("undisturbed"))
    armed = f"!!python/object/apply:os.system ['touch {tmp_path / 'fired'}']\n"
    (paths.run("undisturbed") / name).write_text(armed)
    for use in (lambda: fit(train_config(paths, run="undisturbed")), lambda: open_run(paths, "undisturbed")):
        with suppress(ArtifactError):
            use()
    with pytest.raises(yaml.YAMLError):
        OmegaConf.load(paths.run("undisturbed") / name)  # how experiments are read
    assert not (tmp_path / "fired").exists()


SCRIPT = """
import logging, sys
import torch
torch.set_num_threads(1)
from configs.compose import Paths
from tests.synthetic import train_config
from train.fit import fit
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
fit(train_config(Paths(sys.argv[1], sys.argv[2]), run=sys.argv[3]))
"""


def test_kill_9_leaves_a_run_that_resumes_to_the_same_end(line, undisturbed):
    command = [sys.executable, "-c", SCRIPT, line.data, line.runs, "kill-9"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as process:
        next(printed for printed in process.stdout if printed.startswith("epoch 1"))
        process.kill()
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    assert outcome(fit(train_config(line, run="kill-9"))) == undisturbed


def test_ctrl_c_leaves_an_unfinished_run_that_resumes_to_the_same_end(line, undisturbed, monkeypatch):
    cfg = train_config(line, run="interrupted")
    at_first = signal.getsignal(signal.SIGINT)  # Lightning ignores it from the first Ctrl-C on
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train.module, "log", Interrupting("epoch 1"))
        fit(cfg)
    signal.signal(signal.SIGINT, at_first)
    assert read_manifest(line.run("interrupted")) is None
    assert outcome(fit(cfg)) == undisturbed


class Interrupting:
    """A log in which someone presses Ctrl-C at a line."""

    def __init__(self, line_start):
        self.line_start = line_start

    def info(self, text, *values):
        if (text % values).startswith(self.line_start):
            raise KeyboardInterrupt


def test_a_kill_costs_no_more_than_the_epoch_it_met(line, monkeypatch):
    cfg = early_config(line, "cost")
    killed(cfg, monkeypatch, TwoTowerModule, "on_train_epoch_start", 6, after=False)
    last = AtomicCheckpoints().load_checkpoint(line.run("cost") / "checkpoints" / "last.ckpt")
    assert len(last["history"]) == 5


def early_config(paths, run):
    return train_config(paths, run=run, learning_rate=0.05, max_epochs=20, patience=2)


@pytest.fixture(scope="module")
def stopped_early(line):
    return fit(early_config(line, "early"))


def rows_of(run_dir):
    with (run_dir / "history.csv").open() as stream:
        return [(int(row["epoch"]), float(row["val_map"])) for row in csv.DictReader(stream)]


def test_training_stops_when_patience_is_spent(stopped_early):
    rows = rows_of(stopped_early)
    best = max(rows, key=lambda row: row[1])[0]
    assert [epoch for epoch, _ in rows] == list(range(best + 3))
    assert len(rows) < 20


def test_a_kill_loses_neither_the_best_score_nor_the_patience_spent(line, stopped_early, monkeypatch):
    cfg = early_config(line, "early-killed")
    best = max(rows_of(stopped_early), key=lambda row: row[1])[0]
    killed(cfg, monkeypatch, TwoTowerModule, "on_train_epoch_start", best + 3, after=False)  # one epoch was no better
    assert outcome(fit(cfg)) == outcome(stopped_early)


def test_a_run_that_had_stopped_gets_no_further_epoch(line, stopped_early, monkeypatch):
    cfg = early_config(line, "early-unsealed")
    killed(cfg, monkeypatch, train.fit, "save_towers", 1, after=False)
    assert outcome(fit(cfg)) == outcome(stopped_early)


def test_the_towers_are_those_of_the_best_epoch(line, stopped_early):
    inputs = open_inputs(train_config(line))
    question = validation(inputs.index, inputs, early_config(line, "early"))
    towers = load_towers(stopped_early / "towers.safetensors")
    best = max(value for _, value in rows_of(stopped_early))
    assert judge_on(question, inputs, early_config(line, "early"))(towers) == pytest.approx(best, abs=1e-6)
    assert read_manifest(stopped_early).facts["val_map"] == best


def test_of_epochs_that_differ_by_less_than_lightning_sees_the_first_is_best(line, monkeypatch):
    values = iter([0.5, 0.5 + 1e-12, 0.4])
    monkeypatch.setattr(train.fit, "judge_on", lambda question, inputs, cfg: lambda towers: next(values))
    run_dir = fit(train_config(line, run="tied"))
    best = AtomicCheckpoints().load_checkpoint(run_dir / "checkpoints" / "best.ckpt")
    assert read_manifest(run_dir).facts["best_epoch"] == best["history"][-1]["epoch"] == 0


def test_a_project_moved_between_kill_and_resume_keeps_its_best_epoch(line, stopped_early, monkeypatch, tmp_path):
    copy_line(Paths(line.data, str(tmp_path / "none")), tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    best = max(rows_of(stopped_early), key=lambda row: row[1])[0]
    cfg = early_config(Paths(), "moved")
    killed(cfg, monkeypatch, TwoTowerModule, "on_train_epoch_start", best + 3, after=False)
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert outcome(fit(cfg)) == outcome(stopped_early)


def test_the_same_seed_gives_the_same_run_and_another_one_another(line, undisturbed):
    assert outcome(fit(train_config(line, run="again"))) == undisturbed
    assert outcome(fit(train_config(line, run="other", seed=1))) != undisturbed


def test_a_finished_run_is_told_without_reading_features(line, undisturbed, monkeypatch, caplog):
    monkeypatch.setattr(FeatureStore, "gather", None)
    with caplog.at_level("INFO", "train.fit"):
        assert outcome(fit(train_config(line, run="undisturbed"))) == undisturbed
    assert "already done" in caplog.text


def test_another_config_is_refused_with_the_difference_and_the_way_out(line, undisturbed):
    saved = line.run("undisturbed") / "config.yaml"
    before = saved.read_bytes(), saved.stat().st_mtime_ns
    with pytest.raises(ArtifactError, match=r"margin: 0\.3 -> margin: 0\.4\. Choose another name with run="):
        fit(train_config(line, run="undisturbed", margin=0.4))
    assert (saved.read_bytes(), saved.stat().st_mtime_ns) == before


def test_an_unfinished_run_is_not_resumed_with_another_config(line, monkeypatch):
    killed(train_config(line, run="half"), monkeypatch, AtomicCheckpoints, "save_checkpoint", 2, after=True)
    with pytest.raises(ArtifactError, match="seed: 0 -> seed: 1"):
        fit(train_config(line, run="half", seed=1))


def test_other_inputs_under_the_same_config_are_refused(line, undisturbed, monkeypatch):
    real = train.fit.open_inputs

    def changed(cfg):
        inputs = real(cfg)
        inputs.content["index"] = "another"
        return inputs

    monkeypatch.setattr(train.fit, "open_inputs", changed)
    with pytest.raises(ArtifactError, match="index, its audit, tag vectors or image features have changed"):
        fit(train_config(line, run="undisturbed"))


def trained_weights(inputs, cfg, run_dir):
    """Return the weights after the last epoch, before the best ones take their place."""
    train_towers(inputs, cfg, run_dir)
    return AtomicCheckpoints().load_checkpoint(run_dir / "checkpoints" / "last.ckpt")["state_dict"]


def spoiled_inputs(line, vectors_of=(), images=None):
    """Open the line with the vectors of some tags and the features of some images replaced."""
    inputs = open_inputs(train_config(line))
    vectors, features = np.array(inputs.vectors.vectors), np.array(inputs.features)
    vectors[list(vectors_of)] = 9.0
    features[images if images is not None else []] = 9.0
    inputs.vectors.vectors = vectors
    inputs.__dict__["features"] = features
    return inputs


def test_weights_do_not_depend_on_images_of_val_and_test(line, tmp_path):
    cfg = train_config(line, max_epochs=2)
    held_out = np.flatnonzero(open_index(line)[0].splits != TRAIN)
    clean = trained_weights(spoiled_inputs(line), cfg, tmp_path / "a")
    spoiled = trained_weights(spoiled_inputs(line, images=held_out), cfg, tmp_path / "b")
    assert all(torch.equal(clean[name], spoiled[name]) for name in clean)


def test_weights_do_not_depend_on_withheld_tags(line, tmp_path):
    cfg = train_config(line, max_epochs=2, withhold_tags=0.4)
    index = open_index(line)[0]
    withheld = [index.tag_row(tag) for tag in TAGS if is_withheld(tag, 0.4)]
    clean = trained_weights(spoiled_inputs(line), cfg, tmp_path / "a")
    spoiled = trained_weights(spoiled_inputs(line, vectors_of=withheld), cfg, tmp_path / "b")
    assert withheld
    assert all(torch.equal(clean[name], spoiled[name]) for name in clean)


def test_validation_asks_at_most_val_tags_and_none_withheld(line):
    inputs = open_inputs(train_config(line))
    few = validation(inputs.index, inputs, train_config(line, val_tags=3))
    seen = validation(inputs.index, inputs, train_config(line, withhold_tags=0.4))
    assert len(few.tag_rows) == 3
    assert not any(is_withheld(inputs.index.tags[row], 0.4) for row in seen.tag_rows)


def test_cuda_is_refused_where_there_is_none(line, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArtifactError, match="torch sees no CUDA device"):
        fit(train_config(line, run="cuda", device="cuda"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns(line, objective):
    run_dir = fit(train_config(line, run=f"learns-{objective}", objective=objective, max_epochs=6))
    values = [value for _, value in rows_of(run_dir)]
    assert max(values) > 0.26  # chance is 0.2


def test_a_run_loads_where_its_part_logs_lie_beside_the_seal(line, undisturbed):
    run_dir = line.run("undisturbed")
    assert set(read_manifest(run_dir).files) == {"config.yaml", "towers.safetensors", "history.csv"}
    assert (run_dir / "logs" / "part-1" / "metrics.csv").is_file()


EXTRAS = {"weight_averaging": 0.9, "tag_residual": 0.5, "depth": 3, "normalisation": "layer", "max_epochs": 4}


def with_all_extras(line, objective, run):
    knobs = OBJECTIVES[objective]
    turned = {"warmup_epochs": 3, "hard_negative_share": 0.5, "frequency_weighting": 0.5}
    own = {name: value for name, value in turned.items() if name in knobs}
    return train_config(line, run=f"{run}-{objective}", objective=objective, batch_size=48, **EXTRAS, **own)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_resumes_bit_for_bit_with_all_that_it_learns(line, monkeypatch, objective):
    whole = outcome(fit(with_all_extras(line, objective, "whole")))
    cfg = with_all_extras(line, objective, "halves")
    killed(cfg, monkeypatch, AtomicCheckpoints, "save_checkpoint", 4, after=True)
    killed(cfg, monkeypatch, TwoTowerModule, "step", 2, after=True)
    assert outcome(fit(cfg)) == whole


def test_the_averaged_towers_are_those_judged_and_kept(line):
    cfg = train_config(line, run="averaged", weight_averaging=0.99)
    run_dir = fit(cfg)
    inputs = open_inputs(cfg)
    towers = load_towers(run_dir / "towers.safetensors")
    best = AtomicCheckpoints().load_checkpoint(run_dir / "checkpoints" / "best.ckpt")["state_dict"]
    judged = judge_on(validation(inputs.index, inputs, cfg), inputs, cfg)(towers)
    assert judged == pytest.approx(read_manifest(run_dir).facts["val_map"], abs=1e-6)
    kept = towers.state_dict()
    assert all(torch.equal(kept[name], best[f"averaged.{name}"]) for name in kept)
    assert not torch.equal(kept["tag.out.weight"], best["towers.tag.out.weight"])


def test_averaged_weights_are_the_recursion_over_all_steps(line, monkeypatch, tmp_path):
    seen = []
    real = train.module.average_into

    def noted(averaged, towers, decay):
        seen.append((decay, towers.tag.out.bias.detach().clone(), averaged.tag.out.bias.clone()))
        real(averaged, towers, decay)

    monkeypatch.setattr(train.module, "average_into", noted)
    cfg = train_config(line, run="recursion", weight_averaging=0.5)
    state = trained_weights(open_inputs(cfg), cfg, tmp_path)
    mean = seen[0][2]
    for step, (decay, weight, _) in enumerate(seen, start=1):
        assert decay.item() == pytest.approx(min(0.5, (1 + step) / (10 + step)))
        mean = decay * mean + (1 - decay) * weight
    assert len(seen) == 3 * 5  # every step of three epochs, once
    torch.testing.assert_close(state["averaged.tag.out.bias"], mean)


def test_tags_trained_on_have_a_residual_and_withheld_ones_none(line):
    cfg = train_config(line, run="residual", tag_residual=1.0, withhold_tags=0.4)
    towers = load_towers(fit(cfg) / "towers.safetensors")
    inputs = open_inputs(cfg)
    seen = set(towers.shape["residual_tags"])
    assert {tag for tag in TAGS if tag in seen} == {tag for tag in TAGS if not is_withheld(tag, 0.4)}
    for tag in TAGS:
        vector = torch.from_numpy(np.array(inputs.vectors.vectors[[inputs.index.tag_row(tag)]]))
        alike = torch.allclose(embed_tags(towers, [tag], vector), towers.tag(vector), atol=1e-6)
        assert alike == (tag not in seen)


def test_towers_with_residuals_are_judged_alike_by_training_and_from_their_file(line):
    cfg = train_config(line, run="residual-judged", tag_residual=1.0)
    run_dir = fit(cfg)
    inputs = open_inputs(cfg)
    towers = load_towers(run_dir / "towers.safetensors")
    judged = judge_on(validation(inputs.index, inputs, cfg), inputs, cfg)(towers)
    assert judged == pytest.approx(read_manifest(run_dir).facts["val_map"], abs=1e-6)


def test_history_tells_what_share_of_negatives_would_have_been_wrong(line, undisturbed):
    with (line.run("undisturbed") / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    index = open_index(line)[0]
    batches = line_batches(line, epoch=1)
    shares = []
    for batch in batches:
        carries = [[int(image) in index.posting_list(int(tag)) for image in batch.image_rows] for tag in batch.tag_rows]
        wrong = sum(map(sum, carries)) - len(carries)
        shares.append(wrong / (len(carries) * (len(carries) - 1)))
    assert float(rows[1]["false_negatives"]) == pytest.approx(np.mean(shares))
    assert 0.1 < np.mean(shares) < 0.3  # two of twelve tags an image


def line_batches(line, epoch):
    cfg = train_config(line)
    inputs = open_inputs(cfg)
    features = ResidentFeatures(torch.from_numpy(inputs.features), torch.device("cpu"))
    return open_batches(open_training_set(inputs, cfg), features, "pairs", cfg, torch.device("cpu"), lambda: epoch)


def relate(line, target):
    """Copy the line and lay a table of relations beside its collection."""
    paths = copy_line(Paths(line.data, str(target / "none")), target)
    relations = paths.artifact("collection") / "tag_relations.csv"
    relations.write_text("tag,relation,other\ndog,broader,cat\n", encoding="utf-8")
    return paths, relations


def test_pictures_of_a_related_tag_are_no_negatives(line, tmp_path):
    paths, _ = relate(line, tmp_path)
    index = open_index(paths)[0]
    batches = line_batches(paths, epoch=0)
    dog, cat = index.tag_row("dog"), index.tag_row("cat")
    batch = next(batch for batch in batches if dog in batch.tag_rows)
    row = batch.tag_rows.tolist().index(dog)
    either = np.union1d(index.posting_list(dog), index.posting_list(cat))
    assert batch.blocked.table()[row].tolist() == np.isin(batch.image_rows, either).tolist()


def test_other_relations_under_the_same_config_are_refused(line, tmp_path):
    paths, relations = relate(line, tmp_path)
    fit(train_config(paths, max_epochs=1))
    relations.write_text("tag,relation,other\ndog,broader,boat\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="has another config or other inputs"):
        fit(train_config(paths, max_epochs=1))
