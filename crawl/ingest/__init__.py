"""The gate: the one place where bytes of strangers become images.

Rules that are not visible in a signature:

- Content decides the format. JPEG (of several pictures the first), PNG, GIF, WebP, BMP, TIFF and AVIF are parsed, each
  by its one decoder; every other format is named and refused unread. Of an animation the first frame counts.
- Limits act on the header, before pixels are decoded.
- A damaged file is refused, never completed: JPEGs pass libjpeg-turbo with its warnings as errors, critical PNG chunks
  their checksums. Bytes behind the end of an image are left out.
- Three components always: a grey JPEG is encoded anew. A plain baseline JPEG within bounds keeps its scan bytes, and
  loses EXIF, comments and other metadata by leaving their segments out.
- Colours end as sRGB on white: ICC profiles are applied (perceptual intent), broken ones ignored; a PNG's gAMA counts
  when nothing better describes it; CMYK without a profile is (1 - ink)(1 - black), in JPEGs inverted as Adobe does.
"""

from crawl.ingest.gate import GATE_VERSION, acceptance, gate_space, ingest
from crawl.ingest.isolation import IsolatedGate
from crawl.ingest.verdict import TRANSIENT, Accepted, Reason, Refused

__all__ = [
    "GATE_VERSION",
    "TRANSIENT",
    "Accepted",
    "IsolatedGate",
    "Reason",
    "Refused",
    "acceptance",
    "gate_space",
    "ingest",
]
