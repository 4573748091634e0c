"""The store of features: keyed by image_id, in any order, nothing that is no number."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.artifacts import ArtifactError, verify
from configs.compose import Paths
from features.config import FeatureSpaceConfig
from features.image_features import FeatureStore, open_features, seal_store
from features.spaces import store_directory
from tests.tiny import HISTOGRAM

IDS = np.array([f"{number:016x}".encode() for number in range(20)], dtype="S16")


def rows_of(ids):
    """A feature of two numbers that tells its image."""
    numbers = np.array([int(image_id, 16) for image_id in ids.tolist()], dtype=np.float32)
    return np.stack([numbers, -numbers], axis=1).reshape(-1, 2)


@pytest.fixture
def store(tmp_path):
    store = FeatureStore(tmp_path, width=2)
    for part in (IDS[:7], IDS[12:], IDS[7:12]):
        store.add(part, rows_of(part))
    return store


def test_gathering_in_any_order_equals_looking_each_up(store):
    @settings(max_examples=50, deadline=None)
    @given(st.permutations(range(20)), st.integers(1, 20))
    def check(order, count):
        wanted = IDS[order[:count]]
        assert (store.gather(wanted) == rows_of(wanted)).all()

    check()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(20)), count=st.integers(1, 20))
def test_features_are_read_at_the_places_where_they_were_located(store, order, count):
    wanted = IDS[order[:count]]
    places = store.locate(wanted)
    for at, (part, row) in enumerate(zip(places.part_of, places.row_of, strict=True)):
        found = np.empty((1, 2), np.float16)
        store.read_into(found, places.parts[part], places.sizes[part], start=row)
        assert (found == rows_of(wanted[at : at + 1])).all()


def test_locating_counts_images_without_a_feature_and_reads_none(store, monkeypatch):
    monkeypatch.setattr(FeatureStore, "rows", None)
    assert store.locate(IDS[[0, 7, 19]]).row_of.tolist() == [0, 0, 7]
    with pytest.raises(ArtifactError, match=r"1 of 2 images have no feature .*make image_features"):
        store.locate(np.array([b"f" * 16, IDS[0]], dtype="S16"))


@pytest.mark.parametrize("change", ["cut", "longer"])
def test_reading_some_rows_of_a_part_of_another_size_is_refused(store, change):
    places = store.locate(IDS[:1])
    path = store.directory / f"{places.parts[places.part_of[0]]}.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-2] if change == "cut" else content + b"more")
    with pytest.raises(ArtifactError, match=path.stem):
        store.read_into(np.empty((2, 2), np.float16), path.stem, 7, start=2)


def test_features_are_stored_in_half_precision(store):
    assert store.gather(IDS).dtype == np.float16


def test_images_without_a_feature_are_counted(store):
    unknown = np.array([b"f" * 16, b"e" * 16, IDS[0]], dtype="S16")
    with pytest.raises(ArtifactError, match=r"2 of 3 images have no feature .*make image_features"):
        store.gather(unknown)


def test_stored_ids_are_those_of_all_parts(store):
    assert store.stored_ids().tolist() == IDS.tolist()
    assert len(store.parts()) == 3


def test_an_empty_store_has_no_ids(tmp_path):
    assert len(FeatureStore(tmp_path, 2).stored_ids()) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_is_no_finite_half_number_is_refused(value, tmp_path):
    with pytest.raises(ArtifactError, match="1 non-finite"):
        FeatureStore(tmp_path, 2).add(IDS[:1], np.array([[value, 0]], dtype=np.float32))
    assert list(tmp_path.iterdir()) == []


def test_another_width_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"expected \(1, 3\)"):
        FeatureStore(tmp_path, 3).add(IDS[:1], np.zeros((1, 2), np.float32))


def test_a_part_is_named_by_its_images(tmp_path):
    one, two = FeatureStore(tmp_path / "a", 2), FeatureStore(tmp_path / "b", 2)
    for store in (one, two):
        store.directory.mkdir()
        store.add(IDS[:3], rows_of(IDS[:3]))
    assert one.parts() == two.parts()


def test_ids_without_their_array_are_no_part(store):
    (store.directory / f"{store.parts()[0]}.npy").unlink()
    assert len(store.parts()) == 2


@pytest.mark.parametrize("damage", ["flipped", "gone", "cut"])
def test_damaged_ids_never_name_another_image(damage, store):
    path = store.directory / f"{store.parts()[0]}.ids"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-17] if damage == "cut" else b"f" + content[1:])
    with pytest.raises(ArtifactError, match="damaged"):
        store.gather(IDS)


def test_a_store_that_was_never_filled_names_the_command(tmp_path):
    with pytest.raises(ArtifactError, match=r"backbone=color_histogram"):
        open_features(FeatureSpaceConfig(Paths(data=str(tmp_path)), HISTOGRAM), "g", IDS)


def test_a_store_lies_in_a_directory_of_its_feature_space():
    one, two = (store_directory(FeatureSpaceConfig(backbone=HISTOGRAM), gate).name for gate in "gh")
    assert one != two
    assert one.startswith("color_histogram-")


def test_a_committed_part_is_never_replaced(tmp_path):
    store = FeatureStore(tmp_path, 4)
    store.add(IDS[:2], np.ones((2, 4)))
    store.add(IDS[:2], np.zeros((2, 4)))
    assert (store.gather(IDS[:2]) == 1).all()


def test_a_part_written_after_the_seal_is_hashed_again(tmp_path):
    store = FeatureStore(tmp_path, 4)
    store.add(IDS[:2], np.ones((2, 4)))
    index = SimpleNamespace(content_id="i")
    seal_store(store, FeatureSpaceConfig(), "space", index)
    part = tmp_path / f"{store.parts()[0]}.npy"
    part.unlink()
    store.add(IDS[:2], np.zeros((2, 4)))
    os.utime(part, ns=(0, (tmp_path / "manifest.json").stat().st_mtime_ns + 1))
    seal_store(store, FeatureSpaceConfig(), "space", index)
    assert verify(tmp_path) == []


def test_a_part_with_bytes_too_many_is_refused(tmp_path):
    store = FeatureStore(tmp_path, 4)
    store.add(IDS[:2], np.ones((2, 4)))
    with (tmp_path / f"{store.parts()[0]}.npy").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(ArtifactError, match="bytes, its header says"):
        store.gather(IDS[:2])


def test_a_dropped_image_costs_its_part_alone(store):
    untouched = set(store.parts()) - {part for part in store.parts() if IDS[3] in store.ids(part)}
    assert store.drop([IDS[3].decode()]) == 1
    assert untouched < set(store.parts())
    assert len(store.parts()) == 3
    kept = np.delete(IDS, 3)
    assert (store.gather(kept) == rows_of(kept)).all()
    assert IDS[3] not in store.stored_ids()


def test_a_part_whose_images_all_go_goes(store):
    assert store.drop([image_id.decode() for image_id in IDS[12:]]) == 1
    assert (store.stored_ids() == IDS[:12]).all()
    assert store.drop([image_id.decode() for image_id in IDS[12:]]) == 0


@pytest.mark.parametrize("after", range(2))
def test_a_drop_killed_between_two_files_is_finished_by_the_next(after, store, monkeypatch):
    unlink, gone = Path.unlink, []

    def kill(path, missing_ok=False):
        if len(gone) == after:
            raise KeyboardInterrupt
        gone.append(path)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", kill)
        store.drop([IDS[3].decode()])
    store.drop([IDS[3].decode()])
    kept = np.delete(IDS, 3)
    assert (store.gather(kept) == rows_of(kept)).all()
    assert not any(IDS[3] in path.read_bytes() for path in store.directory.glob("*.ids"))
