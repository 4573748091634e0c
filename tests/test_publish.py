"""What a published generation holds, and when a new one is made."""

import os

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import train.runs
from configs.artifacts import ArtifactError, read_manifest, verify
from configs.generations import current_generation, generations
from crawl.records import Record
from crawl.shards import Collection
from features.build_index import build
from features.config import IndexConfig, TagVectorsConfig, WordsConfig
from features.embed_tags import embed
from features.inverted_index import FILES, open_index
from serve.config import PublishConfig
from serve.generation import rank_postings
from serve.publish import publish, records_table
from tests.synthetic import BACKBONE, TAGS, copy_line, records, store_features, train_config, write_synthetic_collection
from tests.test_batches import ListedIndex
from tests.tiny import bury
from train.fit import fit
from train.towers import embed_tags, load_towers, save_towers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def own(trained, tmp_path):
    """A copy of the trained line that a test may change."""
    return copy_line(trained, tmp_path)


def published(paths):
    return publish(PublishConfig(paths, "small"))


def index_again(paths, shards):
    """Put another collection in place and bring index and vectors up to it."""
    write_synthetic_collection(paths.artifact("collection"), shards=shards)
    build(IndexConfig(paths=paths))
    embed(TagVectorsConfig(paths=paths, words=WordsConfig(name="carried")))


posting_lists = st.lists(st.sets(st.integers(0, 9)), min_size=1, max_size=4)


@settings(deadline=None)
@given(posting_lists, st.integers(0, 2**32 - 1))
def test_ranked_lists_fall_by_score_with_ties_by_ascending_row(lists, seed):
    rng = np.random.default_rng(seed)
    index = ListedIndex(lists, num_images=10)
    images, tags = rng.integers(-1, 2, (10, 2)).astype(np.float16), rng.integers(-1, 2, (len(lists), 2))
    ranked, posting_scores = rank_postings(index, images, tags.astype(np.float32))
    for row, rows in enumerate(lists):
        scores = images.astype(int) @ tags[row]
        expected = sorted(rows, key=lambda image: (-scores[image], image))
        own = slice(index.offsets[row], index.offsets[row + 1])
        assert ranked[own].tolist() == expected
        assert posting_scores[own].tolist() == [scores[image] for image in sorted(rows)]


def test_a_generation_links_the_index_it_answers_from(trained):
    directory = published(trained)
    index = open_index(trained)[0]
    assert all(os.path.samefile(directory / name, index.directory / name) for name in FILES)


def test_where_files_cannot_be_linked_they_are_copied(own, monkeypatch):
    def refuse(source, target):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    index_again(own, [records()[:-1]])
    assert verify(published(own)) == []


def test_publishing_again_changes_nothing(trained, caplog):
    first = published(trained)
    before = (first / "manifest.json").stat().st_mtime_ns
    with caplog.at_level("INFO", "serve.publish"):
        assert published(trained) == first
    assert "already published" in caplog.text
    assert (first / "manifest.json").stat().st_mtime_ns == before


def test_publishing_again_reads_no_features(trained, monkeypatch):
    monkeypatch.setattr(train.runs.FeatureStore, "gather", None)
    assert published(trained)


def test_a_tag_without_a_vector_has_no_embedding(trained):
    directory = published(trained)
    lengths = np.linalg.norm(np.load(directory / "tag_embeddings.npy"), axis=1)
    assert (lengths > 0).tolist() == np.load(directory / "known.npy").tolist()


def test_a_run_that_gives_embeddings_that_are_not_finite_is_refused(own):
    path = own.run("small") / "towers.safetensors"
    towers = load_towers(path)
    with torch.no_grad():
        towers.image.out.weight[0, 0] = torch.nan
    save_towers(towers, path)
    index_again(own, [records()[:-1]])
    with pytest.raises(ArtifactError, match="'small' gives embeddings that are not finite"):
        published(own)


def test_a_new_index_is_published_with_the_features_there_are(own):
    first = published(own)
    store = read_manifest(next(own.artifact("image_features").glob("synthetic-*"))).created_at
    index_again(own, [records()[:-5]])
    second = published(own)
    assert second != first
    assert read_manifest(second).facts["num_images"] == len(records()) - 5
    assert read_manifest(next(own.artifact("image_features").glob("synthetic-*"))).created_at == store


def test_generations_that_are_no_longer_used_are_removed_and_the_one_in_force_stays(own):
    for gone in range(1, 5):
        index_again(own, [records()[:-gone]])
        latest = published(own)
    root = own.artifact("served") / "small"
    assert len(generations(root)) == 2
    assert current_generation(root, make="") == latest


def test_images_that_came_after_the_index_wait_for_the_next(own):
    first = published(own)
    more = [Record(image_id="f" * 16, group="late", tags=("dog",))]
    write_synthetic_collection(own.artifact("collection"), shards=[records(), more])
    second = published(own)
    assert read_manifest(second).facts == read_manifest(first).facts
    assert len(np.load(second / "record_offsets.npy")) == len(records()) + 1


def test_an_image_taken_down_is_not_published(own):
    bury(own.artifact("collection"), records()[3].image_id)
    with pytest.raises(
        ArtifactError, match=r"1 of the index's 280 images are no longer in the collection.*make features"
    ):
        published(own)


def test_tags_of_a_later_row_are_united_with_the_first(own):
    index = open_index(own)[0]
    collection = Collection(own.artifact("collection"))
    table = collection.table
    late = table(["image_id"]).slice(0, 1).column("image_id")[0].as_py()

    def with_later_row(columns):
        rows = table(columns).to_pylist()
        first = next(row for row in rows if row["image_id"] == late)
        return pa.Table.from_pylist(
            [*rows, {**first, "tags": ["late tag"], "offset": -1}], schema=table(columns).schema
        )

    collection.table = with_later_row
    tags = records_table(collection, index).column("tags").to_pylist()[index.image_row(late)]
    assert tags[-1] == "late tag"
    assert set(tags) > {tag for tag in tags if tag in TAGS}


def test_a_missing_run_is_refused_with_the_command_that_makes_it(trained):
    with pytest.raises(ArtifactError, match=r'no finished run artifact.*make train ARGS="run=nowhere"'):
        publish(PublishConfig(trained, "nowhere"))


def test_residuals_go_into_the_embeddings_of_tags_whatever_row_of_an_index_they_have(own):
    cfg = train_config(own, run="residual_published", tag_residual=1.0)
    towers = load_towers(fit(cfg) / "towers.safetensors")
    index_again(own, [[*records(), Record("f" * 16, "new", ("aardvark",))]])  # a tag before all others
    store_features(own, BACKBONE, noise=0.8)
    directory = publish(PublishConfig(own, "residual_published"))
    index, vectors = open_index(own)[0], np.load(directory / "vectors.npy")
    row = index.tag_row("dog")
    expected = embed_tags(towers, ["dog"], torch.from_numpy(vectors[[row]]))[0]
    published = np.load(directory / "tag_embeddings.npy")[row]
    np.testing.assert_allclose(published, expected, atol=1e-6)
    assert not np.allclose(published, towers.tag(torch.from_numpy(vectors[[row]])).detach()[0], atol=1e-3)
