"""The query language and its inverse."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crawl.tags import normalise_tag
from serve.query import (
    EVERYTHING,
    MAX_CHARS,
    MAX_DEPTH,
    MAX_PARTS,
    And,
    Not,
    Or,
    Prefix,
    QueryError,
    Tag,
    all_of,
    any_of,
    completed,
    none_of,
    parse,
    query_for,
    split_typed,
    start_of_last_tag,
    tags_of,
    write,
)

TAGS = {"dog", "light", "traffic", "traffic light", "red traffic light", "a b c d e", "a b c d e f", 'say "hi"', "a,b"}
DOG, CAT, CAR = Tag("dog"), Tag("cat"), Tag("car")


def known(tag):
    return tag in TAGS


def anything(tag):
    return True


def words(text):
    return list(tags_of(parse(text, known)))


awkward = st.text(st.sampled_from("ab \",'_-*()|ßﬁ猫ü\u0301\u200d\u3000\uff3f“、（OR"), max_size=12)  # noqa: RUF001
any_tag = st.one_of(st.text(max_size=30), awkward).map(normalise_tag).filter(bool)
trees = st.recursive(
    any_tag.map(Tag) | any_tag.map(Prefix),
    lambda parts: st.one_of(
        parts.map(none_of), st.lists(parts, max_size=4).map(all_of), st.lists(parts, max_size=4).map(any_of)
    ),
    max_leaves=8,
)


@given(trees)
@example(all_of([Tag("traffic"), Tag("light")]))
@example(all_of([Tag("a"), Tag("b"), Tag("c"), Tag("d e")]))
@example(Not(And((Tag("-"), Tag("or")))))
@example(Prefix("a b*"))
def test_parse_reads_back_what_write_wrote_whatever_is_a_tag(tree):
    assert parse(write(tree), anything) == tree


@given(st.one_of(st.text(), awkward))
@example('"')
@example('""""')
@example("\ud800 x")
@example("-" * 900)
@example("(" * 900)
@example("-(" * 20)
@example("x OR NOT")
def test_any_text_parses_or_is_refused_with_a_place(text):
    try:
        tree, refused = parse(text, known), None
    except QueryError as error:
        tree, refused = EVERYTHING, error
    assert refused is None or (str(refused) and 0 <= refused.position <= len(text))
    assert all(name and normalise_tag(name) == name for name in tags_of(tree))


@given(awkward)
def test_what_is_parsed_parses_to_itself(text):
    try:
        once = parse(text, known)
    except QueryError:
        return
    assert parse(write(once), known) == once


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("dog cat", And((DOG, CAT))),
        ("dog, cat", And((DOG, CAT))),
        ("dog AND cat", And((DOG, CAT))),
        ("dog - cat", And((DOG, CAT))),
        ("dog、cat", And((DOG, CAT))),
        ("dog OR cat", Or((DOG, CAT))),
        ("dog|cat", Or((DOG, CAT))),
        ("dog || cat", Or((DOG, CAT))),
        ("dog cat OR car", Or((And((DOG, CAT)), CAR))),
        ("dog (cat OR car)", And((DOG, Or((CAT, CAR))))),
        ("dog （cat｜car）", And((DOG, Or((CAT, CAR))))),  # noqa: RUF001
        ("-car", Not(CAR)),
        ("NOT car", Not(CAR)),
        ("--car", CAR),
        ("dog -car", And((DOG, Not(CAR)))),
        ("dog -(cat OR car)", And((DOG, Not(Or((CAT, CAR)))))),
        ('-"traffic light"', Not(Tag("traffic light"))),
        ("-traffic light", And((Not(Tag("traffic")), Tag("light")))),
        ("t-shirt", Tag("t-shirt")),
        ("bird*", Prefix("bird")),
        ("-bird* dog", And((Not(Prefix("bird")), DOG))),
        ('"traffic li"*', Prefix("traffic li")),
        ('"*"', Tag("*")),
        ("or", Tag("or")),
        ("((dog))", DOG),
        ("dog OR dog", DOG),
        ("(dog cat) car", And((DOG, CAT, CAR))),
    ],
)
def test_the_grammar(text, tree):
    assert parse(text, known) == tree


@pytest.mark.parametrize("text", ["dog OR", "OR dog", "dog OR OR", "dog ()", "dog -", "dog AND", "dog,", 'dog -""'])
def test_what_is_half_typed_is_let_pass(text):
    assert parse(text, known) == DOG


