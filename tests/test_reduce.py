"""Principal components: exact in any chunks, fitted once on the train split, frozen for what comes later."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from configs.artifacts import ArtifactError, digest, read_manifest, verify
from configs.compose import Paths
from crawl.records import TRAIN, Record
from features.build_index import build
from features.config import FeatureSpaceConfig, IndexConfig, ReduceConfig
from features.image_features import FeatureStore, open_features, seal_store
from features.inverted_index import open_index
from features.neighbours import neighbours_kept
from features.reduce import moments, num_components, principal_components, project, reduce, search_ms
from features.spaces import basis_directory, extracted_directory, extracted_space, feature_space, overrides
from serve.config import PublishConfig
from serve.publish import publish
from tests.synthetic import (
    BACKBONE,
    GATE,
    TAGS,
    WIDTH,
    copy_line,
    evaluate_config,
    records,
    store_features,
    train_config,
    write_synthetic_collection,
)
from train.evaluate import evaluate
from train.fit import fit
from train.runs import open_run

PART = 50  # images


@pytest.fixture(scope="module")
def rows():
    """Correlated float16 features far from 0, each direction with a variance of its own."""
    rng = np.random.default_rng(5)
    mixed = rng.normal(size=(300, WIDTH)) * 1.3 ** -np.arange(WIDTH) @ rng.normal(size=(WIDTH, WIDTH))
    return (mixed + 100).astype(np.float16)


@pytest.fixture(scope="module")
def oracle(rows):
    return PCA(svd_solver="full").fit(rows.astype(np.float64))


@pytest.fixture(scope="module")
def parted(line, tmp_path_factory):
    """The line with its features in several parts; read-only."""
    paths = copy_line(line, tmp_path_factory.mktemp("parted"))
    source = store_of(paths)
    index, manifest = open_index(paths)
    features = source.gather(index.image_ids)
    shutil.rmtree(source.directory)
    source.directory.mkdir()
    for start in range(0, index.num_images, PART):
        source.add(index.image_ids[start : start + PART], features[start : start + PART])
    seal_store(source, extracted(paths), extracted_space(extracted(paths), GATE), manifest)
    return paths


@pytest.fixture(scope="module")
def finished(parted, tmp_path_factory):
    """The same with eight components; read-only."""
    paths = copy_line(parted, tmp_path_factory.mktemp("finished"))
    reduce(config(paths))
    return paths


@pytest.fixture
def paths(parted, tmp_path):
    return copy_line(parted, tmp_path / "parted")


@pytest.fixture
def reduced(finished, tmp_path):
    return copy_line(finished, tmp_path / "reduced")


def extracted(paths):
    return FeatureSpaceConfig(paths, BACKBONE)


def store_of(paths):
    return FeatureStore(extracted_directory(extracted(paths), GATE), WIDTH)


def config(paths, pca=8.0):
    return ReduceConfig(paths, BACKBONE, pca=pca)


def command(stage, cfg):
    """A pattern of the command that makes the features of a config."""
    return rf'.*`make {stage} ARGS="{re.escape(overrides(cfg))}"`'


def features_of(cfg, image_ids):
    return open_features(cfg, GATE, image_ids)[0]


def grow(paths, count=30):
    """Bring more images in, up to their features as extracted."""
    later = [Record(f"{2**50 + number:016x}", f"later {number}", (TAGS[number % 12],)) for number in range(count)]
    shutil.rmtree(paths.artifact("collection"))
    write_synthetic_collection(paths.artifact("collection"), shards=[records(), later])
    build(IndexConfig(paths=paths))
    store_features(paths, BACKBONE, noise=5.0, seed=11)
    return [record.image_id.encode() for record in later]


def test_variances_and_components_are_those_of_scikit_learn(rows, oracle):
    _, covariance = moments([rows])
    variance, components = principal_components(covariance)
    assert variance == pytest.approx(oracle.explained_variance_, rel=1e-4, abs=1e-7 * variance[0])
    cosines = np.abs((components * oracle.components_).sum(axis=1))
    assert cosines[:12] == pytest.approx(np.ones(12), abs=1e-6)  # the last are as small as float16 is fine


def test_the_largest_entry_of_every_component_is_positive(rows):
    _, components = principal_components(moments([rows])[1])
    assert (components.max(axis=1) >= -components.min(axis=1)).all()


def test_the_covariance_is_the_same_in_chunks_of_any_sizes(rows):
    expected = np.cov(rows.astype(np.float64), rowvar=False)

    @settings(max_examples=30, deadline=None)
    @given(st.sets(st.integers(1, len(rows) - 1)))
    def check(cuts):
        count, covariance = moments(np.split(rows, sorted(cuts)))
        assert count == len(rows)
        assert covariance == pytest.approx(expected, abs=1e-5 * expected.max())

    check()


def test_the_same_chunks_give_the_same_bytes(rows):
    one, two = (principal_components(moments(np.split(rows, 6))[1]) for _ in range(2))
    assert [each.tobytes() for each in one] == [each.tobytes() for each in two]


def test_a_covariance_small_beside_the_mean_does_not_cancel():
    chunks = [np.array([[4096.0], [4098.0]]), np.array([[4097.0]])]
    assert moments(chunks)[1].item() == 1


@pytest.mark.parametrize(
    ("share", "kept"), [(0.5, 1), (0.6, 1), (0.61, 2), (0.9, 2), (0.95, 3), (0.9999999999999999, 3)]
)
def test_a_share_of_variance_takes_the_fewest_components_that_have_it(share, kept):
    assert num_components(np.array([6.0, 3.0, 1.0, 0.0]), share) == kept


def test_a_projection_on_all_components_keeps_every_neighbour(rows):
    _, components = principal_components(moments([rows])[1])
    assert neighbours_kept(rows, project(rows, components.astype(np.float32))) > 0.99


def test_reduced_features_are_projections_of_the_whole_index(finished):
    index, _ = open_index(finished)
    before = features_of(extracted(finished), index.image_ids).astype(np.float64)
    oracle = PCA(n_components=8, svd_solver="full").fit(before[index.splits == TRAIN])
    expected = np.abs(before @ oracle.components_.T)  # signs are free
    assert np.abs(features_of(config(finished), index.image_ids)) == pytest.approx(expected, abs=0.01)


def test_the_basis_says_what_it_keeps(finished):
    index, _ = open_index(finished)
    train = features_of(extracted(finished), index.image_ids)[index.splits == TRAIN]
    facts = read_manifest(basis_directory(config(finished), GATE)).facts
    share = PCA(n_components=8).fit(train.astype(np.float64)).explained_variance_ratio_.sum()
    assert facts["explained_variance"] == pytest.approx(share, abs=1e-4)
    assert (facts["width"], facts["num_train_images"], facts["judged_images"]) == (8, 160, 120)
    assert 0.5 < facts["neighbours_kept"] < 1


def test_a_share_of_variance_is_reached_and_not_by_one_component_more(paths):
    cfg = config(paths, pca=0.8)
    reduce(cfg)
    directory = basis_directory(cfg, GATE)
    facts, variance = read_manifest(directory).facts, np.load(directory / "variance.npy")
    shares = variance.cumsum() / variance.sum()
    assert shares[facts["width"] - 2] < 0.8 <= shares[facts["width"] - 1]
    assert facts["explained_variance"] == pytest.approx(shares[facts["width"] - 1], abs=1e-6)


def test_both_artifacts_verify(reduced):
    assert verify(reduce(config(reduced))) == verify(basis_directory(config(reduced), GATE)) == []


def test_the_trade_is_told(paths, caplog):
    with caplog.at_level("INFO"):
        reduce(config(paths))
    before, after = (line.split() for line in caplog.text.splitlines() if line.count("%") == 2)
    assert before[-5:-1] == ["24", "48", "100.0%", "100.0%"]
    assert after[-5:-3] == ["8", "16"]
    assert "120 val and test images; a search scans 280 images" in caplog.text


def test_a_second_time_nothing_is_done(reduced, caplog):
    with caplog.at_level("INFO"):
        directory = reduce(config(reduced))
    assert "already done" in caplog.text
    assert "fitting" not in caplog.text
    assert "projecting" not in caplog.text
    assert directory.name.startswith("synthetic-pca8-")


def test_killed_between_parts_it_ends_with_the_same_content(paths, monkeypatch, tmp_path):
    undisturbed = copy_line(paths, tmp_path / "undisturbed")
    real, added = FeatureStore.add, []

    def add(store, image_ids, features):
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(image_ids)
        real(store, image_ids, features)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureStore, "add", add)
        reduce(config(paths))
    one, two = (read_manifest(reduce(config(each))) for each in (paths, undisturbed))
    assert one.content_id == two.content_id
    assert one.facts == two.facts


def test_killed_before_the_seal_a_store_is_sealed_by_the_next_run(paths, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("features.reduce.seal_store", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        reduce(config(paths))
    assert read_manifest(reduce(config(paths))).facts["num_images"] == 280


def test_new_images_are_projected_on_the_frozen_basis_and_move_no_earlier_one(finished, reduced):
    cfg, directory = config(reduced), basis_directory(config(reduced), GATE)
    new = grow(reduced)
    store = reduce(cfg)
    assert read_manifest(directory).content_id == read_manifest(basis_directory(config(finished), GATE)).content_id
    earlier = next(finished.artifact("image_features").glob("synthetic-pca8-*"))
    assert {path.name: path.read_bytes() for path in earlier.glob("*.npy")}.items() < {
        path.name: path.read_bytes() for path in store.glob("*.npy")
    }.items()
    expected = project(features_of(extracted(reduced), new), np.load(directory / "components.npy"))
    assert (features_of(cfg, new) == expected.astype(np.float16)).all()


def test_another_pca_lies_in_another_directory(reduced):
    one, two = reduce(config(reduced)), reduce(config(reduced, pca=4))
    assert (one.name.rpartition("-")[0], two.name.rpartition("-")[0]) == ("synthetic-pca8", "synthetic-pca4")


def test_a_basis_fitted_anew_is_another_feature_space(reduced):
    cfg = config(reduced)
    directory, space = reduce(cfg), feature_space(cfg, GATE)
    grow(reduced)
    shutil.rmtree(basis_directory(cfg, GATE))
    assert reduce(cfg) != directory
    assert feature_space(cfg, GATE) != space


@pytest.mark.parametrize("pca", [WIDTH + 1, 200])
def test_more_components_than_numbers_are_refused_with_both(pca, paths):
    with pytest.raises(ArtifactError, match=rf"pca={pca}, but features of 24 numbers of 160 train images .* 24 comp"):
        reduce(config(paths, pca=pca))


def test_more_components_than_train_images_span_are_refused(paths, monkeypatch):
    monkeypatch.setattr("features.reduce.TRAIN", 9)  # a split without images
    with pytest.raises(ArtifactError, match="0 train images have at most 0 components"):
        reduce(config(paths, pca=0.9))


def test_features_that_are_all_alike_are_refused(paths):
    for part in store_of(paths).parts():
        alike = np.ones_like(store_of(paths).rows(part))
        np.save(store_of(paths).directory / f"{part}.npy", alike)
    with pytest.raises(ArtifactError, match="160 train images have the same feature"):
        reduce(config(paths))


def test_images_without_a_feature_are_counted_with_the_command(paths):
    store = store_of(paths)
    (store.directory / f"{store.parts()[0]}.npy").unlink()
    with pytest.raises(ArtifactError, match=r"(50|30) of 280 images" + command("image_features", extracted(paths))):
        reduce(config(paths))


def test_features_that_were_never_extracted_name_the_command(paths):
    shutil.rmtree(store_of(paths).directory)
    with pytest.raises(ArtifactError, match=command("image_features", extracted(paths))):
        reduce(config(paths))


@pytest.mark.parametrize("file", ["components.npy", "variance.npy"])
def test_a_damaged_basis_is_named(file, reduced):
    path = basis_directory(config(reduced), GATE) / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{file}: bytes differ" + command("reduce", config(reduced))):
        reduce(config(reduced))


def test_a_basis_of_other_features_in_its_place_is_refused(reduced):
    directory = basis_directory(config(reduced), GATE)
    stranger = replace(read_manifest(directory), must_match={"feature_space": digest("another")}).sealed()
    (directory / "manifest.json").write_text(stranger.text())
    with pytest.raises(ArtifactError, match="they cannot be mixed"):
        reduce(config(reduced))


def test_too_few_held_out_images_are_not_judged(paths, monkeypatch, caplog):
    monkeypatch.setattr("features.reduce.NEIGHBOURS", 120)
    with caplog.at_level("INFO"):
        reduce(config(paths))
    assert "neighbours_kept" not in read_manifest(basis_directory(config(paths), GATE)).facts
    assert "0 val and test images" in caplog.text


@pytest.mark.parametrize(
    ("values", "words"), [({"pca": 0}, "got 0"), ({"pca": 2.5}, "got 2.5"), ({"judged_images": 9}, "got 9")]
)
def test_a_reduction_that_is_none_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        ReduceConfig(**{"pca": 8, **values})


def test_timing_a_search_leaves_the_number_of_threads(rows):
    before = torch.get_num_threads()
    assert search_ms(rows) > 0
    assert torch.get_num_threads() == before


def test_training_on_components_that_were_not_made_names_the_command(line):
    with pytest.raises(ArtifactError, match=command("reduce", config(line, pca=0.5))):
        fit(train_config(line, "without_basis", pca=0.5))


@pytest.mark.usefixtures("one_thread")
def test_towers_train_on_components_and_are_judged_and_published(reduced):
    fit(train_config(reduced, "on_components", pca=8.0))
    evaluate(evaluate_config(reduced, "on_components"))
    publish(PublishConfig(reduced, "on_components"))
    towers, run, inputs = open_run(reduced, "on_components")
    assert towers.image.hidden.in_features == 8
    assert inputs.features.shape == (280, 8)
    assert run.must_match["feature_space"] == feature_space(config(reduced), GATE)


def test_data_that_moved_keep_their_basis(reduced, tmp_path, caplog):
    shutil.move(reduced.data, tmp_path / "moved")
    with caplog.at_level("INFO"):
        reduce(config(Paths(data=str(tmp_path / "moved"))))
    assert "already done" in caplog.text
