"""Panels: the same bytes each time, the page's ink, and nothing that leads out of the file."""

import re
from xml.etree import ElementTree

import pytest

from train.panels import Line, Panel, svg
from train.plots import SERIES

PANELS = [
    Panel("left", "k", "mAP", [Line("a", [1, 10], [0.2, 0.4]), Line("a", [1], [0.2], [0.1], [0.3])], log_x=True),
    Panel("right", "score", "share", [Line("b < c", [0, 1], [0, 1])], diagonal=True),
]


@pytest.fixture(scope="module")
def drawn():
    return svg(PANELS, "curves", 'curves of "a" & b')


def test_it_is_one_svg_element_with_its_title(drawn):
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == 'curves of "a" & b'


def test_the_same_panels_give_the_same_bytes(drawn):
    assert svg(PANELS, "curves", 'curves of "a" & b') == drawn


def test_ink_is_that_of_the_page_and_the_ground_is_left_free(drawn):
    assert "currentColor" in drawn
    assert set(re.findall(r"#[0-9a-f]{6}", drawn)) == {*SERIES[:2], "#1a1a1a", "#e8e8e8"}


def test_every_system_is_named_once_in_text(drawn):
    texts = [each.text for each in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("a") == texts.count("b < c") == 1


def test_it_asks_no_other_host(drawn):
    outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", drawn)
    assert "http" not in outside
    assert "<script" not in outside
