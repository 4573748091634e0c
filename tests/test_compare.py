"""Comparing real runs: what is written, what is made anew, and the page in a browser."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import simplejpeg

from configs.artifacts import ArtifactError, read_manifest, verify
from configs.compose import ConfigError, Paths
from features.config import BackboneConfig
from features.pictures import thumbnail
from tests.browsing import CHROMIUM, NEEDED, QUIET
from tests.synthetic import HISTOGRAM, copy_line, evaluate_config, train_config, write_line
from tests.tiny import bury, picture
from train import plots
from train.compare import compare
from train.config import CompareConfig
from train.evaluate import evaluate
from train.fit import fit

pytestmark = pytest.mark.usefixtures("one_thread")


def compare_config(paths, *runs, **values):
    small = {"histogram": HISTOGRAM, "resamples": 200, "tags": 3, "pictures": 4}
    return CompareConfig(paths=paths, runs=list(runs), **{**small, **values})


@pytest.fixture(scope="module", autouse=True)
def few_flips():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.significance.SIGN_FLIPS", 1000)
        yield


@pytest.fixture(scope="module")
def line(tmp_path_factory, one_thread) -> Paths:
    """A line with pictures and three finished runs, of which one is not evaluated."""
    paths = write_line(tmp_path_factory.mktemp("compared"), jpeg=lambda record: picture(int(record.image_id, 16)))
    fit(train_config(paths, run="worse", max_epochs=1, learning_rate=1e-4))
    for seed in (0, 1):
        fit(train_config(paths, run=f"good-{seed}", seed=seed))
        evaluate(evaluate_config(paths, run=f"good-{seed}"))
    return paths


@pytest.fixture(scope="module")
def directory(line):
    return compare(compare_config(line, "worse", "good-*"))


@pytest.fixture(scope="module")
def found(directory):
    return json.loads((directory / "comparison.json").read_text())


@pytest.fixture(scope="module")
def html(directory):
    return (directory / "comparison.html").read_text(encoding="utf-8")


@pytest.fixture
def own(line, directory, tmp_path):
    return copy_line(line, tmp_path)


def test_the_comparison_is_a_sealed_artifact_beside_the_runs(line, directory):
    assert directory == line.run(".comparisons") / "worse-vs-good"
    assert verify(directory) == []
    assert read_manifest(directory).kind == "comparison"
    assert {path.name for path in directory.iterdir()} == {
        "comparison.json",
        "comparison.html",
        "table.txt",
        "manifest.json",
        ".lock",
    }


def test_a_run_that_was_not_evaluated_is_evaluated(line, directory):
    assert verify(line.run("worse") / "evaluation" / "test") == []


def test_training_longer_is_found_better_on_the_gallery(found):
    verdicts = {row["question"]: row for row in found["differences"]}
    assert set(verdicts) == {"gallery", "gallery_drawing", "gallery_photo", "within_tag", "labels"}
    assert verdicts["gallery"]["system"] == "good"
    assert verdicts["gallery"]["verdict"].startswith("better by 0.")
    assert verdicts["gallery"]["corrected_p"] >= verdicts["gallery"]["p"]


def test_means_are_those_of_the_evaluations(line, found):
    questions = {each["name"]: each["means"] for each in found["questions"]}
    judged = [
        json.loads((line.run(run) / "evaluation" / "test" / "metrics.json").read_text())["questions"]["gallery"]
        for run in ("good-0", "good-1")
    ]
    seeds = [each["systems"]["trained"]["map"]["mean"] for each in judged]
    assert questions["gallery"]["good"]["map"]["mean"] == pytest.approx(sum(seeds) / 2, abs=1e-6)
    assert questions["gallery"]["good"]["map"]["spread"] == pytest.approx(abs(seeds[0] - seeds[1]) / 2**0.5, abs=1e-6)


def test_only_what_differs_is_shown_of_the_configuration(found):
    assert found["config"] == {
        "seed": {"worse": "0", "good": "0, 1"},
        "learning_rate": {"worse": "0.0001", "good": "0.01"},
        "max_epochs": {"worse": "1", "good": "3"},
    }


def test_pictures_marked_as_right_carry_the_tag(line, found):
    qrels = (line.run("worse") / "evaluation" / "test" / "gallery.qrels").read_text(encoding="utf-8").splitlines()
    right = {(query, image) for query, _, image, grade in map(str.split, qrels) if grade == "1"}
    rows = found["movers"][0]["gained"]
    assert rows
    for row in rows:
        for top in (top for tops in row["top"].values() for top in tops):
            assert top["relevant"] == ((row["tag"].replace(" ", "_"), top["image_id"]) in right)


def test_the_table_says_the_verdicts(directory, found):
    table = (directory / "table.txt").read_text(encoding="utf-8")
    assert all(row["verdict"] in table for row in found["differences"])
    assert "tail" in table


def test_again_it_says_done_and_writes_nothing(line, directory, caplog):
    before = (directory / "manifest.json").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        compare(compare_config(line, "worse", "good-*"))
    assert "already done" in caplog.text
    assert "gained most" in caplog.text
    assert "class_mean" not in caplog.text  # of the evaluations' own tables
    assert (directory / "manifest.json").stat().st_mtime_ns == before


def test_equal_runs_give_an_equal_page(own, directory):
    shutil.rmtree(own.run(".comparisons"))
    again = compare(compare_config(own, "worse", "good-*"))
    assert read_manifest(again).content_id == read_manifest(directory).content_id


def test_other_options_make_it_anew(own):
    directory = compare(compare_config(own, "worse", "good-*", tags=1, pictures=0))
    assert len(json.loads((directory / "comparison.json").read_text())["movers"][0]["gained"]) == 1
    assert "data:image/jpeg" not in (directory / "comparison.html").read_text(encoding="utf-8")
    assert verify(directory) == []


def test_a_name_that_belongs_to_other_runs_is_refused(own):
    compare(compare_config(own, "worse", "good-0", name="mine", pictures=0))
    with pytest.raises(ArtifactError, match=r"compares worse, good-0 on test\. Choose another name with name="):
        compare(compare_config(own, "worse", "good-1", name="mine", pictures=0))


def test_the_other_split_goes_to_a_directory_of_its_own(own):
    directory = compare(compare_config(own, "worse", "good-0", split="val", pictures=0))
    assert directory.name == "worse-vs-good-0-val"
    assert verify(own.run("worse") / "evaluation" / "val") == []


def test_options_of_an_earlier_evaluation_are_kept(own):
    options = evaluate_config(own, run="good-0", cutoffs=[1, 2], histogram=BackboneConfig(name="none", width=3))
    before = read_manifest(evaluate(options))
    compare(compare_config(own, "worse", "good-0", pictures=0))
    assert read_manifest(own.run("good-0") / "evaluation" / "test").seal == before.seal


def test_a_picture_taken_down_is_not_shown_again(own, directory, found):
    top = found["movers"][0]["gained"][0]["top"]["good"][0]["image_id"]
    bury(own.artifact("collection"), top)
    again = compare(compare_config(own, "worse", "good-*"))
    before, after = ((each / "comparison.html").read_text(encoding="utf-8") for each in (directory, again))
    assert f"{top}: " in before
    assert f"{top}: " not in after
    assert "taken down" in after


def test_a_run_that_is_not_there_is_named_with_the_seeds_that_are(line):
    with pytest.raises(ArtifactError, match=r"make train ARGS=\"run=good\"` or compare .* good-0, good-1 .*`good\*`"):
        compare(compare_config(line, "worse", "good"))


@pytest.mark.parametrize("runs", [("worse", "worse"), ("good-*", "good-0+good-1", "good-*")])
def test_a_run_against_itself_is_refused(line, runs):
    with pytest.raises(ConfigError, match="twice"):
        compare(compare_config(line, *runs))


def test_every_pair_is_compared_where_asked(own):
    directory = compare(compare_config(own, "worse", "good-0", "good-1", pairs="all", baseline="good-0", pictures=0))
    found = json.loads((directory / "comparison.json").read_text())
    pairs = {(row["system"], row["reference"]) for row in found["differences"]}
    assert pairs == {("worse", "good-0"), ("good-1", "good-0"), ("good-1", "worse")}
    assert [each["system"] for each in found["movers"]] == ["worse", "good-1"]


def test_a_thumbnail_is_no_larger_than_asked_and_keeps_its_shape():
    small = thumbnail(picture(1, (64, 32)), 16)
    assert simplejpeg.decode_jpeg_header(small)[:2] == (8, 16)
    assert simplejpeg.decode_jpeg_header(thumbnail(picture(1, (64, 32)), 500))[:2] == (32, 64)


def test_a_picture_that_does_not_decode_is_damage():
    with pytest.raises(ArtifactError, match=r"does not decode .*make verify"):
        thumbnail(b"no jpeg", 16)


class Outline(HTMLParser):
    """Elements in order, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def test_the_page_holds_all_it_needs_and_no_script(html):
    elements = Outline(html).elements
    addresses = [each[key] for _, each in elements for key in ("src", "href") if key in each]
    assert {re.match(r"data:|#", address) is not None for address in addresses} == {True}
    assert "style" not in {key for _, each in elements for key in each}
    assert not {tag for tag, _ in elements} & {"script", "link rel=stylesheet", "iframe", "object"}
    policy = next(each["content"] for _, each in elements if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_every_id_is_there_once_and_every_reference_leads_to_one(html):
    elements = Outline(html).elements
    ids = [each["id"] for _, each in elements if "id" in each]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:href=\"|url\()#([\w-]+)", html)) <= set(ids)


