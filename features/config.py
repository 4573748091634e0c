"""Typed configuration of the stages index, tag_vectors and image_features."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from configs.compose import Paths

RUNTIMES = ("auto", "openvino", "torch")
DEVICES = ("auto", "cpu", "cuda")
# The tables of word vectors, and which value of the config names each.
TABLES = {"carried": "", "word2vec": "path", "keyed_vectors": "path", "downloader": "model"}


@dataclass
class IndexConfig:
    """Invert the tags of a collection."""

    paths: Paths = field(default_factory=Paths)
    tag2picid: bool = False  # also write tag2picid.json, tag -> image_ids


@dataclass
class WordsConfig:
    """Which word vectors stand for tags."""

    name: str = MISSING  # carried, word2vec, keyed_vectors or downloader
    path: str = ""  # file of word2vec and keyed_vectors
    model: str = ""  # name in gensim's downloader, such as glove-wiki-gigaword-200

    def __post_init__(self) -> None:
        for value in ("path", "model"):
            if getattr(self, value) and self.name in TABLES and value != TABLES[self.name]:
                raise ValueError(
                    f"words.{value}='{getattr(self, value)}' has no effect with words.name={self.name}; "
                    "choose the table with words=<name>"
                )


@dataclass
class TagVectorsConfig:
    """Give each tag of the index a word vector."""

    paths: Paths = field(default_factory=Paths)
    words: WordsConfig = field(default_factory=WordsConfig)


@dataclass
class BackboneConfig:
    """A network that turns a picture into a feature, with all that shapes its values."""

    name: str = MISSING  # also of the store's directory
    architecture: str = MISSING  # torchvision model, or color_histogram
    weights: str = ""  # carried, or a torchvision weights name such as IMAGENET1K_V2
    width: int = MISSING  # numbers a feature
    resize_px: int = 256  # shorter side after resize
    crop_px: int = 224  # centre crop
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # of R, G, B in [0, 1], subtracted
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])  # of R, G, B, divided by
    licence: str = ""  # of the weights

    def __post_init__(self) -> None:
        numbers = (self.resize_px, self.crop_px)
        if all(isinstance(number, int) for number in numbers) and not 32 <= self.crop_px <= self.resize_px:
            raise ValueError(f"backbone.crop_px must lie in 32..resize_px={self.resize_px}, got {self.crop_px}")
        if len(self.mean) != 3:
            raise ValueError(f"backbone.mean must be three numbers, got {self.mean}")
        if len(self.std) != 3 or not all(spread > 0 for spread in self.std):
            raise ValueError(f"backbone.std must be three numbers above 0, got {self.std}")


@dataclass
class ImageFeaturesConfig:
    """Extract a feature of every image of the index that has none yet."""

    paths: Paths = field(default_factory=Paths)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    runtime: str = "auto"  # openvino, torch; auto takes torch on CUDA and openvino on CPU
    device: str = "auto"  # cpu, cuda; auto takes CUDA where there is one
    batch_size: int = 32  # images a forward pass
    decode_threads: int = 0  # that read and decode ahead of the network, 0 = one a core
    part_size: int = 1024  # images a part of the store: what a kill can cost

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES or self.device not in DEVICES:
            raise ValueError(
                f"runtime must be one of {', '.join(RUNTIMES)} and device one of {', '.join(DEVICES)}, "
                f"got {self.runtime} and {self.device}"
            )
        if self.decode_threads < 0:
            raise ValueError(f"decode_threads must be 0 (one a core) or more, got {self.decode_threads}")
        if self.batch_size < 1 or self.part_size < self.batch_size:
            raise ValueError(f"need 1 <= batch_size <= part_size, got {self.batch_size} and {self.part_size}")
