"""The audit names what straddles the splits, leaves it out of val and test, and stops a training where that is much."""

import csv
import io
import itertools
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import train.audit
from configs.artifacts import ArtifactError, read_manifest, seal
from configs.compose import Paths
from configs.generations import current_generation, generations
from crawl.near_copies import THUMBNAIL_PX
from crawl.records import LEFT_OUT, TEST, TRAIN, VAL, Record, split_of
from crawl.shards import Collection, ShardWriter
from features.build_index import build
from features.config import IndexConfig, TagVectorsConfig, WordsConfig
from features.embed_tags import embed
from features.inverted_index import open_index
from tests.synthetic import (
    BACKBONE,
    copy_line,
    evaluate_config,
    records,
    store_features,
    store_thumbnails,
    train_config,
    write_synthetic_collection,
)
from tests.test_near_copies import COPIES, scene
from train.audit import Pair, audit, audited, bridges, equal_rows, left_out_rows, settle_audit
from train.config import AuditConfig
from train.evaluate import evaluate
from train.fit import fit
from train.galleries import within_tag_question
from train.runs import open_inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def jpeg_of(image, quality=92):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def group_in(split, name):
    return next(group for turn in itertools.count() if split_of(group := f"{name} {turn}") == split)


def write(directory, pictures, later=()):
    """Seal a collection of pictures: {name: (split, JPEG)}; an image_id is its place."""
    directory.mkdir(parents=True)
    writer = ShardWriter(directory, 0)
    for place, (name, (split, jpeg)) in enumerate(pictures.items()):
        writer.add_image(Record(image_id=f"{place:016x}", group=group_in(split, name), tags=("dog",)), jpeg)
    for record in later:
        writer.add_tags(record)
    writer.commit({"recipe": "by hand", "consumed": len(pictures), "duplicates": 0, "config": {}})
    names = ["00000.parquet", "00000.tar", "refused/00000.jsonl"]
    seal(directory, "collection", config={}, files=names, must_match={"gate": "g"}, facts={"num_images": len(pictures)})


