"""Why a picture got its score: shares that add up, drawn where the network looked."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from features.config import BackboneConfig, FeatureSpaceConfig
from features.single_picture import Box, SinglePicture, seen
from serve.why import Shares, colours, linear_shares, overlay, score_of, shares_of
from tests.tiny import HISTOGRAM, picture
from train.towers import TwoTowers

LITE = BackboneConfig(name="efficientnet_lite0", architecture="efficientnet_lite0", weights="carried", width=1280)


def tower_of(image_dim=6, **shape):
    torch.manual_seed(0)
    tower = TwoTowers(tag_dim=4, image_dim=image_dim, hidden_dim=8, embed_dim=5, **shape).image.eval()
    tower.centre.copy_(torch.linspace(0, 1, image_dim))
    tower.spread.fill_(0.7)
    return tower


def places_and_query(seed=0):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=5).astype(np.float32)
    return rng.random((3, 2, 6), dtype=np.float32), query / np.linalg.norm(query)


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ({"depth": 1}, "exact"),
        ({"depth": 2, "activation": "none"}, "exact"),
        ({"depth": 2}, "linearised"),
        ({"depth": 3, "activation": "none", "normalisation": "layer"}, "linearised"),
    ],
)
def test_values_of_places_have_the_score_as_their_mean(shape, way):
    tower, (places, query) = tower_of(**shape), places_and_query()
    shares = linear_shares(tower, places, query)
    assert shares.way == way
    assert shares.score == pytest.approx(score_of(tower, places.mean(axis=(0, 1))[None], query)[0], abs=1e-6)
    assert shares.cells.mean() == pytest.approx(shares.score, abs=1e-5)


def test_exact_value_is_what_the_place_would_give_alone_at_the_same_length():
    tower, (places, query) = tower_of(depth=1), places_and_query()
    shares = linear_shares(tower, places, query)
    with torch.inference_mode():
        length = tower.project(torch.from_numpy(places.mean(axis=(0, 1)))[None]).norm()
        alone = (tower.project(torch.from_numpy(places.reshape(6, 6))) @ torch.from_numpy(query)) / length
    np.testing.assert_allclose(shares.cells.ravel(), alone.numpy(), atol=1e-5)


def test_picture_without_its_best_place_scores_lower_than_without_its_worst():
    tower, (places, query) = tower_of(depth=1), places_and_query()
    flat, cells = places.reshape(6, 6), linear_shares(tower, places, query).cells.ravel()
    without = [score_of(tower, np.delete(flat, at, axis=0).mean(axis=0)[None], query)[0] for at in range(6)]
    assert without[cells.argmax()] < without[cells.argmin()]


def test_map_of_a_carried_network_has_the_feature_as_its_mean():
    single = SinglePicture(FeatureSpaceConfig(backbone=LITE), gate="")
    jpeg = picture(1, (256, 256))
    places = single.feature_map(jpeg)
    assert places.shape == (7, 7, 1280)
    np.testing.assert_allclose(places.mean(axis=(0, 1)), single.feature(jpeg), atol=1e-4)


def test_feature_without_a_map_is_explained_by_covering_and_says_so():
    single = SinglePicture(FeatureSpaceConfig(backbone=HISTOGRAM), gate="")
    shares = shares_of(single, tower_of(image_dim=99, depth=1), picture(1), places_and_query()[1])
    assert shares.way == "covered"
    assert shares.cells.shape == (6, 6)
    assert shares.middle == 0


def test_colours_tell_raising_from_lowering_by_strength():
    cells = colours(Shares(np.array([[0.5, 0.1], [0.3, 0.4]], np.float32), 0.3, "exact"))
    assert cells[..., 3].tolist() == [[199, 199], [0, 99]]
    assert cells[0, 0, 0] > cells[0, 0, 2]  # red above the score
    assert cells[0, 1, 2] > cells[0, 1, 0]  # blue below it


def test_overlay_covers_what_the_network_saw_and_nothing_else():
    shares = Shares(np.ones((2, 2), np.float32), 0.0, "covered")
    png = Image.open(io.BytesIO(overlay(shares, 40, 20, Box(10, 0, 30, 20))))
    alpha = np.asarray(png)[..., 3]
    assert png.size == (40, 20)
    assert (alpha[:, 10:30] == 199).all()
    assert alpha[:, :10].max() == alpha[:, 30:].max() == 0


@pytest.mark.parametrize(("size", "box"), [((400, 256), Box(88, 16, 312, 240)), ((128, 256), Box(8, 72, 120, 184))])
def test_seen_part_is_the_centre_that_cropping_leaves(size, box):
    assert (
        seen(*size, BackboneConfig(name="b", architecture="color_histogram", width=99, resize_px=256, crop_px=224))
        == box
    )


def test_squashed_picture_is_seen_whole():
    squashing = BackboneConfig(
        name="b", architecture="color_histogram", width=99, resize_px=32, crop_px=32, squash=True
    )
    assert seen(50, 20, squashing) == Box(0, 0, 50, 20)
