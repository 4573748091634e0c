"""What is refused after the gate: blocklisted pictures however changed, and what a classifier takes for adult."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFilter

from configs.artifacts import ArtifactError, read_manifest
from configs.compose import ConfigError, compose_typed
from crawl.collect import collect
from crawl.config import CrawlConfig, GateOptions, ScreenOptions
from crawl.ingest import Reason, Refused, ingest
from crawl.screen import Screen, main, read_blocklist
from tests.tiny import crawl_config, write_tree

pytestmark = pytest.mark.usefixtures("quick_gate")


def drawn(seed, size=(160, 120)):
    """A soft picture that no other seed gives, as an image of Pillow."""
    squares = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def jpeg(image, quality=90):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def accepted(image, quality=90):
    return ingest(jpeg(image, quality), GateOptions())


CHANGES = {
    "as it is": lambda image: accepted(image),
    "recompressed": lambda image: accepted(image, quality=40),
    "half as large": lambda image: accepted(image.resize((80, 60))),
    "brighter": lambda image: accepted(image.point(lambda value: min(255, value + 12))),
    "mirrored": lambda image: accepted(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


@pytest.fixture
def blocklist(tmp_path):
    (tmp_path / "picture.jpg").write_bytes(jpeg(drawn(1)))
    lines = []
    assert main([str(tmp_path / "picture.jpg")], lines.append) == 0
    path = tmp_path / "blocked.txt"
    path.write_text("# reported\n\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_a_blocklisted_picture_is_refused_however_it_was_changed(change, blocklist):
    screen = Screen(ScreenOptions(blocklist=str(blocklist)))
    other = accepted(drawn(2))
    first, second = screen.judge([CHANGES[change](drawn(1)), other])
    assert (first.reason, second) == (Reason.BLOCKED, other)


def test_no_other_picture_is_taken_for_a_blocklisted_one(blocklist):
    images = [accepted(drawn(seed)) for seed in range(2, 202)]
    assert Screen(ScreenOptions(blocklist=str(blocklist))).judge(images) == images


def test_a_flat_picture_has_no_hash_and_is_never_blocked(tmp_path):
    (tmp_path / "list").write_text("0" * 16 + "\n")
    grey = accepted(Image.new("RGB", (64, 64), (90, 90, 90)))
    assert Screen(ScreenOptions(blocklist=str(tmp_path / "list"))).judge([grey]) == [grey]


def test_blocked_pictures_are_counted_and_a_longer_list_goes_through_again(tmp_path, blocklist):
    tree = tmp_path / "tree"
    (tree / "soft").mkdir(parents=True)
    for seed in (1, 2):
        (tree / "soft" / f"{seed}.jpg").write_bytes(jpeg(drawn(seed)))
    cfg = crawl_config(tmp_path / "d", tree, screen=ScreenOptions(blocklist=str(blocklist), batch_size=1))
    assert read_manifest(collect(cfg)).facts["refused"] == {"blocked": 1}
    before = read_manifest(collect(cfg)).recipe
    blocklist.write_text("f" * 16 + "\n")
    assert read_manifest(collect(cfg)).recipe != before
    assert read_manifest(collect(cfg)).facts["num_images"] == 2


@pytest.mark.parametrize("line", ["123", "g" * 16, "0x" + "1" * 14 + "z"])
def test_a_line_that_is_no_hash_is_refused(line, tmp_path):
    (tmp_path / "list").write_text(line + "\n")
    with pytest.raises(ArtifactError, match="16 hex digits"):
        read_blocklist(str(tmp_path / "list"))
    with pytest.raises(ArtifactError, match="is no file"):
        read_blocklist(str(tmp_path / "none"))


def test_hashes_of_what_has_none_are_told(tmp_path, capsys):
    (tmp_path / "flat.png").write_bytes(jpeg(Image.new("RGB", (64, 64))))
    (tmp_path / "text").write_bytes(b"text")
    assert main([str(tmp_path / "flat.png"), str(tmp_path / "text")]) == 1
    told = capsys.readouterr().err
    assert "too little detail" in told
    assert "not_an_image" in told


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A tiny classifier with random weights, which tells bright pictures from dark ones by nothing but chance."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16,
        id2label={0: "normal", 1: "NSFW"}, label2id={"normal": 0, "NSFW": 1},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_refuses_what_reaches_the_threshold_and_no_other(classifier):
    images = [accepted(drawn(seed)) for seed in range(6)]
    screen = Screen(ScreenOptions(adult_model=str(classifier)))
    scores = screen._adult.scores([image.jpeg for image in images])
    assert scores == pytest.approx([screen._adult.scores([image.jpeg])[0] for image in images], abs=1e-5)
    limit = sorted(scores)[3] - 1e-6
    judged = Screen(ScreenOptions(adult_model=str(classifier), adult_threshold=limit)).judge(images)
    assert [isinstance(each, Refused) for each in judged] == [score >= limit for score in scores]
    assert {each.reason for each in judged if isinstance(each, Refused)} == {Reason.ADULT}


@pytest.mark.filterwarnings("ignore")
def test_labels_are_added_up_and_must_be_the_models(classifier):
    both = Screen(ScreenOptions(adult_model=str(classifier), adult_labels=["normal", "nsfw"]))
    assert both._adult.scores([accepted(drawn(1)).jpeg]) == pytest.approx([1.0])
    with pytest.raises(ArtifactError, match="knows no label porn, it has normal, nsfw"):
        Screen(ScreenOptions(adult_model=str(classifier), adult_labels=["porn"]))


def test_a_folder_without_weights_names_what_is_missing(tmp_path):
    with pytest.raises(ArtifactError, match=r"config\.json and model\.safetensors"):
        Screen(ScreenOptions(adult_model=str(tmp_path)))


def test_order_is_kept_whatever_the_size_of_a_batch(blocklist):
    turns = [(number, accepted(drawn(number)) if number % 3 else None) for number in range(8)]
    for size in (1, 3, 100):
        screen = Screen(ScreenOptions(blocklist=str(blocklist), batch_size=size))
        passed = list(screen.screened(iter(turns)))
        assert [entry for entry, _ in passed] == list(range(8))
        assert [number for number, outcome in passed if isinstance(outcome, Refused)] == [1]


@pytest.mark.parametrize(
    "override", ["screen.bits=13", "screen.adult_threshold=0", "screen.batch_size=0", "screen.bits=-1"]
)
def test_values_out_of_range_are_refused(override):
    with pytest.raises(ConfigError, match=r"screen"):
        compose_typed("crawl", CrawlConfig, ["source=folder", "source.path=x", override])


def test_without_options_nothing_is_asked(tmp_path):
    collect(crawl_config(tmp_path / "d", write_tree(tmp_path / "tree", count=2)))
    screen = Screen(ScreenOptions())
    assert screen.fingerprint() == []
    assert simplejpeg.is_jpeg(screen.judge([accepted(drawn(1))])[0].jpeg)
