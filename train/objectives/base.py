"""What the objectives share: scores by strips of their table, both ways through it, and which negatives are hard.

R tags (B of pairs) and C images a batch, D width of an embedding, n rows and m columns of a strip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.batches import Batch
from train.masks import Mask

STRIP_ENTRIES = {"cpu": 2**20, "cuda": 2**25}  # scores held at once: what a processor's cache takes; 128 MiB
STRIP_ROWS = 64  # at least, whatever their length, because narrower products are slow
BLOCKED = -1e9  # takes a score out; finite, because the gradient of nothing but infinities is NaN
WHOLE = slice(None)


@dataclass(frozen=True)
class Side:
    """The tags or the images of a strip."""

    embeddings: Tensor  # (n, D)
    own: Tensor  # (n,)
    weights: Tensor | None  # (n,)

    def part(self, rows: slice) -> Side:
        """Return some of them."""
        return Side(self.embeddings[rows], self.own[rows], None if self.weights is None else self.weights[rows])


@dataclass(frozen=True)
class Strip:
    """A part of the table of scores, tags in rows and images in columns, that is held at once."""

    rows: slice
    columns: slice
    told: tuple[bool, bool]  # whether tags tell right from wrong images here, and whether images do so with tags


@dataclass(frozen=True)
class Way:
    """Rows of scores in which right is told from wrong: of tags among images, or of images among tags."""

    epoch: int
    scores: Tensor  # (n, m)
    own: Tensor  # (n,) score of each row with its own of the pair, or what an objective has in its place
    barrier: Tensor  # (n, m), 0 where there is a negative, BLOCKED elsewhere
    carried: Mask
    turned: bool  # whether images are in rows

    @property
    def relevant(self) -> Tensor:
        """Return (n, m), 1 where the image carries the tag, 0 elsewhere."""
        relevant = self.carried.filled(0, 1, self.scores.dtype)
        return relevant.T if self.turned else relevant


class Objective(nn.Module):
    """What training minimises; what it learns beside the towers is no part of them and is not published.

    An objective says in `losses` what rows of scores cost. Their mean over a batch is taken here, by strips, since the
    table of a large batch would not fit.
    """

    draws = "pairs"  # what batches are made of: `pairs`, pairs with a `fixed_wrong` picture each, or `images`
    both_ways = True  # whether images, too, are to tell right from wrong tags
    additive = False  # whether a row costs a sum over its columns, so that one pass serves both ways
    settled_at = 0  # the epoch from which it is the same in every epoch
    way_out = "Lower learning_rate, or take objective=hinge"  # of embeddings that collapsed

    def forward(self, tags: Tensor, images: Tensor, batch: Batch) -> Tensor:
        """Return the scalar loss of embeddings.

        Args:
            tags: (R, D) of the batch's tag rows, unit length.
            images: (C, D) of the batch's image rows, unit length.
            batch: whose rows these are.
        """
        return self.summed(tags, images, (tags * images).sum(dim=1), batch) / (len(tags) * (2 if self.both_ways else 1))

    def losses(self, way: Way) -> Tensor:
        """Return what each row costs, (n,)."""
        raise NotImplementedError

    def summed(self, tags: Tensor, images: Tensor, own: Tensor, batch: Batch) -> Tensor:
        """Return what all rows cost, each times its weight: a scalar; `own` (R,) goes to the rows' Way."""
        total: Tensor = _Summed.apply(self, batch, tags, images, own)
        return total

    def strips(self, num_tags: int, num_images: int, device: torch.device) -> Iterator[Strip]:
        """Cut the table of scores; what needs whole columns gets strips of its own."""
        entries = STRIP_ENTRIES[device.type]
        if num_tags * num_images <= entries:
            yield Strip(WHOLE, WHOLE, (True, self.both_ways))
            return
        for rows in _parts(num_tags, max(STRIP_ROWS, entries // num_images)):
            yield Strip(rows, WHOLE, (True, self.both_ways and self.additive))
        if self.both_ways and not self.additive:
            for columns in _parts(num_images, max(STRIP_ROWS, entries // num_tags)):
                yield Strip(WHOLE, columns, (False, True))

    def cost(
        self, tags: Side, images: Side, relevant: Mask, blocked: Mask, epoch: int, told: tuple[bool, bool]
    ) -> Tensor:
        """Return what a strip adds to the sum of losses."""
        scores = (tags.embeddings @ images.embeddings.T).to(tags.own.dtype)
        barrier = blocked.filled(0, BLOCKED, scores.dtype)
        total = scores.new_zeros(())
        for side, turned in ((tags, False), (images, True)):
            if not told[turned]:
                continue
            table = (scores.T, barrier.T) if turned else (scores, barrier)
            way = Way(epoch, table[0], side.own, table[1], relevant, turned)
            losses = self.losses(way)
            total = total + (losses if side.weights is None else losses * side.weights).sum()
        return total


def _parts(length: int, size: int) -> Iterator[slice]:
    yield from (slice(start, start + size) for start in range(0, length, size))


class _Summed(torch.autograd.Function):
    """The sum over all strips; the gradient of each is taken at once, so that none is kept or computed twice."""

    @staticmethod
    def forward(ctx: Any, objective: Objective, batch: Batch, tags: Tensor, images: Tensor, own: Tensor) -> Tensor:
        gradients = [torch.zeros_like(each) for each in (tags, images, own)]
        total = own.new_zeros(())
        epoch = min(batch.epoch, objective.settled_at)
        all_tags, all_images = (Side(_as_multiplied(each), own, batch.weights) for each in (tags, images))
        for strip in objective.strips(len(tags), len(images), tags.device):
            some_tags, some_images = _leaves(all_tags.part(strip.rows)), _leaves(all_images.part(strip.columns))
            relevant, blocked = (mask.part(strip.rows, strip.columns) for mask in (batch.relevant, batch.blocked))
            with torch.enable_grad(), torch.autocast(tags.device.type, enabled=False):
                loss = objective.cost(some_tags, some_images, relevant, blocked, epoch, strip.told)
            leaves = [leaf for side in (some_tags, some_images) for leaf in (side.embeddings, side.own)]
            of = (
                gradients[0][strip.rows],
                gradients[2][strip.rows],
                gradients[1][strip.columns],
                gradients[2][strip.columns],
            )
            for gradient, part in zip(of, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
                if part is not None:
                    gradient += part
            total += loss.detach()
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * outer for gradient in ctx.saved_tensors)


def _as_multiplied(embeddings: Tensor) -> Tensor:
    """Return embeddings in the arithmetic of matrix products."""
    kind = embeddings.device.type
    return embeddings.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else embeddings


def _leaves(side: Side) -> Side:
    return Side(side.embeddings.detach().requires_grad_(), side.own.detach().requires_grad_(), side.weights)


def keep_hardest(scores: Tensor, barrier: Tensor, share: float) -> Tensor:
    """Take the easy negatives out, too.

    Args:
        scores: (n, m), higher is harder.
        barrier: (n, m), 0 where there is a negative, BLOCKED elsewhere.
        share: of the negatives of each row that stay, rounded, at least one.

    Returns:
        (n, m), 0 where there is a hard negative, BLOCKED elsewhere.
    """
    if share == 1:
        return barrier
    kept = ((barrier == 0).sum(dim=1, keepdim=True).double() * share).round().clamp(min=1)
    most = max(1, round(share * scores.shape[1]))
    hardest = (scores.detach() + barrier).topk(most, dim=1).indices
    open_ = torch.zeros_like(hardest, dtype=barrier.dtype).masked_fill_(
        torch.arange(most, device=kept.device) >= kept, BLOCKED
    )
    return torch.full_like(barrier, BLOCKED).scatter_(1, hardest, open_).minimum(barrier)
