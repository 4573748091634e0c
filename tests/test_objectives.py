"""The objectives against loops written from their formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import train.objectives.base
from train.batches import Batch
from train.config import OBJECTIVES, TrainConfig
from train.masks import Mask
from train.objectives import open_objective
from train.objectives.base import BLOCKED, keep_hardest
from train.objectives.hinge_means import hinge_means_loss
from train.objectives.infonce import infonce_losses
from train.objectives.warp import warp_losses

pytestmark = pytest.mark.usefixtures("one_thread")
MARGIN = 0.3


def some_scores(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1


def some_relevance(size, share, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(size, size, generator=generator) < share) | torch.eye(size, dtype=torch.bool)


def mask_of(table):
    """The mask that has a table."""
    rows = torch.arange(len(table))
    return Mask(rows, torch.where(table.T, rows, len(table)), len(table))


def batch_of(relevant, blocked=None, weights=None, epoch=9):
    tags, images = (torch.arange(size) for size in relevant.shape)
    blocked = relevant if blocked is None else blocked
    none = torch.tensor(0.0)
    return Batch(epoch, tags, images, images[:, None], weights, none, mask_of(relevant), mask_of(blocked))


def opened(name, prior=(0.5, 0.5, 0.5), **knobs):
    return open_objective(TrainConfig(objective=name, **knobs), np.array(prior)).double()


def loss_of(objective, scores, batch):
    """The loss of a table of scores: those of its rows as embeddings of tags with one image an axis."""
    return objective(scores, torch.eye(scores.shape[1], dtype=scores.dtype), batch)


def hinge_loss(scores, relevant, margin):
    return loss_of(opened("hinge", margin=margin), scores, batch_of(relevant))


def hinge_random_loss(scores, relevant, margin):
    return loss_of(opened("hinge_random", margin=margin), scores, batch_of(relevant))


def barrier_of(blocked):
    return torch.where(blocked, BLOCKED, 0.0).double()


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
    batch = batch_of(torch.zeros(2, 4).bool())
    assert loss_of(opened("hinge_means"), scores, batch).item() == pytest.approx(0.3 - 0.5 + 0.5)


def test_in_hinge_means_an_easy_pair_hides_a_bad_one():
    assert hinge_means_loss(torch.tensor([0.9, -0.1]), torch.tensor([-0.9, 0.1]), MARGIN) == 0


def test_the_gradient_of_hinge_means_is_that_of_its_formula():
    right, wrong = (some_scores(1, 4, seed)[0].requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda *scores: hinge_means_loss(*scores, 1.5), (right, wrong))


def some_batch(size=7, seed=0, epoch=9):
    """Scores and a batch with related pictures, which are neither right nor wrong, and with weights."""
    relevant = some_relevance(size, 0.2, seed + 1)
    weights = torch.rand(size, generator=torch.Generator().manual_seed(seed)).double() + 0.5
    blocked = relevant | some_relevance(size, 0.2, seed + 2)
    return some_scores(size, size, seed), batch_of(relevant, blocked, weights, epoch)


def negatives_of(scores, blocked, i, share=1.0):
    """Columns of row i's negatives, the hardest share of them."""
    found = [j for j in range(len(scores)) if not blocked[i, j]]
    hardest = sorted(found, key=lambda j: (-float(scores[i, j]), j))
    return hardest[: max(1, round(share * len(found)))]


def slow_both_ways(of_row, scores, batch):
    """Mean of a loss of a row over rows and columns, each times its weight."""
    size, relevant, blocked = len(scores), batch.relevant.table(), batch.blocked.table()
    ways = [(scores, relevant, blocked), (scores.T, relevant.T, blocked.T)]
    each = [float(batch.weights[i]) * of_row(*way, i) for way in ways for i in range(size)]
    return sum(each) / (2 * size)


def violation(scores, i, j):
    return max(0.0, MARGIN + float(scores[i, j]) - float(scores[i, i]))


def slow_hinge_row(share):
    return lambda s, relevant, blocked, i: sum(violation(s, i, j) for j in negatives_of(s, blocked, i, share))


def slow_hardest_row(s, relevant, blocked, i):
    return max((violation(s, i, j) for j in negatives_of(s, blocked, i)), default=0.0)


