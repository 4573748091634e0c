"""Thumbnails: smaller, never larger, the same picture, made once."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from serve.thumbnails import WIDTHS, Thumbnails, sizes_for, widths_for
from tests.stub_searcher import StubSearcher, image_id_of, jpeg_of
from tests.tiny import picture


class OnePicture(StubSearcher):
    def __init__(self, jpeg):
        super().__init__()
        self.asked, self._jpeg = 0, jpeg

    def jpeg(self, image_id):
        self.asked += 1
        return self._jpeg if image_id == "here" else None


def test_thumbnail_has_the_width_asked_for_and_the_ratio_of_its_picture():
    small, _ = Thumbnails().get(OnePicture(picture(1, (512, 384))), "here", 160)
    assert Image.open(io.BytesIO(small)).size == (160, 120)


def test_thumbnail_shows_the_picture():
    whole = Image.open(io.BytesIO(jpeg_of(3))).convert("RGB")
    small, _ = Thumbnails().get(StubSearcher(), image_id_of(3), 160)
    shown = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"), dtype=float)
    expected = np.asarray(whole.resize((160, shown.shape[0])), dtype=float)
    assert np.abs(shown - expected).mean() < 4


def test_picture_that_is_narrower_stays_as_it_is():
    jpeg = picture(1, (96, 200))
    assert Thumbnails().get(OnePicture(jpeg), "here", 160)[0] == jpeg


def test_thumbnail_is_made_once_and_has_an_etag_of_its_own():
    searcher, thumbnails = OnePicture(picture(1, (512, 384))), Thumbnails()
    first, again = (thumbnails.get(searcher, "here", 160) for _ in range(2))
    assert first == again
    assert searcher.asked == 1
    assert thumbnails.get(searcher, "here", 240)[1] != first[1]


def test_cache_holds_no_more_than_its_bytes():
    searcher, thumbnails = OnePicture(picture(1, (512, 384))), Thumbnails(cache_bytes=10)
    thumbnails.get(searcher, "here", 160)
    thumbnails.get(searcher, "here", 160)
    assert searcher.asked == 2


def test_unknown_picture_has_none():
    assert Thumbnails().get(OnePicture(b""), "gone", 160) is None


def test_no_width_beyond_the_picture_is_offered():
    hit = StubSearcher().hit(0, 0.5)
    assert widths_for(replace(hit, width=300)) == (160, 240)
    assert widths_for(replace(hit, width=160)) == ()
    assert widths_for(replace(hit, width=512)) == WIDTHS


def test_sizes_follow_the_height_of_a_row_times_the_ratio():
    assert sizes_for(1.5) == "(min-width: 75rem) 285px, (min-width: 40rem) 248px, 195px"
