"""A picture in an address: written and read without loss that matters, and nothing else is read."""

import numpy as np
import pytest

from serve.pictures import PictureError, decode, encode


def test_embedding_keeps_its_direction_through_an_address():
    for seed in range(20):
        embedding = np.random.default_rng(seed).normal(size=128).astype(np.float32)
        found = decode(encode(embedding), 128)
        assert found @ embedding / np.linalg.norm(embedding) > 0.9999
        assert np.linalg.norm(found) == pytest.approx(1)


def test_text_is_safe_in_an_address_and_short():
    text = encode(np.random.default_rng(0).normal(size=128))
    assert len(text) == 171
    assert text.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize("text", ["", "x", "!!!!", "é" * 171, encode(np.ones(64)), encode(np.zeros(128)), "A" * 9999])
def test_anything_else_is_refused_in_a_sentence(text):
    with pytest.raises(PictureError, match="upload the picture again"):
        decode(text, 128)
