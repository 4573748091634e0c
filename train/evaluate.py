"""Stage `evaluate`: judge a run and its floors on the gallery (A) and within the tag (B).

Reads   runs/<run>, data/index, data/audit, data/tag_vectors, data/image_features, data/collection (kinds and labels)
Writes  runs/<run>/evaluation/<split>/{metrics.json, per_tag.csv, table.txt, <question>.qrels, <question>.<system>.run,
        manifest.json}, on test {calibration.json, calibration.csv, reliability.svg} too
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from tqdm import tqdm

from configs.artifacts import (
    MANIFEST,
    ArtifactError,
    Manifest,
    atomic_write,
    digest,
    exclusive,
    read_manifest,
    remove_partials,
    seal,
)
from configs.compose import recipe_config, register, resolved, run_stage
from crawl.records import TEST, TRAIN, VAL
from crawl.shards import RELATIONS_FILE, Collection
from crawl.tags import read_relations
from features.config import FeatureSpaceConfig
from features.image_features import open_features
from features.inverted_index import InvertedIndex
from features.spaces import store_directory
from train.audit import audited
from train.baselines import Ridge, Standardiser, choose_ridge, class_mean, conse
from train.batches import is_withheld
from train.calibration import calibrate, count_results
from train.card import CARD, write_card
from train.config import EvaluateConfig
from train.galleries import (
    MIN_RELEVANT,
    Question,
    answer,
    gallery_question,
    judgements,
    label_question,
    mean_average_precision,
    random_answer,
    train_lists,
    within_tag_question,
)
from train.ranking import Scorer
from train.report import TRAINED, Answers, per_tag_csv, qrels_text, run_text, summarise, table
from train.runs import Inputs, open_run
from train.towers import TwoTowers, embed, embed_tags
from train.voting import TagVoting, open_voting, votes_on

log = logging.getLogger(__name__)
MIN_KIND_SHARE = 0.05  # of the gallery, for a kind to get a table of its own
TABLE = "table.txt"
EVALUATE_VERSION = 2  # raised when the same run would get other numbers
GALLERY = "gallery"
UNSEEN = "unseen_tags"  # no kind's question has this name, they all start with `gallery_`


@dataclass(frozen=True)
class Systems:
    """Everything that can score images of this run's spaces."""

    inputs: Inputs
    towers: TwoTowers
    standard: Standardiser
    histograms: tuple[np.ndarray, Standardiser] | None
    ridge: Ridge
    ridge_strength: float
    seen: np.ndarray  # (T,) bool, tags with a vector that were not withheld from training
    voting: TagVoting | None
    voting_weight: float

    def trained(self, question: Question) -> Scorer:
        """Return the run for a question's tags and gallery."""
        names = [self.inputs.index.tags[row] for row in question.tag_rows]
        tags = torch.from_numpy(np.array(self.inputs.vectors.vectors[question.tag_rows]))
        images = torch.from_numpy(self.inputs.features[question.gallery])
        votes = None if self.voting is None else votes_on(question, self.voting, self.voting_weight)
        tag_embeddings = embed_tags(self.towers, names, tags).numpy()
        return Scorer(TRAINED, tag_embeddings, embed(self.towers.image, images).numpy(), votes)

    def parts(self, trained: Scorer) -> list[Scorer]:
        """Return what a run with votes is made of, its towers and its votes alone."""
        if trained.added is None:
            return []
        nothing = np.zeros_like(trained.queries)
        return [replace(trained, name="towers", added=None), replace(trained, name="votes", queries=nothing)]

    def scorers(self, question: Question) -> list[Scorer]:
        """Return the run and its floors for a question's tags and gallery; unseen tags have a floor of their own."""
        if question.name == UNSEEN:
            return [self.trained(question), self.conse(question)]
        features = self.inputs.features
        lists = train_lists(self.inputs.index, question.tag_rows)
        trained = self.trained(question)
        found = [
            trained,
            *self.parts(trained),
            class_mean("class_mean", features, self.standard, lists, question.gallery),
            self.ridge.scorers(lists, question.gallery, [self.ridge_strength])[self.ridge_strength],
        ]
        if self.histograms is not None:
            found.append(class_mean("class_mean_histogram", *self.histograms, lists, question.gallery))
        return found

    def conse(self, question: Question) -> Scorer:
        """Return the floor of unseen tags, which stands on the class means of seen ones."""
        index, vectors = self.inputs.index, self.inputs.vectors.vectors
        learnt = np.flatnonzero(self.seen & (index.split_frequency(TRAIN) >= MIN_RELEVANT))
        lists = train_lists(index, learnt)
        means = class_mean("class_mean", self.inputs.features, self.standard, lists, question.gallery)
        return conse(means, np.asarray(vectors[learnt]), np.asarray(vectors[question.tag_rows]))