def test_every_picture_says_what_it_shows_and_every_table_what_heads_it(html):
    elements = Outline(html).elements
    pictures = [each for tag, each in elements if tag == "img"]
    assert pictures
    assert all(re.match(r"(carries|does not carry) .+; tagged .+", each["alt"]) for each in pictures)
    assert {each.get("scope") for tag, each in elements if tag == "th"} == {"col", "row", "rowgroup"}


def test_hostile_names_are_shown_as_text():
    svg = plots.curves(
        [{"system": "<script>&$x$", "run": "r", "epoch": [0, 1], "val_map": [0.1, 0.2]}],
        ["<script>&$x$"],
        "val_map",
        "y",
    )
    assert "&lt;script&gt;&amp;$x$" in svg


def test_equal_values_give_equal_plots():
    row = {"mean": 0.1, "low": 0.0, "high": 0.2, "told_apart": True}
    assert plots.forest([("a", row)]) == plots.forest([("a", row)])


@pytest.fixture(scope="module")
def browser(directory):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None and not NEEDED:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *QUIET.split()])
        yield browser
        browser.close()


CONTRASTS = """() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
    }
  };
  const worst = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own) continue;
    const style = getComputedStyle(element);
    const colour = light(parse(element.closest("svg") ? style.fill : style.color));
    const [low, high] = [colour, light(ground(element))].sort((a, b) => a - b);
    worst.push([(high + 0.05) / (low + 0.05), element.textContent.trim().slice(0, 40)]);
  }
  return worst.sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_quiet_fits_its_window_and_can_be_read(browser, directory, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((directory / "comparison.html").as_uri())
    page.wait_for_load_state("load")
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].filter((img) => !img.naturalWidth).length") == 0
    contrast, text = page.evaluate(CONTRASTS)
    assert contrast >= 4.5, text
    assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") != "none"  # the style is let in
    context.close()


def test_tables_wider_than_a_phone_scroll_by_keyboard(browser, directory):
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto((directory / "comparison.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    frame = page.get_by_role("region", name="Means of every question")
    frame.focus()
    page.keyboard.press("ArrowRight")
    # Playwright's own wait is a string evaluated by the page, which the page's Content-Security-Policy forbids.
    for _ in range(100):
        if page.evaluate("document.activeElement.scrollLeft") > 0:
            break
        page.wait_for_timeout(50)
    assert page.evaluate("document.activeElement.scrollLeft") > 0
    assert page.get_by_role("rowheader", name="A, gallery", exact=True).count() > 0
    context.close()
