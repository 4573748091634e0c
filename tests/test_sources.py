"""Sources: everything listed comes out as an item or as a named problem; nothing hangs, nothing reaches outside."""

import io
import json
import os
import socket
import subprocess
import tarfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.artifacts import ArtifactError
from crawl.source_config import FolderSource, SourceConfig, TableSource, WebDatasetSource
from crawl.sources import open_source
from crawl.sources.item import Unreadable, describe, read_regular, split_tags

LIMIT = 100
DEEP = "[" * 400 + "]" * 400
BAD_ROWS = [b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}", b'{"file": "a.jpg", "deep": ' + DEEP.encode() + b"}"]


def listed(source):
    """Key -> tags, or the reason why there is no image."""
    return {item.key: item.problem.reason if item.problem else item.tags for item in source}


def only(source):
    items = list(source)
    assert len(items) == 1
    return items[0]


# --- folder


def folder(root):
    return open_source(FolderSource(path=str(root)), LIMIT)


def put(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_folders_between_are_the_tags(tmp_path):
    for name in ("b/c/2.jpg", "a/1.jpg", "root.jpg"):
        put(tmp_path / name)
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    assert listed(folder(tmp_path)) == {"a/1.jpg": ("a",), "b/c/2.jpg": ("b", "c"), "root.jpg": ()}


def test_links_are_listed_and_never_followed(tmp_path):
    outside = put(tmp_path / "outside" / "x.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file.jpg").symlink_to(outside)
    (tmp_path / "in" / "folder").symlink_to(outside.parent)
    (tmp_path / "in" / "self").symlink_to("self")
    assert listed(folder(tmp_path / "in")) == {"file.jpg": "link", "folder": "link", "self": "link"}


@pytest.mark.timeout(10)
def test_a_pipe_and_a_socket_are_listed_and_never_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        assert listed(folder(tmp_path)) == {"pipe.jpg": "special_file", "socket.jpg": "special_file"}


def test_a_device_is_never_opened(monkeypatch):
    opened = []
    monkeypatch.setattr(os, "open", lambda path, *flags: opened.append(str(path)))
    with pytest.raises(Unreadable, match="not a regular file"):
        read_regular(Path(os.devnull), LIMIT)
    assert not opened


def test_a_file_that_may_not_be_read_is_listed(tmp_path, monkeypatch):
    put(tmp_path / "a.jpg")

    def refuse(path, flags):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert listed(folder(tmp_path)) == {"a.jpg": "unreadable"}


def test_a_folder_that_may_not_be_read_is_listed_by_its_place_in_the_source(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert listed(folder(tmp_path)) == {"closed": "unreadable"}


def test_a_name_that_is_no_text_is_listed_in_ascii(tmp_path):
    put(tmp_path / os.fsdecode(b"caf\xe9.jpg"))
    item = only(folder(tmp_path))
    assert item.problem.reason == "unreadable_name"
    assert item.key.isascii()


def test_a_file_is_read_to_one_byte_over_the_limit(tmp_path):
    put(tmp_path / "big.jpg", b"x" * 5000)
    assert len(only(folder(tmp_path)).data) == LIMIT + 1


def test_folders_nested_beyond_python_s_stack_are_walked(tmp_path):
    home = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        os.close(os.open("x.jpg", os.O_CREAT | os.O_WRONLY))
    finally:
        os.chdir(home)
    found = len(list(folder(tmp_path)))
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # beyond pytest's own stack as well
    assert found == 1


def test_the_fingerprint_of_a_folder_changes_with_its_files(tmp_path):
    put(tmp_path / "a.jpg")
    before = folder(tmp_path).fingerprint()
    assert folder(tmp_path).fingerprint() == before
    put(tmp_path / "b.jpg")
    assert folder(tmp_path).fingerprint() != before


@pytest.mark.parametrize(
    "config", [FolderSource(path="none"), TableSource(path="none.csv"), WebDatasetSource(path="n")]
)
def test_a_path_that_is_not_there_is_named(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=rf"source\.path '{config.path}'"):
        open_source(config, LIMIT)


def test_a_config_of_no_source_is_refused():
    with pytest.raises(TypeError, match="SourceConfig"):
        open_source(SourceConfig(name="x", path="y"), LIMIT)


@pytest.mark.parametrize("kind", [FolderSource, TableSource, WebDatasetSource])
def test_the_name_of_a_source_is_fixed(kind):
    with pytest.raises(ValueError, match=rf"source\.name is {kind.name} .*got 'foo'.*source=table"):
        kind(name="foo", path="x")


# --- table


def table(path, **values):
    return open_source(TableSource(path=str(path), **values), LIMIT)


def rows(tmp_path, *entries, name="t.jsonl"):
    for file in ("a.jpg", "b.jpg"):
        put(tmp_path / file, file.encode())
    lines = [entry if isinstance(entry, bytes) else json.dumps(entry).encode() for entry in entries]
    (tmp_path / name).write_bytes(b"\n".join(lines) + b"\n")
    return table(tmp_path / name)


def test_a_row_is_an_image_with_all_that_is_said_of_it(tmp_path):
    row = {"file": "a.jpg", "tags": ["x", "y"], "labels": ["l"], "license": "CC0", "url": "u", "title": "T", "n": 3}
    item = only(rows(tmp_path, {**row, "width": 9, "extra": {"m": [1]}}))
    assert (item.key, item.data, item.tags, item.labels) == ("a.jpg", b"a.jpg", ("x", "y"), ("l",))
    assert item.provenance == {"licence": "CC0", "source_url": "u", "title": "T"}
    assert item.extra == {"n": 3, "m": [1]}


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    assert listed(rows(tmp_path, b'\xef\xbb\xbf{"file": "a.jpg"}')) == {"a.jpg": ()}


@pytest.mark.parametrize(
    "row",
    [b"{", b"5", b"[1]", b"null", b"\xff\xfe", b'{"tags": ["x"]}', b'{"file": 5}', b'{"file": ""}', *BAD_ROWS],
    ids=lambda row: row[:12].decode("latin-1"),
)
def test_a_bad_row_is_listed_and_the_next_one_read(row, tmp_path):
    found = list(listed(rows(tmp_path, row, {"file": "b.jpg"})).values())
    assert found == ["bad_row", ()]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.jpg", "outside_folder"),
        ("sub/../../secret.jpg", "outside_folder"),
        ("/etc/hostname", "outside_folder"),
        ("a\0.jpg", "outside_folder"),
        ("way/out/secret.jpg", "outside_folder"),
        ("link.jpg", "link"),
        ("none.jpg", "missing"),
        ("way", "link"),
        (".", "outside_folder"),
        ("a.jpg/b.jpg", "unreadable"),
        ("x" * 5000, "unreadable"),
        ("\ud800.jpg", "unreadable_name"),
    ],
)
def test_a_row_never_reaches_outside_its_folder(name, reason, tmp_path):
    put(tmp_path / "secret.jpg")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "way").symlink_to(tmp_path / "elsewhere")
    put(tmp_path / "elsewhere" / "out" / "secret.jpg")
    (tmp_path / "t" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    item = only(rows(tmp_path / "t", {"file": name}))
    assert item.problem.reason == reason
    json.dumps(item.key, ensure_ascii=False).encode()


def test_images_may_lie_in_another_folder_behind_a_link(tmp_path):
    put(tmp_path / "real" / "a.jpg")
    (tmp_path / "images").symlink_to(tmp_path / "real")
    put(tmp_path / "t.jsonl", b'{"file": "a.jpg"}')
    assert listed(table(tmp_path / "t.jsonl", images=str(tmp_path / "images"))) == {"a.jpg": ()}


def test_a_csv_has_tags_in_one_column(tmp_path):
    content = '\ufefffile,tags,labels,License\na.jpg,"dog, cat,",l,MIT\nb.jpg\n'.encode()
    items = list(rows(tmp_path, content, name="t.csv"))
    assert [item.tags for item in items] == [("dog", "cat"), ()]
    assert items[0].extra == {"License": "MIT"}


def test_a_csv_row_with_too_many_or_too_large_fields_is_listed(tmp_path):
    content = b"file,tags\na.jpg,x,y,z\nb.jpg," + b"x" * 200_000 + b"\na.jpg,ok"
    assert [item.problem and item.problem.reason for item in rows(tmp_path, content, name="t.csv")] == [
        "bad_row",
        "bad_row",
        None,
    ]


def test_texts_that_are_no_unicode_are_mended(tmp_path):
    item = only(rows(tmp_path, b"file,tags,title,other\na.jpg,caf\xe9,\xff,\xfe", name="t.csv"))
    assert (item.tags, item.provenance["title"], item.extra["other"]) == (("caf\ufffd",), "\ufffd", "\ufffd")


def test_a_parquet_table_of_awkward_types_stays_within_json(tmp_path):
    put(tmp_path / "a.jpg")
    columns = {
        "file": ["a.jpg"],
        "tags": [["x", None]],
        "when": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
        "ever": pa.array([10**15], pa.timestamp("s")),
        "day": [datetime(2020, 1, 2, tzinfo=UTC).date()],
        "raw": [b"\xff\x00"],
        "price": [Decimal("1.50")],
        "nothing": [float("nan")],
        "endless": [float("inf")],
        "vector": [np.arange(2, dtype=np.float32)],
        "nested": [{"when": datetime(2020, 1, 2, tzinfo=UTC), "nan": float("nan")}],
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        "licence": [float("nan")],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    item = only(table(tmp_path / "t.parquet"))
    assert json.loads(json.dumps(item.extra, allow_nan=False)) == item.extra
    assert (item.tags, item.provenance, "nothing" in item.extra) == (("x",), {}, False)
    assert (item.extra["vector"], item.extra["price"], item.extra["raw"]) == ([0.0, 1.0], "1.50", "ff00")


def test_a_damaged_parquet_table_is_refused(tmp_path):
    put(tmp_path / "t.parquet", b"PAR1 and nothing")
    with pytest.raises(ArtifactError, match="no readable Parquet"):
        list(table(tmp_path / "t.parquet"))


def test_a_parquet_table_damaged_inside_is_refused(tmp_path):
    pq.write_table(pa.table({"file": [os.urandom(40).hex() for _ in range(500)]}), tmp_path / "t.parquet")
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[100:5000] = b"\xff" * 4900
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(ArtifactError, match="no readable Parquet"):
        list(table(tmp_path / "t.parquet"))


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"should end in \.jsonl"):
        table(put(tmp_path / "t.xlsx"))


def test_the_fingerprint_of_a_table_is_of_its_bytes(tmp_path):
    before = rows(tmp_path, {"file": "a.jpg"}).fingerprint()
    os.utime(tmp_path / "t.jsonl", (1, 1))
    assert table(tmp_path / "t.jsonl").fingerprint() == before
    assert rows(tmp_path, {"file": "b.jpg"}).fingerprint() != before


# --- columns


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        (None, ()),
        ("", ()),
        ("a, b,,c\nd", ("a", "b", "c", "d")),
        (["a,b", 5, None], ("a,b", "5")),
        (7, ("7",)),
        (float("nan"), ()),
        ([float("nan"), "x"], ("x",)),
        (["\ud800"], ("\ufffd",)),
    ],
)
def test_tags_are_a_list_or_a_separated_text(value, tags):
    assert split_tags(value, ",") == tags