def histogram_of(cfg: EvaluateConfig) -> FeatureSpaceConfig:
    """Return which features the colour floor stands on."""
    return FeatureSpaceConfig(cfg.paths, cfg.histogram)


def histogram_features(
    cfg: EvaluateConfig, index: InvertedIndex, gate: str, train_rows: np.ndarray
) -> tuple[np.ndarray, Standardiser] | None:
    """Return colour histograms of the index's images, or None where they were not extracted."""
    try:
        histograms, _ = open_features(histogram_of(cfg), gate, index.image_ids)
    except ArtifactError as error:
        log.warning("without the floor of colour histograms: %s", error)
        return None
    return histograms, Standardiser(histograms, train_rows)


def seen_tags(inputs: Inputs, withhold: float) -> np.ndarray:
    """Return (T,) bool, the tags that have a vector and were not withheld from training."""
    withheld = np.array([is_withheld(tag, withhold) for tag in inputs.index.tags], dtype=bool)
    return np.asarray(np.asarray(inputs.vectors.known) & ~withheld)


def questions(inputs: Inputs, split: int, seen: np.ndarray, collection: Collection) -> list[Question]:
    """Return what is asked: A, A by kind, A for withheld tags, B by planted images, B by labels."""
    index, unseen = inputs.index, np.asarray(inputs.vectors.known) & ~seen
    asked = [gallery_question(index, split, seen)]
    gallery = asked[0].gallery
    kinds, labels = judgements(collection, index, gallery)
    for kind in sorted(set(kinds.tolist()) - {""}):
        if MIN_KIND_SHARE <= (kinds == kind).mean() < 1:
            name = f"gallery_{quote(kind, safe='')}"  # of files too, so no slash may stand in it
            asked.append(gallery_question(index, split, seen, gallery[kinds == kind], name))
    if unseen.any():
        asked.append(gallery_question(index, split, unseen, name=UNSEEN))
    asked.append(within_tag_question(index, split, seen))
    plurals = read_relations(collection.directory / RELATIONS_FILE)["plural"]
    asked.append(label_question(index, split, seen, labels, plurals))
    return [question for question in asked if len(question.tag_rows)]


def judge(question: Question, systems: Systems, cfg: EvaluateConfig, directory: Path) -> tuple[Answers, list[str]]:
    """Answer a question by every system that may, and write what each ranked.

    Ranked lists are written and dropped system by system: they are the largest thing that evaluation holds.

    Returns:
        The metrics by system, and the names of the files written.
    """
    index = systems.inputs.index
    files = [f"{question.name}.qrels"]
    atomic_write(directory / files[0], qrels_text(question, index))
    answers: Answers = {}
    for scorer in systems.scorers(question):
        found = answer(question, scorer, index, cfg.cutoffs, cfg.depth)
        answers[scorer.name] = found.values
        files.append(f"{question.name}.{scorer.name}.run")
        atomic_write(directory / files[-1], run_text(scorer.name, found.run))
    return {**answers, "random": random_answer(question, cfg.cutoffs)}, files


def open_systems(
    cfg: EvaluateConfig, run: Manifest, towers: TwoTowers, inputs: Inputs, seen: np.ndarray, gate: str
) -> Systems:
    """Prepare the run and its floors; the ridge's strength is the best of seven on the validation split."""
    index = inputs.index
    train_rows = np.flatnonzero(index.splits == TRAIN)
    ridge = Ridge(inputs.features, train_rows)
    val = gallery_question(index, VAL, seen)
    strength = choose_ridge(
        ridge, train_lists(index, val.tag_rows), val.gallery, lambda scorer: mean_average_precision(val, scorer)
    )
    log.info("ridge strength %g, chosen on val", strength)
    histograms = histogram_features(cfg, index, gate, train_rows)
    standard = Standardiser(inputs.features, train_rows)
    voting = open_voting(run.config, inputs.features_at, index)
    weight = run.config.get("tag_voting", 0.0)  # younger than some runs
    return Systems(inputs, towers, standard, histograms, ridge, strength, seen, voting, weight)


