"""Steps, divergence and checkpoints of training."""

import os
import pickle
import shutil
from functools import partial

import numpy as np
import pytest
import torch

import train.fit
import train.module
from configs.artifacts import ArtifactError
from tests.synthetic import train_config
from train.batches import Batch
from train.fit import fit, train_towers
from train.masks import TagLists
from train.module import (
    STEPS_A_BLOCK,
    AtomicCheckpoints,
    Blocks,
    Resident,
    TrainingCollapsed,
    TrainingDiverged,
    TwoTowerModule,
    average_into,
    in_parts,
    mean_cosine,
)
from train.objectives import open_objective
from train.runs import open_inputs
from train.towers import TwoTowers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def inputs(line):
    found = open_inputs(train_config(line))
    found.__dict__["features"] = np.array(found.features)  # a copy that a test may spoil
    return found


def new_module(cfg, judge=lambda towers: 0.5, residual_tags=()):
    towers = TwoTowers(3, 4, hidden_dim=4, embed_dim=2, residual_tags=residual_tags)
    resident = Resident(torch.eye(3), torch.full((3,), -1))
    return TwoTowerModule(towers, open_objective(cfg, np.full(3, 0.5)), resident, judge, cfg)


def spoil(inputs, monkeypatch, at_epoch):
    """Make a train image's features NaN from an epoch on."""
    rows = np.flatnonzero(inputs.index.splits == 0)
    start = TwoTowerModule.on_train_epoch_start

    def spoiled(module):
        if module.current_epoch == at_epoch:
            inputs.features[rows[:40]] = np.nan
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
    for loss in (1.0, float("inf"), float("nan"), 1.0):
        module._note({"loss": torch.tensor(loss)})
    assert int(module._first_bad) == 1


@pytest.mark.parametrize("learning_rate", [1e30, 1e38])
def test_weights_that_break_after_the_last_look_stop_the_training_too(inputs, line, tmp_path, learning_rate):
    cfg = train_config(line, optimizer="sgd", learning_rate=learning_rate, batch_size=10_000)  # one step an epoch
    with pytest.raises(TrainingDiverged):
        train_towers(inputs, cfg, tmp_path)


def test_mean_cosine_leaves_out_that_of_an_image_to_itself():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert mean_cosine(embeddings).item() == pytest.approx((0 + 0.6 + 0.8) / 3)


def collapse(monkeypatch, at_epoch, bias):
    """Make both towers give nearly the same embedding for everything from an epoch on; exactly for a large bias."""
    start = TwoTowerModule.on_train_epoch_start

    def collapsed(module):
        if module.current_epoch == at_epoch:
            with torch.no_grad():
                for tower in (module.towers.tag, module.towers.image):
                    tower.out.bias.fill_(bias)
        start(module)

    monkeypatch.setattr(TwoTowerModule, "on_train_epoch_start", collapsed)


def test_embeddings_that_collapse_stop_the_training_and_say_what_happened(inputs, line, tmp_path, monkeypatch):
    collapse(monkeypatch, at_epoch=1, bias=1000.0)
    cfg = train_config(line, objective="hinge_hardest", warmup_epochs=0)
    said = (
        r"all images have become one embedding at epoch 1: the mean cosine of images to each other is 1\.0000, and the "
        r"loss stands at 0\.3\d+\. The checkpoints of epoch 0 are kept\. "
        r"Raise warmup_epochs, lower margin or learning_rate, or take objective=hinge, under another run="
    )
    with pytest.raises(TrainingCollapsed, match=said):
        train_towers(inputs, cfg, tmp_path)


def test_the_way_out_of_a_collapse_names_no_knob_that_the_objective_has_not(inputs, line, tmp_path, monkeypatch):
    collapse(monkeypatch, at_epoch=0, bias=1000.0)
    with pytest.raises(TrainingCollapsed, match=r"no checkpoint yet\. Lower learning_rate, or take objective=hinge"):
        train_towers(inputs, train_config(line, objective="infonce"), tmp_path)


def test_a_collapse_on_its_way_is_told_while_training_goes_on(inputs, line, tmp_path, monkeypatch, caplog):
    collapse(monkeypatch, at_epoch=1, bias=2.0)
    cfg = train_config(line, objective="hinge_hardest", warmup_epochs=0, learning_rate=1e-5)
    _, history = train_towers(inputs, cfg, tmp_path)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(history) == 3
    assert [message.split(":")[0] for message in told] == [
        "images are becoming one embedding at epoch 1",
        "images are becoming one embedding at epoch 2",
    ]


def test_a_healthy_training_says_nothing_of_a_collapse(inputs, line, tmp_path, caplog):
    train_towers(inputs, train_config(line), tmp_path)
    assert "one embedding" not in caplog.text


def test_weights_are_averaged_with_the_decay_given():
    towers, averaged = TwoTowers(1, 1, 1, 1), TwoTowers(1, 1, 1, 1)
    for each, value in ((towers, 1.0), (averaged, 3.0)):
        for weight in each.parameters():
            torch.nn.init.constant_(weight, value)
    average_into(averaged, towers, decay=torch.tensor(0.75))
    assert {weight.item() for weight in averaged.parameters()} == {0.75 * 3 + 0.25 * 1}
    assert {weight.item() for weight in towers.parameters()} == {1.0}


def test_averaged_weights_learn_nothing_themselves(line):
    module = new_module(train_config(line, weight_averaging=0.9))
    learned = {id(weight) for group in module.configure_optimizers().param_groups for weight in group["params"]}
    assert module.published is module.averaged
    assert learned == {id(weight) for weight in module.towers.parameters()}


