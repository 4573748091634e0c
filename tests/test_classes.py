"""Who asks in reverse search, who is relevant, and what an answer is worth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.classes import draw_queries, judge, members_of, random_answers, ranked_answers
from train.ranking import Scorer


def classes(*found):
    """Classes of images, each given as a text with a letter a class."""
    return members_of("labels", np.arange(10, 10 + len(found)), [set(each) for each in found])


def test_relevant_are_the_others_that_share_a_class():
    asked = classes("a", "ab", "b", "c", "ac")
    assert [asked.others(at).tolist() for at in range(5)] == [[1, 4], [0, 2, 4], [1], [4], [0, 1, 3]]


def test_images_without_a_class_are_left_out_and_the_rest_keep_their_rows():
    asked = classes("a", "", "a", "b")
    assert asked.gallery.tolist() == [10, 12, 13]
    assert asked.others(0).tolist() == [1]


def test_an_image_with_none_or_all_of_its_class_beside_it_does_not_ask():
    assert draw_queries(classes("ab", "a", "b", "c"), 0, 0).tolist() == [0, 1, 2]  # c has none
    assert draw_queries(classes("ab", "a", "b"), 0, 0).tolist() == [1, 2]


def test_a_draw_has_as_many_images_as_asked_for_and_repeats():
    asked = classes(*"aabb" * 10)
    drawn = draw_queries(asked, 7, seed=1)
    assert len(set(drawn.tolist())) == 7
    assert drawn.tolist() == sorted(drawn) == draw_queries(asked, 7, seed=1).tolist()
    assert drawn.tolist() != draw_queries(asked, 7, seed=2).tolist()
    assert len(draw_queries(asked, 0, seed=1)) == 40


def by_definition(rows, relevant, query, depth):
    """AP, AP@k by R and by min(R, k), and recall@k, of a full sort with equal scores by ascending row."""
    order = sorted((at for at in range(len(rows)) if at != query), key=lambda at: (-float(rows[at] @ rows[query]), at))
    right = [at in relevant for at in order]
    precisions = [sum(right[:rank]) / rank if right[rank - 1] else 0 for rank in range(1, len(order) + 1)]
    count = len(relevant)
    return sum(precisions) / count, {
        "map": [sum(precisions[:k]) / count for k in range(1, depth + 1)],
        "map_capped": [sum(precisions[:k]) / min(count, k) for k in range(1, depth + 1)],
        "recall": [sum(right[:k]) / count for k in range(1, depth + 1)],
    }


# Few directions, so that many images stand at one score.
rows_of_images = st.lists(st.sampled_from([(1, 0), (0, 1), (1, 1), (-1, 0)]), min_size=4, max_size=12)


@given(rows_of_images, st.data())
def test_answers_are_those_of_a_full_sort_without_the_query(vectors, data):
    rows = np.array(vectors, dtype=np.float32)
    asked = classes(*data.draw(st.lists(st.sampled_from(["a", "b", "ab"]), min_size=len(rows), max_size=len(rows))))
    queries, depth = draw_queries(asked, 0, 0), len(rows) - 1
    answers = ranked_answers(asked, queries, Scorer("any", rows[queries], rows), depth)
    for query, (whole, found) in zip(queries.tolist(), answers, strict=True):
        expected = by_definition(rows, set(asked.others(query).tolist()), query, depth)
        assert whole == pytest.approx(expected[0])
        assert {metric: curve.tolist() for metric, curve in found.items()} == {
            metric: pytest.approx(values) for metric, values in expected[1].items()
        }


def test_the_query_itself_is_never_found():
    rows = np.eye(4, dtype=np.float32)  # each image is nearest to itself, and all others are tied
    asked = classes(*"abab")
    (whole, found), *_ = ranked_answers(asked, np.array([0]), Scorer("any", rows[:1], rows), 3)
    assert found["recall"].tolist() == [0, 1, 1]  # rows 1, 2, 3 in this order
    assert whole == 0.5


def test_judging_by_hand():
    answers = [
        (0.5, {"map": np.array([0.0, 0.5]), "map_capped": np.array([0.0, 0.5]), "recall": np.array([0.0, 1.0])}),
        (1.0, {"map": np.array([1.0, 1.0]), "map_capped": np.array([1.0, 1.0]), "recall": np.array([1.0, 1.0])}),
    ]
    judged = judge(iter(answers), depth=2, cutoffs=[2])
    assert judged.values["map"].tolist() == [0.5, 1.0]
    assert judged.values["map@2"].tolist() == [0.5, 1.0]
    assert judged.curves["recall"].tolist() == [0.5, 1.0]


def test_chance_is_what_random_orders_give_on_average():
    asked, rng = classes(*"aaabbbb"), np.random.default_rng(0)
    queries = np.array([0, 3])
    expected = judge(random_answers(asked, queries, 4), 4, [1, 4])
    totals = []
    for _ in range(3000):
        vectors = rng.random((2, 7), dtype=np.float32)
        totals.append(judge(ranked_answers(asked, queries, Scorer("any", np.eye(2), vectors.T), 4), 4, [1, 4]).values)
    for metric, values in expected.values.items():
        assert np.mean([each[metric] for each in totals], axis=0) == pytest.approx(values, abs=0.03)