def slow_infonce_row(temperature, share):
    def of_row(s, relevant, blocked, i):
        wrong = sum(math.exp(float(s[i, j]) / temperature) for j in negatives_of(s, blocked, i, share))
        right = [math.exp(float(s[i, j]) / temperature) for j in range(len(s)) if relevant[i, j]]
        return sum(-math.log(each / (each + wrong)) for each in right) / len(right)

    return of_row


def slow_sigmoid(scores, batch, scale, bias, share):
    total, relevant = 0.0, batch.relevant.table()
    for i in range(len(scores)):
        hard = negatives_of(scores, batch.blocked.table(), i, share)
        for j in range(len(scores)):
            sign = 1 if relevant[i, j] else -1
            if relevant[i, j] or j in hard:
                logit = scale * float(scores[i, j]) + bias
                total += float(batch.weights[i]) * math.log(1 + math.exp(-sign * logit))
    return total / len(scores)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_hinge_with_weights_and_a_share_of_hard_negatives_equals_a_loop(share, seed):
    scores, batch = some_batch(seed=seed)
    loss = loss_of(opened("hinge", hard_negative_share=share), scores, batch)
    assert loss.item() == pytest.approx(slow_both_ways(slow_hinge_row(share), scores, batch))


@pytest.mark.parametrize("seed", range(3))
def test_hinge_hardest_equals_a_loop(seed):
    scores, batch = some_batch(seed=seed)
    expected = slow_both_ways(slow_hardest_row, scores, batch)
    assert loss_of(opened("hinge_hardest"), scores, batch).item() == pytest.approx(expected)


@pytest.mark.parametrize(("epoch", "hardest"), [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)])
def test_hinge_hardest_warms_up_from_the_sum(epoch, hardest):
    scores, batch = some_batch(epoch=epoch)
    expected = hardest * slow_both_ways(slow_hardest_row, scores, batch)
    expected += (1 - hardest) * slow_both_ways(slow_hinge_row(1.0), scores, batch)
    assert loss_of(opened("hinge_hardest", warmup_epochs=4), scores, batch).item() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_infonce_equals_a_loop(share, seed):
    scores, batch = some_batch(seed=seed)
    loss = loss_of(opened("infonce", temperature=0.2, hard_negative_share=share), scores, batch)
    assert loss.item() == pytest.approx(slow_both_ways(slow_infonce_row(0.2, share), scores, batch))


def test_infonce_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0, 5.0]]).log1p()  # weights 3, 2, 1 and 6
    relevant = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    blocked = torch.tensor([[True, True, False, True]])  # the last is a related picture
    expected = -(math.log(3 / 4) + math.log(2 / 3)) / 2  # each positive beside the one negative
    assert infonce_losses(logits, relevant, barrier_of(blocked)).item() == pytest.approx(expected)


def test_in_infonce_no_positive_counts_as_wrong():
    scores, batch = some_batch()
    scores.requires_grad_()
    loss_of(opened("infonce"), scores, batch).backward()
    assert (scores.grad[batch.relevant.table()] < 0).all()  # a higher score of any of them is better


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_sigmoid_equals_a_loop(share, seed):
    scores, batch = some_batch(seed=seed)
    objective = opened("sigmoid", temperature=0.25, hard_negative_share=share)
    expected = slow_sigmoid(scores, batch, scale=4.0, bias=-10.0, share=share)
    assert loss_of(objective, scores, batch).item() == pytest.approx(expected)


def slow_warp_losses(scores, blocked, order):
    losses = []
    for i in range(len(scores)):
        negatives = sorted(negatives_of(scores, blocked, i), key=lambda j: float(order[i, j]))
        loss = 0.0
        for tried, j in enumerate(negatives, start=1):
            if violation(scores, i, j) > 0:
                rank = len(negatives) // tried
                loss = sum(1 / k for k in range(1, rank + 1)) * violation(scores, i, j)
                break
        losses.append(loss)
    return losses


