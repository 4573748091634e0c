"""Passes through a source: what sends a crawl through it again, what each pass adds up to, and when none is sealed."""

import json

import pytest

import crawl.collect
from configs.artifacts import ArtifactError, read_manifest, verify
from configs.compose import Paths
from crawl.account import accounts
from crawl.collect import collect
from crawl.config import CrawlConfig, GateOptions
from crawl.ingest import Reason, Refused, ingest
from crawl.shards import committed_shards
from crawl.source_config import TableSource
from tests.test_collect import Killed, dying
from tests.tiny import QuickGate, crawl_config, picture, write_tree

pytestmark = pytest.mark.usefixtures("quick_gate")
LARGE = GateOptions(min_side_px=41)  # the pictures of a tree have 40


@pytest.fixture
def tree(tmp_path):
    """Three pictures of 48 x 40, one of them twice, and a larger one."""
    root = write_tree(tmp_path / "tree", count=3)
    (root / "large.jpg").write_bytes(picture(99, (64, 56)))
    return root


def facts(directory):
    return read_manifest(directory).facts


def totals(directory):
    found = facts(directory)
    assert found["num_items"] == found["num_images"] + found["num_duplicates"] + sum(found["refused"].values())
    return found["num_items"], found["num_images"], found["num_duplicates"], found["refused"]


def judged(monkeypatch, verdict=ingest):
    """Let another gate judge, and return the list that takes in what it is given to decode."""
    seen = []

    class Watched(QuickGate):
        def map(self, blobs):
            for blob in blobs:
                seen.extend([blob] if blob else [])
                yield verdict(blob, self.options)

    monkeypatch.setattr(crawl.collect, "IsolatedGate", Watched)
    return seen


def test_wider_limits_give_what_was_refused_another_chance(tree, tmp_path):
    assert totals(collect(crawl_config(tmp_path / "d", tree, gate=LARGE))) == (5, 1, 0, {"too_small": 4})
    directory = collect(crawl_config(tmp_path / "d", tree))
    assert totals(directory) == (10, 4, 2, {"too_small": 4})
    assert verify(directory) == []


def test_known_images_are_not_decoded_again_for_other_limits(tree, tmp_path, monkeypatch):
    collect(crawl_config(tmp_path / "d", tree, gate=LARGE))
    seen = judged(monkeypatch)
    collect(crawl_config(tmp_path / "d", tree))
    assert picture(99, (64, 56)) not in seen
    assert len(seen) == 3


def test_narrower_limits_take_nothing_out(tree, tmp_path):
    collect(crawl_config(tmp_path / "d", tree))
    assert totals(collect(crawl_config(tmp_path / "d", tree, gate=LARGE))) == (10, 4, 6, {})


@pytest.mark.parametrize("change", [{"max_bytes": 10**6}, {"max_pixels": 10**6}, {"max_aspect": 9.0}])
def test_every_limit_of_acceptance_counts(change, tree, tmp_path):
    collect(crawl_config(tmp_path / "d", tree))
    assert totals(collect(crawl_config(tmp_path / "d", tree, gate=GateOptions(**change))))[0] == 10


@pytest.mark.parametrize("change", [{"timeout_s": 99.0}, {"memory_mb": 4096}])
def test_limits_of_a_worker_send_no_finished_crawl_through_again(change, tree, tmp_path, caplog):
    collect(crawl_config(tmp_path / "d", tree))
    with caplog.at_level("INFO"):
        collect(crawl_config(tmp_path / "d", tree, gate=GateOptions(**change)))
    assert "already done" in caplog.text


def late(blob, options):
    return Refused(Reason.TIMEOUT, "not done") if blob == picture(1) else ingest(blob, options)


