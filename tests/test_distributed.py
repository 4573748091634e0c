"""Two processes train as one would on the batches of both, and end together."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train.batches
from configs.artifacts import ArtifactError, read_manifest
from tests.ranks import OBJECTIVES, WITH_DRAWS, die, plain_config, train_all
from tests.synthetic import BACKBONE, train_config
from tests.test_batches import listed_pairs, training_of
from tests.test_feature_stream import an_index
from train.batches import ResidentFeatures, open_batches
from train.config import TrainConfig
from train.distributed import ALONE, Rank, gather_embeddings, gather_rows, launch, share
from train.fit import fit, new_towers, open_feature_source, open_training_set
from train.module import AtomicCheckpoints, Resident, TrainingDiverged, TwoTowerModule, average_into
from train.objectives import open_objective
from train.runs import open_inputs

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
BOTH = Rank(0, 2), Rank(1, 2)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def both(line):
    """The line with the trainings that two processes left."""
    launch(train_all, 2, "cpu", line)
    return line


def last_of(paths, run):
    return AtomicCheckpoints().load_checkpoint(paths.run(run) / "checkpoints" / "last.ckpt")


def trained_alone(paths, cfg, monkeypatch):
    """Train one process on the batches that two would draw, put together; return its state and mean losses."""
    inputs = open_inputs(cfg)
    training = open_training_set(inputs, cfg)
    objective = open_objective(cfg, training.prior)
    towers = new_towers(inputs, training.vocabulary, cfg)
    resident = Resident(torch.from_numpy(np.array(inputs.vectors.vectors)), towers.residual_rows(inputs.index.tags))
    module = TwoTowerModule(towers, objective, resident, None, cfg)
    optimizer = module.configure_optimizers()
    monkeypatch.setattr(train.batches, "gather_rows", lambda rows, rank: rows)
    features = ResidentFeatures(torch.from_numpy(inputs.features), CPU)
    losses, step, now = [], 0, [0]
    everything = open_batches(training, features, objective.draws, cfg, CPU, lambda: 0)
    parts = [part_batches(inputs, training, objective.draws, cfg, lambda: now[0], rank) for rank in BOTH]
    for now[0] in range(cfg.max_epochs):
        totals = []
        for pair in zip(*parts, strict=True):
            images = torch.cat([each.image_rows for each in pair])
            tags = pair[0].tag_rows if objective.draws == "images" else torch.cat([each.tag_rows for each in pair])
            loss, _ = module.loss(everything._masked(tags, images, tags, images))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if module.averaged is not None:
                decay = min(cfg.weight_averaging, (1 + step) / (10 + step))
                average_into(module.averaged, module.towers, torch.tensor(decay))
            totals.append(loss.item())
        losses.append(np.mean(totals))
    return module.state_dict(), losses


def part_batches(inputs, training, draws, cfg, epoch, rank):
    """The batches of one process of two."""
    drawn_images = training.drawn_images(draws)
    source = open_feature_source(inputs, drawn_images[share(drawn_images, rank)[0]], cfg, CPU, rank)
    return open_batches(training, source, draws, cfg, CPU, epoch, rank)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_learn_what_one_does_from_the_batches_of_both(both, monkeypatch, objective):
    cfg = plain_config(both, objective)
    state, losses = trained_alone(both, cfg, monkeypatch)
    last = last_of(both, f"both-{objective}")
    assert state.keys() == last["state_dict"].keys()
    for name, weights in state.items():
        torch.testing.assert_close(last["state_dict"][name], weights, rtol=1e-5, atol=1e-6, msg=name)
    assert [row["train_loss"] for row in last["history"]] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_towers_of_both_moved_and_so_did_what_the_objective_learns(both, objective):
    cfg = plain_config(both, objective)
    inputs = open_inputs(cfg)
    training = open_training_set(inputs, cfg)
    start = {f"towers.{name}": each for name, each in new_towers(inputs, training.vocabulary, cfg).state_dict().items()}
    start |= {f"objective.{name}": each for name, each in open_objective(cfg, training.prior).state_dict().items()}
    end = last_of(both, f"both-{objective}")["state_dict"]
    learned = [name for name in start if not name.endswith((".centre", ".spread"))]
    assert all((end[name] - start[name]).abs().max() > 1e-4 for name in learned)


def test_two_processes_resume_bit_for_bit(both):
    whole, halves = last_of(both, "both-whole"), last_of(both, "both-halves")
    assert whole["history"] == halves["history"]
    assert all(torch.equal(whole["state_dict"][name], halves["state_dict"][name]) for name in whole["state_dict"])


def command(paths, run):
    """The command of the training that `both-whole` is."""
    cfg = train_config(paths, run=run, devices=2, **WITH_DRAWS)
    plain = TrainConfig()
    turned = {name: value for name, value in vars(cfg).items() if value != getattr(plain, name)}
    turned = {name: value for name, value in turned.items() if name not in ("paths", "backbone")}
    backbone = {f"backbone.{name}": value for name, value in vars(BACKBONE).items()}
    where = {"paths.data": paths.data, "paths.runs": paths.runs}
    overrides = [f"{name}={'null' if value is None else value}" for name, value in (where | turned | backbone).items()]
    return [sys.executable, "-m", "train.fit", *overrides]


def test_a_command_that_is_killed_takes_its_processes_along_and_its_run_resumes(both, caplog):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    with subprocess.Popen(command(both, "both-killed"), **options) as process:
        next(printed for printed in process.stdout if "epoch 0:" in printed)
        process.kill()
        process.stdout.read()  # ends when the last process that could write to it has ended
    assert process.returncode == -signal.SIGKILL
    with caplog.at_level("INFO"):
        fit(train_config(both, run="both-killed", devices=2, **WITH_DRAWS))
    assert caplog.text.count("training run=both-killed") == 1
    killed, whole = last_of(both, "both-killed"), last_of(both, "both-whole")
    assert all(torch.equal(killed["state_dict"][name], whole["state_dict"][name]) for name in whole["state_dict"])
    assert read_manifest(both.run("both-killed")).facts["num_epochs"] == 3


def test_a_divergence_ends_all_processes_with_one_message(line, capfd):
    cfg = train_config(line, run="both-diverged", devices=2, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"not finite at epoch 0.*There is no checkpoint yet"):
        fit(cfg)
    assert "Traceback" not in capfd.readouterr().err


def test_a_process_that_is_killed_ends_the_others_and_is_named(capfd):
    with pytest.raises(ArtifactError, match=r"process 1 of 2 ended with exit code -9"):
        launch(die, 2, "cpu")


def test_each_process_draws_all_of_its_images_and_about_equally_much():
    rows = np.random.default_rng(0).integers(0, 50, 1000)
    shares = [share(rows, Rank(number, 3)) for number in range(3)]
    assert sorted(np.concatenate([own for own, _ in shares]).tolist()) == list(range(1000))
    images = [set(rows[own]) for own, _ in shares]
    assert not images[0] & images[1] | images[1] & images[2] | images[0] & images[2]
    assert {least for _, least in shares} == {min(len(own) for own, _ in shares)}
    assert max(len(own) for own, _ in shares) - min(len(own) for own, _ in shares) <= 2 * np.bincount(rows).max()


def test_images_that_are_fewer_than_processes_are_refused():
    with pytest.raises(ArtifactError, match="devices=3 are too many for 2 images to train on"):
        share(np.array([4, 4, 7, 7]), Rank(0, 3))


def test_processes_take_the_same_steps_of_their_shares_of_a_batch(monkeypatch):
    monkeypatch.setattr(train.batches, "gather_rows", lambda rows, rank: rows)
    index = an_index(61)
    training = training_of(index)
    features = ResidentFeatures(torch.zeros(61, 1), CPU)
    cfg = TrainConfig(batch_size=10, devices=2)
    parts = [list(open_batches(training, features, "pairs", cfg, CPU, lambda: 0, rank)) for rank in BOTH]
    assert len(parts[0]) == len(parts[1]) == 12  # of 122 pairs
    assert {len(batch.tag_rows) for part in parts for batch in part} == {5}
    pairs = [pair for part in parts for pair in listed_pairs(part)]
    assert len(set(pairs)) == 120


def test_a_share_of_the_features_is_found_by_image_row():
    source = ResidentFeatures(torch.tensor([[1.0], [4.0], [9.0]]), CPU, torch.tensor([1, 4, 9]))
    assert source.gather(torch.tensor([9, 1, 9])).tolist() == [[9], [1], [9]]


def test_alone_nothing_is_gathered():
    rows = torch.ones(2, 3)
    assert gather_rows(rows, ALONE) is rows
    assert gather_embeddings(rows, ALONE) is rows


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="batch_size must be a multiple of devices=3, got 512"):
        TrainConfig(devices=3)
    with pytest.raises(ValueError, match="objective=hinge_means needs features_in=memory and devices=1"):
        TrainConfig(devices=2, objective="hinge_means")


def test_more_processes_than_cards_are_refused(line, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ArtifactError, match="devices=2, but torch sees 1 CUDA devices"):
        fit(train_config(line, run="cards", devices=2, device="cuda", features_in="memory"))
