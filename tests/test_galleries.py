"""What evaluation asks, and how a ranking answers it."""

import numpy as np
import pytest

from crawl.records import TEST, TRAIN
from features.inverted_index import open_index
from tests.test_batches import ListedIndex
from train.galleries import (
    answer,
    gallery_question,
    label_question,
    mean_average_precision,
    qrels_of,
    random_answer,
    train_lists,
    within_tag_question,
)
from train.ranking import Scorer

SPLITS = [TRAIN, TEST, TEST, TEST, TRAIN, TEST, TEST, TEST]
TEST_ROWS = [1, 2, 3, 5, 6, 7]


class PlantedIndex(ListedIndex):
    """An index whose planted pairs are given."""

    def __init__(self, lists, planted=(), splits=SPLITS):
        super().__init__(lists, len(splits), splits)
        self._planted = np.array(planted, dtype=np.int32).reshape(-1, 2)

    def planted(self, split):
        return self._planted


LISTS = [{0, 1, 2, 3}, {1, 2, 3}, {4, 5, 6}, {0, 5, 6, 7}]  # tag 1 has no train image, tag 2 only two of test


def known(*rows, size=4):
    found = np.zeros(size, dtype=bool)
    found[list(rows)] = True
    return found


def test_the_gallery_asks_for_known_tags_with_three_test_and_one_train_images():
    question = gallery_question(PlantedIndex(LISTS), TEST, known(0, 1, 2, 3))
    assert question.tag_rows.tolist() == [0, 3]
    assert gallery_question(PlantedIndex(LISTS), TEST, known(3)).tag_rows.tolist() == [3]


def test_relevant_are_the_gallery_positions_of_the_images_that_carry_the_tag():
    question = gallery_question(PlantedIndex(LISTS), TEST, known(0, 3))
    assert question.gallery.tolist() == TEST_ROWS
    assert [at.tolist() for at in question.relevant] == [[0, 1, 2], [3, 4, 5]]
    assert question.candidates(1).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_gallery_of_a_kind_holds_its_images_alone():
    question = gallery_question(PlantedIndex(LISTS), TEST, known(0, 3), np.array([3, 5, 6, 7]), "gallery_photo")
    assert question.tag_rows.tolist() == [3]  # of tag 0 one image is left
    assert question.relevant[0].tolist() == [1, 2, 3]


def test_a_tag_that_the_whole_gallery_carries_is_not_asked():
    index = PlantedIndex([set(range(8)), {0, 1, 2, 3}])
    assert gallery_question(index, TEST, known(0, 1, size=2)).tag_rows.tolist() == [1]


def test_the_order_within_a_tag_is_asked_of_right_and_planted_images_alone():
    question = within_tag_question(PlantedIndex(LISTS, [(0, 6), (3, 2)]), TEST, known(0, 3))
    assert [question.gallery[at].tolist() for at in question.lists] == [[1, 2, 3, 6], [2, 5, 6, 7]]
    assert [at.tolist() for at in question.relevant] == [[0, 1, 2], [1, 2, 3]]


def test_a_tag_with_nothing_planted_is_not_asked_within():
    assert within_tag_question(PlantedIndex(LISTS, [(3, 2)]), TEST, known(0, 3)).tag_rows.tolist() == [3]


def test_nothing_planted_at_all_is_no_question():
    assert len(within_tag_question(PlantedIndex(LISTS), TEST, known(0, 3)).tag_rows) == 0


