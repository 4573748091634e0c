"""What people say of results: kept by several workers at once, taken back, united, and read by evaluation's tools."""

import json
import multiprocessing
import sqlite3

import ir_measures
import pytest

from configs.artifacts import ArtifactError
from configs.compose import Paths
from serve.config import JudgementsConfig
from serve.judgements import Judgement, Judgements, Vote, export, tally, topic_of

DOG, CAT = "d" * 16, "c" * 16


@pytest.fixture
def paths(tmp_path):
    return Paths(str(tmp_path / "data"), str(tmp_path / "runs"))


@pytest.fixture
def judgements(paths):
    return Judgements(paths)


def said(grade, image_id=DOG, rater="ada", topic="dog", rank=1):
    return Judgement(topic, topic, image_id, grade, rank, "best", "0123", rater)


def voted(winner, rater="ada", question="dog"):
    return Vote(question, "best", "original", "0123", "4567", winner, rater)


def test_a_judgement_is_kept_with_all_that_was_said(judgements):
    judgements.add(said(1, rank=7))
    (kept,) = judgements.graded()
    (one,) = kept["judgements"]
    assert (kept["topic"], kept["image_id"], kept["grade"], kept["raters"]) == ("dog", DOG, 1, 1)
    assert (one["rank"], one["run"], one["generation"], one["rater"]) == (7, "best", "0123", "ada")
    assert one["made_at"].endswith("+00:00")


def test_the_last_word_of_a_rater_counts_and_may_be_taken_back(judgements):
    for grade in (1, 0):
        judgements.add(said(grade))
    assert [each["grade"] for each in judgements.graded()] == [0]
    judgements.add(said(None))
    assert judgements.graded() == []


@pytest.mark.parametrize(("grades", "united"), [([1, 1, 0], 1), ([1, 0], 1), ([1, 0, 0], 0), ([3, 2, 0], 2)])
def test_several_raters_count_with_their_mean_halves_rounded_up(judgements, grades, united):
    for number, grade in enumerate(grades):
        judgements.add(said(grade, rater=f"rater {number}"))
    (kept,) = judgements.graded()
    assert kept["grade"] == united
    assert kept["mean"] == pytest.approx(sum(grades) / len(grades), abs=1e-4)


def test_a_rater_is_shown_what_they_said_of_a_topic_and_not_what_others_did(judgements):
    assert judgements.grades_of("dog", "ada") == {}
    for each in (said(1), said(0, CAT), said(1, CAT, rater="bob"), said(0, topic="cat"), said(1, "e" * 16)):
        judgements.add(each)
    judgements.add(said(None, "e" * 16))
    assert judgements.grades_of("dog", "ada") == {DOG: 1, CAT: 0}


@pytest.mark.parametrize(
    "wrong", [lambda: said(4), lambda: said(-1), lambda: said(1, topic="two words"), lambda: voted("another")]
)
def test_what_no_file_could_hold_is_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        wrong()


@pytest.mark.parametrize(
    ("question", "tag", "topic"),
    [("dog", "dog", "dog"), ('"traffic light"', "traffic light", "traffic_light"), ("dog -car", "", "dog_-car")],
)
def test_a_question_of_one_tag_has_the_topic_of_evaluation(question, tag, topic):
    assert topic_of(question, tag) == topic


def test_export_is_read_by_the_library_of_evaluation(judgements, paths):
    for each in (said(1), said(0, CAT), said(1, CAT, topic="traffic_light")):
        judgements.add(each)
    qrels = export(JudgementsConfig(paths))
    found = {(each.query_id, each.doc_id): each.relevance for each in ir_measures.read_trec_qrels(str(qrels))}
    assert found == {("dog", DOG): 1, ("dog", CAT): 0, ("traffic_light", CAT): 1}
    run = [ir_measures.ScoredDoc("dog", CAT, 2.0), ir_measures.ScoredDoc("dog", DOG, 1.0)]
    judged = list(ir_measures.read_trec_qrels(str(qrels)))[:2]
    assert ir_measures.calc_aggregate([ir_measures.RR], judged, run)[ir_measures.RR] == 0.5
    written = json.loads((qrels.parent / "judgements.json").read_text(encoding="utf-8"))
    assert [each["grade"] for each in written["judgements"]] == [0, 1, 1]


def test_export_without_judgements_says_how_to_get_some(paths):
    with pytest.raises(ArtifactError, match="make serve"):
        export(JudgementsConfig(paths))


def test_a_store_of_a_later_format_is_refused(judgements):
    judgements.add(said(1))
    with sqlite3.connect(judgements.directory / "judgements.sqlite3") as store:
        store.execute("PRAGMA user_version = 9")
    store.close()
    with pytest.raises(ArtifactError, match="format 9, this version reads 1"):
        judgements.graded()


def write_many(paths, worker):
    for number in range(20):
        Judgements(paths).add(said(1, f"{worker:08x}{number:08x}", rater=f"worker {worker}"))


def test_workers_that_write_at_once_lose_nothing(paths):
    fork = multiprocessing.get_context("spawn")
    workers = [fork.Process(target=write_many, args=(paths, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(Judgements(paths).graded()) == 80


def test_what_was_added_is_there_though_the_process_was_killed(paths):
    spawn = multiprocessing.get_context("spawn")
    worker = spawn.Process(target=add_and_die, args=(paths,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -9
    assert len(Judgements(paths).graded()) == 1


def add_and_die(paths):
    import os
    import signal

    Judgements(paths).add(said(1))
    os.kill(os.getpid(), signal.SIGKILL)


# Clopper and Pearson by hand: 10 of 10 won leaves 0.025 ** (1 / 10) as the lower end.
@pytest.mark.parametrize(
    ("first", "second", "low", "high", "winner"),
    [(10, 0, 0.025**0.1, 1.0, "a"), (0, 10, 0.0, 1 - 0.025**0.1, "b"), (5, 5, 0.187, 0.813, ""), (0, 0, 0, 1, "")],
)
def test_the_winner_is_told_where_the_exact_interval_leaves_a_half_out(first, second, low, high, winner):
    found = tally("a", "b", ["a"] * first + ["tie"] * 3 + ["b"] * second)
    assert (found["first_wins"], found["second_wins"], found["ties"]) == (first, second, 3)
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-3)
    assert found["winner"] == winner
    assert found["verdict"].startswith(f"{winner} is better" if winner else "a and b cannot be told apart")


def test_a_rater_has_one_vote_a_question(judgements):
    for each in (voted("best"), voted("original"), voted("tie", "bob"), voted("best", question="cat")):
        judgements.add(each)
    (pair,) = judgements.votes()
    assert (pair["first"], pair["first_wins"], pair["second_wins"], pair["ties"]) == ("best", 1, 1, 1)


def test_sides_of_a_blind_comparison_fall_as_a_coin_and_stay_for_the_same_asking(judgements):
    questions = [f"question {number}" for number in range(200)]
    sides = [judgements.sides(question, ("best", "original"), "ada") for question in questions]
    again = [judgements.sides(question, ("original", "best"), "ada") for question in questions]
    assert sides == again
    assert 60 < sum(left == "best" for left, _ in sides) < 140


def test_sides_cannot_be_told_without_the_store(judgements, tmp_path):
    other = Judgements(Paths("data", str(tmp_path / "other")))
    asked = [(f"question {number}", ("a", "b"), "ada") for number in range(64)]
    assert [judgements.sides(*each) for each in asked] != [other.sides(*each) for each in asked]
