"""What evaluation asks: the gallery (A) and the order within a tag (B), as lists of candidates with relevance.

Q queries (tags), C candidates (images).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crawl.records import TRAIN
from crawl.shards import Collection
from crawl.tags import normalise_tag
from features.inverted_index import InvertedIndex, eligible_tags
from train.metrics import at_cutoffs, auc, average_precision, random_order
from train.ranking import Scorer, ranks_of, strictly_falling, top_k

MIN_RELEVANT = 3


@dataclass(frozen=True)
class Question:
    """Queries with their candidates and which of these are relevant.

    `lists` holds for each query the positions of its candidates in the gallery, None where it is the whole gallery.
    """

    name: str
    tag_rows: np.ndarray  # (Q,) int64
    gallery: np.ndarray  # (C,) int64 image rows, ascending
    relevant: Sequence[np.ndarray]  # for each query, positions among its candidates, ascending
    lists: Sequence[np.ndarray] | None = None

    def candidates(self, query: int) -> np.ndarray:
        """Return the positions in the gallery of a query's candidates, ascending."""
        return np.arange(len(self.gallery)) if self.lists is None else self.lists[query]

    def num_candidates(self, query: int) -> int:
        """Return the length of a query's list."""
        return len(self.gallery) if self.lists is None else len(self.lists[query])

    def only(self, keep: np.ndarray, name: str) -> Question:
        """Return the question for some of its queries; `keep` is (Q,) bool."""
        at = np.flatnonzero(keep).tolist()
        lists = None if self.lists is None else [self.lists[query] for query in at]
        return Question(name, self.tag_rows[keep], self.gallery, [self.relevant[query] for query in at], lists)


def gallery_question(
    index: InvertedIndex, split: int, known: np.ndarray, gallery: np.ndarray | None = None, name: str = "gallery"
) -> Question:
    """Ask A: a tag against the whole held-out gallery; relevant are the images that carry it.

    Args:
        index: to ask about.
        split: VAL or TEST.
        known: (T,) bool, tags with a vector; the others are not asked.
        gallery: image rows, ascending; the whole split where None.
        name: of the question.
    """
    images = np.flatnonzero(index.splits == split) if gallery is None else gallery
    position = np.full(index.num_images, -1, dtype=np.int64)
    position[images] = np.arange(len(images))
    tag_rows = eligible_tags(index, split)
    tag_rows = tag_rows[known[tag_rows]]
    found = [position[index.posting_list(row)] for row in tag_rows]
    relevant = [at[at >= 0] for at in found]
    # Where every image is relevant, any order is right.
    enough = np.array([MIN_RELEVANT <= len(at) < len(images) for at in relevant], dtype=bool)
    whole = Question(name, tag_rows, images, relevant)
    return whole.only(enough, name)


def within_tag_question(index: InvertedIndex, split: int, known: np.ndarray) -> Question:
    """Ask B: the images of a tag with planted wrong ones among them; relevant are those that carry the tag."""
    gallery = np.flatnonzero(index.splits == split)
    planted = index.planted(split)
    tag_rows, lists, relevant = [], [], []
    eligible = eligible_tags(index, split)
    first, last = (np.searchsorted(planted[:, 0], eligible, side=side) for side in ("left", "right"))
    for tag_row, start, end in zip(eligible, first, last, strict=True):
        wrong = planted[start:end, 1]
        own = index.posting_list(tag_row)
        right = own[index.splits[own] == split]
        if known[tag_row] and len(wrong):
            rows = np.sort(np.concatenate([right, wrong]))
            tag_rows.append(tag_row)
            lists.append(np.searchsorted(gallery, rows))
            relevant.append(np.flatnonzero(np.isin(rows, right)))
    return Question("within_tag", np.array(tag_rows, dtype=np.int64), gallery, relevant, lists)


def label_question(
    index: InvertedIndex,
    split: int,
    known: np.ndarray,
    labels: Mapping[int, set[str]],
    plurals: Mapping[str, set[str]],
) -> Question:
    """Ask B by independent labels: among the images of a tag, relevant are those that annotators labelled so too.

    Args:
        index: to ask about.
        split: VAL or TEST.
        known: (T,) bool, tags with a vector.
        labels: image row -> labels, normalised as tags are.
        plurals: tag -> the tags it is a plural of; a tag asks for its own label and for those.
    """
    gallery = np.flatnonzero(index.splits == split)
    tag_rows, lists, relevant = [], [], []
    all_labels = set().union(*labels.values()) if labels else set()
    learnt = index.split_frequency(TRAIN) >= 1
    for tag_row, tag in enumerate(index.tags):
        wanted = ({tag} | plurals.get(tag, set())) & all_labels
        if not (wanted and known[tag_row] and learnt[tag_row]):
            continue
        own = index.posting_list(tag_row)
        rows = own[index.splits[own] == split]
        right = np.array([bool(wanted & labels.get(int(row), set())) for row in rows], dtype=bool)
        if right.sum() >= MIN_RELEVANT and (~right).sum() >= 1:
            tag_rows.append(tag_row)
            lists.append(np.searchsorted(gallery, rows))
            relevant.append(np.flatnonzero(right))
    return Question("labels", np.array(tag_rows, dtype=np.int64), gallery, relevant, lists)


