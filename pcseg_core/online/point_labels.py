# SPDX-License-Identifier: Apache-2.0
"""Logits of voxels to labels of points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pcseg_core.confidence import entropy
from pcseg_core.labels import IGNORE
from pcseg_core.native import sweeps
from pcseg_core.sparse.backends import takes_native_passes

# Class, confidence and probabilities of rows or points, see `PointLabels`; None if not requested.
_Labels = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class PointLabels:
    """Labels of N points.

    Attributes:
        labels: (N,) int32; IGNORE for points without a voxel, without a finite confidence, or with
            an entropy above the limit.
        confidence: (N,) float32 probability of the label; 0 without a label.
        probabilities: (N, C) float32, rows of 0 without a label; None if not requested.
        not_finite: number of points whose confidence is not finite.
    """

    labels: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32] | None
    not_finite: int


def point_labels(
    logits: Iterable[Tensor],
    inverse: Tensor,
    classes: int,
    owner: Tensor | None = None,
    probabilities: bool = False,
    backend: str = "auto",
    max_entropy: float = 1.0,
) -> PointLabels:
    """The most probable class of each voxel, given to its points.

    Of equally probable classes the first one wins.

    Args:
        logits: blocks of rows that together are the (M, K) float32 logits of the voxels.
        inverse: (N,) int64 voxel of each point, -1 for none, on the device of the logits.
        classes: number C of classes.
        owner: (K,) int64 class of each column, whose probabilities are added; None for K = C.
        probabilities: also return the probabilities of all classes.
        backend: "native" computes them in one pass on the CPU; see `pcseg_core.sparse.backends`.
        max_entropy: rows with a higher entropy of the classes, 0..1, get no label; 1 keeps all.
    """
    every_class = probabilities or max_entropy < 1
    native = takes_native_passes(backend, inverse.device)
    classify, spread = (_native_classify, _native_spread) if native else (_classify, _spread)
    rows = _join([classify(block, classes, owner, every_class) for block in logits])
    lost = rows[0] == IGNORE
    if max_entropy < 1:
        rows = _only_sure(rows, max_entropy, probabilities)
    labels, confidence, every = spread(inverse, rows)
    return PointLabels(
        labels.numpy(force=True),
        confidence.numpy(force=True),
        None if every is None else every.numpy(force=True),
        int(lost[inverse[inverse >= 0]].sum()) if lost.any() else 0,
    )


def _join(blocks: list[_Labels]) -> _Labels:
    """Results of all rows from those of blocks."""
    if len(blocks) == 1:
        return blocks[0]
    winner, confidence = [block[0] for block in blocks], [block[1] for block in blocks]
    likely = [block[2] for block in blocks if block[2] is not None]
    return torch.cat(winner), torch.cat(confidence), torch.cat(likely) if likely else None


def _only_sure(rows: _Labels, max_entropy: float, probabilities: bool) -> _Labels:
    """The rows without labels where the entropy is above a limit."""
    winner, confidence, likely = rows
    assert likely is not None
    sure = entropy(likely) <= max_entropy
    kept = likely.where(sure[:, None], 0) if probabilities else None
    return winner.where(sure, IGNORE), confidence.where(sure, 0), kept


def _native_classify(
    logits: Tensor, classes: int, owner: Tensor | None, probabilities: bool
) -> _Labels:
    owners = None if owner is None else owner.numpy()
    winner, confidence, likely = sweeps.classify(logits.numpy(), classes, owners, probabilities)
    every = None if likely is None else torch.from_numpy(likely)
    return torch.from_numpy(winner), torch.from_numpy(confidence), every


def _native_spread(inverse: Tensor, rows: _Labels) -> _Labels:
    arrays = (rows[0].numpy(), rows[1].numpy(), None if rows[2] is None else rows[2].numpy())
    labels, confidence, likely = sweeps.spread(inverse.numpy(), *arrays)
    every = None if likely is None else torch.from_numpy(likely)
    return torch.from_numpy(labels), torch.from_numpy(confidence), every


def _classify(logits: Tensor, classes: int, owner: Tensor | None, probabilities: bool) -> _Labels:
    """Class, its probability and all probabilities of each row."""
    # Softmax along short rows is several times slower than along columns.
    likely = logits.float().t().contiguous().softmax(0)
    if owner is not None:
        likely = F.one_hot(owner, classes).t().to(likely.dtype) @ likely
    top, winner = likely.max(0)
    good = top.isfinite()
    every = likely.where(good, 0).t() if probabilities else None
    return winner.where(good, IGNORE).to(torch.int32), top.where(good, 0), every


def _spread(inverse: Tensor, rows: _Labels) -> _Labels:
    """The results of rows for points."""
    winner, confidence, likely = rows
    every = None if likely is None else _rows_of(likely, inverse, 0)
    return _rows_of(winner, inverse, IGNORE), _rows_of(confidence, inverse, 0), every


def _rows_of(values: Tensor, inverse: Tensor, fill: int) -> Tensor:
    """The row of each point; -1 reads the last one, which is `fill`."""
    last = values.new_full((1, *values.shape[1:]), fill)
    return torch.cat([values, last])[inverse]
