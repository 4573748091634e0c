"""Ranking of the whole gallery, exact and by an index."""

from types import SimpleNamespace

import numpy as np
import pytest

import serve.gallery
from serve.gallery import GALLERY, Gallery, write_gallery
from serve.generation import cosines

NUM_IMAGES, DIM = 3000, 8


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def embeddings():
    """Images in 60 clusters, each around a tag."""
    rng = np.random.default_rng(0)
    tags = unit(rng.normal(size=(60, DIM)).astype(np.float32))
    images = unit(tags[rng.integers(0, 60, NUM_IMAGES)] + 0.2 * rng.normal(size=(NUM_IMAGES, DIM))).astype(np.float16)
    return images, tags


def served(directory, images):
    files = [GALLERY] if (directory / GALLERY).exists() else []
    return Gallery(
        SimpleNamespace(
            directory=directory,
            manifest=SimpleNamespace(files=files),
            embeddings=images,
            cosines=lambda rows, vectors: cosines(images, rows, vectors),
        )
    )


def brute_force(images, vectors, allowed, k):
    scores = (images.astype(np.float32) @ vectors.T).max(axis=1)
    return sorted(np.flatnonzero(allowed).tolist(), key=lambda row: (-scores[row], row))[:k]


@pytest.fixture
def indexed(embeddings, tmp_path, monkeypatch):
    monkeypatch.setattr(serve.gallery, "EXACT_ENTRIES", 1000)
    monkeypatch.setattr(serve.gallery, "LISTS", 32)
    facts = write_gallery(tmp_path, *embeddings)
    return served(tmp_path, embeddings[0]), facts


def test_a_small_gallery_gets_no_index_and_is_exact(embeddings, tmp_path):
    assert write_gallery(tmp_path, *embeddings) == {}
    gallery = served(tmp_path, embeddings[0])
    allowed = np.arange(NUM_IMAGES) % 3 > 0
    for mask in (allowed, np.ones(NUM_IMAGES, dtype=bool)):
        rows, scores = gallery.best(embeddings[1][:2], mask, 50)
        assert rows.tolist() == brute_force(embeddings[0], embeddings[1][:2], mask, 50)
        assert (np.diff(scores) <= 0).all()
    assert gallery.exact


def test_an_index_has_the_recall_that_it_states(indexed, embeddings):
    gallery, facts = indexed
    images, tags = embeddings
    everything = np.ones(NUM_IMAGES, dtype=bool)
    found = [set(gallery.best(tag[None], everything, 60)[0].tolist()) for tag in tags]
    true = [set(brute_force(images, tag[None], everything, 60)) for tag in tags]
    recall = np.mean([len(one & two) / 60 for one, two in zip(found, true, strict=True)])
    assert facts["recall_at_60"] >= 0.99
    assert recall >= 0.97
    assert not gallery.exact


def test_scores_of_an_index_are_exact_and_fall(indexed, embeddings):
    gallery = indexed[0]
    rows, scores = gallery.best(embeddings[1][:1], np.ones(NUM_IMAGES, dtype=bool), 100)
    np.testing.assert_allclose(scores, embeddings[0][rows].astype(np.float32) @ embeddings[1][0], atol=1e-6)
    assert (np.diff(scores) <= 0).all()
    assert len(set(rows.tolist())) == 100


def test_what_is_not_allowed_is_not_found_by_an_index(indexed, embeddings):
    allowed = np.arange(NUM_IMAGES) % 2 > 0
    rows, _ = indexed[0].best(embeddings[1][:1], allowed, 60)
    true = set(brute_force(embeddings[0], embeddings[1][:1], allowed, 60))
    assert allowed[rows].all()
    assert len(true & set(rows.tolist())) >= 54


def test_few_images_are_scanned_because_an_index_would_lose_them(indexed, embeddings):
    allowed = np.zeros(NUM_IMAGES, dtype=bool)
    allowed[::50] = True
    rows, _ = indexed[0].best(embeddings[1][:1], allowed, 100)
    assert rows.tolist() == brute_force(embeddings[0], embeddings[1][:1], allowed, 100)


def test_the_same_embeddings_give_the_same_index(embeddings, tmp_path, monkeypatch):
    monkeypatch.setattr(serve.gallery, "EXACT_ENTRIES", 1000)
    monkeypatch.setattr(serve.gallery, "LISTS", 32)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_gallery(tmp_path / name, *embeddings)
    assert (tmp_path / "one" / GALLERY).read_bytes() == (tmp_path / "two" / GALLERY).read_bytes()
