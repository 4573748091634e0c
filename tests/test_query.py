"""The query language and its inverse."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crawl.tags import normalise_tag
from serve.query import completed, parse, query_for, split_typed, start_of_last_tag

TAGS = {"dog", "light", "traffic", "traffic light", "red traffic light", "a b c d e", "a b c d e f", 'say "hi"', "a,b"}


def known(tag):
    return tag in TAGS


def words(text):
    return list(parse(text, known).words)


awkward = st.text(st.sampled_from("ab \",'_-ßﬁ猫ü\u0301\u200d\u3000\uff3f“"), max_size=8)
any_tag = st.one_of(st.text(max_size=120), awkward).map(normalise_tag).filter(bool)


@given(st.lists(any_tag, max_size=5, unique=True))
@example(["traffic", "light"])
@example(["a", "b", "c", "d e"])
def test_parse_reads_back_what_query_for_wrote(tags):
    everything = {*tags, *(" ".join(tags[at : at + 2]) for at in range(len(tags)))}  # also tags they spell together
    assert list(parse(query_for(tags), everything.__contains__).words) == tags


@given(st.one_of(st.text(), awkward))
@example('"')
@example('""""')
@example("\ud800 x")
def test_any_text_parses_into_distinct_normalised_tags(text):
    found = parse(text, known).words
    assert len(set(found)) == len(found)
    assert all(word and normalise_tag(word) == word for word in found)


@given(st.text())
def test_what_is_parsed_parses_to_itself(text):
    once = parse(text, known)
    assert parse(query_for(once.words), known) == once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dog", ["dog"]),
        ("  Dog  ", ["dog"]),
        ("traffic light dog", ["traffic light", "dog"]),
        ("dog red traffic light", ["dog", "red traffic light"]),
        ("dog light", ["dog", "light"]),
        ("traffic_light", ["traffic light"]),
        ("dog dog", ["dog"]),
        ("light dog light", ["light", "dog"]),
        ("a b c d e", ["a b c d e"]),
        ("a b c d e f", ["a b c d e", "f"]),
    ],
)
def test_bare_words_are_joined_to_the_longest_tag_from_left_to_right(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize("text", ["traffic, light", "traffic,light", ",traffic ,, light,"])
def test_a_comma_keeps_words_apart(text):
    assert words(text) == ["traffic", "light"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"traffic light"', ["traffic light"]),
        ('"traffic" "light"', ["traffic", "light"]),
        ('traffic "dog" light', ["traffic", "dog", "light"]),
        ('"say ""hi"""', ['say "hi"']),
        ('"a,b"', ["a,b"]),
        ('dog"light"', ["dog", "light"]),
        ('"traffic light', ["traffic light"]),
        ('""', []),
        ('"', []),
        ('" , "', [","]),
    ],
)
def test_quotes_hold_a_phrase_together(text, expected):
    assert words(text) == expected


def test_words_that_are_no_tags_are_named_in_order():
    assert parse('dgo light "blue whale"', known).unknown == ("dgo", "blue whale")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["dog"], "dog"),
        (["dog", "cat"], "dog, cat"),
        (["traffic light", "dog"], '"traffic light" dog'),
        (["dog", "traffic light"], 'dog "traffic light"'),
        (['say "hi"'], '"say ""hi"""'),
    ],
)
def test_query_for_writes_what_a_person_would(tags, expected):
    assert query_for(tags) == expected


@pytest.mark.parametrize(
    ("text", "settled", "typing"),
    [
        ("", "", ""),
        ("do", "", "do"),
        ("dog ca", "dog ", "ca"),
        ("dog,ca", "dog,", "ca"),
        ("dog ", "dog ", ""),
        ('dog "traffic li', "dog ", "traffic li"),
        ('"traffic light" Do', '"traffic light" ', "do"),
        ('"say ""h', "", 'say "h'),
    ],
)
def test_what_is_typed_is_split_into_settled_and_unfinished(text, settled, typing):
    assert split_typed(text) == (settled, typing)


@given(st.one_of(st.text(), awkward))
def test_splitting_never_raises_and_loses_nothing(text):
    assert text.startswith(split_typed(text)[0])
    assert 0 <= start_of_last_tag(text) <= len(text)


@pytest.mark.parametrize(
    ("text", "tag", "expected"),
    [("do", "dog", "dog"), ('dog "tra', "traffic light", 'dog "traffic light"'), ("dog ", "cat", "dog cat")],
)
def test_a_completion_takes_the_place_of_the_unfinished_tag(text, tag, expected):
    assert completed(text, tag) == expected
