"""Tags: one spelling for index and queries, and the relations between tags."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.artifacts import ArtifactError
from crawl.tags import MAX_TAG_CHARS, normalise_tag, normalise_tags, read_relations, related_tags

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=150)


@pytest.mark.parametrize(
    ("given_tag", "expected"),
    [
        ("Dog", "dog"),
        ("ﬁre", "fire"),
        ("\uff24\uff2f\uff27", "dog"),
        ("Straße", "strasse"),
        ("ǅ", "dž"),
        ("İ", "i̇"),
        ("polar_bear", "polar bear"),
        ("polar-bear", "polar-bear"),
        ("__polar__bear__", "polar bear"),
        ("a\tb\nc\r\nd", "a b c d"),
        ("a\u2028b\u00a0c\u3000d\x85e\x1cf", "a b c d e f"),
        ("👩\u200d🚀", "👩🚀"),
        ("\u202edog\u202c\ufeff", "dog"),
        ("do\x00g\x7f", "dog"),
        ("\ud800dog\udfff", "dog"),
        ("\ue000", ""),
        ("", ""),
        (" _ ", ""),
        ("²", "2"),
        ("猫", "猫"),
    ],
)
def test_a_tag_has_one_spelling(given_tag, expected):
    assert normalise_tag(given_tag) == expected


def test_composed_and_decomposed_letters_are_one():
    assert normalise_tag("cafe\u0301") == normalise_tag("CAF\u00c9") == "café"


def test_a_long_tag_is_cut_at_a_hundred_characters():
    assert normalise_tag("a" * 99 + " bc") == "a" * 99
    assert len(normalise_tag("x" * 5000)) == MAX_TAG_CHARS


@given(ANY_TEXT)
def test_normalising_twice_changes_nothing(text):
    once = normalise_tag(text)
    assert normalise_tag(once) == once


@given(ANY_TEXT)
def test_what_is_left_is_short_one_line_and_visible(text):
    tag = normalise_tag(text)
    assert len(tag) <= MAX_TAG_CHARS
    assert tag == " ".join(tag.split())
    assert not any(unicodedata.category(char) in {"Cc", "Cf", "Co", "Cs"} for char in tag)
    assert len(tag.splitlines()) <= 1


def test_every_single_character_is_folded_for_good():
    folded = {normalise_tag(chr(code)) for code in range(0x110000)}
    assert {tag for tag in folded if normalise_tag(tag) != tag} == set()


def test_a_tag_made_to_be_slow_is_not():
    start = time.perf_counter()
    normalise_tag("\u0315\u0300\u0327" * 100_000)
    assert time.perf_counter() - start < 2


def test_tags_of_an_image_are_united_and_ascending():
    assert normalise_tags(["Dog", "cat", "_", "DOG"]) == ["cat", "dog"]


def relations_of(tmp_path, text):
    path = tmp_path / "tag_relations.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_relations(path)


def test_relations_are_read_under_their_normalised_tags(tmp_path):
    relations = relations_of(tmp_path, "tag,relation,other\nPuppy,broader,DOG\nauto,alias,car\ndogs,plural,dog\n")
    assert relations["broader"] == {"puppy": {"dog"}}
    assert relations["alias"] == {"auto": {"car"}, "car": {"auto"}}
    assert relations["plural"] == {"dogs": {"dog"}}


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    assert relations_of(tmp_path, "\ufefftag,relation,other\na,alias,b\n")["alias"] == {"a": {"b"}, "b": {"a"}}


def test_a_file_that_is_not_there_holds_no_relations(tmp_path):
    assert read_relations(tmp_path / "none.csv") == {"alias": {}, "broader": {}, "plural": {}}


@pytest.mark.parametrize("row", ["puppy,narrower,dog", ",broader,dog", "puppy,broader,", "puppy,broader", "a,b,c,d"])
def test_a_bad_relation_is_named_by_its_line(row, tmp_path):
    with pytest.raises(ArtifactError, match=r"tag_relations\.csv line 2: expected tag,relation,other"):
        relations_of(tmp_path, f"tag,relation,other\n{row}\n")


@pytest.mark.parametrize("content", [b"tag,relation,other\n\xff,alias,b\n", b"tag,relation,other\n" + b"x" * 200_000])
def test_a_relations_file_that_is_no_table_is_refused(content, tmp_path):
    with pytest.raises(ArtifactError, match=r"tag_relations\.csv"):
        relations_of(tmp_path, content)


def test_related_tags_go_up_and_sideways(tmp_path):
    text = "tag,relation,other\npuppy,broader,dog\ndogs,plural,dog\nhound,alias,dog\n"
    relations = relations_of(tmp_path, text)
    assert related_tags("puppy", relations) == {"dog"}
    assert related_tags("dog", relations) == {"hound", "dogs", "puppy"}
    assert related_tags("dogs", relations) == {"dog"}
    assert related_tags("cat", relations) == set()
