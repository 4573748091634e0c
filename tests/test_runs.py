"""A run opened with what it stands on, and searched in five lines."""

import numpy as np
import pytest
import torch

from configs.artifacts import ArtifactError
from configs.compose import Paths
from tests.synthetic import NO_VECTOR
from train.runs import open_gallery, open_run
from train.towers import embed, embed_tags

pytestmark = pytest.mark.usefixtures("one_thread")

FIVE_LINES = """
from configs.compose import Paths
from train.runs import open_gallery
gallery = open_gallery(Paths("{data}", "{runs}"), "small")
for image_id, score in gallery.search("dog", k=10):
    print(image_id, f"{{score:.3f}}")
"""


def test_five_lines_in_a_notebook_search_a_run(trained, capsys):
    exec(FIVE_LINES.format(data=trained.data, runs=trained.runs), {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    towers, _, inputs = open_run(trained, "small")
    vector = torch.from_numpy(np.array(inputs.vectors.vectors[[inputs.index.tag_row("dog")]]))
    scores = (embed_tags(towers, ["dog"], vector) @ embed(towers.image, torch.from_numpy(inputs.features)).T)[0]
    best = scores.argsort(descending=True, stable=True)[:10]
    assert printed == [[inputs.index.image_id(row), f"{scores[row]:.3f}"] for row in best]


def test_a_tag_is_normalised_as_the_index_does(trained):
    gallery = open_gallery(trained, "small")
    assert gallery.search(" Traffic_Light", k=3) == gallery.search("traffic light", k=3)


@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ("dogg", "no image is tagged 'dogg'; close to it: dog"),
        ("zzzz", "close to it: nothing"),
        (NO_VECTOR, "has no word vector"),
    ],
)
def test_a_tag_of_which_towers_know_nothing_is_named(trained, tag, told):
    with pytest.raises(ValueError, match=told):
        open_gallery(trained, "small").search(tag)


def test_a_run_that_is_not_there_is_named_with_the_command_that_makes_it(trained):
    with pytest.raises(ArtifactError, match='make train ARGS="run=none"'):
        open_gallery(Paths(trained.data, trained.runs), "none")