@pytest.mark.parametrize("seed", range(5))
def test_warp_equals_trying_one_negative_after_the_other(seed):
    scores, batch = some_batch(size=9, seed=seed)
    order = torch.rand(9, 9, generator=torch.Generator().manual_seed(seed))
    blocked = batch.blocked.table()
    losses = warp_losses(scores, scores.diagonal(), barrier_of(blocked), order, MARGIN)
    assert losses.tolist() == pytest.approx(slow_warp_losses(scores, blocked, order))


def test_warp_by_hand():
    scores = torch.tensor([[0.5, 0.0, 0.4, 0.6], [0, 0.5, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 0.5]])
    order = torch.tensor([[0.9, 0.1, 0.2, 0.3]]).expand(4, 4)
    losses = warp_losses(scores, scores.diagonal(), barrier_of(torch.eye(4).bool()), order, MARGIN)
    # tag 0: image 1 keeps the margin, image 2, the second of three tried, misses it by 0.2; rank 3 // 2 = 1, weight 1
    assert losses.tolist() == pytest.approx([0.2, 0, 0, 0])


def test_a_positive_far_down_weighs_more_in_warp_than_one_near_the_top():
    far = torch.tensor([[0.0, 0.5, 0.5, 0.5]]).expand(4, 4)
    order = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    loss = warp_losses(far, far.diagonal(), barrier_of(torch.eye(4).bool()), order, MARGIN)[0]
    assert loss.item() == pytest.approx((1 + 1 / 2 + 1 / 3) * 0.8)  # the first tried misses it: rank 3


def test_warp_is_zero_where_every_image_carries_every_tag():
    scores = some_scores(3, 3).requires_grad_()
    loss = loss_of(opened("warp"), scores, batch_of(torch.ones(3, 3, dtype=torch.bool)))
    loss.backward()
    assert loss == 0
    assert (scores.grad == 0).all()


IN_BATCH = [name for name in OBJECTIVES if name not in ("hinge_means", "full_vocabulary")]


def seeded_loss(objective, batch):
    def loss(scores):
        torch.manual_seed(3)
        return loss_of(objective, scores, batch)

    return loss


@pytest.mark.parametrize("name", IN_BATCH)
def test_the_gradient_of_every_objective_is_that_of_its_formula(name):
    scores, batch = some_batch()
    assert torch.autograd.gradcheck(seeded_loss(opened(name), batch), scores.requires_grad_())


@pytest.mark.parametrize("name", IN_BATCH)
def test_a_related_picture_is_neither_right_nor_wrong(name):
    scores, batch = some_batch()
    seeded_loss(opened(name), batch)(scores.requires_grad_()).backward()
    neither = batch.blocked.table() & ~batch.relevant.table()
    assert neither.any()
    assert (scores.grad[neither] == 0).all()


@pytest.mark.parametrize("name", [name for name in IN_BATCH if name not in ("hinge_random", "warp")])
@settings(deadline=None, max_examples=25)
@given(st.permutations(range(7)))
def test_the_order_of_the_pairs_in_a_batch_does_not_matter(name, order):
    scores, batch = some_batch()
    tables = (mask.table()[order][:, order] for mask in (batch.relevant, batch.blocked))
    moved = batch_of(*tables, batch.weights[order])
    objective = opened(name)
    expected = loss_of(objective, scores, batch).item()
    assert loss_of(objective, scores[order][:, order], moved).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", IN_BATCH)
def test_a_weight_of_one_for_all_is_no_weight(name):
    scores, batch = some_batch()
    tables = batch.relevant.table(), batch.blocked.table()
    ones, none = batch_of(*tables, torch.ones(7).double()), batch_of(*tables)
    objective = opened(name)
    assert seeded_loss(objective, ones)(scores).item() == pytest.approx(seeded_loss(objective, none)(scores).item())


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_of_a_share_of_hard_negatives_the_others_are_never_harder(seed, share):
    scores, batch = some_batch(seed=seed)
    blocked = batch.blocked.table()
    kept = keep_hardest(scores, barrier_of(blocked), share) == 0
    for i in range(len(scores)):
        assert kept[i].nonzero().flatten().tolist() == sorted(negatives_of(scores, blocked, i, share))


