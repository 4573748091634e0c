"""What a crawl knows of images: the same as dictionaries would say, but on disk."""

import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crawl.known
from crawl.known import Known
from crawl.records import image_id_of
from crawl.shards import tags_said

FIRST, SECOND = image_id_of(b"first"), "ffffffffffffffff"
IDS = st.sampled_from([FIRST, SECOND, "0000000000000000", "7fffffffffffffff", "8000000000000000"])
TAGS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=3)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), IDS),
        st.tuples(st.just("accept"), IDS, TAGS),
        st.tuples(st.just("refuse"), IDS, st.text("abc", min_size=1, max_size=3), st.just("why")),
        st.tuples(st.just("add_tags"), IDS, TAGS),
    )
)


@pytest.fixture
def known():
    known = Known()
    yield known
    known.close()


class Oracle:
    """The same in dictionaries."""

    def __init__(self):
        self.met, self.said, self.refused = set(), {}, {}

    def claim(self, image_id):
        return image_id not in self.met and (self.met.add(image_id) or True)

    def accept(self, image_id, tags):
        self.said[image_id] = set(tags)

    def refuse(self, image_id, reason, detail):
        self.refused[image_id] = (reason, detail)

    def add_tags(self, image_id, tags):
        self.said[image_id] |= set(tags)

    def may(self, change, image_id):
        """Only what is on its way is accepted or refused, and only what is accepted gets tags."""
        accepted = image_id in self.said
        underway = image_id in self.met and not accepted and image_id not in self.refused
        return {"claim": True, "accept": underway, "refuse": underway, "add_tags": accepted}[change]


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(IDS, TAGS)), changes=CHANGES)
def test_it_says_what_dictionaries_would(rows, changes):
    known, oracle = Known(), Oracle()
    known.fill(rows)
    for image_id, tags in rows:
        oracle.met.add(image_id)
        oracle.said.setdefault(image_id, set()).update(tags)
    for change, image_id, *values in changes:
        if oracle.may(change, image_id):
            assert getattr(known, change)(image_id, *values) == getattr(oracle, change)(image_id, *values)
    for image_id in (FIRST, SECOND, "0000000000000000", "7fffffffffffffff", "8000000000000000"):
        assert known.tags(image_id) == oracle.said.get(image_id)
        assert known.refusal(image_id) == oracle.refused.get(image_id)
    assert known.num_images == len(oracle.said)
    known.close()


def test_an_image_on_its_way_is_new_only_once(known):
    assert [known.claim(FIRST), known.claim(SECOND), known.claim(FIRST)] == [True, True, False]
    assert known.tags(FIRST) is None
    assert known.num_images == 0


def test_line_breaks_of_all_kinds_may_stand_in_a_tag(known):
    odd = ["a\nb", "c\u2028d", "e\x85f", 'g"h', "\x00", ""]
    known.fill([(FIRST, odd)])
    known.add_tags(FIRST, ["last"])
    assert known.tags(FIRST) == {*odd, "last"}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the file in /proc")
def test_it_lies_in_a_file_without_a_name_that_goes_with_it(monkeypatch):
    monkeypatch.setattr(crawl.known, "_CACHE_KIB", 64)
    before = nameless()
    known = Known()
    known.fill((f"{number:016x}", ["tag"]) for number in range(20_000))
    assert len(nameless()) > len(before)
    assert known.tags(f"{19_999:016x}") == {"tag"}
    known.close()
    assert nameless() == before


def nameless():
    """Files that this process holds open and that no folder names any more."""
    found = []
    for each in os.scandir("/proc/self/fd"):
        try:
            found.append(os.readlink(each.path))
        except FileNotFoundError:
            continue  # that of the folder itself
    return sorted(path for path in found if path.endswith("(deleted)"))


def test_rows_of_a_shard_are_read_piece_by_piece(tmp_path, monkeypatch):
    rows = [{"image_id": f"{number:016x}", "tags": ["x"] * (number % 3) or None} for number in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    monkeypatch.setattr("crawl.shards._BATCH", 3)
    assert list(tags_said(tmp_path / "00000.parquet")) == [(row["image_id"], row["tags"] or []) for row in rows]
