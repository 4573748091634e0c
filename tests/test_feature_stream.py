"""Features that are streamed: each once an epoch, in an order of the seed's, and never those of another image."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train.feature_stream
from configs.artifacts import ArtifactError
from features.image_features import FeatureStore
from tests.synthetic import train_config
from tests.test_batches import CPU, ListedIndex, listed_pairs, training_of
from tests.test_fit import killed, outcome, rows_of
from train.batches import ImageBatches, PairBatches
from train.config import TrainConfig
from train.feature_stream import StreamedFeatures, fits_in_memory, memory_bytes
from train.fit import fit, settled
from train.module import AtomicCheckpoints, TwoTowerModule
from train.runs import Inputs, open_inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def write_store(directory, image_ids, part_sizes):
    """A store in which image r has the feature (r, r + 0.5), in parts of these sizes and one of the rest."""
    directory.mkdir()
    store, numbers = FeatureStore(directory, 2), np.arange(len(image_ids), dtype=np.float32)
    for ids, rows in zip(*(np.split(each, np.cumsum(part_sizes)) for each in (image_ids, numbers)), strict=True):
        if len(ids):
            store.add(ids, np.stack([rows, rows + 0.5], axis=1))
    return store


def streamed(store, index, drawn_images, buffer):
    return StreamedFeatures(store, np.asarray(index.image_ids), np.asarray(drawn_images), buffer, CPU)


def an_index(num_images=60, tags=5, seed=0):
    """Images with two tags each."""
    rng = np.random.default_rng(seed)
    lists = [set() for _ in range(tags)]
    for image in range(num_images):
        for tag in rng.choice(tags, size=2, replace=False):
            lists[tag].add(image)
    return ListedIndex(lists, num_images)


def pair_batches(store, index, buffer, batch_size=7, seed=0, epoch=0):
    training = training_of(index)
    source = streamed(store, index, training.pairs[1], buffer)
    return PairBatches(training, source, batch_size, seed, CPU, lambda: epoch)


def all_pairs(index):
    tags = np.repeat(np.arange(index.num_tags), np.diff(index.offsets))
    return sorted(zip(tags.tolist(), index.postings.tolist(), strict=True))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    part_sizes=st.lists(st.integers(0, 30), max_size=4),
    buffer=st.integers(2, 80),
    batch_size=st.integers(1, 40),
    slice_size=st.integers(1, 12),
    epoch=st.integers(0, 3),
)
def test_every_pair_comes_once_with_the_feature_of_its_image(
    tmp_path_factory, part_sizes, buffer, batch_size, slice_size, epoch
):
    index = an_index()
    store = write_store(tmp_path_factory.mktemp("store") / "parts", index.image_ids, part_sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.feature_stream, "SLICE", slice_size)
        batches = pair_batches(store, index, buffer, batch_size, epoch=epoch)
        found = list(batches)
    assert len(found) == len(batches) == 120 // batch_size
    assert all(torch.equal(batch.features[:, 0], batch.image_rows.half()) for batch in found)
    pairs = listed_pairs(found)
    assert len(pairs) == len(set(pairs)) == 120 // batch_size * batch_size
    assert set(pairs) <= set(all_pairs(index))


def test_every_image_comes_once_where_images_are_drawn(tmp_path):
    index = an_index()
    store = write_store(tmp_path / "store", index.image_ids, [25, 20])
    training = training_of(index)
    source = streamed(store, index, training.images, buffer=20)
    batches = ImageBatches(training, source, 4, 0, CPU, lambda: 0)
    rows = torch.cat([batch.image_rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(60))


def test_the_order_depends_on_seed_and_epoch_alone(tmp_path):
    index = an_index()
    store = write_store(tmp_path / "store", index.image_ids, [25, 20])

    def order(seed, epoch):
        return tuple(listed_pairs(pair_batches(store, index, 20, seed=seed, epoch=epoch)))

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    torch.manual_seed(99)  # says nothing to the order
    assert len(set(orders.values())) == 4
    assert order(1, 1) == orders[1, 1]


def test_an_epoch_after_another_is_that_of_a_fresh_start(tmp_path):
    index = an_index()
    store = write_store(tmp_path / "store", index.image_ids, [25, 20])
    training = training_of(index)
    source = streamed(store, index, training.pairs[1], 20)
    first, second = (PairBatches(training, source, 7, 0, CPU, lambda epoch=epoch: epoch) for epoch in (0, 1))
    next(iter(first))  # an epoch that is broken off while slices are still being read
    assert listed_pairs(second) == listed_pairs(pair_batches(store, index, 20, epoch=1))


def windows_of(store, index, buffer):
    """Which images each stretch of an epoch is drawn from."""
    training = training_of(index)
    source = streamed(store, index, training.images, buffer)
    return [set(training.images[stretch]) for stretch in source.stretches(len(training.images), 1, seed=0)]


def test_a_window_is_whole_slices_of_at_most_half_of_the_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr(train.feature_stream, "SLICE", 5)
    index = an_index(60)
    windows = windows_of(write_store(tmp_path / "store", index.image_ids, []), index, 80 - 21)
    slices = [set(range(start, start + 3)) for start in range(0, 60, 3)]  # a window of 29 holds eight slices of three
    assert [len(window) for window in windows] == [27, 27, 6]
    assert all(each <= window or not each & window for each in slices for window in windows)
    assert set().union(*windows) == set(range(60))
    assert not any(window == set(range(min(window), max(window) + 1)) for window in windows[:2])  # slices are mixed


def test_a_buffer_that_holds_all_is_one_window(tmp_path):
    index = an_index(60)
    store = write_store(tmp_path / "store", index.image_ids, [25, 20])
    assert [len(window) for window in windows_of(store, index, 60)] == [60]
    assert len(windows_of(store, index, 59)) > 1


def test_a_part_is_its_own_slice_however_small(tmp_path):
    index = an_index(60)
    store = write_store(tmp_path / "store", index.image_ids, [1] * 59)
    assert all(len(window) == 10 for window in windows_of(store, index, 20))


def test_rows_of_images_that_the_index_does_not_have_are_left_out(tmp_path):
    more = np.array([f"{number:016x}".encode() for number in range(121)], dtype="S16")
    store = write_store(tmp_path / "store", more, [33, 40, 1])
    index = an_index(60)
    index.image_ids = more[1::2]  # image row r is the number 2 r + 1 of the store
    for batch in pair_batches(store, index, 16):
        assert torch.equal(batch.features[:, 0], 2 * batch.image_rows.half() + 1)


def test_only_slices_of_the_window_and_the_next_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(train.feature_stream, "SLICE", 4)
    index = an_index(60)
    read = []
    real = FeatureStore.read_into

    def noted(store, target, part, size, start=0):
        read.append(len(target))
        real(store, target, part, size, start)

    monkeypatch.setattr(FeatureStore, "read_into", noted)
    source = streamed(write_store(tmp_path / "store", index.image_ids, []), index, np.arange(60), 20)
    stretches = source.stretches(60, 5, seed=0)
    next(stretches)
    source._reader.shutdown()  # waits for what is being read
    assert sum(read) == 20


def test_a_feature_that_is_not_held_is_never_another_images(tmp_path):
    index = an_index(60)
    store = write_store(tmp_path / "store", index.image_ids, [])
    source = streamed(store, index, np.arange(60), 20)
    held = next(source.stretches(60, 5, seed=0))
    other = next(row for row in range(60) if row not in held.tolist())
    with pytest.raises((IndexError, RuntimeError)):
        source.gather(torch.tensor([other]))


def test_an_image_without_a_feature_is_told_before_training(tmp_path):
    index = an_index(60)
    store = write_store(tmp_path / "store", index.image_ids[:50], [])
    with pytest.raises(ArtifactError, match="10 of 60 images have no feature"):
        streamed(store, index, np.arange(60), 20)


def test_a_part_that_is_cut_off_while_it_is_streamed_stops_the_epoch(tmp_path):
    index = an_index(60)
    store = write_store(tmp_path / "store", index.image_ids, [])
    batches = pair_batches(store, index, 20)
    path = tmp_path / "store" / f"{store.parts()[0]}.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match=r"make verify|bytes"):
        list(batches)


def test_the_memory_of_a_container_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(train.feature_stream, "CGROUP_LIMIT", limit)
    whole = memory_bytes()
    assert whole > 2**27
    for text, expected in (("max\n", whole), ("67108864\n", 2**26)):
        limit.write_text(text)
        assert memory_bytes() == expected


def test_features_may_fill_half_of_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(train.feature_stream, "memory_bytes", lambda: 1000)
    assert fits_in_memory(500, CPU)
    assert not fits_in_memory(501, CPU)


def stream_config(line, run, **values):
    return train_config(line, run=run, **{"features_in": "stream", "shuffle_buffer": 60, **values})


@pytest.fixture
def whole_matrix_refused(monkeypatch):
    """Let nobody read all features."""

    def refused(inputs):
        raise AssertionError("the whole matrix was asked for")

    monkeypatch.setattr(Inputs, "features", property(refused))


@pytest.mark.usefixtures("whole_matrix_refused")
@pytest.mark.parametrize("objective", ["hinge", "full_vocabulary"])
def test_a_streamed_training_learns_and_resumes_bit_for_bit(line, monkeypatch, objective):
    run_dir = fit(stream_config(line, f"streamed-{objective}", objective=objective, max_epochs=4))
    assert max(value for _, value in rows_of(run_dir)) > 0.28  # chance is 0.2
    cfg = stream_config(line, f"streamed-halves-{objective}", objective=objective, max_epochs=4)
    killed(cfg, monkeypatch, AtomicCheckpoints, "save_checkpoint", 4, after=True)
    killed(cfg, monkeypatch, TwoTowerModule, "training_step", 2, after=True)
    assert outcome(fit(cfg)) == outcome(run_dir)


def test_a_buffer_that_holds_all_trains_as_well_as_memory(line):
    def curve(run, **values):
        run_dir = fit(train_config(line, run=run, max_epochs=6, **values))
        lines = (run_dir / "history.csv").read_text().splitlines()[1:]
        return [float(each.split(",")[1]) for each in lines], max(value for _, value in rows_of(run_dir))

    losses, best = curve("from-memory")
    streamed_losses, streamed_best = curve("from-buffer", features_in="stream", shuffle_buffer=1000)
    assert streamed_losses[-1] < 0.8 * streamed_losses[0]
    assert streamed_losses == pytest.approx(losses, rel=0.1)
    assert streamed_best == pytest.approx(best, abs=0.05)


def test_auto_streams_what_does_not_fit_and_a_run_keeps_to_that(line, monkeypatch, caplog):
    cfg = train_config(line, run="decided", max_epochs=1)
    assert settled(cfg, open_inputs(cfg)).features_in == "memory"
    with monkeypatch.context() as patch:
        patch.setattr(train.feature_stream, "memory_bytes", lambda: 280 * 24 * 2 * 2 - 1)
        assert settled(cfg, open_inputs(cfg)).features_in == "stream"
        fit(cfg)
    with caplog.at_level("INFO", "train.fit"):
        fit(cfg)  # where it would fit now
    assert "already done" in caplog.text
    assert "features_in: stream" in (line.run("decided") / "config.yaml").read_text()


def test_fixed_wrong_pictures_are_not_streamed(line, monkeypatch):
    with pytest.raises(ValueError, match="objective=hinge_means needs features_in=memory"):
        TrainConfig(objective="hinge_means", features_in="stream")
    monkeypatch.setattr(train.feature_stream, "memory_bytes", lambda: 1)
    cfg = train_config(line, run="means", objective="hinge_means")
    assert settled(cfg, open_inputs(cfg)).features_in == "memory"
