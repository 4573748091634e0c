"""An uploaded picture in an address: its embedding as text, short enough to share, so that nothing is kept here."""

from __future__ import annotations

import base64
import binascii

import numpy as np


class PictureError(ValueError):
    """A text is no picture's embedding; it says why in a sentence for people."""


def encode(embedding: np.ndarray) -> str:
    """Write an embedding (D,) as base64url of D bytes; its direction is kept to a cosine of 0.9999."""
    steps = np.round(embedding * (127 / max(float(np.abs(embedding).max()), 1e-12)))
    return base64.urlsafe_b64encode(steps.astype(np.int8).tobytes()).decode("ascii").rstrip("=")


def decode(text: str, width: int) -> np.ndarray:
    """Read what `encode` wrote: (width,) float32 of length 1.

    Raises:
        PictureError: it is something else, or of a run with embeddings of another width.
    """
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if len(content) != width:
        raise PictureError("That address holds no picture that this run can read; upload the picture again")
    steps = np.frombuffer(content, np.int8).astype(np.float32)
    length = float(np.linalg.norm(steps))
    if length == 0:
        raise PictureError("That address holds an empty picture; upload the picture again")
    return np.asarray(steps / length)
