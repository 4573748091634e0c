"""Copies have hashes close to each other and look-alikes are told from them."""

import io
from functools import cache

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crawl import near_copies
from crawl.near_copies import (
    BANDS,
    PICTURE_PX,
    PROBES,
    RADIUS,
    THUMBNAIL_PX,
    HashTable,
    _band,
    align,
    candidates,
    cosines,
    hashes,
    is_flat,
    probed_hashes,
    similarity,
)


@cache
def scene(seed, size=(240, 180)):
    """A picture of soft blobs, with detail of all sizes as photographs have."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(size, Image.BICUBIC), float
        )
        / side**0.5
        for side in (3, 6, 12, 24)
    ]
    blended = sum(layers)
    return Image.fromarray((255 * (blended - blended.min()) / np.ptp(blended)).astype(np.uint8))


def small(image):
    """A picture as the comparison sees it, (3, S, S)."""
    return np.asarray(image.resize((PICTURE_PX, PICTURE_PX), Image.BOX)).transpose(2, 0, 1)


def thumbnail(image):
    return np.asarray(image.convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.BOX), np.float32)


def recompressed(image, quality):
    return Image.open(io.BytesIO(simplejpeg.encode_jpeg(np.asarray(image), quality=quality)))


COPIES = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "recompressed": lambda image: recompressed(image, 40),
    "cropped on the left": lambda image: image.crop((24, 0, image.width, image.height)),
    "cropped all around": lambda image: image.crop((12, 9, image.width - 12, image.height - 9)),
    "brighter": lambda image: image.point(lambda level: min(255, round(1.1 * level))),
    "mirrored": lambda image: image.transpose(Image.FLIP_LEFT_RIGHT),
    "cropped and mirrored": lambda image: image.crop((0, 0, 220, 170)).transpose(Image.FLIP_LEFT_RIGHT),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_is_a_candidate_and_found_alike(change):
    copied = [COPIES[change](scene(seed)) for seed in range(5)]
    others = np.array([thumbnail(scene(seed)) for seed in range(12)])
    found = candidates(others, np.array([thumbnail(image) for image in copied]))
    assert {(seed, seed) for seed in range(5)} <= {(whole, part) for whole, part, _ in found.tolist()}
    for seed, image in enumerate(copied):
        probes = [probe for whole, part, probe in found.tolist() if (whole, part) == (seed, seed)]
        assert max(similarity(small(scene(seed)), small(image), probe) for probe in probes) > 0.92


def test_other_pictures_are_hardly_candidates_and_not_alike():
    one, two = (np.array([thumbnail(scene(seed)) for seed in seeds]) for seeds in (range(20), range(20, 40)))
    for whole, part, probe in candidates(one, two).tolist():
        assert similarity(small(scene(whole)), small(scene(20 + part)), probe) < 0.6


def test_a_picture_is_wholly_like_itself():
    assert similarity(small(scene(0)), small(scene(0)), 0) == pytest.approx(1)


def test_a_small_difference_in_one_place_tells_pictures_apart():
    image = scene(0)
    changed = image.copy()
    changed.paste(scene(1).crop((0, 0, 60, 40)), (100, 80))
    assert similarity(small(image), small(changed), 0) < 0.92
    whole = np.corrcoef(small(image).ravel(), small(changed).ravel())[0, 1]
    assert whole > 0.9  # as a whole they look alike


def test_another_colour_is_another_picture_but_more_light_is_not():
    shape = np.zeros((3, PICTURE_PX, PICTURE_PX))
    shape[0, 16:48, 16:48] = 120.0
    assert similarity(shape, shape[::-1], 0) < 0.5  # red, blue
    assert similarity(shape, 1.1 * shape + 20, 0) > 0.95


def test_the_mirrored_probe_is_the_hash_of_the_mirrored_picture():
    pictures = np.array([thumbnail(scene(seed)) for seed in range(8)])
    assert (hashes(pictures, PROBES // 2) == hashes(pictures[:, :, ::-1])).all()


def test_the_cosine_of_a_probe_to_the_part_it_looks_at_is_one():
    waves = np.cos(np.pi * np.outer([1, 2, 3], (np.arange(200) + 0.5) / 200)).sum(axis=0)
    whole = waves[:, None] * waves[None, :] + waves[:, None]
    part = whole[10:190, 10:190]  # 0.05 to 0.95 of both axes
    sides = [
        side.reshape(THUMBNAIL_PX, -1, THUMBNAIL_PX, side.shape[1] // THUMBNAIL_PX).mean((1, 3))
        for side in (np.kron(each, np.ones((4, 4))) for each in (whole, part))
    ]
    probe = near_copies.CROPS.index((0.05, 0.95)) * (len(near_copies.CROPS) + 1)
    assert cosines(sides[0][None], sides[1][None], probe)[0] > 0.999
    assert cosines(sides[0][None], sides[1][None], 0)[0] < 0.98


def test_alignment_finds_the_sides_of_a_part():
    image = scene(3, (400, 400))
    part = image.crop((20, 8, 380, 396))
    whole, seen = (np.asarray(each.convert("L").resize((PICTURE_PX,) * 2, Image.BOX), float) for each in (image, part))
    box = align(whole, seen, np.array([0.0, 1.0, 0.0, 1.0]))
    assert box == pytest.approx([0.05, 0.95, 0.02, 0.99], abs=0.004)


def test_flat_thumbnails_are_told():
    noise = np.random.default_rng(0).normal(0, 1, (1, THUMBNAIL_PX, THUMBNAIL_PX))
    assert is_flat(np.concatenate([128 + noise, 128 + 10 * noise])).tolist() == [True, False]


sixty_four_bits = st.integers(0, 2**64 - 1)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(sixty_four_bits, min_size=1, max_size=8), st.lists(st.sets(st.integers(0, 63), max_size=14), max_size=8)
)
def test_lookup_finds_all_within_seven_bits_and_nothing_beyond_the_radius(stored, flips):
    asked = [stored[at % len(stored)] ^ sum(1 << bit for bit in bits) for at, bits in enumerate(flips)]
    found = HashTable(np.array(stored, np.uint64)).near(np.array(asked, np.uint64))
    distance = {(i, j): (a ^ b).bit_count() for i, a in enumerate(asked) for j, b in enumerate(stored)}
    pairs = [tuple(pair) for pair in found.tolist()]
    assert len(set(pairs)) == len(pairs)
    assert {pair for pair, bits in distance.items() if bits <= 7} <= set(pairs)
    assert all(distance[pair] <= RADIUS for pair in pairs)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.integers(0, BANDS - 1))
def test_a_band_is_every_fourth_bit(values, band):
    slow = [sum((value >> (BANDS * bit + band) & 1) << bit for bit in range(16)) for value in values]
    assert _band(np.array(values, dtype=np.uint64), band).tolist() == slow


@given(st.integers(0, 2**32 - 1))
def test_all_probes_of_a_thumbnail_at_once_are_those_one_by_one(seed):
    thumbnail = np.random.default_rng(seed).integers(0, 256, (THUMBNAIL_PX, THUMBNAIL_PX), dtype=np.uint8)
    probes = tuple(range(PROBES))
    one_by_one = np.array([hashes(thumbnail[None], probe)[0] for probe in probes])
    off = np.bitwise_count(probed_hashes(thumbnail, probes) ^ one_by_one)
    assert off.max() <= 1  # a frequency that is nearly nothing may round either way


def test_lookup_does_not_depend_on_how_much_is_compared_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4, 300).astype(np.uint64)  # crowded buckets
    asked = rng.integers(0, 4, 50).astype(np.uint64)
    whole = HashTable(stored).near(asked)
    monkeypatch.setattr(near_copies, "COMPARISONS", 100)
    monkeypatch.setattr(near_copies, "CHUNK", 7)
    assert np.array_equal(HashTable(stored).near(asked), whole)
    assert len(whole) == 300 * 50


def test_which_side_is_larger_does_not_change_what_is_found():
    pictures = np.array([thumbnail(scene(seed)) for seed in range(12)])
    few = candidates(pictures[:4], pictures)
    many = candidates(np.concatenate([pictures[:4], pictures[4:]]), pictures[:11])
    assert {tuple(row) for row in few.tolist() if row[1] < 11} == {tuple(row) for row in many.tolist() if row[0] < 4}
