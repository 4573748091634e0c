"""The model card of a run, written from what is recorded of it: Mitchell et al., Model Cards for Model Reporting, 2019.

It lies beside the seal, because an evaluation that comes later adds its figures; what the run was trained on is kept in
the run's manifest, so that the card can be written where the data is not.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs.artifacts import Manifest, atomic_write, read_manifest
from crawl.records import SPLITS, TRAIN
from crawl.shards import Collection
from features.inverted_index import InvertedIndex
from features.tag_vectors import open_tag_vectors
from train.batches import training_pairs
from train.config import TrainConfig
from train.runs import Inputs

CARD = "README.md"
SHOWN_LICENCES = 8
FEW = 10  # train images, below which a tag counts as rare
TOP = 10  # of a ranked list, where hubs are looked for
KNOBS = ("learning_rate", "weight_decay", "batch_size", "hidden_dim", "depth")
EXTRAS = ("tag_residual", "weight_averaging", "tag_voting", "withhold_tags")  # told where they are turned on
SYSTEMS = {"trained": "this run", "ridge": "ridge regression", "class_mean": "class mean", "random": "random order"}
QUESTIONS = {
    "gallery": ("gallery: a tag against all pictures, mAP", "map"),
    "within_tag": ("within the tag: true pictures over planted ones, AUC", "auc"),
    "labels": ("within the tag by labels of annotators, AUC", "auc"),
    "unseen_tags": ("gallery, for tags withheld from training, mAP", "map"),
}


def data_facts(inputs: Inputs, cfg: TrainConfig) -> dict[str, Any]:
    """Return what a card tells of the data, as the manifest of a run keeps it."""
    index, paths = inputs.index, cfg.paths
    vocabulary = np.unique(training_pairs(index, np.asarray(inputs.vectors.known), cfg.withhold_tags)[0])
    _, words = open_tag_vectors(paths, inputs.content["index"])
    frequency = index.split_frequency(TRAIN)[vocabulary]
    found = {
        "splits": {name: _counts(index, split) for split, name in enumerate(SPLITS)},
        "left_out": inputs.left_out,
        "words": words.config["words"]["name"],
        "unknown_tags": int((~np.asarray(inputs.vectors.known)).sum()),
        "trained_tags": len(vocabulary),
        "rare_tags": int((frequency < FEW).sum()),
        "pairs_of_rare_tags": int(frequency[frequency < FEW].sum()),
    }
    if read_manifest(paths.artifact("collection")) is None:
        return found
    collection = Collection(paths.artifact("collection"))
    table = collection.table(["licence", "offset"])
    given = np.array(table.column("licence").to_pylist(), dtype=object)[table.column("offset").to_numpy() >= 0]
    licences = Counter(str(licence or "not stated") for licence in given)
    return {
        **found,
        "collection": collection.content_id,
        "gate": collection.manifest.config.get("gate", {}),
        "licences": dict(sorted(licences.items(), key=lambda row: (-row[1], row[0]))),
    }


def _counts(index: InvertedIndex, split: int) -> dict[str, int]:
    frequency = index.split_frequency(split)
    images = int((index.splits == split).sum())
    return {"images": images, "pairs": int(frequency.sum()), "tags": int((frequency > 0).sum())}


def write_card(run_dir: Path) -> None:
    """Write the card of a finished run, with the figures of its evaluations where there are some."""
    run = read_manifest(run_dir)
    if run is None:
        return
    evaluations = {}
    for split in SPLITS[1:]:
        directory = run_dir / "evaluation" / split
        found = read_manifest(directory)
        if found is not None and found.provenance["run"] == run.content_id:
            evaluations[split] = directory
    text = model_card(run, evaluations)
    path = run_dir / CARD
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        atomic_write(path, text)


def model_card(run: Manifest, evaluations: Mapping[str, Path]) -> str:
    """Return the card as Markdown.

    Args:
        run: of the training.
        evaluations: split -> directory of a finished evaluation.
    """
    name = run.config["run"]
    sections = [
        f"# {name}: two towers that rank pictures by tag",
        _details(run),
        _use(run),
        _data(run.facts.get("data", {})),
        _figures(evaluations),
        _limits(run.facts.get("data", {}), evaluations),
        _loading(run),
    ]
    return "\n\n".join(sections) + "\n"


def _details(run: Manifest) -> str:
    config, facts = run.config, run.facts
    parameters = f", {facts['parameters']:,} weights" if "parameters" in facts else ""
    turned = (
        "margin",
        "temperature",
        "learning_rate",
        "weight_decay",
        "batch_size",
        "tag_residual",
        "weight_averaging",
    )
    values = ", ".join(f"{key}={config[key]}" for key in turned if key in config)
    return (
        "## Model\n\n"
        f"A tag tower over word vectors and an image tower over features of `{config['backbone']['name']}` end in one "
        f"space of {config['embed_dim']} numbers; a score is the cosine of two embeddings{parameters}. Trained with "
        f"`objective={config['objective']}` ({values}), seed {config['seed']}, {facts['num_epochs']} epochs, of which "
        f"epoch {facts['best_epoch']} was best on val (mAP {facts['val_map']:.3f}). `config.yaml` holds every knob.\n\n"
        f"content_id `{run.content_id[:12]}`, commit `{run.commit[:12] or 'not known'}`, {run.created_at[:10]}."
    )


def _use(run: Manifest) -> str:
    return (
        "## Intended use\n\n"
        "To order the pictures of this collection, or of one like it, for a tag that somebody types. Not to decide "
        "what is in a picture, not to find everything of a kind, and not to judge people: a score says only how well "
        "a picture fits the way a tag was used here."
    )


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return "## Data\n\nNot recorded: the run is older than its card."
    rows = [f"| {name} | {c['images']:,} | {c['pairs']:,} | {c['tags']:,} |" for name, c in data["splits"].items()]
    lines = [
        "## Data",
        "",
        "| split | images | pairs of tag and image | tags |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ]
    left_out = sum(data["left_out"].values())
    lines += [f"Splits are by group. The audit left {left_out:,} images out of val and test as copies across splits."]
    lines += [f"{data['trained_tags']:,} tags were trained on, with word vectors of the table `{data['words']}`."]
    if "collection" in data:
        limits = ", ".join(f"{key}={value}" for key, value in data["gate"].items()) or "not recorded"
        lines += [
            f"Collection `{data['collection'][:12]}`; gate: {limits}.",
            "",
            "| licence | images |",
            "| --- | --- |",
        ]
        licences = [*data["licences"].items()]
        lines += [f"| {_cell(licence)} | {count:,} |" for licence, count in licences[:SHOWN_LICENCES]]
        if rest := sum(count for _, count in licences[SHOWN_LICENCES:]):
            lines += [f"| {len(licences) - SHOWN_LICENCES} others | {rest:,} |"]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return a stranger's text as a cell of a table: one line, without Markdown's own characters."""
    return "".join(char for char in " ".join(text.split()) if char not in "|`<>[]*")[:80]


