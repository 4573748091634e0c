"""Votes of the nearest train images: against a slow oracle, and all the way to the page's order."""

import csv
import math

import numpy as np
import pytest

import train.voting
from configs.generations import current_generation
from crawl.records import TEST, TRAIN
from features.tag_vectors import CarriedWords
from serve.config import PublishConfig
from serve.generation import VOTES
from serve.publish import publish
from serve.searchers.base import Question
from serve.searchers.local import LocalSearcher
from tests.synthetic import NO_VECTOR, evaluate_config, train_config
from train.batches import is_withheld
from train.evaluate import evaluate
from train.fit import fit
from train.galleries import gallery_question
from train.ranking import Scorer
from train.runs import open_inputs
from train.voting import TEMPERATURE, TagVoting, votes_on

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHT = 2.0


@pytest.fixture(scope="module")
def inputs(line):
    return open_inputs(train_config(line))


def voting_of(inputs, voters=5, withhold_tags=0.0):
    return TagVoting(lambda rows: inputs.features[rows], inputs.index, voters, withhold_tags, "cpu")


def directions(inputs):
    roots = np.sign(inputs.features) * np.sqrt(np.abs(inputs.features.astype(np.float64)))
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    centred = roots - roots[inputs.index.splits == TRAIN].mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def slow_votes(inputs, image_row, voters, withhold_tags=0.0):
    """Tag row -> votes, one neighbour after the other."""
    rows, index = directions(inputs), inputs.index
    others = [row for row in np.flatnonzero(index.splits == TRAIN) if row != image_row]
    nearest = sorted(others, key=lambda row: -(rows[row] @ rows[image_row]))[:voters]
    chances = [math.exp(rows[row] @ rows[image_row] / TEMPERATURE) for row in nearest]
    votes = np.zeros(index.num_tags)
    for row, chance in zip(nearest, chances, strict=True):
        for tag_row, tag in enumerate(index.tags):
            if row in index.posting_list(tag_row) and not is_withheld(tag, withhold_tags):
                votes[tag_row] += chance / sum(chances)
    return votes


@pytest.mark.parametrize("withheld", [0.0, 0.4])
@pytest.mark.parametrize("split", [TRAIN, TEST])
def test_votes_are_those_of_the_nearest_other_train_images(inputs, split, withheld):
    rows = np.flatnonzero(inputs.index.splits == split)[:6]
    found = voting_of(inputs, 5, withheld).votes(rows).toarray()
    for row, votes in zip(rows, found, strict=True):
        assert votes == pytest.approx(slow_votes(inputs, row, 5, withheld), abs=1e-3)


def test_blocks_change_nothing(inputs, monkeypatch):
    rows = np.arange(inputs.index.num_images)
    whole = voting_of(inputs).votes(rows).toarray()
    monkeypatch.setattr(train.voting, "_ASKED", 7)
    monkeypatch.setattr(train.voting, "_ASKING", 11)
    assert voting_of(inputs).votes(rows).toarray() == pytest.approx(whole, abs=1e-5)


def test_more_voters_than_images_are_all_others(inputs):
    places, weights = voting_of(inputs, voters=10**6).voters(np.flatnonzero(inputs.index.splits == TRAIN)[:2])
    assert places.shape[1] == int((inputs.index.splits == TRAIN).sum()) - 1
    assert weights.sum(axis=1) == pytest.approx([1, 1])


def test_votes_by_posting_stand_at_their_posting(inputs):
    voting, index = voting_of(inputs), inputs.index
    by_posting = voting.votes_by_posting()
    tag_row = index.tag_row("dog")
    own = index.posting_list(tag_row)
    expected = voting.votes(own)[:, [tag_row]].toarray()[:, 0]
    assert by_posting[index.offsets[tag_row] : index.offsets[tag_row + 1]] == pytest.approx(expected, abs=1e-6)


def test_a_scorer_adds_the_votes_of_a_question(inputs):
    question = gallery_question(inputs.index, TEST, np.asarray(inputs.vectors.known))
    votes = votes_on(question, voting_of(inputs), WEIGHT)
    queries = np.zeros((len(question.tag_rows), 2), np.float32)
    scorer = Scorer("votes", queries, np.zeros((len(question.gallery), 2), np.float32), votes)
    expected = WEIGHT * voting_of(inputs).votes(question.gallery).toarray()[:, question.tag_rows].T
    assert np.stack(list(scorer.each(entries=40))) == pytest.approx(expected, abs=1e-6)
    assert scorer.scores(1, np.array([3, 1])) == pytest.approx(expected[1, [3, 1]], abs=1e-6)


@pytest.fixture(scope="module")
def voted(line):
    fit(train_config(line, run="voted", tag_voting=WEIGHT, voters=5))
    publish(PublishConfig(line, "voted"))
    return line


def test_an_evaluation_shows_towers_and_votes_beside_their_sum(voted):
    directory = evaluate(evaluate_config(voted, run="voted"))
    with (directory / "per_tag.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["question"] == "gallery"]
    means = {
        system: np.mean([float(row["map"]) for row in rows if row["system"] == system])
        for system in ("trained", "towers", "votes", "random")
    }
    assert means["trained"] > max(means["towers"], means["random"])
    assert means["votes"] > means["random"]


def searcher_of(paths):
    directory = current_generation(paths.artifact("served") / "voted", make="")
    return directory, LocalSearcher(directory, paths.artifact("collection"), CarriedWords())


@pytest.mark.parametrize("tags", [("dog",), ("dog", "cat"), (NO_VECTOR,)])
def test_the_page_ranks_by_cosines_and_votes(voted, inputs, tags):
    directory, searcher = searcher_of(voted)
    index = inputs.index
    rows = [index.tag_row(tag) for tag in tags]
    both = sorted(set.intersection(*(set(index.posting_list(row).tolist()) for row in rows)))
    embeddings, tag_embeddings = (np.load(directory / name) for name in ("embeddings.npy", "tag_embeddings.npy"))
    votes = WEIGHT * voting_of(inputs).votes(np.array(both))[:, rows].toarray().mean(axis=1)
    scores = embeddings[both].astype(np.float32) @ tag_embeddings[rows].mean(axis=0) + votes
    hits = [hit for hit in searcher.search(Question(" ".join(tags), limit=1000)).hits if not hit.guess]
    expected = dict(zip((index.image_id(row) for row in both), scores, strict=True))
    assert {hit.image_id: hit.score for hit in hits} == pytest.approx(expected, abs=2e-3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert (directory / VOTES).is_file()
