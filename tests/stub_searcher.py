"""A searcher over pictures made on the spot, for tests of the page."""

from __future__ import annotations

import colorsys
import hashlib
import io
import re
from functools import cache

import numpy as np
from PIL import Image

from serve.query import QueryError
from serve.searchers.base import (
    Answer,
    Clause,
    Hit,
    ImageDetails,
    Near,
    NoSuchImage,
    Question,
    ScoredTag,
    TagCount,
    TagOrder,
)

NUM_IMAGES = 120
HOSTILE = "<script>alert(1)</script>"
QUOTED = 'say "hi"'
TAGS = ("animal", "dog", "traffic light", "猫", "كلب", HOSTILE, QUOTED, "beach")
KINDS = ("drawing", "photo")
WIDTH = 128  # of an embedding
RATIOS = (1.0, 1.5, 0.67, 1.33, 0.75, 1.78, 0.4, 3.2, 1.21)


def image_id_of(row: int) -> str:
    """Return a name of the same form as those of a collection."""
    return hashlib.sha256(f"stub {row}".encode()).hexdigest()[:16]


def size_of(row: int) -> tuple[int, int]:
    """Return width and height; the ratios come round in turn."""
    height = 160 + 20 * (row % 4)
    return round(height * RATIOS[row % len(RATIOS)]), height


@cache
def jpeg_of(row: int) -> bytes:
    """Draw a soft gradient with a disc, another colour for each row."""
    width, height = size_of(row)
    y, x = np.mgrid[0:height, 0:width]
    near, far = (
        np.array(colorsys.hsv_to_rgb((row * 0.618 + turn) % 1, 0.55, value))
        for turn, value in ((0, 0.95), (0.12, 0.45))
    )
    blend = ((x / width + y / height) / 2)[..., None]
    pixels = near * (1 - blend) + far * blend
    pixels[(x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 4) ** 2] += 0.25
    stream = io.BytesIO()
    Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def tags_of(row: int) -> tuple[str, ...]:
    """Give each tag to every n-th image; `dog` and `beach` never meet."""
    chosen = [TAGS[0]] if row % 9 else []
    chosen += [tag for step, tag in enumerate(TAGS[1:7], start=2) if row % step == 0]
    if row % 2 == 1:
        chosen.append("beach")
    return tuple(chosen)


def parse(text: str) -> list[str]:
    """Split a query into tags: blanks and commas between them, phrases in quotes, a doubled quote inside one."""
    found = re.findall(r'"((?:[^"]|"")*)"?|([^\s,]+)', text)
    return list(
        dict.fromkeys(tag for quoted, plain in found if (tag := (quoted.replace('""', '"') or plain).casefold()))
    )


def written(tags: list[str]) -> str:
    """Write tags as the search box shows them."""
    return " ".join('"' + tag.replace('"', '""') + '"' if set(' "') & set(tag) else tag for tag in tags)