def judgements(
    collection: Collection, index: InvertedIndex, gallery: np.ndarray
) -> tuple[np.ndarray, dict[int, set[str]]]:
    """Return the kinds (C,) of a gallery's images, and image row -> labels; empty for images taken down since."""
    table = collection.table(["kind", "labels", "offset"])
    ids = np.array(table.column("image_id").to_pylist(), dtype="S16")
    asked = index.image_ids[gallery]  # ascending
    at = np.minimum(np.searchsorted(asked, ids), len(asked) - 1)
    wanted = (asked[at] == ids) & (table.column("offset").to_numpy() >= 0)
    rows = table.select(["kind", "labels"]).filter(pa.array(wanted)).to_pylist()
    kinds = np.full(len(gallery), "", dtype=object)
    labels: dict[int, set[str]] = {int(row): set() for row in gallery}
    for place, row in zip(at[wanted].tolist(), rows, strict=True):
        kinds[place] = row["kind"] or ""
        labels[int(gallery[place])] = {normalise_tag(label) for label in row["labels"] or ()}
    return kinds, labels


@dataclass(frozen=True)
class Answer:
    """How a system answered a question."""

    values: dict[str, np.ndarray]  # metric -> (Q,)
    run: dict[str, dict[str, float]]  # query -> image_id -> strictly falling score


def query_name(tag: str) -> str:
    """Return a tag as a TREC topic: no blanks; `_` never stands in a normalised tag."""
    return tag.replace(" ", "_")


def qrels_of(question: Question, index: InvertedIndex, judged_wrong: bool = False) -> dict[str, dict[str, int]]:
    """Return query -> image_id -> relevance; irrelevant ones are listed where lists are short."""
    qrels = {}
    for query, tag_row in enumerate(question.tag_rows):
        rows = question.gallery[question.candidates(query)]
        right = np.zeros(len(rows), dtype=bool)
        right[question.relevant[query]] = True
        listed = np.arange(len(rows)) if judged_wrong else question.relevant[query]
        qrels[query_name(index.tags[tag_row])] = {index.image_id(rows[at]): int(right[at]) for at in listed}
    return qrels


def scores_of(question: Question, scorer: Scorer) -> Iterator[np.ndarray]:
    """Yield the scores of every query's candidates in turn."""
    if question.lists is None:
        yield from scorer.each()
    else:
        yield from (scorer.scores(query, rows) for query, rows in enumerate(question.lists))


def answer(question: Question, scorer: Scorer, index: InvertedIndex, cutoffs: Sequence[int], depth: int) -> Answer:
    """Rank the candidates of every query and judge the rankings.

    Args:
        question: with Q queries over a gallery of C images.
        scorer: (Q, D) queries and (C, D) candidates, in the question's order.
        index: names tags and images.
        cutoffs: of the metrics at k.
        depth: images a query in the run, and so the reach of the metrics at k.
    """
    exact: dict[str, list[float]] = {"map": [], "median_rank": [], "auc": []}
    run = {}
    for query, (tag_row, scores) in enumerate(zip(question.tag_rows, scores_of(question, scorer), strict=True)):
        positions = question.candidates(query)
        ranks = ranks_of(scores, question.relevant[query])
        exact["map"].append(average_precision(ranks))
        exact["median_rank"].append(float(np.median(ranks)))
        exact["auc"].append(auc(ranks, len(scores)) if len(ranks) < len(scores) else float("nan"))
        best = top_k(scores, depth)
        ids = (index.image_id(row) for row in question.gallery[positions[best]])
        falling = strictly_falling(scores[best]).tolist()
        run[query_name(index.tags[tag_row])] = dict(zip(ids, falling, strict=True))
    by_query = at_cutoffs(run, qrels_of(question, index), cutoffs)
    cut = {name: np.array([values[query] for query in run]) for name, values in by_query.items()}
    return Answer({**{name: np.array(values) for name, values in exact.items()}, **cut}, run)


def random_answer(question: Question, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """Return metric -> (Q,) expected values of a random order."""
    sizes = [(len(rows), question.num_candidates(query)) for query, rows in enumerate(question.relevant)]
    expected = {size: random_order(*size, cutoffs) for size in set(sizes)}
    rows = [expected[size] for size in sizes]
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def mean_average_precision(question: Question, scorer: Scorer) -> float:
    """Return mAP over the whole ranking, the figure that chooses checkpoints and ridge strengths on val."""
    found = [
        average_precision(ranks_of(scores, relevant))
        for scores, relevant in zip(scores_of(question, scorer), question.relevant, strict=True)
    ]
    return float(np.mean(found))


def train_lists(index: InvertedIndex, tag_rows: np.ndarray) -> list[np.ndarray]:
    """Return for each tag the rows of its train images."""
    lists = (index.posting_list(row) for row in tag_rows)
    return [rows[index.splits[rows] == TRAIN] for rows in lists]