def _figures(evaluations: Mapping[str, Path]) -> str:
    if not evaluations:
        return "## Figures\n\nNot judged yet: `make evaluate` adds them."
    heads = " | ".join(SYSTEMS.values())
    lines = [
        "## Figures",
        "",
        f"| split | question | tags | {heads} |",
        f"| --- | --- | --- |{' --- |' * len(SYSTEMS)}",
    ]
    for split, directory in evaluations.items():
        found = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))["questions"]
        for question, (title, metric) in QUESTIONS.items():
            if question in found:
                systems = found[question]["systems"]
                cells = (_with_interval(systems.get(each, {}).get(metric)) for each in SYSTEMS)
                lines += [f"| {split} | {title} | {found[question]['num_queries']} | {' | '.join(cells)} |"]
    return "\n".join(
        [*lines, "", "Means over tags, 95 % intervals by bootstrap over tags. Checkpoints were chosen on val."]
    )


def _with_interval(found: Mapping[str, float] | None) -> str:
    return f"{found['mean']:.3f} ({found['low']:.3f}-{found['high']:.3f})" if found else "-"


def _limits(data: Mapping[str, Any], evaluations: Mapping[str, Path]) -> str:
    lines = [
        "Relevant means *carries the tag*. People leave tags out and mean different things by one; the towers learn "
        "that, with the habits and prejudices of those who tagged.",
    ]
    if data:
        spoken = "English alone" if data["words"] == "carried" else "only what that table holds"
        lines += [
            f"The words of `{data['words']}` are {spoken}: {data['unknown_tags']:,} tags have no vector, and nothing "
            "is ranked by them."
        ]
    if data.get("rare_tags"):
        lines += [
            f"{data['rare_tags']:,} of the {data['trained_tags']:,} tags have fewer than {FEW} train images, and "
            f"{data['pairs_of_rare_tags']:,} pairs together: what is said of them rests on their word vectors."
        ]
    for split, directory in [*evaluations.items()][-1:]:
        lines += _tail(directory, split) + _hubs(directory, split)
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _tail(directory: Path, split: str) -> list[str]:
    """Say how the tags with few pictures fare beside those with many."""
    with (directory / "per_tag.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["question"] == "gallery" and row["system"] == "trained"]
    if len(rows) < 9:
        return []
    rows.sort(key=lambda row: -int(row["num_relevant"]))
    third = len(rows) // 3
    head, tail = (float(np.mean([float(row["map"]) for row in part])) for part in (rows[:third], rows[-third:]))
    return [
        f"On {split} the third of tags with most pictures reaches mAP {head:.3f}, the third with fewest {tail:.3f}."
    ]


def _hubs(directory: Path, split: str) -> list[str]:
    """Say whether a few pictures stand among the best of many tags."""
    path = directory / "gallery.trained.run"
    if not path.is_file():
        return []
    best: Counter[str] = Counter()
    tags = set()
    with path.open(encoding="utf-8") as stream:
        for tag, _, image_id, rank, *_ in map(str.split, stream):
            tags.add(tag)
            best.update([image_id] if int(rank) <= TOP else [])
    most = best.most_common(1)[0][1]
    return [
        f"Among the {TOP} best of {len(tags):,} tags of {split} stand {len(best):,} different pictures; the one that "
        f"comes most often stands there for {most} tags."
    ]


def _loading(run: Manifest) -> str:
    name, paths = run.config["run"], run.config["paths"]
    words = run.facts.get("data", {}).get("words", "")
    table = f"the table `{words}`" if words else "the word vectors of its training"
    needs = (
        "Tags are embedded from word vectors that every checkout carries."
        if words == "carried"
        else f"Tags need {table}, which this directory does not hold; an export holds the embeddings of all tags."
    )
    return f"""## Loading

At the root of the repository, beside the data it was trained on:

```python
from configs.compose import Paths
from train.runs import open_gallery
gallery = open_gallery(Paths({paths["data"]!r}, {paths["runs"]!r}), {name!r})
for image_id, score in gallery.search("dog", k=10):
    print(image_id, round(score, 3))
```

With this directory alone, for features of `{run.config["backbone"]["name"]}` of your own, a tensor (n, width) as
`make image_features` stores them:

```python
from pathlib import Path
from train.towers import embed, load_towers
towers = load_towers(Path({f"{paths['runs']}/{name}/towers.safetensors"!r}))
embeddings = embed(towers.image, features)
```

{needs} `make export ARGS="run={name}"` writes ONNX, for where there is no torch."""
