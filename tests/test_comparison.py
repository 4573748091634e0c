"""What a comparison finds, on evaluations written by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.artifacts import ArtifactError, Manifest, seal
from configs.compose import ConfigError, Paths, resolved
from train.compare import comparison_name
from train.comparison import (
    bands_of,
    differing_config,
    hubness,
    judge_bands,
    judge_pairs,
    means,
    movers,
    pairs_of,
    random_hubness,
)
from train.config import CompareConfig, TrainConfig
from train.systems import (
    Asked,
    Judged,
    System,
    align,
    baseline_of,
    config_difference,
    members_of,
    name_systems,
    open_systems,
    require_one_index,
    require_one_recipe,
    shared_name,
    top_lists,
)

HEAD = "question,system,tag,num_relevant,num_candidates,map,auc\n"


def manifest(**values):
    empty = {"kind": "", "schema_version": 1, "content_id": "", "recipe": "", "must_match": {}, "provenance": {}}
    return Manifest(**{**empty, "config": {}, "files": {}, "facts": {}, **values})


def run_manifest(commit="", **values):
    return manifest(config=resolved(replace(TrainConfig(), **values)), commit=commit)


def member(directory, rows, name="a", provenance=("index 1", "collection 1"), **values):
    """A run judged as `rows` say, each of (question, tag, AP) and maybe relevant images and system."""
    directory.mkdir(exist_ok=True)
    lines = [
        f"{question},{rest[1] if len(rest) > 1 else 'trained'},{tag},{rest[0] if rest else 3},10,{ap},{ap}\n"
        for question, tag, ap, *rest in rows
    ]
    (directory / "per_tag.csv").write_text(HEAD + "".join(lines))
    evaluation = manifest(provenance=dict(zip(("index", "collection"), provenance, strict=True)))
    return Judged(name, run_manifest(**values), evaluation, directory)


def gallery(**values):
    return [("gallery", tag, ap) for tag, ap in values.items()]


def asked(name="gallery", **values):
    """A question answered by systems with one row of AP a seed."""
    arrays = {system: np.atleast_2d(np.array(rows, dtype=float)) for system, rows in values.items()}
    num_tags = next(iter(arrays.values())).shape[1]
    counts = np.full(num_tags, 5)
    answers = {system: {"map": rows, "auc": rows} for system, rows in arrays.items()}
    return Asked(name, [f"tag {at}" for at in range(num_tags)], counts, answers, 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name in ("best-0", "best-1", "best-10", "other"):
        directory = root / name
        directory.mkdir()
        (directory / "towers.safetensors").write_bytes(b"")
        seal(directory, "run", config={}, files=["towers.safetensors"])
    (root / "best-2").mkdir()  # not finished
    (root / "best-2" / "towers.safetensors").write_bytes(b"")
    return Paths(runs=str(root))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("other", ["other"]),
        ("best-0+best-1", ["best-0", "best-1"]),
        ("best-*", ["best-0", "best-1", "best-10"]),
        ("best-?+other", ["best-0", "best-1", "other"]),
        ("other+o*", ["other"]),
    ],
)
def test_a_system_is_a_run_or_several_by_name_or_pattern(runs, text, named):
    assert members_of(text, runs) == named


def test_a_pattern_that_fits_nothing_names_the_runs_there_are(runs):
    with pytest.raises(ArtifactError, match=r"fits 'worst-\*'; there are best-0, best-1, best-10, other"):
        members_of("worst-*", runs)


@pytest.mark.parametrize("text", ["../elsewhere", "a+/b", "a+", ""])
def test_a_name_that_leads_elsewhere_is_refused(runs, text):
    with pytest.raises(ConfigError, match="a run must be a name"):
        members_of(text, runs)


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        (["best-0", "best-1"], "best"),
        (["seed10", "seed11"], "seed"),
        (["resnet50-0", "resnet50-1"], "resnet50"),
        (["best", "best-1"], "best"),
        (["0", "1"], "0+1"),
        (["left", "right"], "left+right"),
        (["alone-0"], "alone-0"),
    ],
)
def test_seeds_are_called_by_what_they_share(names, shared):
    assert shared_name(names) == shared


def test_only_keys_that_differ_are_told():
    configs = {"a": {"run": "a", "margin": 0.3, "backbone": {"name": "x", "width": 8}}}
    configs["b"] = {"run": "b", "margin": 0.3, "backbone": {"name": "y", "width": 8}}
    assert config_difference(configs) == {"backbone.name": {"a": "x", "b": "y"}}


def test_a_key_younger_than_a_run_stands_at_its_default():
    assert config_difference({"old": {}, "new": {"depth": TrainConfig().depth}}) == {}
    assert config_difference({"old": {}, "new": {"depth": 5}}) == {"depth": {"old": TrainConfig().depth, "new": 5}}


def test_values_of_seeds_share_a_cell(tmp_path):
    one = System("one", tuple(member(tmp_path / str(seed), [], f"one-{seed}", seed=seed) for seed in (0, 1)))
    two = System("two", (member(tmp_path / "2", [], "two", margin=0.5, commit="c" * 40),))
    assert differing_config([one, two]) == {
        "seed": {"one": "0, 1", "two": "0"},
        "margin": {"one": "0.3", "two": "0.5"},
        "commit": {"one": "", "two": "c" * 10},
    }


def test_seeds_of_one_system_may_differ_in_nothing_else():
    one, other = run_manifest(margin=0.3), run_manifest(seed=1, margin=0.5)
    with pytest.raises(ArtifactError, match=r"'s' .* s-0, s-1 have margin=0\.3, 0\.5\. .* runs=\[s-0,s-1\]"):
        require_one_recipe("s", {"s-0": one, "s-1": other})
    require_one_recipe("s", {"s-0": one, "s-1": run_manifest(seed=9, margin=0.3)})


@pytest.mark.parametrize(("other", "named"), [(("i", "c2"), "collection"), (("i2", "c"), "index")])
def test_evaluations_of_other_pictures_are_refused_with_both_named(tmp_path, other, named):
    members = [member(tmp_path / "a", [], "a", ("i", "c")), member(tmp_path / "b", [], "b", other)]
    with pytest.raises(ArtifactError, match=rf"'a' was judged on {named} {named[0]}, run 'b' on {named[0]}2: they"):
        require_one_index(members)


def test_tags_are_those_of_all_runs_and_the_others_are_counted(tmp_path):
    a = member(tmp_path / "a", gallery(cat=0.1, dog=0.2, emu=0.3))
    b = member(tmp_path / "b", gallery(dog=0.4, cat=0.5, fox=0.6))
    (found,), absent = align([System("a", (a,)), System("b", (b,))])
    assert found.tags == ["cat", "dog"]
    assert found.left_out == 2
    assert found.values["b"]["map"].tolist() == [[0.5, 0.4]]
    assert absent == {}


def test_floors_are_not_taken_for_the_run(tmp_path):
    a = member(tmp_path / "a", [*gallery(cat=0.1), ("gallery", "cat", 0.9, 3, "ridge")])
    (found,), _ = align([System("a", (a,)), System("b", (a,))])
    assert found.values["a"]["map"].tolist() == [[0.1]]


def test_a_question_is_compared_among_those_who_were_asked_it(tmp_path):
    unseen = [("unseen_tags", "yak", 0.5)]
    systems = [
        System(name, (member(tmp_path / name, gallery(cat=0.1) + (unseen if name != "a" else [])),)) for name in "abc"
    ]
    found, absent = align(systems)
    assert [each.name for each in found] == ["gallery", "unseen_tags"]
    assert list(found[1].values) == ["b", "c"]
    assert absent == {"unseen_tags": ["a"]}
    assert [each.name for each in align(systems[:2])[0]] == ["gallery"]


def test_runs_without_a_tag_in_common_cannot_be_compared(tmp_path):
    systems = [System(name, (member(tmp_path / name, gallery(**{name: 0.5})),)) for name in "ab"]
    with pytest.raises(ArtifactError, match="no tag that all these runs were judged on"):
        align(systems)


def test_another_gallery_is_refused_by_the_first_tag_that_shows_it(tmp_path):
    a = member(tmp_path / "a", [("gallery", "cat", 0.5, 3)])
    b = member(tmp_path / "b", [("gallery", "cat", 0.5, 4)])
    with pytest.raises(ArtifactError, match=r"'cat' has 3 relevant of 10 .* of a, and 4 of 10 of b: .* galleries"):
        align([System("a", (a,)), System("b", (b,))])


def test_a_damaged_table_is_named(tmp_path):
    a = member(tmp_path / "a", gallery(cat=0.5))
    (tmp_path / "a" / "per_tag.csv").write_text("nothing\n1\n")
    with pytest.raises(ArtifactError, match=r"per_tag\.csv' cannot be read .*make verify"):
        align([System("a", (a,)), System("b", (a,))])


def test_top_lists_are_the_first_lines_of_each_query(tmp_path):
    a = member(tmp_path / "a", [])
    lines = [f"{query} Q0 {query}{rank} {rank} {1 / rank} trained\n" for query in "xy" for rank in (1, 2, 3)]
    (tmp_path / "a" / "gallery.trained.run").write_text("".join(lines))
    assert top_lists(a, "gallery", 2) == {"x": ["x1", "x2"], "y": ["y1", "y2"]}


def test_each_system_meets_the_baseline_or_every_other():
    assert pairs_of(["a", "b", "c"], "b", "baseline") == [("a", "b"), ("c", "b")]
    assert pairs_of(["a", "b", "c"], "b", "all") == [("a", "b"), ("c", "b"), ("c", "a")]


def test_the_baseline_may_be_named_as_given_or_as_shown():
    cfg = CompareConfig(runs=["a", "best-*"])
    assert baseline_of(cfg, ["a", "best"]) == "a"
    assert baseline_of(replace(cfg, baseline="best-*"), ["a", "best"]) == "best"
    assert baseline_of(replace(cfg, baseline="best"), ["a", "best"]) == "best"


def test_a_baseline_that_is_not_compared_is_refused_before_anything_is_opened():
    with pytest.raises(ConfigError, match="baseline must be one of a, b, got 'worst'"):
        open_systems(CompareConfig(runs=["a", "b"], baseline="worst"))


def test_patterns_that_share_a_name_are_told_apart_by_themselves(runs):
    named = name_systems(CompareConfig(paths=runs, runs=["best-?", "best-1+best-10"]))
    assert named == {"best-?": ["best-0", "best-1"], "best-1+best-10": ["best-1", "best-10"]}
    cfg = CompareConfig(runs=["x", "y"])
    assert comparison_name(cfg, [System(name, ()) for name in named]) == "best---vs-best-1-best-10"


def test_a_question_of_one_tag_has_means_without_an_interval_and_no_verdict():
    single = asked(a=[0.1], b=[0.9])
    assert means(single)["a"]["map"]["low"] is None
    (row,) = judge_pairs([single], [("b", "a")], 100)
    assert (row["low"], row["detectable"], row["told_apart"]) == (None, None, False)


def test_means_are_over_tags_and_the_spread_over_seeds():
    found = means(asked(a=[[0.1, 0.3], [0.3, 0.5]], b=[0.2, 0.6]))
    assert found["a"]["map"]["mean"] == pytest.approx(0.3)
    assert found["a"]["map"]["spread"] == pytest.approx(0.2 / 2**0.5)  # of 0.2 and 0.4
    assert found["b"]["map"]["spread"] is None


def test_verdicts_are_corrected_for_all_that_is_shown(monkeypatch):
    monkeypatch.setattr("train.significance.SIGN_FLIPS", 100)
    gains = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]  # all of six: p is 2 in 64
    alone = judge_pairs([asked(a=[0.0] * 6, b=gains)], [("b", "a")], 200)
    assert alone[0]["corrected_p"] == pytest.approx(1 / 32)
    assert alone[0]["verdict"].startswith("better by 0.200")
    two = judge_pairs([asked(a=[0.0] * 6, b=gains), asked("labels", a=[0.0] * 6, b=gains)], [("b", "a")], 200)
    assert [row["corrected_p"] for row in two] == pytest.approx([1 / 16, 1 / 16])
    assert not any(row["told_apart"] for row in two)
    assert [row["metric"] for row in two] == ["map", "auc"]


def test_a_pair_is_not_compared_on_what_one_of_it_was_not_asked():
    rows = judge_pairs([asked(b=[0.1, 0.2], c=[0.2, 0.1])], [("b", "a"), ("c", "a"), ("c", "b")], 100)
    assert [(row["system"], row["reference"]) for row in rows] == [("c", "b")]


def test_bands_are_equally_many_tags_by_frequency():
    assert [band.tolist() for band in bands_of(np.array([5, 9, 1, 7, 5, 2]))] == [[1, 3], [0, 4], [2, 5]]
    assert [len(band) for band in bands_of(np.array([3, 2]))] == [1, 1]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=12))
def test_bands_add_up_to_the_total(tags):
    ours, theirs, frequency = (np.array(column) for column in zip(*tags, strict=True))
    rows = judge_bands(asked(a=theirs, b=ours), frequency, [("b", "a")], 100)
    assert sum(row["num_tags"] for row in rows) == len(tags)
    assert sum(row["differences"][0]["share"] for row in rows) == pytest.approx((ours - theirs).mean(), abs=1e-12)
    total = sum(row["num_tags"] * row["means"]["b"] for row in rows)
    assert total == pytest.approx(ours.sum(), abs=1e-9)


def test_a_ruined_tag_is_listed_first_among_the_lost():
    theirs, ours = np.full(20, 0.5), np.full(20, 0.5)
    ours[7], ours[3], ours[9] = 0.0, 0.4, 0.8
    found = movers(asked(a=theirs, b=ours), np.arange(20), "b", "a", 5)
    assert [row["tag"] for row in found["lost"]] == ["tag 7", "tag 3"]
    assert [row["tag"] for row in found["gained"]] == ["tag 9"]
    assert found["lost"][0]["values"] == {"a": 0.5, "b": 0.0}
    assert (found["num_gained"], found["num_lost"], found["num_equal"]) == (1, 2, 17)


def test_hub_skew_by_hand():
    # N_k over four images is 2, 1, 0, 0 with one k: mean 3/4, variance 11/16, third moment 9/32
    lists = {"x": ["p"], "y": ["p"], "z": ["q"], "not asked": ["r"]}
    found = hubness(lists, ["x", "y", "z"], gallery=4)
    assert found["skew"] == pytest.approx((9 / 32) / (11 / 16) ** 1.5)
    assert (found["never"], found["most"]) == (2, 2)


def test_lists_that_share_evenly_have_no_skew():
    assert hubness({"x": ["p"], "y": ["q"]}, ["x", "y"], gallery=2) == {"skew": 0.0, "never": 0, "most": 1}


def test_hubness_of_chance_is_that_of_lists_drawn_at_random():
    draw = np.random.default_rng(0)
    lists = {str(query): draw.choice(400, 10, replace=False).tolist() for query in range(200)}
    drawn, expected = hubness(lists, list(lists), 400), random_hubness(200, 10, 400)
    assert drawn["skew"] == pytest.approx(expected["skew"], abs=0.15)
    assert drawn["never"] == pytest.approx(expected["never"], abs=4)


def test_hubness_of_a_gallery_no_larger_than_a_list_has_no_skew():
    assert random_hubness(5, 10, 10) == {"skew": 0.0, "never": 0.0}