def evaluate(cfg: EvaluateConfig) -> Path:
    """Judge a run on a split and return the evaluation's directory. Callable from tests without Hydra."""
    towers, run, inputs = open_run(cfg.paths, cfg.run)
    inputs = audited(inputs, cfg.paths)
    directory = cfg.paths.run(cfg.run) / "evaluation" / cfg.split
    collection = Collection(cfg.paths.artifact("collection"))
    gate = collection.manifest.must_match["gate"]
    histograms = read_manifest(store_directory(histogram_of(cfg), gate))  # without it a floor is missing
    content = {**inputs.content, "run": run.content_id, "collection": collection.content_id}
    recipe = digest([EVALUATE_VERSION, recipe_config(cfg), content, histograms.content_id if histograms else ""])
    with exclusive(directory):
        earlier = read_manifest(directory)
        if earlier is not None and earlier.recipe == recipe:
            log.info("already done: %s\n%s", directory, (directory / TABLE).read_text(encoding="utf-8"))
            if not (cfg.paths.run(cfg.run) / CARD).is_file():
                write_card(cfg.paths.run(cfg.run))
            return directory
        for name in [MANIFEST, *(earlier.files if earlier else ())]:
            (directory / name).unlink(missing_ok=True)  # minutes of work from sealed inputs, so it may be made anew
        remove_partials(directory)
        log.info("judging run=%s on %s", cfg.run, cfg.split)
        seen = seen_tags(inputs, run.config["withhold_tags"])
        systems = open_systems(cfg, run, towers, inputs, seen, gate)
        asked = questions(inputs, VAL if cfg.split == "val" else TEST, seen, collection)
        files = write_evaluation(cfg, run, systems, asked, directory)
        seal(
            directory,
            "evaluation",
            config=resolved(cfg),
            files=files,
            must_match=inputs.spaces,
            provenance=content,
            recipe=recipe,
        )
        write_card(cfg.paths.run(cfg.run))
    log.info("evaluation: %s\n%s", directory, (directory / TABLE).read_text(encoding="utf-8"))
    return directory


def write_evaluation(
    cfg: EvaluateConfig, run: Manifest, systems: Systems, asked: list[Question], directory: Path
) -> list[str]:
    """Answer all questions and write metrics, tables and TREC files; return the names of the files."""
    answered, files = [], []
    for question in tqdm(asked, desc="questions", mininterval=1.0):
        answers, written = judge(question, systems, cfg, directory)
        answered.append(answers)
        files += written
    metrics = {
        "run": cfg.run,
        "split": cfg.split,
        "seed": run.config["seed"],
        "left_out_images": systems.inputs.left_out.get(cfg.split, 0),
        "ridge_strength": systems.ridge_strength,
        "questions": {q.name: summarise(q, found, cfg.resamples) for q, found in zip(asked, answered, strict=True)},
    }
    texts = {
        "metrics.json": json.dumps(metrics, indent=1) + "\n",
        "per_tag.csv": per_tag_csv(asked, answered, systems.inputs.index),
        TABLE: table(metrics, cfg.cutoffs),
    }
    if cfg.split == "test":
        calibrated, told = calibration_of(systems, asked, cfg.resamples)
        texts |= {**calibrated, TABLE: texts[TABLE] + told}
    for name, text in texts.items():
        atomic_write(directory / name, text)
    return [*texts, *files]


def calibration_of(systems: Systems, asked: list[Question], resamples: int) -> tuple[dict[str, str], str]:
    """Calibrate the run's scores on the gallery of val and judge that on test; nothing where either asks for no tag."""
    val = gallery_question(systems.inputs.index, VAL, systems.seen)
    test = [question for question in asked if question.name == GALLERY]
    if not test or not len(val.tag_rows):
        log.warning("without calibration: val or test has no tag to ask the gallery for")
        return {}, ""
    fitted, judged = (count_results(question, systems.trained(question)) for question in (val, test[0]))
    return calibrate(fitted, judged, resamples)


register("evaluate", EvaluateConfig)

if __name__ == "__main__":
    run_stage(evaluate, EvaluateConfig, "evaluate")
