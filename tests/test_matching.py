"""Which images a query finds, against sets worked out by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serve.matching
from serve.matching import Matcher
from serve.query import EVERYTHING, And, Not, Or, Prefix, Tag, all_of, any_of, none_of, parse, write

TAGS = ["ant", "bird", "birdhouse", "car", "dog"]  # ascending, as an index has them
NUM_IMAGES = 12


class SmallIndex:
    """Posting lists given by hand."""

    def __init__(self, lists):
        self.tags = TAGS
        self.num_images = NUM_IMAGES
        self.postings = np.array([row for each in lists for row in sorted(each)], dtype=np.int32)
        self.offsets = np.cumsum([0, *map(len, lists)])

    def posting_list(self, row):
        return self.postings[self.offsets[row] : self.offsets[row + 1]]

    def tag_row(self, tag):
        return self.tags.index(tag) if tag in self.tags else None

    def tags_from(self, prefix):
        rows = [row for row, tag in enumerate(self.tags) if tag.startswith(prefix)]
        return range(rows[0], rows[-1] + 1) if rows else range(0)


posting_lists = st.lists(st.sets(st.integers(0, NUM_IMAGES - 1)), min_size=len(TAGS), max_size=len(TAGS))
leaves = st.sampled_from([*TAGS, "unknown", "beast"]).map(Tag) | st.sampled_from(["bird", "d", "x"]).map(Prefix)
trees = st.recursive(
    leaves,
    lambda parts: st.one_of(
        parts.map(none_of), st.lists(parts, max_size=4).map(all_of), st.lists(parts, max_size=4).map(any_of)
    ),
    max_leaves=8,
)
RELATED = {"beast": [0, 4], "dog": [1, 4]}


def brute_force(node, lists):
    """The images of a query, one by one."""
    if isinstance(node, Tag):
        rows = RELATED.get(node.name, [TAGS.index(node.name)] if node.name in TAGS else [])
        return set().union(*(lists[row] for row in rows))
    if isinstance(node, Prefix):
        return set().union(*(found for tag, found in zip(TAGS, lists, strict=True) if tag.startswith(node.stem)))
    if isinstance(node, Not):
        return set(range(NUM_IMAGES)) - brute_force(node.part, lists)
    if isinstance(node, Or):
        return set().union(*(brute_force(part, lists) for part in node.parts))
    return set(range(NUM_IMAGES)).intersection(*(brute_force(part, lists) for part in node.parts))


@pytest.mark.parametrize("share", [0.0, 1.0])  # masks always, bisection always
@settings(deadline=None)
@given(lists=posting_lists, node=trees)
def test_a_query_finds_what_the_algebra_of_sets_finds(share, lists, node):
    before, serve.matching._MASK_FROM = serve.matching._MASK_FROM, share
    try:
        matcher = Matcher(SmallIndex(lists), RELATED)
        found = matcher.rows(node)
        assert found.tolist() == sorted(brute_force(node, lists))
        assert found.dtype == np.int32
        assert matcher.count(node) == len(found)
    finally:
        serve.matching._MASK_FROM = before


@settings(deadline=None)
@given(posting_lists, trees)
def test_a_query_that_was_written_finds_the_same(lists, node):
    matcher = Matcher(SmallIndex(lists), RELATED)
    again = parse(write(node), matcher.is_tag)
    assert matcher.rows(again).tolist() == matcher.rows(node).tolist()


@settings(deadline=None)
@given(posting_lists, trees)
def test_clauses_say_what_they_keep_and_who_is_to_blame(lists, node):
    matcher = Matcher(SmallIndex(lists), RELATED)
    clauses = matcher.clauses(node)
    assert [clause.num_images for clause in clauses] == [len(brute_force(clause.node, lists)) for clause in clauses]
    if clauses and not brute_force(node, lists):
        blamed = matcher.blamed(clauses)
        helping = [clause for clause in clauses if brute_force(clause.without, lists)]
        assert blamed in (helping or clauses)
        assert blamed.num_images == min(clause.num_images for clause in helping or clauses)


def test_a_clause_left_out_leaves_the_others():
    matcher = Matcher(SmallIndex([{1}, {2}, set(), {1, 2}, {1, 3}]), {})
    clauses = matcher.clauses(all_of([Tag("ant"), Not(Tag("car")), Tag("dog")]))
    assert [clause.num_images for clause in clauses] == [1, 10, 2]
    assert [write(clause.without) for clause in clauses] == ["-car dog", "ant, dog", "ant -car"]
    assert write(matcher.blamed(clauses).node) == "ant"  # `-car` would help as well, and keeps more


def test_a_tag_alone_is_to_blame_for_itself():
    matcher = Matcher(SmallIndex([set()] * 5), {})
    (clause,) = matcher.clauses(Tag("ant"))
    assert matcher.blamed([clause]) is clause
    assert clause.without == EVERYTHING == And(())
