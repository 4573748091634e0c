"""The objectives against loops written from their formulas."""

import pytest
import torch

from train.config import OBJECTIVES, TrainConfig
from train.objectives import open_objective
from train.objectives.hinge import hinge_loss
from train.objectives.hinge_means import hinge_means_loss
from train.objectives.hinge_random import hinge_random_loss

pytestmark = pytest.mark.usefixtures("one_thread")
MARGIN = 0.3


def some_scores(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1


def some_relevance(size, share, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(size, size, generator=generator) < share) | torch.eye(size, dtype=torch.bool)


def slow_hinge(scores, relevant, margin):
    size, total = len(scores), 0.0
    for i in range(size):
        for j in range(size):
            if not relevant[i, j]:
                total += max(0.0, margin + float(scores[i, j]) - float(scores[i, i]))  # image j for tag i
            if not relevant[j, i]:
                total += max(0.0, margin + float(scores[j, i]) - float(scores[i, i]))  # tag j for image i
    return total / (2 * size)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_hinge_equals_a_loop_over_all_pairs(share, seed):
    scores, relevant = some_scores(9, 9, seed), some_relevance(9, share, seed + 10)
    assert hinge_loss(scores, relevant, MARGIN).item() == pytest.approx(slow_hinge(scores, relevant, MARGIN))


def test_hinge_by_hand():
    scores = torch.tensor([[0.5, 0.4], [0.1, 0.9]])
    # tag 0: 0.3 + 0.4 - 0.5 = 0.2; tag 1: none; image 0: none; image 1: none
    assert hinge_loss(scores, torch.eye(2, dtype=torch.bool), MARGIN).item() == pytest.approx(0.2 / 4)


def test_image_that_also_carries_the_tag_is_not_a_negative():
    scores = torch.tensor([[0.5, 0.9], [0.0, 0.5]])
    shared = torch.tensor([[True, True], [False, True]])
    assert hinge_loss(scores, shared, 0.2) == 0
    assert hinge_loss(scores, torch.eye(2, dtype=torch.bool), 0.2) > 0


def test_a_tag_repeated_in_a_batch_adds_no_violation():
    # pairs (dog, a), (dog, b), (cat, c): rows 0 and 1 are one tag, and both a and b carry it
    scores = torch.tensor([[0.2, 0.8, 0.1], [0.2, 0.8, 0.1], [0.3, 0.0, 0.6]])
    relevant = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    # dog, a: 0.3 + 0.1 - 0.2 = 0.2 by c; dog, b and cat: none. image a: 0.3 + 0.3 - 0.2 = 0.4 by cat; b, c: none
    assert hinge_loss(scores, relevant, MARGIN).item() == pytest.approx((0.2 / 3 + 0.4 / 3) / 2)


def test_the_gradient_of_hinge_is_that_of_its_formula():
    scores = some_scores(5, 5).requires_grad_()
    relevant = some_relevance(5, 0.3)
    assert torch.autograd.gradcheck(lambda s: hinge_loss(s, relevant, MARGIN), scores)


def test_masked_pairs_get_no_gradient():
    scores = some_scores(4, 4).requires_grad_()
    relevant = some_relevance(4, 0.5)
    hinge_loss(scores, relevant, 1.9).backward()
    off_diagonal = relevant & ~torch.eye(4, dtype=torch.bool)
    assert (scores.grad[off_diagonal] == 0).all()


def test_hinge_random_with_one_choice_is_the_hinge_of_that_choice():
    scores = torch.tensor([[0.5, 0.4], [0.9, 0.7]], dtype=torch.float64)
    loss = hinge_random_loss(scores, torch.eye(2, dtype=torch.bool), MARGIN)
    assert loss.item() == pytest.approx((0.2 + 0.5) / 2)


def test_hinge_random_is_zero_where_every_image_carries_every_tag():
    scores = some_scores(3, 3).requires_grad_()
    loss = hinge_random_loss(scores, torch.ones(3, 3, dtype=torch.bool), MARGIN)
    loss.backward()
    assert loss == 0
    assert (scores.grad == 0).all()


def test_hinge_random_leaves_pairs_without_a_negative_out_of_the_mean():
    scores = torch.tensor([[0.5, 0.4], [0.9, 0.7]])
    relevant = torch.tensor([[True, False], [True, True]])
    assert hinge_random_loss(scores, relevant, MARGIN).item() == pytest.approx(0.2)


def drawn_images(relevant, draws):
    """Draw for tag 0 and count which image was taken, told apart by its score."""
    torch.manual_seed(0)
    size = len(relevant)
    scores = torch.zeros(size, size, dtype=torch.float64)
    scores[0] = torch.arange(size) / 100
    scores[0, 0] = 0
    only_tag_0 = torch.ones_like(relevant)
    only_tag_0[0] = relevant[0]
    losses = torch.stack([hinge_random_loss(scores, only_tag_0, 1.0) for _ in range(draws)])
    return torch.bincount(((losses - 1) * 100).round().long(), minlength=size)


def test_hinge_random_draws_irrelevant_images_alone():
    relevant = torch.eye(6, dtype=torch.bool)
    relevant[0, 2] = relevant[0, 4] = True
    assert drawn_images(relevant, 300)[[0, 2, 4]].tolist() == [0, 0, 0]


def test_hinge_random_draws_uniformly():
    counts = drawn_images(torch.eye(6, dtype=torch.bool), 2000)[1:].double()
    chi_square = ((counts - 400).square() / 400).sum()
    assert chi_square < 18.5  # 4 degrees of freedom, one in a thousand


def test_the_gradient_of_hinge_random_is_that_of_its_formula():
    scores, relevant = some_scores(5, 5).requires_grad_(), some_relevance(5, 0.3)

    def loss(scores):
        torch.manual_seed(3)
        return hinge_random_loss(scores, relevant, MARGIN)

    assert torch.autograd.gradcheck(loss, scores)


def test_hinge_means_compares_the_means_of_right_and_wrong():
    scores = torch.tensor([[0.9, 0.0, 0.4, 0.0], [0.0, 0.1, 0.0, 0.6]])  # right 0.9, 0.1; fixed wrong 0.4, 0.6
    assert hinge_means_loss(scores, MARGIN).item() == pytest.approx(0.3 - 0.5 + 0.5)


def test_in_hinge_means_an_easy_pair_hides_a_bad_one():
    scores = torch.tensor([[0.9, 0.0, -0.9, 0.0], [0.0, -0.1, 0.0, 0.1]])
    assert hinge_means_loss(scores, MARGIN) == 0


def test_the_gradient_of_hinge_means_is_that_of_its_formula():
    scores = some_scores(4, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: hinge_means_loss(s, 1.5), scores)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_of_the_config_opens_with_its_margin(name):
    objective = open_objective(TrainConfig(objective=name, margin=0.7))
    scores = torch.zeros(3, 6 if objective.fixed_wrong else 3)
    relevant = torch.eye(3, dtype=torch.bool)
    per_negative = 2 if name == "hinge" else 1  # two negatives a pair where all count
    assert objective.loss(scores, relevant).item() == pytest.approx(0.7 * per_negative)
