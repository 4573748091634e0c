"""A run's card tells its facts, and takes up what evaluation finds."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.artifacts import read_manifest, verify
from configs.compose import Paths
from features.config import WordsConfig
from features.tag_vectors import open_words, vector_of_tag
from tests.synthetic import copy_line, evaluate_config, train_config
from train.card import CARD, _cell, model_card, write_card
from train.evaluate import evaluate
from train.fit import fit
from train.runs import open_gallery
from train.towers import embed, embed_tags, load_towers

pytestmark = pytest.mark.usefixtures("one_thread")


def card_of(run_dir):
    return (run_dir / CARD).read_text(encoding="utf-8")


def test_a_finished_run_has_a_card_of_its_facts(line):
    run_dir = fit(train_config(line, run="carded", max_epochs=1))
    text = card_of(run_dir)
    assert [head for head in re.findall(r"^#+ (.*)$", text, re.M)] == [
        "carded: two towers that rank pictures by tag", "Model", "Intended use", "Data", "Figures", "Limits", "Loading",
    ]  # fmt: skip
    for fact in (
        "`objective=hinge` (margin=0.3", "seed 0", "| train | 160 |", "| val | 60 |", "| test | 60 |", "| CC0 | 280 |",
        "left 0 images out", "table `carried`", read_manifest(run_dir).content_id[:12], "Not judged yet",
    ):  # fmt: skip
        assert fact in text
    assert verify(run_dir) == []
    assert CARD not in read_manifest(run_dir).files


def test_evaluation_adds_its_figures_to_the_card(trained):
    text = card_of(trained.run("small"))
    metrics = re.findall(r"^\| (val|test) \| gallery: .*? \| (\d+) \| ([\d.]+) \(", text, re.M)
    assert [split for split, _, _ in metrics] == ["val", "test"]
    assert "the third of tags with most pictures" in text
    assert re.search(r"stand \d+ different pictures; the one that comes most often stands there for \d+ tags", text)


def test_a_card_that_was_lost_is_written_by_the_next_start(line):
    run_dir = fit(train_config(line, run="card-lost", max_epochs=1))
    before = card_of(run_dir)
    (run_dir / CARD).unlink()
    fit(train_config(line, run="card-lost", max_epochs=1))
    assert card_of(run_dir) == before


def test_figures_of_another_run_of_that_name_are_not_told(trained, tmp_path):
    paths = copy_line(trained, tmp_path)
    for path in paths.run("small").glob("evaluation/*/manifest.json"):
        path.write_text(path.read_text().replace(read_manifest(paths.run("small")).content_id, "0" * 64))
    write_card(paths.run("small"))
    assert "Not judged yet" in card_of(paths.run("small"))


def test_a_run_older_than_cards_gets_one_that_says_so(trained):
    run = read_manifest(trained.run("small"))
    old = replace(run, facts={name: run.facts[name] for name in ("val_map", "best_epoch", "num_epochs")})
    text = model_card(old, {})
    assert "Not recorded: the run is older than its card." in text
    assert "Tags need the word vectors of its training" in text


def test_what_strangers_wrote_does_not_become_markdown():
    assert _cell("CC <b>|`x`*\n[a](b)") == "CC bx a(b)"


def snippets(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_cards_lines_run(trained, capsys):
    search, alone = snippets(card_of(trained.run("small")))
    exec(search, {})
    assert len(capsys.readouterr().out.splitlines()) == 10
    names = {"features": torch.zeros(3, 24)}
    exec(alone, names)
    assert names["embeddings"].shape == (3, 16)


def test_a_run_directory_alone_ranks_pictures_by_tag_where_words_are_carried(trained, tmp_path):
    gallery = open_gallery(trained, "small")
    (tmp_path / "towers.safetensors").write_bytes((trained.run("small") / "towers.safetensors").read_bytes())
    towers = load_towers(tmp_path / "towers.safetensors")
    vector = vector_of_tag("dog", open_words(WordsConfig("carried"), Paths(str(tmp_path))))
    found = embed_tags(towers, ["dog"], torch.from_numpy(vector)[None])[0].numpy()
    np.testing.assert_allclose(found, gallery.embed("dog"), atol=1e-6)
    images = embed(towers.image, torch.from_numpy(gallery.inputs.features[:5])).numpy()
    np.testing.assert_allclose(images, gallery.embeddings[:5], atol=1e-6)


def test_a_second_evaluation_writes_the_card_where_it_was_lost(trained, tmp_path):
    paths = copy_line(trained, tmp_path)
    (paths.run("small") / CARD).unlink()
    evaluate(evaluate_config(paths))
    assert "| test | gallery" in card_of(paths.run("small"))