@pytest.mark.parametrize("text", ["", "  ,, ", '""', '"', "OR", "()", "-", "-()", "\u200d"])
def test_a_query_that_says_nothing_is_everything(text):
    assert parse(text, known) == EVERYTHING


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("dog (cat", 4, "character 5 is not closed"),
        ("dog) cat", 3, "character 4 closes none"),
        ("*", 0, "star at character 1"),
        ("dog *", 4, "star at character 5"),
        ("b*d", 1, "star at character 2"),
        ("bird**", 4, "star at character 5"),
        ("-OR dog", 1, "before character 2"),
        ("(" * (MAX_DEPTH + 1), MAX_DEPTH, f"{MAX_DEPTH} deep"),
        ("a " * (MAX_PARTS + 1), 2 * MAX_PARTS, f"at most {MAX_PARTS} words"),
        ("a" * (MAX_CHARS + 1), MAX_CHARS, f"at most {MAX_CHARS} characters"),
    ],
)
def test_what_is_no_query_is_refused_with_the_place(text, position, said):
    with pytest.raises(QueryError, match=said) as refused:
        parse(text, known)
    assert refused.value.position == position


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dog", ["dog"]),
        ("  Dog  ", ["dog"]),
        ("traffic light dog", ["traffic light", "dog"]),
        ("dog red traffic light", ["dog", "red traffic light"]),
        ("dog light", ["dog", "light"]),
        ("traffic_light", ["traffic light"]),
        ("dog OR traffic light", ["dog", "traffic light"]),
        ("dog dog", ["dog"]),
        ("light dog light", ["light", "dog"]),
        ("a b c d e", ["a b c d e"]),
        ("a b c d e f", ["a b c d e", "f"]),
    ],
)
def test_bare_words_are_joined_to_the_longest_tag_from_left_to_right(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize("text", ["traffic, light", "traffic,light", ",traffic ,, light,", "traffic AND light"])
def test_a_comma_keeps_words_apart(text):
    assert words(text) == ["traffic", "light"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"traffic light"', ["traffic light"]),
        ("“traffic light” dog", ["traffic light", "dog"]),
        ('"traffic" "light"', ["traffic", "light"]),
        ('traffic "dog" light', ["traffic", "dog", "light"]),
        ('"say ""hi"""', ['say "hi"']),
        ('"a,b"', ["a,b"]),
        ('dog"light"', ["dog", "light"]),
        ('"traffic light', ["traffic light"]),
        ('" , "', [","]),
    ],
)
def test_quotes_hold_a_phrase_together(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["dog"], "dog"),
        (["dog", "cat"], "dog, cat"),
        (["traffic light", "dog"], '"traffic light" dog'),
        (["dog", "traffic light"], 'dog "traffic light"'),
        (['say "hi"'], '"say ""hi"""'),
        (["-5", "a*", "(x)"], '"-5" "a*" "(x)"'),
    ],
)
def test_query_for_writes_what_a_person_would(tags, expected):
    assert query_for(tags) == expected


@pytest.mark.parametrize(
    ("text", "written"),
    [("dog cat -car", "dog, cat -car"), ("dog|(cat -car)", "dog OR (cat -car)"), ("-(dog cat)", "-(dog, cat)")],
)
def test_brackets_stand_where_they_are_needed_or_help(text, written):
    assert write(parse(text, known)) == written


def test_tags_of_a_query_are_those_that_a_hit_may_carry():
    tree = parse("dog (cat OR -car) -light bird*", known)
    assert tags_of(tree) == ("dog", "cat")
    assert tags_of(tree, wanted=False) == ("car", "light")


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
        ("dog -ca", "dog -", "ca"),
        ("(dog OR ca", "(dog OR ", "ca"),
        ("dog|ca", "dog|", "ca"),
        ("dog OR", "dog OR", ""),
        ("t-sh", "", "t-sh"),
        ("ca*", "", "ca"),
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
    [
        ("do", "dog", "dog"),
        ('dog "tra', "traffic light", 'dog "traffic light"'),
        ("dog ", "cat", "dog cat"),
        ("dog -(ca", "cat", "dog -(cat"),
    ],
)
def test_a_completion_takes_the_place_of_the_unfinished_tag(text, tag, expected):
    assert completed(text, tag) == expected