def test_an_objectives_own_parameters_are_learned_and_do_not_decay(line):
    module = new_module(train_config(line, objective="sigmoid"))
    towers, own = module.configure_optimizers().param_groups
    assert {id(weight) for weight in own["params"]} == {id(module.objective.log_scale), id(module.objective.bias)}
    assert (towers["weight_decay"], own["weight_decay"]) == (0.05, 0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_residuals_learn_at_a_rate_of_their_own(line, optimizer):
    module = new_module(train_config(line, optimizer=optimizer, tag_residual=0.5), residual_tags=["a"])
    towers, residual = module.configure_optimizers().param_groups
    assert [id(weight) for weight in residual["params"]] == [id(module.towers.residual)]
    assert (towers["lr"], residual["lr"]) == (0.01, 0.005)


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


def test_blocks_have_every_batch_once_and_make_none_before_it_is_read():
    made = []

    class Counted(list):
        def __iter__(self):
            for number in super().__iter__():
                made.append(number)
                yield number

    blocks = Blocks(Counted(range(2 * STEPS_A_BLOCK + 3)))
    sizes = []
    for block in blocks:
        assert len(made) == sum(sizes)
        sizes.append(len(list(block)))
    assert sizes == [STEPS_A_BLOCK, STEPS_A_BLOCK, 3]
    assert len(blocks) == 3
    assert made == list(range(2 * STEPS_A_BLOCK + 3))


def test_lightning_counts_the_steps_of_the_optimizer(inputs, line, tmp_path):
    train_towers(inputs, train_config(line), tmp_path)
    assert AtomicCheckpoints().load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 3 * 5


def embedded(tower, rows):
    """Embeddings, and the gradients of a sum that tells them apart."""
    torch.manual_seed(0)
    embeddings = in_parts(tower, rows)
    tower.zero_grad()
    (embeddings * torch.arange(embeddings.numel()).view(embeddings.shape)).sum().backward()
    return [embeddings.detach(), *(weight.grad.clone() for weight in tower.parameters())]


def test_rows_embedded_in_parts_have_the_same_embeddings_and_gradients(monkeypatch):
    tower, rows = TwoTowers(3, 4, hidden_dim=8, embed_dim=4, feature_dropout=0.5).image, torch.randn(21, 4)
    whole = embedded(tower, rows)
    monkeypatch.setattr(train.module, "WHOLE_ROWS", 16)
    monkeypatch.setattr(train.module, "PART_ROWS", 8)
    torch.testing.assert_close(embedded(tower, rows), whole)


def test_what_rows_embedded_in_parts_keep_for_the_gradient_is_small(monkeypatch):
    monkeypatch.setattr(train.module, "WHOLE_ROWS", 16)
    monkeypatch.setattr(train.module, "PART_ROWS", 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        in_parts(TwoTowers(3, 4, hidden_dim=64, embed_dim=2).image, torch.randn(64, 4))
    assert max(kept) <= 64 * 4 < 64 * 64


def one_step(cfg):
    """Loss and gradients of a batch of pairs, without chance."""
    torch.manual_seed(0)
    towers = TwoTowers(6, 5, hidden_dim=16, embed_dim=8)
    resident = Resident(torch.randn(9, 6), torch.full((9,), -1))
    module = TwoTowerModule(towers, open_objective(cfg, np.full(9, 0.5)), resident, lambda towers: 0.5, cfg)
    module._trainer = None
    module.setup("fit")
    loss, _ = module.loss(small_batch())
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in module.parameters())]


def small_batch():
    """Twelve pairs of nine tags, of images with one or two tags each."""
    generator = torch.Generator().manual_seed(1)
    offsets = np.cumsum([0] + [1, 2] * 6)
    lists = TagLists((offsets, np.arange(18) % 9), 9, torch.device("cpu"))
    images = torch.arange(12)
    tags = torch.from_numpy(np.arange(18) % 9)[torch.from_numpy(offsets[:-1])]
    mask, features = lists.mask(tags, images), torch.randn(12, 5, generator=generator).half()
    return Batch(0, tags, images, features, None, torch.tensor(0.0), mask, mask)


def test_bfloat16_products_give_nearly_the_same_step_with_weights_in_float32(line):
    exact, rough = (one_step(train_config(line, math=math)) for math in ("float32", "bfloat16"))
    assert {tensor.dtype for tensor in rough} == {torch.float32}
    assert not torch.equal(exact[0], rough[0])
    for one, other in zip(exact, rough, strict=True):
        assert (one - other).norm() < 0.05 * one.norm() + 1e-6


@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for the CPU with g++")
def test_a_compiled_step_is_the_eager_one(line):
    eager, compiled = (one_step(train_config(line, compile=how)) for how in ("never", "always"))
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["hinge_hardest", "infonce", "sigmoid"])  # of pairs, and without draws
def test_the_step_of_other_objectives_is_traced_without_a_break(line, objective, monkeypatch):
    eager = one_step(train_config(line, objective=objective, compile="never"))
    monkeypatch.setattr(shutil, "which", lambda name: "a compiler")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    traced = one_step(train_config(line, objective=objective, compile="always"))
    torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-6)


def test_compiling_without_a_compiler_is_refused_with_the_way_out(line, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ArtifactError, match=r"neither g\+\+ nor clang\+\+ was found\. Install one, or take compile="):
        one_step(train_config(line, compile="always"))
