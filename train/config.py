"""Typed configuration of the stages train, evaluate and sweep."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import inf

from configs.compose import Paths, check_name, is_name
from features.config import DEVICES, BackboneConfig, FeatureSpaceConfig

OBJECTIVES = {  # with the knobs that mean something to each
    "hinge": ("margin", "hard_negative_share", "frequency_weighting"),
    "hinge_random": ("margin", "hard_negative_share", "frequency_weighting"),
    "hinge_hardest": ("margin", "warmup_epochs", "frequency_weighting"),
    "hinge_means": ("margin",),
    "warp": ("margin", "frequency_weighting"),
    "infonce": ("temperature", "hard_negative_share", "frequency_weighting"),
    "sigmoid": ("temperature", "hard_negative_share", "frequency_weighting"),
    "full_vocabulary": ("temperature", "frequency_weighting"),
}
ACTIVATIONS = ("relu", "none")
NORMALISATIONS = ("none", "layer")
MATHS = ("float32", "bfloat16")
COMPILES = ("auto", "always", "never")
SCALINGS = ("standardise", "none")
OPTIMIZERS = ("adamw", "sgd")
FEATURES_IN = ("auto", "memory", "stream")
SAMPLERS = ("grid", "tpe")
KEEPS = ("all", "best")


@dataclass
class TrainConfig(FeatureSpaceConfig):
    """Fit two towers, so that a tag and the images that carry it point the same way."""

    run: str = "baseline"  # name of the output directory under paths.runs
    seed: int = 0  # of weights, batches and dropout
    device: str = "auto"  # cpu, cuda; auto takes CUDA where there is one
    # Processes of this machine, one a card where there are any. Each draws from its own part of the images, so their
    # number shapes a run.
    devices: int = 1  # 1 or more; batch_size is that of all together
    # What is streamed is drawn in another order, so where features lie shapes a run; auto decides once a run.
    features_in: str = "auto"  # memory, stream from the disk; auto streams what fills more than half of the memory
    shuffle_buffer: int = 200_000  # images of streamed features held at once, among which batches are drawn
    math: str = "float32"  # of the matrix products of a step: float32, bfloat16; weights are float32 in both
    compile: str = "auto"  # always compiles the step, which takes a C++ compiler on cpu; never; auto does so on cuda

    objective: str = "hinge"  # hinge, hinge_random, hinge_hardest, hinge_means, warp, infonce, sigmoid, full_vocabulary
    margin: float = 0.3  # of the hinges and warp, in cosine units
    temperature: float = 0.1  # cosines are divided by it: fixed in infonce, where learning starts in the sigmoids
    warmup_epochs: int = 5  # of hinge_hardest, from the sum over all negatives to the hardest alone
    hard_negative_share: float = 1.0  # hardest share of a batch's negatives that count, at least one
    frequency_weighting: float = 0.0  # a tag of n train images weighs n to the power of minus this

    embed_dim: int = 128  # width of the space both towers end in
    hidden_dim: int = 1024  # width of the layers between
    depth: int = 2  # linear layers of a tower
    activation: str = "relu"  # between the layers: relu, none
    normalisation: str = "none"  # of hidden layers before their activation: none, layer
    tag_residual: float = 0.0  # rate of the vector each tag learns beside its word vector, in learning_rate; 0: none
    scaling: str = "standardise"  # of image features: by mean and spread of the train split, or none
    feature_dropout: float = 0.3  # share of image features dropped at the tower's entry
    hidden_dropout: float = 0.0  # share of hidden units dropped, both towers

    optimizer: str = "adamw"  # adamw, sgd
    learning_rate: float = 1e-3  # of the optimizer, constant
    weight_decay: float = 0.05  # of the optimizer, 0 or more
    weight_averaging: float = 0.0  # decay a step of the averaged weights that are judged and kept; 0 averages none
    momentum: float = 0.0  # of sgd
    batch_size: int = 512  # pairs a step, images in full_vocabulary
    max_epochs: int = 40  # passes over the pairs, where patience does not end it before
    patience: int = 6  # epochs without a better val_map before training stops; 0 never stops early
    tag_voting: float = 0.0  # weight of the votes of the nearest train images beside the cosine; 0: none
    voters: int = 50  # nearest train images that vote
    withhold_tags: float = 0.0  # share of tags kept out of training, by hash, to judge unseen tags
    val_tags: int = 2000  # at most so many tags judge an epoch
    max_leakage: float = 0.05  # share of val or of test that may straddle the splits; above it nothing is trained

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "objective": OBJECTIVES,
            "activation": ACTIVATIONS,
            "normalisation": NORMALISATIONS,
            "scaling": SCALINGS,
            "optimizer": OPTIMIZERS,
            "device": DEVICES,
            "features_in": FEATURES_IN,
            "math": MATHS,
            "compile": COMPILES,
        }
        problems = [
            f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        ranges = {
            "seed": (0 <= self.seed < 2**32, "in [0, 4294967296)"),
            "margin": (0.0 < self.margin < 2.0, "in (0, 2)"),
            "temperature": (0.0 < self.temperature < inf, "above 0"),
            "warmup_epochs": (self.warmup_epochs >= 0, "0 or more"),
            "hard_negative_share": (0 < self.hard_negative_share <= 1, "in (0, 1]"),
            "frequency_weighting": (0 <= self.frequency_weighting <= 1, "in [0, 1]"),
            "tag_residual": (0 <= self.tag_residual < inf, "0 or more"),
            "tag_voting": (0 <= self.tag_voting < inf, "0 or more"),
            "voters": (self.voters >= 1, "1 or more"),
            "weight_averaging": (0 <= self.weight_averaging < 1, "in [0, 1)"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "feature_dropout": (0 <= self.feature_dropout < 1, "in [0, 1)"),
            "hidden_dropout": (0 <= self.hidden_dropout < 1, "in [0, 1)"),
            "withhold_tags": (0 <= self.withhold_tags < 1, "in [0, 1)"),
            "batch_size": (self.batch_size >= 2, "2 or more"),
            "max_epochs": (self.max_epochs >= 1, "1 or more"),
            "patience": (self.patience >= 0, "0 or more"),
            "embed_dim": (self.embed_dim >= 1, "1 or more"),
            "hidden_dim": (self.hidden_dim >= 1, "1 or more"),
            "depth": (self.depth >= 1, "1 or more"),
            "val_tags": (self.val_tags >= 1, "1 or more"),
            "devices": (self.devices >= 1, "1 or more"),
            "shuffle_buffer": (self.shuffle_buffer >= 2, "2 or more"),
            "max_leakage": (0 <= self.max_leakage <= 1, "in [0, 1]"),
            "run": (is_name(self.run), "a name of letters, digits, '.', '_' and '-'"),
        }
        problems += [
            f"{name} must lie {wanted}, got {getattr(self, name)!r}"
            if "[" in wanted or "(" in wanted
            else f"{name} must be {wanted}, got {getattr(self, name)!r}"
            for name, (fits, wanted) in ranges.items()
            if not fits
        ]
        if problems := problems or self._knobs_without_effect() + self._knobs_at_odds():
            raise ValueError("; ".join(problems))

    def _knobs_at_odds(self) -> list[str]:
        """Return a sentence for each two knobs that cannot be had together."""
        found = []
        if self.objective == "hinge_means" and (self.features_in == "stream" or self.devices > 1):
            found.append(
                "objective=hinge_means needs features_in=memory and devices=1: a pair's fixed wrong picture may be "
                "any, and neither a buffer nor one process of several holds all"
            )
        if self.batch_size % self.devices:
            found.append(
                f"batch_size must be a multiple of devices={self.devices}, got {self.batch_size}: each process draws "
                "its share of a batch"
            )
        return found

    def _knobs_without_effect(self) -> list[str]:
        """Return a sentence for each knob turned that the objective does not look at."""
        knobs = sorted(set().union(*OBJECTIVES.values()) - set(OBJECTIVES[self.objective]))
        defaults = {each.name: each.default for each in fields(self)}
        return [
            f"{name}={getattr(self, name)!r} means nothing to objective={self.objective}, which looks at "
            f"{', '.join(OBJECTIVES[self.objective])}"
            for name in knobs
            if getattr(self, name) != defaults[name]
        ]


@dataclass
class AuditConfig:
    """Find pictures that straddle train, val and test."""

    paths: Paths = field(default_factory=Paths)
    similarity: float = 0.92  # from which pictures are copies, in the window where they are least alike

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity must lie in (0, 1], got {self.similarity}")


@dataclass
class ExportConfig:
    """Export a run as ONNX, with a table of its tags."""

    paths: Paths = field(default_factory=Paths)
    run: str = "baseline"  # name of the run under paths.runs

    def __post_init__(self) -> None:
        check_name("run", self.run)


@dataclass
class EvaluateConfig:
    """Judge a run and its floors on both questions."""

    paths: Paths = field(default_factory=Paths)
    run: str = "baseline"  # name of the run under paths.runs
    split: str = "test"  # val, test
    histogram: BackboneConfig = field(default_factory=BackboneConfig)  # features of the colour floor
    depth: int = 1000  # images a tag in run files, and of the metrics @k
    cutoffs: list[int] = field(default_factory=lambda: [1, 5, 10, 50])  # k of the metrics @k
    resamples: int = 2000  # bootstrap samples of the tags for an interval

    def __post_init__(self) -> None:
        check_name("run", self.run)
        if self.split not in ("val", "test"):
            raise ValueError(f"split must be val or test, got '{self.split}'")
        _check_cutoffs(self.cutoffs, self.depth)
        _check_resamples(self.resamples)


@dataclass
class CompareConfig:
    """Compare finished runs, with tests and pictures."""

    paths: Paths = field(default_factory=Paths)
    # Two or more systems: a run (`best`), seeds of one recipe (`best-0+best-1`), or a pattern of such (`best-*`).
    runs: list[str] = field(default_factory=list)  # as told above; the first is the baseline
    baseline: str = ""  # the one of `runs` that the others are compared with; the first where empty
    pairs: str = "baseline"  # baseline: each other with it; all: every two
    split: str = "test"  # val, test
    name: str = ""  # of the directory under paths.runs/.comparisons; from the runs where empty
    histogram: BackboneConfig = field(default_factory=BackboneConfig)  # colour floor of runs not judged yet
    resamples: int = 10_000  # bootstrap samples for an interval
    tags: int = 8  # shown that gained most, and as many that lost most
    pictures: int = 6  # shown a tag and system; 0 shows none

    def __post_init__(self) -> None:
        problems = [] if len(self.runs) >= 2 else [f"runs must name two or more runs, got {self.runs}"]
        problems += [] if not self.name or is_name(self.name) else [f"name must be a name, got '{self.name}'"]
        choices = {"pairs": ("baseline", "all"), "split": ("val", "test")}
        problems += [
            f"{key} must be {' or '.join(allowed)}, got '{getattr(self, key)}'"
            for key, allowed in choices.items()
            if getattr(self, key) not in allowed
        ]
        ranges = {"resamples": (100, 10**6), "tags": (0, 100), "pictures": (0, 20)}
        problems += [
            f"{key} must lie in {low}..{high}, got {getattr(self, key)}"
            for key, (low, high) in ranges.items()
            if not low <= getattr(self, key) <= high
        ]
        if problems:
            raise ValueError("; ".join(problems))


@dataclass
class ReverseConfig:
    """Judge reverse image search: an image asks for the others of its class."""

    paths: Paths = field(default_factory=Paths)
    run: str = ""  # a run whose image embeddings are judged beside the features; empty: none
    classes: str = "auto"  # labels, tags, kind; auto takes labels where there are any, else tags
    split: str = "test"  # val, test; all, where no run has learnt from its train images
    features: list[str] = field(default_factory=list)  # such as resnet50; empty: all that were extracted
    queries: int = 2000  # images that ask, drawn at random where there are more; 0: all
    seed: int = 0  # of that draw
    depth: int = 1000  # the curves' last k, at most all other images
    cutoffs: list[int] = field(default_factory=lambda: [1, 10, 100])  # k with intervals
    resamples: int = 2000  # bootstrap samples of the queries for an interval

    def __post_init__(self) -> None:
        if self.run:
            check_name("run", self.run)
        if self.classes not in ("auto", "labels", "tags", "kind"):
            raise ValueError(f"classes must be one of auto, labels, tags, kind, got '{self.classes}'")
        if self.split not in ("val", "test", "all"):
            raise ValueError(f"split must be val, test or all, got '{self.split}'")
        if self.run and self.split == "all":
            raise ValueError(f"split=all holds the images that run={self.run} was trained on; choose val or test")
        if self.queries < 0:
            raise ValueError(f"queries must be 0 (all) or more, got {self.queries}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, {2**32}), got {self.seed}")
        _check_cutoffs(self.cutoffs, self.depth)
        _check_resamples(self.resamples)


@dataclass
class SweepConfig:
    """Train many points, overrides of train, and table them by val_map."""

    paths: Paths = field(default_factory=Paths)
    name: str = "sweep"  # of its directory under paths.runs/.sweeps
    axes: dict[str, str] = field(default_factory=dict)  # train's key -> values in Hydra's sweep syntax
    sampler: str = "grid"  # grid, tpe
    trials: int = 40  # points that tpe tries
    sampler_seed: int = 0  # of tpe
    seeds: list[int] = field(default_factory=lambda: [0])  # of train; a point's value is the mean over them
    collections: list[str] = field(default_factory=list)  # data directories a point is trained on; none: paths.data
    jobs: int = 1  # points trained side by side, which share the threads out
    retry: bool = False  # try points again that failed
    keep: str = "all"  # checkpoints and logs of all runs, or of the best point's alone

    def __post_init__(self) -> None:
        check_name("name", self.name)
        for name, allowed in {"sampler": SAMPLERS, "keep": KEEPS}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        for name in ("trials", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.sampler_seed < 0:
            raise ValueError(f"sampler_seed must be 0 or more, got {self.sampler_seed}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different numbers, one at least, got {self.seeds}")
        if len(set(self.collections)) != len(self.collections):
            raise ValueError(f"collections must be different directories, got {self.collections}")


@dataclass
class ReproduceConfig:
    """Run the tables of results again and compare."""

    paths: Paths = field(default_factory=Paths)  # runs go to paths.runs/.reproduced
    file: str = "train/results.yaml"  # tables with the overrides that train their rows, and their figures
    collections: dict[str, str] = field(default_factory=dict)  # name in the tables -> data directory
    tables: list[str] = field(default_factory=list)  # to run; none: all
    rows: list[str] = field(default_factory=list)  # trained ones to run; none: all
    jobs: int = 1  # trainings side by side, which share the threads out
    record: bool = False  # take the figures found over into the file

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"jobs must be 1 or more, got {self.jobs}")


def _check_cutoffs(cutoffs: list[int], depth: int) -> None:
    if not cutoffs or min(cutoffs) < 1 or max(cutoffs) > depth:
        raise ValueError(f"cutoffs must lie in 1..depth={depth}, got {cutoffs}")


def _check_resamples(resamples: int) -> None:
    if resamples < 100:
        raise ValueError(f"resamples must be 100 or more, got {resamples}")