def test_a_retry_asks_the_gate_once_more_about_what_was_refused(tree, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        judged(patch, late)
        assert totals(collect(crawl_config(tmp_path / "d", tree))) == (5, 3, 1, {"timeout": 1})
    assert "retry=true" in caplog.text
    seen = judged(monkeypatch)
    assert totals(collect(crawl_config(tmp_path / "d", tree, retry=True))) == (10, 4, 5, {"timeout": 1})
    assert seen == [picture(1)]


def test_a_retry_is_done_once_and_again_with_other_limits_of_a_worker(tree, tmp_path, caplog):
    for values in ({}, {"retry": True}):
        directory = collect(crawl_config(tmp_path / "d", tree, **values))
    with caplog.at_level("INFO"):
        collect(crawl_config(tmp_path / "d", tree, retry=True))
        collect(crawl_config(tmp_path / "d", tree))
    assert caplog.text.count("already done") == 2
    collect(crawl_config(tmp_path / "d", tree, retry=True, gate=GateOptions(timeout_s=99.0)))
    assert facts(directory)["num_items"] == 15


@pytest.mark.parametrize("again", ["this pass", "the other"])
def test_a_pass_that_was_killed_is_never_taken_for_done(again, tree, tmp_path, monkeypatch):
    """Other crawls may be sealed between, over the shards that the killed one left."""
    first = crawl_config(tmp_path / "d", tree, gate=LARGE)
    second = crawl_config(tmp_path / "d", tree, shard_size=1)
    collect(first)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dying(patch, 1, after=True)
        collect(second)
    if again == "the other":
        assert totals(collect(first))[1] == 3
    assert totals(collect(second)) == (10, 4, 2, {"too_small": 4})


def test_two_kills_with_another_crawl_sealed_between_are_accounted_for(tree, tmp_path, monkeypatch):
    first = crawl_config(tmp_path / "d", tree, gate=LARGE)
    second = crawl_config(tmp_path / "d", tree, shard_size=1)
    collect(first)
    for images in (2, 3):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            dying(patch, 0, after=True)
            collect(second)
        assert totals(collect(first))[1] == images
    assert totals(collect(second)) == (10, 4, 2, {"too_small": 4})


def test_the_last_line_tells_this_pass_from_all_of_them(tree, tmp_path, caplog):
    collect(crawl_config(tmp_path / "d", tree, gate=LARGE))
    with caplog.at_level("INFO"):
        collect(crawl_config(tmp_path / "d", tree))
    assert "10 items = 4 images + 2 duplicates + 4 refused (4 too_small)" in caplog.text
    assert "this crawl: 5 items = 3 images + 2 duplicates + 0 refused (none)" in caplog.text


def state(recipe, consumed, duplicates=0, **refused):
    return {"recipe": recipe, "consumed": consumed, "duplicates": duplicates, "refused": refused}


def test_a_crawl_is_the_sum_of_its_shards_and_stands_where_its_last_one_says():
    shards = [(state("a", 3, empty=1), 2), (state("b", 9, 2), 7), (state("a", 8, 1, empty=2), 2)]
    found = accounts(shards, finished={})
    assert found["a"] == {"num_items": 8, "num_images": 4, "num_duplicates": 1, "refused": {"empty": 3}}
    assert found["b"] == {"num_items": 9, "num_images": 7, "num_duplicates": 2, "refused": {}}


def test_what_a_crawl_read_behind_its_last_shard_counts_once_it_is_finished():
    shards = [(state("a", 2), 2)]
    assert accounts(shards, {"a": state("a", 5, 3)})["a"]["num_items"] == 5


@pytest.mark.parametrize("consumed", [2, 4])
def test_an_item_of_a_crawl_too_few_or_too_many_is_an_error(consumed):
    with pytest.raises(ArtifactError, match=rf"{consumed} items were read but 3 are accounted for"):
        accounts([(state("a", consumed, empty=1), 2), (state("b", 3), 3)], finished={})


def table(tmp_path, images, *names):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"file": name, "tags": ["x"]}) + "\n" for name in names))
    source = TableSource(path=str(path), images=str(images))
    return CrawlConfig(paths=Paths(data=str(tmp_path / "d")), source=source, workers=1)


def test_a_crawl_without_an_image_is_an_error_that_names_reasons_and_what_to_check(tree, tmp_path):
    names = [f"animal/dog/{number:03d}.jpg" for number in range(7)]
    with pytest.raises(ArtifactError) as caught:
        collect(table(tmp_path, tmp_path, *names, "../x"))
    for words in (
        "8 items",
        "7 missing, 1 outside_folder",
        "animal/dog/000.jpg: missing (no such file)",
        "source.images",
    ):
        assert words in str(caught.value)
    assert "animal/dog/006.jpg" not in str(caught.value)


def test_the_corrected_command_is_not_refused_after_a_crawl_without_an_image(tree, tmp_path):
    with pytest.raises(ArtifactError):
        collect(table(tmp_path, tmp_path, "animal/dog/000.jpg"))
    assert committed_shards(tmp_path / "d" / "collection") == []
    directory = collect(table(tmp_path, tree, "animal/dog/000.jpg"))
    assert totals(directory) == (1, 1, 0, {})


def test_a_source_that_lists_nothing_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="lists no item"):
        collect(crawl_config(tmp_path / "d", tmp_path / "empty"))
    assert read_manifest(tmp_path / "d" / "collection") is None


def test_a_second_source_without_an_image_leaves_the_collection_as_good(tree, tmp_path):
    collect(crawl_config(tmp_path / "d", tree))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    directory = collect(crawl_config(tmp_path / "d", tmp_path / "texts", append=True))
    assert totals(directory) == (6, 4, 1, {"not_an_image": 1})