def test_a_column_of_our_own_name_wins_over_its_synonyms_and_none_is_lost():
    provenance, extra = describe({"license": "one", "licence": "two", "creator": "c", "photographer": "p"}, set())
    assert provenance == {"licence": "two", "author": "c"}
    assert extra == {"license": "one", "photographer": "p"}


def test_extra_as_json_text_is_opened_and_other_text_kept():
    assert describe({"extra": '{"n": 1}'}, set())[1] == {"n": 1}
    assert describe({"extra": "note"}, set())[1] == {"extra": "note"}


def test_a_column_stands_above_the_same_name_in_extra():
    assert describe({"title": "outer", "extra": {"title": "inner"}}, set())[0] == {"title": "outer"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_whatever_is_said_can_be_written_as_json(columns):
    provenance, extra = describe(columns, set())
    json.dumps([provenance, extra], ensure_ascii=False, allow_nan=False).encode()


# --- webdataset


def shard(path, *members):
    """A tar of (name, bytes or one of tarfile's types as text) members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content.encode(), "a.jpg"
                archive.addfile(info)
    return path


def webdataset(path, **values):
    return open_source(WebDatasetSource(path=str(path), **values), LIMIT)


def test_members_of_one_name_are_one_image(tmp_path):
    sidecar = {"tags": ["x"], "labels": "l,m", "license": "CC0", "n": 1}
    shard(tmp_path / "0.tar", ("d/a.JPG", b"jpg"), ("d/a.json", json.dumps(sidecar).encode()), ("d/a.txt", b"words\n"))
    item = only(webdataset(tmp_path))
    assert (item.key, item.data, item.tags, item.labels) == ("0.tar/d/a", b"jpg", ("x",), ("l", "m"))
    assert item.provenance == {"licence": "CC0", "caption": "words"}
    assert item.extra == {"n": 1}


def test_a_text_sidecar_may_hold_the_tags(tmp_path):
    shard(tmp_path / "0.tar", ("a.png", b"png"), ("a.txt", b"dog, cat\nbig"))
    item = only(webdataset(tmp_path, tags_key="txt"))
    assert item.tags == ("dog", "cat", "big")
    assert item.provenance == {}


def test_an_img2dataset_dump_is_read(tmp_path):
    said = {"url": "u", "caption": "a dog", "key": "000", "status": "success", "error_message": None, "width": 3}
    shard(tmp_path / "0.tar", ("000.jpg", b"j"), ("000.json", json.dumps(said).encode()), ("000.txt", b"a dog"))
    item = only(webdataset(tmp_path / "*.tar", tags_key="caption", tag_separator=" "))
    assert item.tags == ("a", "dog")
    assert item.provenance == {"source_url": "u", "caption": "a dog"}
    assert item.extra == {"key": "000", "status": "success"}


def test_shards_are_read_in_order(tmp_path):
    for number in (2, 0, 1):
        shard(tmp_path / f"{number}.tar", (f"{number}.jpg", b"x"))
    assert list(listed(webdataset(tmp_path))) == ["0.tar/0", "1.tar/1", "2.tar/2"]


def test_an_empty_tar_holds_nothing(tmp_path):
    shard(tmp_path / "0.tar")
    assert list(webdataset(tmp_path)) == []


def test_an_image_larger_than_the_limit_is_read_to_one_byte_over(tmp_path):
    shard(tmp_path / "0.tar", ("a.jpg", b"x" * 10_000), ("b.jpg", b"y"))
    assert [len(item.data) for item in webdataset(tmp_path)] == [LIMIT + 1, 1]


@pytest.mark.parametrize(
    "sidecar",
    [b"{", b"[1]", b"5", b"\xff", b"[" * 100_000, b'{"d": ' + DEEP.encode() + b"}", b'{"n": ' + b"9" * 5000 + b"}"],
)
def test_a_bad_sidecar_is_listed(sidecar, tmp_path):
    shard(tmp_path / "0.tar", ("a.jpg", b"x"), ("a.json", sidecar), ("b.jpg", b"x"))
    assert listed(webdataset(tmp_path)) == {"0.tar/a": "bad_sidecar", "0.tar/b": ()}


def test_a_sidecar_without_an_image_is_listed(tmp_path):
    shard(tmp_path / "0.tar", ("a.jpg", b"x"), ("b.jpg", b"x"), ("a.json", b"{}"))
    items = list(webdataset(tmp_path))
    assert [item.problem and item.problem.reason for item in items] == [None, None, "no_image"]


def test_names_end_at_their_first_dot_as_in_webdataset(tmp_path):
    shard(tmp_path / "0.tar", *((f"holiday.{number}.jpg", b"x") for number in range(50)))
    problem = only(webdataset(tmp_path)).problem
    assert problem.reason == "no_image"
    assert len(problem.detail) < 300


def test_members_that_were_read_are_not_held(tmp_path, monkeypatch):
    shard(tmp_path / "0.tar", *((f"{number}.jpg", b"x") for number in range(50)))
    opened, most, opening = [], 0, tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda **how: opened.append(opening(**how)) or opened[0])
    for number, item in enumerate(webdataset(tmp_path)):
        assert item.key == f"0.tar/{number}"
        most = max(most, len(opened[0].members))
    assert (number, most < 3) == (49, True)


def test_links_and_devices_in_a_shard_are_listed(tmp_path):
    kinds = [kind.decode() for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)]
    shard(tmp_path / "0.tar", ("a.jpg", b"x"), *((f"{number}.jpg", kind) for number, kind in enumerate(kinds)))
    assert listed(webdataset(tmp_path)) == {
        "0.tar/a": (),
        "0.tar/0.jpg": "link",
        "0.tar/1.jpg": "link",
        "0.tar/2.jpg": "special_file",
    }


def test_a_cut_shard_gives_what_is_whole_and_is_listed(tmp_path):
    path = shard(tmp_path / "0.tar", ("a.jpg", b"x" * 90), ("b.jpg", b"y" * 90))
    for length in (1024 + 512, 1024 + 512 + 40, 1024 + 200, 1024):
        path.write_bytes(path.read_bytes()[:length])
        assert listed(webdataset(tmp_path)) == {"0.tar/a": (), "0.tar": "damaged_shard"}


def test_a_damaged_header_does_not_end_a_shard_in_silence(tmp_path):
    path = shard(tmp_path / "0.tar", ("a.jpg", b"x"), ("b.jpg", b"y"), ("c.jpg", b"z"))
    content = bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content)
    assert listed(webdataset(tmp_path)) == {"0.tar/a": (), "0.tar": "damaged_shard"}


@pytest.mark.parametrize("content", [b"", b"no tar at all", b"\x1f\x8b" + b"x" * 600])
def test_a_shard_that_is_no_tar_is_listed_and_the_next_one_read(content, tmp_path):
    put(tmp_path / "0.tar", content)
    shard(tmp_path / "1.tar", ("a.jpg", b"x"))
    assert listed(webdataset(tmp_path)) == {"0.tar": "damaged_shard", "1.tar/a": ()}


def test_names_in_a_shard_that_are_no_text_can_still_be_listed(tmp_path):
    path = shard(tmp_path / "0.tar", ("cafe.txt", b""), ("b.cafe", b""))
    content = path.read_bytes().replace(b"cafe", b"caf\xe9")
    for start in (0, 512):  # checksums of the two headers
        header = bytearray(content[start : start + 512])
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        content = content[:start] + header + content[start + 512 :]
    path.write_bytes(content)
    for item in webdataset(tmp_path):
        (item.key + item.problem.detail).encode()


def test_other_members_are_not_read(tmp_path, monkeypatch):
    shard(tmp_path / "0.tar", ("a.jpg", b"x"), *((f"a.{number}", b"y" * 90) for number in range(3)))
    read = []
    extract = tarfile.TarFile.extractfile
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda self, m: read.append(m.name) or extract(self, m))
    list(webdataset(tmp_path))
    assert read == ["a.jpg"]


def test_items_go_on_from_a_number_without_reading_what_lies_before(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
    source = open_source(FolderSource(path=str(tmp_path)), 100)
    read = []
    monkeypatch.setattr("crawl.sources.folder.read_regular", lambda path, limit: read.append(path.name) or b"x")
    assert [item.key for item in source.items(2)] == ["c"]
    assert read == ["c"]
