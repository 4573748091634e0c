"""The Makefile: what is typed reaches the stages as it was typed."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs.compose import ConfigError
from features.__main__ import commands

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def dry(*arguments):
    command = ["make", "--no-print-directory", "-n", "-o", ".venv/.ready", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("crawl", "crawl.collect"),
        ("features", "features"),
        ("train", "train.fit"),
        ("sweep", "train.sweep"),
        ("reproduce", "train.results"),
        ("serve", "serve"),
    ],
)
def test_overrides_with_blanks_and_quotes_arrive_whole(target, module):
    _, out, _ = dry(target, "ARGS=paths.data=\"my data\" run='a b'")
    words = shlex.split(out)
    assert module in words
    assert words[-2:] == ["paths.data=my data", "run=a b"]


def test_help_lists_every_target_with_its_comment():
    _, out, _ = dry("help")
    printed = subprocess.run(["sh", "-c", out], cwd=ROOT, capture_output=True, text=True).stdout
    targets = [
        line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ": " in line and "## " in line
    ]
    assert [line.split()[1] for line in printed.splitlines()] == targets


def test_the_sample_takes_no_overrides():
    status, _, err = dry("-W", "Makefile", "-B", "sample", "ARGS=seed=3")
    assert status != 0
    assert "take no ARGS" in err


def test_overrides_of_all_features_go_to_the_stages_that_have_them():
    routed = commands(["paths.data=d", "words=word2vec", "tag2picid=true", "backbone=resnet50_v2", "batch_size=8"])
    assert routed == [
        ["features.build_index", "paths.data=d", "tag2picid=true"],
        ["features.embed_tags", "paths.data=d", "words=word2vec"],
        ["features.extract", "paths.data=d", "backbone=resnet50_v2", "batch_size=8"],
        ["features.extract", "backbone=color_histogram", "paths.data=d", "batch_size=8"],
    ]


def test_principal_components_are_made_where_they_are_asked_for():
    routed = commands(["paths.data=d", "pca=256", "backbone=resnet50", "precision=bf16", "judged_images=500"])
    assert routed == [
        ["features.build_index", "paths.data=d"],
        ["features.embed_tags", "paths.data=d"],
        ["features.extract", "paths.data=d", "backbone=resnet50", "precision=bf16"],
        ["features.extract", "backbone=color_histogram", "paths.data=d"],
        ["features.reduce", "paths.data=d", "pca=256", "backbone=resnet50", "precision=bf16", "judged_images=500"],
    ]


def test_histograms_are_always_torchs_and_pca_0_reduces_nothing():
    routed = commands(["runtime=openvino", "pca=0"])
    assert [module for module, *_ in routed] == [
        "features.build_index",
        "features.embed_tags",
        *["features.extract"] * 2,
    ]
    assert routed[2:] == [["features.extract", "runtime=openvino"], ["features.extract", "backbone=color_histogram"]]


def test_what_only_the_reduction_has_is_refused_without_one():
    with pytest.raises(ConfigError, match="judged_images=500"):
        commands(["judged_images=500"])


def test_an_override_that_no_feature_stage_has_is_refused_before_any_work():
    with pytest.raises(ConfigError, match=r"margin=0\.3"):
        commands(["margin=0.3", "batch_size=8"])


def test_overrides_of_all_features_may_come_from_a_file(tmp_path):
    (tmp_path / "o").write_text("words=carried\n")
    done = subprocess.run(
        [sys.executable, "-m", "features", f"@{tmp_path / 'o'}", "nonsense=1"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "nonsense=1" in done.stderr
    assert "words" not in done.stderr
