"""Word vectors of the collection's own: from the train split alone, the same each time, kept once trained."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.artifacts import ArtifactError, read_manifest, verify
from configs.compose import Paths
from crawl.records import TEST, TRAIN, VAL
from features.build_index import build
from features.config import IndexConfig, TagVectorsConfig, WordsConfig
from features.embed_tags import embed
from features.tag_vectors import open_words, vector_of_tag
from features.train_words import sentence, words_of
from tests.synthetic import group_of
from tests.tiny import bury, tagged, write_collection

ROOT = Path(__file__).resolve().parent.parent
THEMES = (
    ("собака", "кошка", "животное", "лапа", "шерсть", "хвост", "лошадь", "корова"),
    ("東京", "大阪", "日本", "寺", "駅", "桜", "富士山", "京都"),
    ("بحر", "سمك", "ماء", "قارب", "رمل", "موج", "ميناء", "جزيرة"),
)
KNOBS = {"dim": 16, "epochs": 100}


def record(number, *tags, split=TRAIN, **texts):
    return replace(tagged(number, *tags, group=group_of(split, number)), **texts)


def themed(count=300):
    """Images of three themes in three scripts; each has four of its theme's eight tags."""
    rng = np.random.default_rng(0)
    for number in range(count):
        yield record(number, *rng.choice(THEMES[number % 3], size=4, replace=False).tolist())


RECORDS = [
    *themed(),
    *(record(400 + number, "собака", "полярный медведь", title="Белый_медведь") for number in range(5)),
    *(record(500 + number, "собака", "kept secret", split=split) for number, split in enumerate([VAL, TEST] * 5)),
    record(600, "собака", "once"),
]


def lay(root, records=RECORDS):
    paths = Paths(data=str(root))
    write_collection(paths.artifact("collection"), records)
    build(IndexConfig(paths=paths))
    return paths


def config(paths, retrain=False, **knobs):
    return TagVectorsConfig(paths=paths, words=WordsConfig(name="train", **{**KNOBS, **knobs}), retrain=retrain)


def tables(paths):
    return sorted(path.parent for path in paths.artifact("words").glob("*/*/manifest.json"))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    paths = lay(tmp_path_factory.mktemp("words"))
    embed(config(paths))
    return paths


@pytest.fixture
def paths(tmp_path):
    return lay(tmp_path)


def cosine(words, one, two):
    return float(vector_of_tag(one, words) @ vector_of_tag(two, words))


@pytest.mark.parametrize("theme", range(3))
def test_tags_of_any_script_get_vectors_that_tell_what_they_stand_beside(theme, embedded):
    words = open_words(config(embedded).words, embedded)
    one, *same = THEMES[theme]
    assert min(cosine(words, one, tag) for tag in same) > max(cosine(words, one, tag) for tag in THEMES[theme - 1])


def test_a_word_of_the_held_out_splits_alone_gets_no_vector(embedded):
    words = open_words(config(embedded).words, embedded)
    assert [words.vector(word) for word in ("kept_secret", "kept", "secret")] == [None] * 3


def test_a_phrase_has_a_vector_of_its_own_and_so_have_its_parts_and_the_words_of_titles(embedded):
    words = open_words(config(embedded).words, embedded)
    assert {
        word for word in ("полярный_медведь", "полярный", "медведь", "белый") if words.vector(word) is None
    } == set()


def test_the_table_is_an_artifact_that_keeps_no_sentences(embedded):
    (table,) = tables(embedded)
    assert verify(table) == []
    assert not (table / "sentences.txt").exists()
    assert read_manifest(table).facts["num_sentences"] == 306


def test_little_to_learn_from_is_said(paths, caplog):
    embed(config(paths))
    assert "words of 306 sentences is little for word2vec" in caplog.text


def test_training_again_gives_the_same_bytes_in_a_process_that_hashes_otherwise(embedded, tmp_path):
    paths = lay(tmp_path)
    knobs = [f"words.{knob}={value}" for knob, value in KNOBS.items()]
    command = [sys.executable, "-m", "features.embed_tags", "words=train", *knobs, f"paths.data={paths.data}"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True, capture_output=True)
    assert [table.name for table in tables(paths)] == [table.name for table in tables(embedded)]


def test_a_training_that_was_stopped_ends_the_same(embedded, paths, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("features.train_words.seal_table", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        embed(config(paths))
    embed(config(paths))
    assert [table.name for table in tables(paths)] == [table.name for table in tables(embedded)]
    assert len(list(paths.artifact("words").glob("*/*"))) == 2  # the generation and `current`


def grow(paths):
    write_collection(paths.artifact("collection"), [*RECORDS, *(record(700 + each, "новый") for each in range(3))])
    build(IndexConfig(paths=paths))


def test_a_trained_table_is_kept_while_the_index_grows(paths, caplog):
    first = read_manifest(embed(config(paths))).must_match
    grow(paths)
    with caplog.at_level("INFO"):
        second = read_manifest(embed(config(paths)))
    assert second.must_match == first
    assert "trained words are kept" in caplog.text
    assert "retrain=true trains anew" in caplog.text
    assert len(tables(paths)) == 1


def test_a_table_is_trained_anew_where_asked_and_kept_from_then_on(paths):
    first = read_manifest(embed(config(paths))).must_match
    grow(paths)
    second = read_manifest(embed(config(paths, retrain=True))).must_match
    assert second["word_space"] != first["word_space"]
    assert open_words(config(paths).words, paths).vector("новый") is not None
    assert read_manifest(embed(config(paths))).must_match == second


def test_training_anew_on_the_same_index_is_done_already(paths, caplog):
    embed(config(paths))
    with caplog.at_level("INFO"):
        embed(config(paths, retrain=True))
    assert "already trained" in caplog.text
    assert len(tables(paths)) == 1


def test_other_knobs_are_another_table(paths):
    embed(config(paths))
    embed(config(paths, min_count=2))
    assert open_words(config(paths, min_count=2).words, paths).vector("once") is None
    assert open_words(config(paths).words, paths).vector("once") is not None


def test_a_table_is_never_trained_in_passing(paths):
    with pytest.raises(ArtifactError, match=r'make tag_vectors ARGS="words=train"'):
        open_words(config(paths).words, paths)


def test_an_image_that_was_taken_down_teaches_nothing(paths):
    bury(paths.artifact("collection"), *(f"{400 + number:016x}" for number in range(5)))
    embed(config(paths))
    assert open_words(config(paths).words, paths).vector("белый") is None


def test_a_collection_of_too_rare_words_is_refused(paths):
    with pytest.raises(ArtifactError, match=r"no word occurs words\.min_count=1000 times"):
        embed(config(paths, min_count=1000))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Green heart, 2nd_try!", ["green", "heart", "2nd", "try"]),
        ("हिन्दी की किताब", ["हिन्दी", "की", "किताब"]),
        ("白い猫。東京タワー", ["白い猫", "東京タワー"]),
        ("می\u200cخواهم \uff21BC", ["میخواهم", "abc"]),  # noqa: RUF001
        ("\u00ad -- \ud83d", []),
        ("", []),
    ],
)
def test_text_of_any_script_is_cut_into_words_as_tags_are_spelt(text, words):
    assert words_of(text) == words


def test_a_sentence_is_a_set_of_whole_tags_their_parts_and_words():
    assert sentence(["t-shirt", "polar bear"], ["A bear", "bear"]) == [
        *("a", "bear", "polar", "polar_bear", "shirt", "t", "t-shirt")
    ]
