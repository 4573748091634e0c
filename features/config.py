"""Typed configuration of the stages index, tag_vectors and image_features."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields

from omegaconf import MISSING

from configs.compose import Paths, check_name
from configs.executors import ExecutorConfig

RUNTIMES = ("auto", "openvino", "torch")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("f32", "bf16", "int8")
INTERPOLATIONS = ("bilinear", "bicubic")
# The tables of word vectors, and which values of the config each is made by.
TABLES: dict[str, tuple[str, ...]] = {
    "carried": (),
    "word2vec": ("path",),
    "keyed_vectors": ("path",),
    "downloader": ("model",),
    "train": ("dim", "epochs", "min_count", "seed"),
}


@dataclass
class IndexConfig:
    """Invert the tags of a collection."""

    paths: Paths = field(default_factory=Paths)
    tag2picid: bool = False  # also write tag2picid.json, tag -> image_ids


@dataclass
class WordsConfig:
    """Which word vectors stand for tags."""

    name: str = MISSING  # carried, word2vec, keyed_vectors, downloader or train
    path: str = ""  # file of word2vec and keyed_vectors
    model: str = ""  # name in gensim's downloader, such as glove-wiki-gigaword-200
    dim: int = 200  # numbers a vector of train
    epochs: int = 60  # passes of train over the sentences; a large collection needs fewer
    min_count: int = 1  # train images a word of train must stand with; a tag without a vector is not trained on
    seed: int = 0  # of train

    def __post_init__(self) -> None:
        idle = [
            each
            for each in fields(self)
            if each.name != "name"
            and getattr(self, each.name) != each.default
            and self.name in TABLES
            and each.name not in TABLES[self.name]
        ]
        if idle:
            raise ValueError(
                f"words.{idle[0].name}='{getattr(self, idle[0].name)}' has no effect with words.name={self.name}; "
                "choose the table with words=<name>"
            )
        for knob in ("dim", "epochs", "min_count"):
            if getattr(self, knob) < 1:
                raise ValueError(f"words.{knob} must be 1 or more, got {getattr(self, knob)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"words.seed must lie in [0, {2**32}), got {self.seed}")


@dataclass
class TagVectorsConfig:
    """Give each tag of the index a word vector."""

    paths: Paths = field(default_factory=Paths)
    words: WordsConfig = field(default_factory=WordsConfig)
    retrain: bool = False  # train words=train anew on the index in force; runs trained before do not fit it

    def __post_init__(self) -> None:
        if self.retrain and self.words.name != "train":
            raise ValueError(f"retrain=true has no effect with words.name={self.words.name}; say words=train")


@dataclass
class BackboneConfig:
    """A network that turns a picture into a feature, with all that shapes its values.

    What is 0 or empty is as the weights say: `features.backbones.settle` fills it in.
    """

    name: str = ""  # also of the store's directory; empty: made of the architecture
    architecture: str = MISSING  # torchvision classifier, efficientnet_lite0, color_histogram, or Hugging Face by its /
    weights: str = ""  # carried, torchvision's name such as IMAGENET1K_V2 or DEFAULT, or a Hugging Face revision
    width: int = 0  # numbers a feature
    resize_px: int = 256  # shorter side after resize
    crop_px: int = 224  # centre crop
    interpolation: str = "bilinear"  # of the resize, antialiased: bilinear, bicubic
    squash: bool = False  # resize both sides to crop_px instead, without regard to their ratio, and crop nothing
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # of R, G, B in [0, 1], subtracted
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])  # of R, G, B, divided by
    licence: str = ""  # of the weights

    def __post_init__(self) -> None:
        if self.architecture != MISSING:
            self.name = self.name or re.sub(r"[^\w.-]+", "-", self.architecture).strip(".-")
            check_name("backbone.name", self.name)
        if self.width < 0:
            raise ValueError(f"backbone.width must be at least 1, or 0 for that of the network, got {self.width}")
        if (self.crop_px and self.crop_px < 32) or (self.resize_px and self.crop_px > self.resize_px):
            raise ValueError(f"backbone.crop_px must lie in 32..resize_px={self.resize_px}, got {self.crop_px}")
        if self.interpolation not in ("", *INTERPOLATIONS):
            choices = " or ".join(INTERPOLATIONS)
            raise ValueError(f"backbone.interpolation must be {choices}, got {self.interpolation}")
        if len(self.mean) not in (0, 3):
            raise ValueError(f"backbone.mean must be three numbers, got {self.mean}")
        if len(self.std) not in (0, 3) or not all(spread > 0 for spread in self.std):
            raise ValueError(f"backbone.std must be three numbers above 0, got {self.std}")


@dataclass
class ExtractionConfig:
    """Which features a network gives, to full or lower precision."""

    paths: Paths = field(default_factory=Paths)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    precision: str = "f32"  # f32; bf16 or int8 where calibration finds that they keep the neighbours

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got '{self.precision}'")


@dataclass
class FeatureSpaceConfig(ExtractionConfig):
    """Which features stand for images: those of a network, or their principal components."""

    pca: float = 0.0  # components kept, or below 1 the share of variance they keep; 0 = features as extracted

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pca < 0 or (self.pca >= 1 and self.pca != int(self.pca)) or float(f"{self.pca:g}") != self.pca:
            raise ValueError(
                "pca must be a share of variance in (0, 1), a whole number of components or 0, of six digits at most, "
                f"got {self.pca}"
            )


@dataclass
class ImageFeaturesConfig(ExtractionConfig):
    """Extract a feature of every image of the index that has none yet."""

    runtime: str = "auto"  # openvino, torch; auto takes torch on CUDA and openvino on CPU
    device: str = "auto"  # cpu, cuda; auto takes CUDA where there is one
    batch_size: int = 0  # images a forward pass; 0 = 32 on CPU, 256 on CUDA
    decode_threads: int = 0  # that read and decode ahead of the network, 0 = one a core
    part_size: int = 1024  # images a part of the store: what a kill can cost
    calibration_images: int = 1000  # on which a lower precision is judged
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runtime not in RUNTIMES or self.device not in DEVICES:
            raise ValueError(
                f"runtime must be one of {', '.join(RUNTIMES)} and device one of {', '.join(DEVICES)}, "
                f"got {self.runtime} and {self.device}"
            )
        if self.decode_threads < 0:
            raise ValueError(f"decode_threads must be 0 (one a core) or more, got {self.decode_threads}")
        if not 0 <= self.batch_size <= self.part_size or self.part_size < 1:
            raise ValueError(f"need 0 <= batch_size <= part_size, got {self.batch_size} and {self.part_size}")
        if self.calibration_images < 200:
            raise ValueError(
                f"calibration_images must be 200 or more, got {self.calibration_images}: fewer tell little"
            )


@dataclass
class ReduceConfig(FeatureSpaceConfig):
    """Reduce features to their principal components."""

    pca: float = MISSING  # components to keep, or below 1 the share of variance to keep
    judged_images: int = 1000  # of val and test, whose nearest neighbours before and after are compared

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pca:
            raise ValueError("pca must be a share of variance in (0, 1) or a whole number of components, got 0")
        if self.judged_images < 100:
            raise ValueError(f"judged_images must be 100 or more, got {self.judged_images}: fewer tell little")