def audited_pictures(root, pictures):
    """Audit pictures; return (name, other name) -> row of pairs.csv, and the names left out."""
    paths = Paths(str(root / "data"), str(root / "runs"))
    write(paths.artifact("collection"), pictures)
    build(IndexConfig(paths))
    directory = audit(AuditConfig(paths))
    names = list(pictures)
    with (directory / "pairs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    pairs = {(names[int(row["image_id"], 16)], names[int(row["other_image_id"], 16)]): row for row in rows}
    left_out = {names[int(image_id, 16)] for image_id in (directory / "left_out.txt").read_text().split()}
    return pairs, left_out


def test_planted_copies_are_all_named_and_other_pictures_are_not(tmp_path):
    pictures = {f"original {seed}": (TRAIN, jpeg_of(scene(seed))) for seed in range(20)}
    pictures |= {f"other {seed}": (TEST, jpeg_of(scene(seed))) for seed in range(20, 30)}
    changes = itertools.cycle(COPIES.items())
    planted = {}
    for seed in range(20):
        name, change = next(changes)
        planted[f"{name}, {seed}"] = f"original {seed}"
        pictures[f"{name}, {seed}"] = (VAL if seed % 2 else TEST, jpeg_of(change(scene(seed)), 85))
    pairs, left_out = audited_pictures(tmp_path, pictures)
    assert set(pairs) == set(planted.items())
    assert left_out == set(planted)
    assert {row["kind"] for row in pairs.values()} == {"near"}
    mirrored = {image for (image, _), row in pairs.items() if row["mirrored"] == "true"}
    assert mirrored == {name for name in planted if "mirrored" in name}


def sample_pictures(count):
    """Pictures of the embedded collection, every 180th, of all its kinds."""
    with tarfile.open(Path(__file__).parent.parent / "crawl" / "sample" / "00000.tar") as shard:
        names = [name for name in shard.getnames() if name.endswith(".webp")][::180][:count]
        return [Image.open(io.BytesIO(shard.extractfile(name).read())).convert("RGB") for name in names]


def crop(image, share, at):
    """Shave a share off both axes, `at` 0 from the left and top, 1 from the right and bottom."""
    cut = [round(share * side) for side in image.size]
    left, top = (round(at * each) for each in cut)
    return image.crop((left, top, image.width - cut[0] + left, image.height - cut[1] + top))


def test_copies_of_the_samples_pictures_are_all_named(tmp_path):
    originals = sample_pictures(42)
    changes = {
        "half": lambda image, at: jpeg_of(image.resize((image.width // 2, image.height // 2))),
        "q40": lambda image, at: jpeg_of(image, 40),
        "crop5": lambda image, at: jpeg_of(crop(image, 0.05, at)),
        "crop10": lambda image, at: jpeg_of(crop(image, 0.1, at)),
        "mirrored": lambda image, at: jpeg_of(ImageOps.mirror(image)),
    }
    pictures = {f"original {number}": (TRAIN, jpeg_of(image)) for number, image in enumerate(originals)}
    planted = {}
    for number, image in enumerate(originals):
        for name, change in list(changes.items())[number % 2 :: 2]:
            planted[f"{name} {number}"] = f"original {number}"
            pictures[f"{name} {number}"] = (TEST, change(image, number % 3 / 2))
    pairs, _ = audited_pictures(tmp_path, pictures)
    assert len(planted) == 105
    assert set(planted.items()) - set(pairs) == set()
    assert len(set(pairs) - set(planted.items())) <= 2  # two drawings of one kind look nearly the same


def test_equal_pixels_under_other_bytes_are_exact_copies(tmp_path):
    jpeg = jpeg_of(scene(0))
    commented = jpeg[:2] + b"\xff\xfe\x00\x07hello" + jpeg[2:]  # a comment segment
    pairs, left_out = audited_pictures(tmp_path, {"a": (TRAIN, jpeg), "b": (TEST, commented)})
    assert [(names, row["kind"], row["similarity"]) for names, row in pairs.items()] == [
        (("b", "a"), "exact", "1.0000")
    ]
    assert left_out == {"b"}


def test_flat_pictures_are_copies_of_their_like_alone(tmp_path):
    white, grey = (jpeg_of(Image.new("RGB", (64, 64), (level,) * 3)) for level in (255, 128))
    pairs, left_out = audited_pictures(tmp_path, {"a": (TRAIN, white), "b": (TEST, white), "c": (TEST, grey)})
    assert list(pairs) == [("b", "a")]
    assert left_out == {"b"}


def test_a_picture_uploaded_many_times_costs_a_pair_each_and_not_each_with_each(tmp_path):
    jpeg = jpeg_of(scene(0))
    pictures = {f"train {number}": (TRAIN, jpeg) for number in range(6)}
    pictures |= {f"test {number}": (TEST, jpeg) for number in range(6)}
    pairs, left_out = audited_pictures(tmp_path, pictures)
    assert set(pairs) == {(f"test {number}", "train 0") for number in range(6)}
    assert len(left_out) == 6


def test_copies_of_one_picture_on_the_other_side_are_left_out_with_it(tmp_path):
    changed = jpeg_of(COPIES["cropped all around"](scene(0)))
    pictures = {"a": (TRAIN, jpeg_of(scene(0))), "b": (TEST, changed), "c": (TEST, changed)}
    assert audited_pictures(tmp_path, pictures)[1] == {"b", "c"}


def near(image, other):
    return Pair(image, other, "near", 0.9)


@pytest.mark.parametrize(
    ("splits", "pairs", "expected"),
    [
        ([TRAIN, VAL, TEST], [], []),
        ([TRAIN, VAL, TEST], [near(1, 0)], [1]),
        ([TRAIN, VAL, TEST], [near(2, 0)], [2]),
        ([TRAIN, VAL, TEST], [near(1, 2)], [1]),  # of val and test, val
        ([TRAIN, VAL, TEST], [near(1, 0), near(1, 2)], [1, 2]),  # a copy of a copy
        ([TRAIN, VAL, TEST], [Pair(1, 2, "group", 1.0)], [1]),
        ([TRAIN, VAL, TEST], [Pair(2, 1, "group", 1.0)], [2]),
        ([TRAIN, VAL, TEST], [Pair(0, 2, "group", 1.0)], []),  # train keeps its side
        ([TRAIN, VAL, TEST], [Pair(1, 0, "group", 1.0), near(1, 2)], [1]),
    ],
)
def test_what_is_left_out_of_val_and_test(splits, pairs, expected):
    assert left_out_rows(pairs, np.array(splits, np.uint8)).tolist() == expected


def test_equal_thumbnails_have_the_number_of_the_first():
    thumbnails = np.zeros((4, THUMBNAIL_PX, THUMBNAIL_PX), np.float16)
    thumbnails[[1, 3], 0, 0] = 7
    assert equal_rows(thumbnails).tolist() == [0, 1, 0, 1]


def test_an_image_that_comes_again_in_a_group_of_another_split_is_a_bridge(tmp_path):
    paths = Paths(str(tmp_path))
    in_train, in_test = group_in(TRAIN, "a"), group_in(TEST, "b")
    again = [
        Record(image_id=f"{1:016x}", group=in_train),  # of test, in a's group of train
        Record(image_id=f"{1:016x}", group=in_test),
        Record(image_id=f"{0:016x}", group=group_in(TEST, "nobody's")),
    ]
    write(paths.artifact("collection"), {"a": (TRAIN, b"1"), "b": (TEST, b"2")}, later=again)
    build(IndexConfig(paths))
    found = bridges(open_index(paths)[0], Collection(paths.artifact("collection")))
    assert found == [Pair(1, 0, "group", 1.0)]


def test_an_index_that_splits_otherwise_than_by_group_is_refused(tmp_path):
    paths = Paths(str(tmp_path))
    write(paths.artifact("collection"), {"a": (TRAIN, b"1"), "b": (TEST, b"2")})
    build(IndexConfig(paths))
    wrong = open_index(paths)[0].without(np.array([1]))
    with pytest.raises(ArtifactError, match=r"splits images otherwise than by their groups\. Run `make index`"):
        bridges(wrong, Collection(paths.artifact("collection")))


@pytest.fixture
def own(line, tmp_path):
    return copy_line(Paths(line.data, str(tmp_path / "none")), tmp_path)


def plant(monkeypatch, paths, pairs):
    """Have the next audit find pairs of rows."""
    (paths.artifact("audit") / "current").unlink()
    monkeypatch.setattr(train.audit, "AUDIT_VERSION", f"planted {pairs}")
    monkeypatch.setattr(train.audit, "copies", lambda *_: pairs)


def rows_in(paths, split, count):
    return np.flatnonzero(open_index(paths)[0].splits == split)[:count].tolist()


def test_images_that_straddle_are_in_no_list_of_val_and_test_and_stay_in_train(own, monkeypatch, caplog):
    held_out = rows_in(own, VAL, 2) + rows_in(own, TEST, 1)
    plant(monkeypatch, own, [near(row, rows_in(own, TRAIN, 1)[0]) for row in held_out])
    with caplog.at_level("INFO"):
        inputs = audited(open_inputs(train_config(own)), own)
    assert "straddle the splits: 2 val images and 1 test images" in caplog.text
    before = open_index(own)[0].splits
    assert np.flatnonzero(inputs.index.splits != before).tolist() == sorted(held_out)
    assert set(inputs.index.splits[held_out]) == {LEFT_OUT}
    assert inputs.left_out == {"val": 2, "test": 1}
    for split in (VAL, TEST):
        question = within_tag_question(inputs.index, split, np.ones(inputs.index.num_tags, bool))
        assert not set(question.gallery) & set(held_out)
        for query, tag_row in enumerate(question.tag_rows):
            rows = question.gallery[question.lists[query]]
            own_rows = set(inputs.index.posting_list(tag_row))
            right = question.gallery[question.lists[query][question.relevant[query]]]
            assert set(right) == set(rows) & own_rows


def test_evaluation_says_how_many_it_leaves_out_and_judges_the_rest(own, monkeypatch):
    left_out = rows_in(own, TEST, 2)
    plant(monkeypatch, own, [near(row, rows_in(own, TRAIN, 1)[0]) for row in left_out])
    fit(train_config(own))
    directory = evaluate(evaluate_config(own))
    metrics = json.loads((directory / "metrics.json").read_text())
    assert metrics["left_out_images"] == 2
    assert metrics["questions"]["gallery"]["num_candidates"] == 58
    gone = {open_index(own)[0].image_id(row) for row in left_out}
    for path in [*directory.glob("*.run"), *directory.glob("*.qrels")]:
        assert not gone & set(path.read_text(encoding="utf-8").split())


def test_training_does_not_look_at_what_is_left_out_of_val(own, monkeypatch):
    whole = fit(train_config(own, run="whole"))
    plant(monkeypatch, own, [near(rows_in(own, VAL, 1)[0], rows_in(own, TRAIN, 1)[0])])
    audited_run = fit(train_config(own, run="audited"))
    assert read_manifest(whole).provenance.keys() ^ read_manifest(audited_run).provenance.keys() == {"left_out"}
    assert (whole / "history.csv").read_text() != (audited_run / "history.csv").read_text()


def test_a_finished_run_is_not_continued_where_the_audit_leaves_out_other_images(own, monkeypatch):
    fit(train_config(own))
    plant(monkeypatch, own, [near(rows_in(own, VAL, 1)[0], rows_in(own, TRAIN, 1)[0])])
    with pytest.raises(ArtifactError, match="the index, its audit, tag vectors or image features have changed"):
        fit(train_config(own))


def test_training_stops_where_too_much_straddles_and_names_examples_and_the_way_out(own, monkeypatch):
    train_row = rows_in(own, TRAIN, 1)[0]
    leaking = rows_in(own, TEST, 5)
    plant(monkeypatch, own, [near(row, train_row) for row in leaking])
    index = open_index(own)[0]
    example = f"{index.image_id(leaking[0])} \\(test\\) and {index.image_id(train_row)} \\(train\\), near"
    with pytest.raises(
        ArtifactError,
        match=rf"^5 of 60 test images \(8\.3%\) .*max_leakage=0\.05: {example}; .*"
        r"pairs\.csv' names all\. Give what belongs together one `group`.*max_leakage=0\.09\.",
    ):
        fit(train_config(own))
    assert not own.run("small").exists()
    fit(train_config(own, max_leakage=0.09, max_epochs=1))


def test_how_much_may_straddle_does_not_make_another_run(own):
    fit(train_config(own, max_epochs=1))
    fit(train_config(own, max_epochs=1, max_leakage=0.5))


def test_an_audit_in_force_is_taken_as_it_is_and_one_of_another_index_made_anew(own, monkeypatch):
    first, _ = settle_audit(own)
    strict = audit(AuditConfig(own, similarity=0.97))
    assert settle_audit(own)[0] == strict != first
    monkeypatch.setattr(train.audit, "open_thumbnails", None)
    assert settle_audit(own)[0] == strict  # looked at nothing
    monkeypatch.undo()
    build(IndexConfig(own, tag2picid=True))
    assert settle_audit(own)[0] == strict  # the same content
    shards = Collection(own.artifact("collection"))
    assert shards.content_id == read_manifest(strict).provenance["collection"]


def test_a_grown_collection_is_audited_anew_with_the_same_similarity(own):
    audit(AuditConfig(own, similarity=0.97))
    write_synthetic_collection(own.artifact("collection"), shards=[[*records(), Record("f" * 16, "late", ("dog",))]])
    build(IndexConfig(own))
    store_features(own, BACKBONE, noise=0.8)
    store_thumbnails(own)
    before = set(generations(own.artifact("audit")))
    directory, manifest = settle_audit(own)
    assert directory not in before
    assert manifest.config["similarity"] == 0.97
    assert current_generation(own.artifact("audit"), make="") == directory


def test_two_audits_of_one_index_are_equal(own):
    one = read_manifest(settle_audit(own)[0]).content_id
    for path in own.artifact("audit").glob("*/manifest.json"):
        path.unlink()
    (own.artifact("audit") / "current").unlink()
    assert read_manifest(settle_audit(own)[0]).content_id == one


def test_where_nothing_straddles_the_inputs_are_those_without_an_audit(line):
    inputs = open_inputs(train_config(line))
    assert audited(inputs, line) is inputs


def weights_of(paths):
    run_dir = fit(train_config(paths, max_epochs=2, tag_residual=0.5))
    return (run_dir / "towers.safetensors").read_bytes(), (run_dir / "history.csv").read_text()


def test_tags_that_only_val_and_test_have_do_not_reach_training(line, own, tmp_path):
    held_out = [
        replace(each, tags=(*each.tags, "aardvark", "violin")) if split_of(each.group) else each for each in records()
    ]
    write_synthetic_collection(own.artifact("collection"), shards=[held_out])
    build(IndexConfig(own))
    embed(TagVectorsConfig(own, WordsConfig(name="carried")))
    assert open_index(own)[0].num_tags == open_index(line)[0].num_tags + 2
    plain = copy_line(Paths(line.data, str(tmp_path / "none")), tmp_path / "plain")
    assert weights_of(own) == weights_of(plain)