def test_hinge_random_with_a_small_share_draws_the_hardest():
    torch.manual_seed(0)
    scores = torch.tensor([[0.5, 0.1, 0.4], [0.0, 0.9, 0.8], [0.6, 0.0, 0.7]], dtype=torch.float64)
    loss = loss_of(opened("hinge_random", hard_negative_share=0.1), scores, batch_of(torch.eye(3, dtype=torch.bool)))
    assert loss.item() == pytest.approx((0.2 + 0.2 + 0.2) / 3)


def some_embeddings(tags, images, seed=0, width=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.functional.normalize(torch.randn(size, width, generator=generator).double()) for size in (tags, images)
    ]


def some_images(tags=5, images=4, width=3, seed=0):
    """Embeddings and a batch of images beside all tags, with tables of what is relevant and blocked."""
    generator = torch.Generator().manual_seed(seed)
    relevant = torch.rand(tags, images, generator=generator) < 0.3
    blocked = relevant | (torch.rand(tags, images, generator=generator) < 0.2)
    weights = torch.rand(tags, generator=generator).double() + 0.5
    batch = batch_of(relevant, blocked, weights, epoch=0)
    return some_embeddings(tags, images, seed, width), batch, relevant, blocked


def slow_full_vocabulary(tags, images, batch, tables, scale, bias):
    relevant, blocked = tables
    total = 0.0
    for t, tag in enumerate(tags):
        for i, image in enumerate(images):
            logit = scale * float(tag @ image) + bias[t]
            weight = float(batch.weights[t] / batch.weights.mean())
            if relevant[t, i]:
                total += weight * math.log(1 + math.exp(-logit))
            elif not blocked[t, i]:
                total += weight * math.log(1 + math.exp(logit))
    return total / len(images)


PRIOR = (0.5, 0.2, 0.8, 0.1, 0.3)


@pytest.mark.parametrize("seed", range(3))
def test_full_vocabulary_equals_a_loop_over_all_tags(seed):
    (tags, images), batch, *tables = some_images(seed=seed)
    bias = [math.log(share / (1 - share)) for share in PRIOR]
    loss = opened("full_vocabulary", PRIOR, temperature=0.2)(tags, images, batch)
    expected = slow_full_vocabulary(tags, images, batch, tables, scale=5.0, bias=bias)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def loss_and_gradients(objective, embeddings, batch):
    leaves = [rows.clone().requires_grad_() for rows in embeddings]
    objective.zero_grad()
    loss = objective(*leaves, batch)
    loss.backward()
    return [loss.detach(), *(leaf.grad.clone() for leaf in [*leaves, *objective.parameters()])]


def by_strips(entries, rows=1):
    """Cut tables of scores at so many entries, or so many rows where these have more."""
    patch = pytest.MonkeyPatch()
    patch.setitem(train.objectives.base.STRIP_ENTRIES, "cpu", entries)
    patch.setattr(train.objectives.base, "STRIP_ROWS", rows)
    return patch.undo


PAIRED = [name for name in IN_BATCH if name not in ("hinge_random", "warp")]  # those that draw nothing
SHARED = [(name, 1.0) for name in PAIRED] + [(name, 0.4) for name in ("hinge", "infonce", "sigmoid")]


@pytest.mark.parametrize(("name", "share"), SHARED)
@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(1, 150), st.integers(1, 3), st.integers(0, 1000), st.sampled_from([0, 2, 9]))
def test_by_strips_every_objective_is_the_same_loss_and_gradient(name, share, size, entries, rows, seed, epoch):
    objective = opened(name, **({} if share == 1 else {"hard_negative_share": share}))
    _, batch = some_batch(size, seed, epoch)
    embeddings = some_embeddings(size, size, seed)
    whole = loss_and_gradients(objective, embeddings, batch)
    undo = by_strips(entries, rows)
    try:
        torch.testing.assert_close(loss_and_gradients(objective, embeddings, batch), whole)
    finally:
        undo()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 40), st.integers(0, 1000))
