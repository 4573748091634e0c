"""Records: names, splits, and the way to Parquet and back."""

import hashlib
from collections import Counter

import pyarrow as pa
import pytest

from crawl.records import PROVENANCE, SCHEMA, SHARD_SCHEMA, SPLITS, Record, as_row, from_row, image_id_of, split_of

FULL = Record("0" * 16, "g", ("a", "b"), ("l",), "photo", "t", "c", 3, 4, extra={"é": [1, None, {"x": 1.5}]})


def test_an_image_is_named_by_its_original_bytes():
    assert image_id_of(b"abc") == hashlib.sha256(b"abc").hexdigest()[:16] == "ba7816bf8f01cfea"


@pytest.mark.parametrize(("group", "split"), [("ba7816bf8f01cfea", "train"), ("f", "val"), ("r", "test")])
def test_splits_are_frozen_for_ever(group, split):
    assert SPLITS[split_of(group)] == split


def test_splits_are_eighty_ten_and_ten_of_a_hundred():
    counts = Counter(split_of(str(number)) for number in range(20_000))
    assert counts[0] / 20_000 == pytest.approx(0.8, abs=0.01)
    assert counts[1] / 20_000 == pytest.approx(0.1, abs=0.01)


def test_a_record_comes_back_from_its_row():
    assert from_row(as_row(FULL)) == FULL


def test_a_record_comes_back_through_parquet_types():
    table = pa.Table.from_pylist([as_row(FULL)], schema=SCHEMA)
    assert from_row(table.to_pylist()[0]) == FULL


def test_columns_of_another_time_are_left_aside():
    assert from_row({**as_row(FULL), "offset": 5, "later": "x"}) == FULL


def test_the_schema_has_a_column_for_every_field():
    assert SCHEMA.names == list(as_row(FULL))
    assert SHARD_SCHEMA.names == [*SCHEMA.names, "offset", "size"]


def test_sources_cannot_claim_what_is_measured_here():
    assert PROVENANCE == (
        "group",
        "kind",
        "title",
        "caption",
        "source_url",
        "page_url",
        "licence",
        "author",
        "fetched_at",
    )
