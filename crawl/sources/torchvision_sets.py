"""Source `torchvision`: data sets that torchvision knows how to download and read, their class names as tags.

Files of a set are taken as they are and decoded by the gate; only sets that come as arrays are wrapped into BMP files,
which hold pixels as they are. All parts of a set are taken: its own split is not ours, because a split goes by group.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from configs.artifacts import ArtifactError, digest
from crawl.source_config import CAPTIONED, TorchvisionSource
from crawl.sources.item import Source, SourceItem, Unreadable, read_regular

# What torchvision raises for a set that is not there, not whole, or not what it should be.
UNFIT = (RuntimeError, OSError, ValueError, LookupError, EOFError, ImportError)
WORD = re.compile(r"[^\W\d_]{3,}")
# In every other caption, and no tag of a picture.
COMMON = frozenset(
    WORD.findall(
        "the and are with for from that this there his her its their two three one some several many while who which "
        "into onto over under near next behind front through out off another other being has have was were each them"
    )
)
TOLD_TWICE = 2  # captions of a picture that a word stands in, to be a tag


@dataclass(frozen=True)
class Sample:
    """One picture of a set: a file, or an array, with its tags."""

    content: Path | np.ndarray  # an array: (H, W) or (H, W, 3) uint8
    tags: tuple[str, ...]
    caption: str = ""


@dataclass(frozen=True)
class Known:
    """A set that torchvision has."""

    kind: str  # name of its class
    parts: tuple[dict[str, Any], ...]  # arguments that give each part of it
    samples: Callable[[Any], Iterator[Sample]]
    page: str
    licence: str = ""  # as its authors state it for all pictures; empty where they do not, or pictures differ


def readable(name: str) -> tuple[str, ...]:
    """Return the tags that a class name stands for: words with blanks between, several where it gives synonyms.

    `airplane_cabin`, `/a/abbey` and `001.ak47` lose what is no word; `AnnualCrop` becomes two words, `T-shirt/top` two
    tags, and `0 - zero` the word.
    """
    text = re.sub(r"^(/?[a-z]/|\d+\.|\d+ - )", "", name)
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text).replace("_", " ").rstrip("?")
    return tuple(part.strip() for part in text.split("/") if part.strip())


def _train_test(*names: str) -> tuple[dict[str, Any], ...]:
    return tuple({"split": name} for name in names)


_BY_FLAG: tuple[dict[str, Any], ...] = ({"train": True}, {"train": False})


def _as_path(path: str | Path) -> Path:
    return Path(path)


def _files(dataset: Any) -> Iterator[Sample]:
    """Yield the samples of a set that lets its files be loaded by us."""
    for path, label in (dataset[at] for at in range(len(dataset))):
        name = dataset.classes[int(label)]
        names = (name,) if isinstance(name, str) else name
        yield Sample(path, tuple(tag for each in names for tag in readable(each)))


def _arrays(dataset: Any) -> Iterator[Sample]:
    """Yield the samples of a set that comes as one array."""
    labels = getattr(dataset, "targets", None)
    for pixels, label in zip(dataset.data, dataset.labels if labels is None else labels, strict=True):
        array = np.asarray(pixels)
        array = array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] == 3 else array
        yield Sample(array, readable(dataset.classes[int(label)]))


def _caltech(dataset: Any) -> Iterator[Sample]:
    folder = next(Path(dataset.root).glob("*_ObjectCategories"))
    numbered = folder.name.startswith("256")
    for label, number in zip(dataset.y, dataset.index, strict=True):
        name = dataset.categories[label]
        file = f"{label + 1:03d}_{number:04d}.jpg" if numbered else f"image_{number:04d}.jpg"
        yield Sample(folder / name / file, readable(name))


def _pets(dataset: Any) -> Iterator[Sample]:
    for path, breed, species in zip(dataset._images, dataset._labels, dataset._bin_labels, strict=True):
        yield Sample(path, (dataset.classes[breed], dataset.bin_classes[species]))


def _voc(dataset: Any) -> Iterator[Sample]:
    """Yield the pictures of a year with what stands on them, parts of people left out."""
    for path, annotation in zip(dataset.images, dataset.annotations, strict=True):
        text = re.sub(r"<part>.*?</part>", "", Path(annotation).read_text(encoding="utf-8"), flags=re.DOTALL)
        names = re.findall(r"<object>.*?<name>\s*([^<]+?)\s*</name>.*?</object>", text, flags=re.DOTALL)
        yield Sample(Path(path), tuple(dict.fromkeys(tag for name in names for tag in readable(name))))


def _captioned(dataset: Any) -> Iterator[Sample]:
    for path, captions in (dataset[at] for at in range(len(dataset))):
        yield Sample(path, words_told(captions), " ".join(each.strip() for each in captions))


def words_told(captions: Sequence[str]) -> tuple[str, ...]:
    """Return the words that stand in several captions of a picture, ascending, since captions have no classes."""
    each = [set(WORD.findall(caption.lower())) - COMMON for caption in captions]
    told = set().union(*each)
    least = min(TOLD_TWICE, len(captions))
    return tuple(sorted(word for word in told if sum(word in words for words in each) >= least))


_CALTECH = "https://data.caltech.edu/records"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
SETS = {
    "cifar10": Known("CIFAR10", _BY_FLAG, _arrays, "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "cifar100": Known("CIFAR100", _BY_FLAG, _arrays, "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "caltech101": Known("Caltech101", ({},), _caltech, f"{_CALTECH}/mzrjq-6wc02", "CC BY 4.0"),
    "caltech256": Known("Caltech256", ({},), _caltech, f"{_CALTECH}/nyy15-4j048", "CC BY 4.0"),
    "voc2007": Known(
        "VOCDetection",
        ({"year": "2007", "image_set": "trainval"}, {"year": "2007", "image_set": "test"}),
        _voc,
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
    ),
    "voc2012": Known(
        "VOCDetection",
        ({"year": "2012", "image_set": "trainval"},),
        _voc,
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    ),
    "flickr8k": Known("Flickr8k", ({},), _captioned, "https://hockenmaier.cs.illinois.edu/8k-pictures.html"),
    "flickr30k": Known("Flickr30k", ({},), _captioned, "https://shannon.cs.illinois.edu/DenotationGraph/"),
    "imagenette": Known(
        "Imagenette", _train_test("train", "val"), _files, "https://github.com/fastai/imagenette", "Apache-2.0"
    ),
    "flowers102": Known("Flowers102", _train_test("train", "val", "test"), _files, f"{_VGG}/flowers/102/"),
    "food101": Known(
        "Food101", _train_test("train", "test"), _files, "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
    ),
    "oxford_iiit_pet": Known("OxfordIIITPet", _train_test("trainval", "test"), _pets, f"{_VGG}/pets/", "CC BY-SA 4.0"),
    "dtd": Known("DTD", _train_test("train", "val", "test"), _files, f"{_VGG}/dtd/"),
    "sun397": Known("SUN397", ({},), _files, "https://vision.princeton.edu/projects/2010/SUN/"),
    "places365": Known(
        "Places365", ({"small": True}, {"small": True, "split": "val"}), _files, "http://places2.csail.mit.edu"
    ),
    "stanford_cars": Known("StanfordCars", _train_test("train", "test"), _files, ""),
    "fgvc_aircraft": Known("FGVCAircraft", _train_test("trainval", "test"), _files, f"{_VGG}/fgvc-aircraft/"),
    "eurosat": Known("EuroSAT", ({},), _files, "https://github.com/phelber/EuroSAT", "MIT"),
    "stl10": Known("STL10", _train_test("train", "test"), _arrays, "https://cs.stanford.edu/~acoates/stl10/"),
    "mnist": Known("MNIST", _BY_FLAG, _arrays, "http://yann.lecun.com/exdb/mnist/"),
    "fashion_mnist": Known(
        "FashionMNIST", _BY_FLAG, _arrays, "https://github.com/zalandoresearch/fashion-mnist", "MIT"
    ),
    "kmnist": Known("KMNIST", _BY_FLAG, _arrays, "http://codh.rois.ac.jp/kmnist/", "CC BY-SA 4.0"),
}


class TorchvisionSet(Source):
    """The pictures of one set, part by part, files by ascending path, arrays in their own order."""

    def __init__(self, config: TorchvisionSource, max_bytes: int) -> None:
        self.root = Path(config.path)
        self.max_bytes = max_bytes
        self.name = config.set
        self.known = SETS[config.set]
        self.samples: list[Sample] = []
        for part in self.known.parts:
            found = list(self.known.samples(self._open(config, part)))
            self.samples += sorted(found, key=_order)
        if not self.samples:
            raise ArtifactError(f"'{config.path}' holds nothing of {config.set}; delete it and download it again")

    def _open(self, config: TorchvisionSource, part: dict[str, Any]) -> Any:
        kind, arguments = self.known.kind, {**part}
        if config.set in CAPTIONED:  # not to be downloaded; both sets come with captions in either of two formats
            kind = "Flickr8k" if Path(config.annotations).suffix.lower() in (".html", ".htm") else "Flickr30k"
            arguments = {"ann_file": config.annotations}
        else:
            arguments["download"] = config.download
        if self.known.samples in (_files, _captioned):
            arguments["loader"] = _as_path
        try:
            return getattr(datasets, kind)(config.path, **arguments)
        except UNFIT as error:
            way_out = (
                "put its pictures there, and name its file of captions by source.annotations"
                if config.set in CAPTIONED
                else "delete what is broken there and try again"
                if config.download
                else "let it be downloaded with source.download=true"
            )
            raise ArtifactError(f"torchvision finds no {config.set} in '{config.path}' ({error}): {way_out}") from error

    def fingerprint(self) -> str:
        """Digest of names and sizes of files, of the pixels of arrays, and of tags."""
        return digest([self.name, [[_stamp(sample.content), sample.tags, sample.caption] for sample in self.samples]])

    def items(self, start: int = 0) -> Iterator[SourceItem]:
        """Yield the samples in order."""
        for number, sample in islice(enumerate(self.samples), start, None):
            yield self._item(number, sample)

    def _item(self, number: int, sample: Sample) -> SourceItem:
        given = {"page_url": self.known.page, "licence": self.known.licence, "caption": sample.caption}
        provenance = {name: value for name, value in given.items() if value}
        extra = {"dataset": self.name}
        if isinstance(sample.content, np.ndarray):
            return SourceItem(f"{self.name} {number}", bmp(sample.content), None, sample.tags, (), provenance, extra)
        key = os.path.relpath(sample.content, self.root)
        try:
            content = read_regular(sample.content, self.max_bytes)
        except Unreadable as problem:
            return SourceItem(key, problem=problem)
        return SourceItem(key, content, None, sample.tags, (), provenance, extra)


def _order(sample: Sample) -> str:
    return "" if isinstance(sample.content, np.ndarray) else str(sample.content)


def _stamp(content: Path | np.ndarray) -> str | list[str | int]:
    if isinstance(content, np.ndarray):
        return digest(content.tobytes().hex())
    return [content.name, content.stat().st_size if content.is_file() else -1]


def bmp(pixels: np.ndarray) -> bytes:
    """Return pixels as an uncompressed BMP, whose bytes are the same wherever it is written, as a PNG's are not.

    Args:
        pixels: (H, W) grey or (H, W, 3) RGB, uint8.
    """
    colours = np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels
    height, width = colours.shape[:2]
    rows = np.zeros((height, -(-3 * width // 4) * 4), dtype=np.uint8)  # padded to four bytes
    rows[:, : 3 * width] = colours[::-1, :, ::-1].reshape(height, -1)  # bottom row first, blue first
    body = rows.tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(body), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + header + body