def test_by_strips_full_vocabulary_is_the_same_loss_and_gradient(tags, images, entries, seed):
    embeddings, batch, *_ = some_images(tags, images, seed=seed)
    objective = opened("full_vocabulary", PRIOR[:tags])
    whole = loss_and_gradients(objective, embeddings, batch)
    undo = by_strips(entries)
    try:
        torch.testing.assert_close(loss_and_gradients(objective, embeddings, batch), whole)
    finally:
        undo()


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("entries", [1, 20, 48])
def test_by_strips_hinge_random_is_the_same_with_the_same_draws(share, entries):
    objective, (_, batch) = opened("hinge_random", hard_negative_share=share), some_batch()
    embeddings = some_embeddings(7, 7)
    torch.manual_seed(3)
    whole = loss_and_gradients(objective, embeddings, batch)
    undo = by_strips(entries)
    torch.manual_seed(3)
    torch.testing.assert_close(loss_and_gradients(objective, embeddings, batch), whole)
    undo()


@pytest.mark.parametrize("entries", [1, 20, 48])
def test_by_strips_warp_tries_negatives_in_an_order_of_each_row_and_column(entries):
    (_, batch), embeddings = some_batch(), some_embeddings(7, 7)
    leaves = [rows.clone().requires_grad_() for rows in embeddings]
    scores, barrier = leaves[0] @ leaves[1].T, barrier_of(batch.blocked.table())
    torch.manual_seed(3)
    orders = torch.rand(7, 7).double(), torch.rand(7, 7).double()
    orders = [order.sort(dim=1).indices.argsort(dim=1) for order in orders]
    losses = [
        warp_losses(*way, order.double(), MARGIN)
        for way, order in zip(
            ((scores, scores.diagonal(), barrier), (scores.T, scores.diagonal(), barrier.T)), orders, strict=True
        )
    ]
    expected = (losses[0] * batch.weights).mean() / 2 + (losses[1] * batch.weights).mean() / 2
    expected.backward()
    undo = by_strips(entries)
    ranks = iter([row for order in orders for row in order])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda table: drawn_like(table, ranks))
        found = loss_and_gradients(opened("warp"), embeddings, batch)
    undo()
    torch.testing.assert_close(found, [expected.detach(), *(leaf.grad for leaf in leaves)])


def drawn_like(table, rows):
    """Give the rows of a strip the next orders."""
    return torch.stack([next(rows).double() for _ in range(len(table))])


@pytest.mark.parametrize("name", [*IN_BATCH, "full_vocabulary"])
def test_by_strips_no_table_of_scores_is_kept_for_the_gradient(name):
    undo = by_strips(80)
    (tags, images), batch, *_ = some_images(tags=40, images=40)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        opened(name, [0.5] * 40)(tags.requires_grad_(), images.requires_grad_(), batch)
    undo()
    assert max(kept) <= 40 * 3 < 40 * 40


def test_the_gradient_of_full_vocabulary_is_that_of_its_formula():
    (tags, images), batch, *_ = some_images()
    objective = opened("full_vocabulary", PRIOR)
    arguments = tags.requires_grad_(), images.requires_grad_()
    assert torch.autograd.gradcheck(lambda *rows: objective(*rows, batch), arguments)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_tag_on_no_image_or_on_all_starts_from_a_finite_bias(share):
    assert torch.isfinite(opened("full_vocabulary", [share, 0.5]).bias).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_scale_and_bias_are_learned_where_the_objective_has_them(name):
    learned = {name for name, _ in opened(name).named_parameters()}
    assert learned == ({"log_scale", "bias"} if name in ("sigmoid", "full_vocabulary") else set())


@pytest.mark.parametrize("name", [name for name, knobs in OBJECTIVES.items() if "margin" in knobs])
def test_every_objective_with_a_margin_opens_with_that_of_the_config(name):
    objective = open_objective(TrainConfig(objective=name, margin=0.7), np.full(3, 0.5))
    scores = torch.zeros(3, 6 if objective.draws == "fixed_wrong" else 3)
    batch = batch_of(torch.eye(*scores.shape, dtype=torch.bool), epoch=0)
    # two negatives a pair: both count in the sums, and in warp they say that the rank is about 2, which weighs 1 + 1/2
    factor = {"hinge": 2, "hinge_hardest": 2, "warp": 1.5}.get(name, 1)
    assert loss_of(objective, scores, batch).item() == pytest.approx(0.7 * factor)
