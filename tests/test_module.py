"""Steps, divergence and checkpoints of training."""

import os
import pickle

import numpy as np
import pytest
import torch

import train.fit
import train.module
from configs.artifacts import ArtifactError
from tests.synthetic import train_config
from train.fit import fit, train_towers
from train.module import AtomicCheckpoints, TrainingDiverged, TwoTowerModule
from train.objectives import open_objective
from train.runs import open_inputs
from train.towers import TwoTowers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def inputs(line):
    found = open_inputs(train_config(line))
    found.__dict__["features"] = np.array(found.features)  # a copy that a test may spoil
    return found


def new_module(cfg, judge=lambda towers: 0.5):
    return TwoTowerModule(
        TwoTowers(3, 4, hidden_dim=4, embed_dim=2), open_objective(cfg), torch.eye(3), torch.eye(4), judge, cfg
    )


def spoil(inputs, monkeypatch, at_epoch):
    """Make a train image's features NaN from an epoch on."""
    rows = np.flatnonzero(inputs.index.splits == 0)
    start = TwoTowerModule.on_train_epoch_start

    def spoiled(module):
        if module.current_epoch == at_epoch:
            module._resident["images"][torch.from_numpy(rows[:40])] = torch.nan
        start(module)

    monkeypatch.setattr(TwoTowerModule, "on_train_epoch_start", spoiled)


def test_a_loss_that_is_not_finite_stops_with_epoch_and_batch_named(inputs, line, tmp_path, monkeypatch):
    spoil(inputs, monkeypatch, at_epoch=1)
    with pytest.raises(TrainingDiverged, match=r"at epoch 1, batch 0\. The checkpoints of epoch 0 are kept"):
        train_towers(inputs, train_config(line), tmp_path)


def test_the_checkpoint_before_the_divergence_stays_good(inputs, line, tmp_path, monkeypatch):
    spoil(inputs, monkeypatch, at_epoch=1)
    with pytest.raises(TrainingDiverged):
        train_towers(inputs, train_config(line), tmp_path)
    for name in ("best.ckpt", "last.ckpt"):
        kept = AtomicCheckpoints().load_checkpoint(tmp_path / "checkpoints" / name)
        assert len(kept["history"]) == 1
        assert all(torch.isfinite(tensor).all() for tensor in kept["state_dict"].values())


def test_a_divergence_in_the_first_epoch_claims_no_checkpoint(inputs, line, tmp_path, monkeypatch):
    spoil(inputs, monkeypatch, at_epoch=0)
    with pytest.raises(TrainingDiverged, match="There is no checkpoint yet"):
        train_towers(inputs, train_config(line), tmp_path)


def test_a_divergence_names_the_way_out(inputs, line, tmp_path, monkeypatch):
    spoil(inputs, monkeypatch, at_epoch=0)
    with pytest.raises(TrainingDiverged, match=r"Lower learning_rate=0\.01.*run="):
        train_towers(inputs, train_config(line), tmp_path)


def test_the_first_bad_batch_is_named_though_the_host_looks_later(line):
    module = new_module(train_config(line))
    module._first_bad, module._loss_sum = torch.tensor(-1), torch.tensor(0.0)
    for step, loss in enumerate([1.0, float("inf"), float("nan"), 1.0], start=1):
        module._note(torch.tensor(loss), step)
    assert int(module._first_bad) == 2


@pytest.mark.parametrize("learning_rate", [1e30, 1e38])
def test_weights_that_break_after_the_last_look_stop_the_training_too(inputs, line, tmp_path, learning_rate):
    cfg = train_config(line, optimizer="sgd", learning_rate=learning_rate, batch_size=10_000)  # one step an epoch
    with pytest.raises(TrainingDiverged):
        train_towers(inputs, cfg, tmp_path)


def test_features_stay_out_of_the_checkpoint(line):
    assert {name.split(".")[0] for name in new_module(train_config(line)).state_dict()} == {"towers"}


def test_a_checkpoint_that_cannot_be_written_stops_with_the_way_out(inputs, line, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.module, "atomic_write", full)
    with pytest.raises(
        ArtifactError, match=r"ckpt' of \d+ bytes could not be written.*Make room.*run the same command"
    ):
        train_towers(inputs, train_config(line), tmp_path)


class Armed:
    """Runs a command when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize(
    "write", [lambda path, armed: path.write_bytes(pickle.dumps(armed, 2)), lambda p, a: torch.save(a, p)]
)
def test_an_armed_checkpoint_fires_nothing(line, tmp_path, write):
    cfg = train_config(line, run=f"armed-{tmp_path.name}")
    last = prepared_run(cfg) / "checkpoints" / "last.ckpt"
    write(last, Armed(tmp_path / "fired"))
    with pytest.raises(ArtifactError, match="is no checkpoint of ours"):
        fit(cfg)
    assert not (tmp_path / "fired").exists()


def prepared_run(cfg):
    """Enter a run's directory as a first start would."""
    checkpoints = cfg.paths.run(cfg.run) / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints.parent


def test_a_half_written_checkpoint_is_refused_with_the_way_out(line, tmp_path):
    cfg = train_config(line, run=f"half-{tmp_path.name}")
    last = prepared_run(cfg) / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1000)}}, last)
    last.write_bytes(last.read_bytes()[:2000])
    with pytest.raises(ArtifactError, match=r"last\.ckpt' is no checkpoint of ours.*Delete"):
        fit(cfg)


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path):
    checkpoints = AtomicCheckpoints()
    checkpoints.save_checkpoint({"state_dict": {"a": torch.ones(3)}}, tmp_path / "new" / "a.ckpt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.ckpt"]
    assert checkpoints.load_checkpoint(tmp_path / "new" / "a.ckpt")["state_dict"]["a"].tolist() == [1, 1, 1]


def test_removing_a_checkpoint_twice_is_no_error(tmp_path):
    AtomicCheckpoints().remove_checkpoint(tmp_path / "none.ckpt")
