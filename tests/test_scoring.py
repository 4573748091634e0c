"""What a query means: means of what must hold, the best of what may."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.query import EVERYTHING, And, Not, Or, Prefix, QueryError, Tag, all_of, any_of, none_of, parse
from serve.scoring import directions

VECTORS = {name: np.eye(4)[at] for at, name in enumerate("abcd")}


def leaf(part):
    return VECTORS.get(part.name)


def meant(text):
    return directions(parse(text, VECTORS.__contains__), leaf)


def vectors(text):
    return [vector.tolist() for vector in meant(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", [[1, 0, 0, 0]]),
        ("a b", [[0.5, 0.5, 0, 0]]),
        ("a -b", [[1, 0, 0, 0]]),
        ("-a", []),
        ("", []),
        ("a OR b", [[1, 0, 0, 0], [0, 1, 0, 0]]),
        ("a OR -b", [[1, 0, 0, 0]]),
        ("a (b OR c)", [[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0]]),
        ("a OR (b c)", [[1, 0, 0, 0], [0, 0.5, 0.5, 0]]),
        ("a x", [[1, 0, 0, 0]]),
    ],
)
def test_the_directions_of_a_query(text, expected):
    assert vectors(text) == expected


def test_a_word_that_means_nothing_has_no_direction():
    assert meant("x") == []


def test_too_many_ways_to_choose_are_refused():
    assert len(meant("(a OR b) (c OR d)")) == 4
    letters = iter("abcdefghijklmn")
    text = " ".join(f"({letter} OR {next(letters)})" for letter in letters)
    with pytest.raises(QueryError, match="128 ways"):
        directions(parse(text, VECTORS.__contains__), lambda part: np.ones(4))


def score(node, image):
    """The score of one image as the definition has it: means within AND, the best within OR, nothing for NOT."""
    if isinstance(node, Tag):
        return image @ VECTORS[node.name]
    if isinstance(node, Not):
        return None
    scores = [each for part in node.parts if (each := score(part, image)) is not None]
    return None if not scores else max(scores) if isinstance(node, Or) else float(np.mean(scores))


trees = st.recursive(
    st.sampled_from("abcd").map(Tag),
    lambda parts: st.one_of(
        parts.map(none_of), st.lists(parts, max_size=3).map(all_of), st.lists(parts, max_size=3).map(any_of)
    ),
    max_leaves=6,
)


@given(trees, st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_the_best_direction_gives_the_score_of_the_definition(node, values):
    image = np.array(values)
    expected = score(node, image)
    found = directions(node, leaf)
    assert bool(found) == (expected is not None)
    if found:
        assert max(vector @ image for vector in found) == pytest.approx(expected, abs=1e-6)


def test_a_prefix_is_asked_of_the_leaf():
    assert directions(Prefix("a"), lambda part: np.ones(2))[0].tolist() == [1, 1]
    assert directions(And((Not(Tag("a")), Not(Tag("b")))), leaf) == directions(EVERYTHING, leaf) == []