class StubSearcher:
    """Answers as a loaded generation would; `run` names it, and `turned` ranks from another row on."""

    def __init__(self, run: str = "stub", num_images: int = NUM_IMAGES, turned: int = 0) -> None:
        self.run = run
        self.generation = f"{run}-0001"
        self.num_images = num_images
        self.turned = turned
        self.rows = {image_id_of(row): row for row in range(num_images)}
        self.postings = {tag: [row for row in range(num_images) if tag in tags_of(row)] for tag in TAGS}
        self.num_tags = len(TAGS)

    def count(self, tag: str) -> TagCount:
        return TagCount(tag, len(self.postings[tag]))

    def hit(self, row: int, score: float, guess: bool = False) -> Hit:
        width, height = size_of(row)
        title = f"Picture {row}" if row % 5 else f"{HOSTILE} {row}"
        author = "Ada Lovelace" if row % 3 else f"{HOSTILE} & a very long name of a studio that goes on and on"
        return Hit(image_id_of(row), score, score, guess, width, height, title, tags_of(row), author, "CC-BY-4.0")

    def score(self, row: int) -> float:
        return 0.9 - ((row - self.turned) % self.num_images) / 200

    def search(self, question: Question) -> Answer:
        """Answer a grammar of tags alone; guesses follow where 18 to 20 match, or a word begins with pup."""
        if question.text.count("(") != question.text.count(")"):
            raise QueryError("A bracket is not closed", question.text.index("("))
        if question.like and question.like not in self.rows:
            raise NoSuchImage(f"The collection holds no image “{question.like}”", 0)
        words = parse(question.text)
        unknown = tuple(
            Near(
                word, word[:3] == "pup", (self.count("dog"), self.count("traffic light")), (ScoredTag("animal", 0.71),)
            )
            for word in words
            if word not in self.postings
        )
        known = tuple(self.count(word) for word in words if word in self.postings)
        everything = set(range(self.num_images)) - {self.rows.get(question.like)}
        by_picture = bool(question.like or question.picture)
        if not words and not by_picture:
            return Answer("", offset=question.offset)
        matches = set() if unknown else set.intersection(everything, *(set(self.postings[word]) for word in words))
        guesses = everything - matches if 18 <= len(matches) <= 20 or any(near.ranked for near in unknown) else set()
        kept = [row for row in matches if self.kind(row) in (question.kinds or KINDS)]
        shown = [row for row in kept if self.score(row) >= question.cutoff]
        order = (lambda row: -row) if question.sort == "newest" else (lambda row: -self.score(row))
        ranked = [(row, False) for row in sorted(shown, key=order)] + [
            (row, True) for row in sorted(guesses, key=order)
        ]
        page = ranked[question.offset : question.offset + question.limit]
        return Answer(
            written(words),
            known,
            tuple(
                Clause(written([each.tag]), each.num_images, written([w for w in words if w != each.tag]))
                for each in known
            ),
            blame="" if matches or not known else written([known[-1].tag]),
            unknown=unknown,
            num_matches=len(kept),
            num_shown=len(shown),
            num_guesses=len(guesses),
            offset=question.offset,
            hits=tuple(self.hit(row, self.score(row), guess) for row, guess in page),
            kinds=tuple(TagCount(kind, sum(self.kind(row) == kind for row in matches)) for kind in KINDS),
        )

    def kind(self, row: int) -> str:
        return KINDS[row % 3 == 0]

    def direction(self, question: Question, image_id: str) -> np.ndarray | None:
        return np.eye(WIDTH, dtype=np.float32)[0] if image_id in self.rows else None

    def suggest(self, text: str, limit: int) -> tuple[TagCount, ...]:
        last = re.split(r"\s", text)[-1].strip('"').casefold()
        found = [self.count(tag) for tag in TAGS if last and tag.startswith(last)]
        return tuple(sorted(found, key=lambda each: (-each.num_images, each.tag))[:limit])

    def browse(self, prefix: str, sort: TagOrder, offset: int, limit: int) -> tuple[int, tuple[TagCount, ...]]:
        found = [self.count(tag) for tag in TAGS if tag.startswith(prefix)]
        found.sort(key=lambda each: each.tag if sort == "name" else (-each.num_images, each.tag))
        return len(found), tuple(found[offset : offset + limit])

    def details(self, image_id: str) -> ImageDetails | None:
        if image_id not in self.rows:
            return None
        row = self.rows[image_id]
        hit = self.hit(row, 0.0)
        record = {
            "image_id": image_id,
            "tags": list(hit.tags),
            "title": hit.title,
            "caption": f"A caption with {HOSTILE}",
            "kind": "drawing",
            "author": hit.author,
            "licence": hit.licence,
            "width": hit.width,
            "height": hit.height,
            "original_format": "PNG",
            "original_bytes": 20480,
            "page_url": "https://pictures.example/page",
            "source_url": "javascript:alert(1)",
            "extra": {"camera": HOSTILE, "colours": [1, 2]},
        }
        predicted = tuple(ScoredTag(tag, 0.8 - 0.15 * place) for place, tag in enumerate(TAGS))
        return ImageDetails(hit, record, predicted)

    def jpeg(self, image_id: str) -> bytes | None:
        return jpeg_of(self.rows[image_id]) if image_id in self.rows else None