def test_planted_lists_of_a_real_index_hold_a_fifth_of_wrong_images(line):
    index = open_index(line)[0]
    question = within_tag_question(index, TEST, np.ones(index.num_tags, bool))
    for query, tag_row in enumerate(question.tag_rows):
        rows = question.gallery[question.lists[query]]
        right = np.isin(rows, index.posting_list(tag_row))
        assert np.flatnonzero(right).tolist() == question.relevant[query].tolist()
        assert (~right).sum() == -(-right.sum() // 4)


LABELS = {1: {"dog"}, 2: {"dog"}, 3: {"dog"}, 5: {"dog"}, 6: {"cat"}, 7: set()}


def label_index(tag="dog", rows=range(8)):
    index = PlantedIndex([set(rows)])
    index.tags = [tag]
    return index


def test_labels_judge_the_images_of_a_tag():
    question = label_question(label_index(), TEST, known(0, size=1), LABELS, {})
    assert question.gallery[question.lists[0]].tolist() == TEST_ROWS
    assert question.relevant[0].tolist() == [0, 1, 2, 3]


def test_a_plural_asks_for_the_label_it_is_the_plural_of():
    assert len(label_question(label_index("dogs"), TEST, known(0, size=1), LABELS, {}).tag_rows) == 0
    question = label_question(label_index("dogs"), TEST, known(0, size=1), LABELS, {"dogs": {"dog"}})
    assert question.relevant[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 1, 2, 6], [1, 2, 3, 5, 6]])
def test_a_tag_without_a_wrong_or_enough_right_or_a_train_image_is_not_judged_by_labels(rows):
    assert len(label_question(label_index(rows=rows), TEST, known(0, size=1), LABELS, {}).tag_rows) == 0


def by_rank(index, *orders):
    """A scorer that ranks gallery positions as listed, one order a query."""
    scores = np.zeros((len(orders), len(orders[0])))
    for query, order in enumerate(orders):
        scores[query, order] = np.linspace(1, 0, len(order))
    return Scorer("given", scores, np.eye(len(orders[0])))


def test_an_answer_by_hand():
    index = PlantedIndex(LISTS)
    question = gallery_question(index, TEST, known(0, 3))
    found = answer(question, by_rank(index, [0, 3, 1, 4, 5, 2], [3, 4, 5, 0, 1, 2]), index, [1, 3], depth=4)
    assert found.values["map"].tolist() == pytest.approx([(1 + 2 / 3 + 3 / 6) / 3, 1.0])
    assert found.values["auc"].tolist() == pytest.approx([5 / 9, 1.0])
    assert found.values["median_rank"].tolist() == [3, 2]
    assert found.values["recall@3"].tolist() == pytest.approx([2 / 3, 1.0])
    assert list(found.run["tag000"]) == [index.image_id(row) for row in (1, 5, 2, 6)]


def test_an_answer_within_lists_ranks_their_candidates_alone():
    index = PlantedIndex(LISTS, [(0, 6), (3, 2)])
    question = within_tag_question(index, TEST, known(0, 3))
    found = answer(question, by_rank(index, [4, 0, 1, 2, 3, 5], [3, 4, 5, 1, 0, 2]), index, [1], depth=10)
    assert found.values["auc"].tolist() == pytest.approx([0.0, 1.0])  # the planted image first, and last
    assert [len(images) for images in found.run.values()] == [4, 4]


def test_map_is_that_of_the_answer():
    index = PlantedIndex(LISTS)
    question = gallery_question(index, TEST, known(0, 3))
    scorer = by_rank(index, [0, 3, 1, 4, 5, 2], [0, 1, 2, 3, 4, 5])
    found = answer(question, scorer, index, [1], depth=10)
    assert mean_average_precision(question, scorer) == pytest.approx(found.values["map"].mean())


def test_qrels_list_wrong_images_where_asked():
    index = PlantedIndex(LISTS, [(0, 6)])
    question = within_tag_question(index, TEST, known(0))
    ids = [index.image_id(row) for row in (1, 2, 3, 6)]
    assert qrels_of(question, index) == {"tag000": dict.fromkeys(ids[:3], 1)}
    assert qrels_of(question, index, judged_wrong=True) == {"tag000": dict(zip(ids, (1, 1, 1, 0), strict=True))}


def test_chance_is_told_for_each_list():
    question = within_tag_question(PlantedIndex(LISTS, [(0, 6), (3, 2)]), TEST, known(0, 3))
    assert random_answer(question, [1])["precision@1"].tolist() == pytest.approx([0.75, 0.75])


def test_train_lists_hold_train_images_alone():
    assert [rows.tolist() for rows in train_lists(PlantedIndex(LISTS), np.array([0, 2]))] == [[0], [4]]
