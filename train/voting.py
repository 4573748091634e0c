"""Tag voting: the train images nearest to an image vote for the tags they carry.

Makadia, Pavlovic and Kumar, A New Baseline for Image Annotation, ECCV 2008; Li, Snoek and Worring, Learning Social Tag
Relevance by Neighbor Voting, IEEE Transactions on Multimedia 2009. Here votes are weighted by a softmax of cosines and
added to the scores of the towers. Cosines are of signed roots about their mean: Jegou and Chum, Negative Evidences and
Co-occurences in Image Retrieval, ECCV 2012.

n images that are asked about, M train images, W width of a feature, k voters of an image, T tags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from crawl.records import TRAIN
from features.inverted_index import InvertedIndex
from features.runtimes import resolve
from train.batches import is_withheld
from train.galleries import Question

TEMPERATURE = 0.05  # of the softmax over an image's voters
_ASKING = 4096  # images asked about at once
_ASKED = 65536  # train images looked at for them at once

Gather = Callable[[np.ndarray], np.ndarray]  # image rows (n,) -> features (n, W)


def signed_root(rows: Tensor) -> Tensor:
    """Return rows (n, W) of length 1 after a square root that keeps signs, which tames the few largest values.

    Perronnin, Sanchez and Mensink, Improving the Fisher Kernel, ECCV 2010.
    """
    return F.normalize(rows.sign() * rows.abs().sqrt(), dim=1)


class TagVoting:
    """The train images of an index as voters on tags that training may see.

    Each image is compared with each train image, which takes 2nMW operations: seconds for ten thousand images, a
    minute or so of a large GPU for 1.7 million. Reduced features (`pca=`) make it cheaper in proportion.
    """

    def __init__(
        self, features: Gather, index: InvertedIndex, voters: int, withhold_tags: float = 0.0, device: str = "auto"
    ) -> None:
        self._features = features
        self._index = index
        self._device = torch.device(resolve("torch", device)[1])
        self._rows = np.flatnonzero(index.splits == TRAIN)
        self._voters = max(0, min(voters, len(self._rows) - 1))  # no image votes on itself
        self._mean = self._mean_of_train()
        self._carried = _carried(index, self._rows, withhold_tags)

    def _mean_of_train(self) -> Tensor:
        total = sum(self._rooted(self._rows[at : at + _ASKED]).sum(dim=0) for at in range(0, len(self._rows), _ASKED))
        return torch.as_tensor(total) / max(1, len(self._rows))

    def _rooted(self, image_rows: np.ndarray) -> Tensor:
        return signed_root(torch.from_numpy(np.array(self._features(image_rows))).to(self._device).float())

    def _directions(self, image_rows: np.ndarray) -> Tensor:
        return F.normalize(self._rooted(image_rows) - self._mean, dim=1)

    def voters(self, image_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places among the train images (n, k) of images' voters, nearest first, and their weights (n, k).

        The weights of an image sum to 1.
        """
        asking = self._directions(image_rows)
        own = torch.from_numpy(np.array(image_rows, dtype=np.int64)).to(self._device)
        cosines = asking.new_empty((len(asking), 0))
        places = own.new_empty((len(asking), 0))
        for start in range(0, len(self._rows), _ASKED):
            rows = self._rows[start : start + _ASKED]
            found = asking @ self._directions(rows).T
            found[own[:, None] == torch.from_numpy(rows).to(self._device)] = -torch.inf
            best, at = found.topk(min(self._voters, len(rows)), dim=1)
            cosines, order = torch.cat([cosines, best], dim=1).sort(dim=1, descending=True, stable=True)
            places = torch.cat([places, at + start], dim=1).gather(1, order)[:, : self._voters]
            cosines = cosines[:, : self._voters]
        return places.cpu().numpy(), (cosines / TEMPERATURE).softmax(dim=1).cpu().numpy()

    def votes(self, image_rows: np.ndarray) -> sparse.csr_array:
        """Return (n, T) float32, the share by weight of each image's voters that carry each tag."""
        parts = [self._votes_on(image_rows[at : at + _ASKING]) for at in range(0, len(image_rows), _ASKING)]
        return sparse.vstack(parts, format="csr") if parts else sparse.csr_array((0, self._index.num_tags))

    def _votes_on(self, image_rows: np.ndarray) -> sparse.csr_array:
        places, weights = self.voters(image_rows)
        starts = np.arange(len(image_rows) + 1) * self._voters
        ballots = sparse.csr_array(
            (weights.ravel(), places.ravel(), starts), shape=(len(image_rows), len(self._rows)), dtype=np.float32
        )
        return ballots @ self._carried

    def votes_by_posting(self) -> np.ndarray:
        """Return (P,) float32, for each posting the votes on its image for its tag."""
        index = self._index
        offsets, tag_rows = index.by_image
        found = np.empty(len(tag_rows), np.float32)
        for start in range(0, index.num_images, _ASKING):
            rows = np.arange(start, min(start + _ASKING, index.num_images))
            first, last = offsets[rows[0]], offsets[rows[-1] + 1]
            images = np.repeat(np.arange(len(rows)), np.diff(offsets[rows[0] : rows[-1] + 2]))
            found[first:last] = self._votes_on(rows)[images, tag_rows[first:last]]
        by_posting = np.empty_like(found)
        by_posting[np.argsort(index.postings, kind="stable")] = found
        return by_posting


def _carried(index: InvertedIndex, image_rows: np.ndarray, withhold_tags: float) -> sparse.csr_array:
    """Return (M, T) float32, 1 where an image carries a tag that is not withheld."""
    allowed = np.array([not is_withheld(tag, withhold_tags) for tag in index.tags], dtype=bool)
    offsets, tag_rows = index.by_image
    whole = sparse.csr_array(
        (allowed[tag_rows].astype(np.float32), tag_rows, offsets), shape=(index.num_images, index.num_tags)
    )
    carried = whole[image_rows]
    carried.eliminate_zeros()
    return carried


def votes_on(question: Question, voting: TagVoting, weight: float) -> sparse.csr_array:
    """Return (Q, C) float32, `weight` times the votes on a question's gallery for its tags."""
    return (weight * voting.votes(question.gallery)[:, question.tag_rows]).T.tocsr()


def open_voting(config: Mapping[str, Any], features: Gather, index: InvertedIndex) -> TagVoting | None:
    """Return the voters of a run by its config, or None where it has none; older runs know no votes."""
    if not config.get("tag_voting"):
        return None
    return TagVoting(features, index, config["voters"], config["withhold_tags"])
