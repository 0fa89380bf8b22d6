# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses of points and pixels: superpixels, single pairs, segments across sweeps.

Every loss is a row-wise cross-entropy of similarities over a temperature. Keys that are known not
to be negatives get the logit -inf. A factor of 0 on the logit would leave exp(0) = 1 in the
denominator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pcseg_core.labels import IGNORE


def segment_means(features: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each segment.

    Args:
        features: (N, D) float.
        ids: (N,) int64 segment of each row, IGNORE for none.
        count: number S of segments.

    Returns:
        (S, D) means, 0 for empty segments; (S,) float number of rows of each.
    """
    member = ids != IGNORE
    rows, target = features[member], ids[member]
    total = features.new_zeros(count, features.shape[1]).index_add(0, target, rows)
    sizes = features.new_zeros(count).index_add(0, target, rows.new_ones(len(rows)))
    return total / sizes.clamp_min(1)[:, None], sizes


def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    target: Tensor | None = None,
    excluded: Tensor | None = None,
    weights: Tensor | None = None,
    positives: Tensor | None = None,
) -> Tensor:
    """-log of the softmax of each query's own key among all keys (van den Oord et al., 2018).

    With several positive keys per query, the mean over them (Khosla et al., Supervised Contrastive
    Learning, 2020, equation 2). Features of equal similarity give ln M.

    Args:
        queries: (N, D).
        keys: (M, D).
        temperature: divisor of the inner products.
        target: (N,) int64 key of each query; the key of the same number if not given.
        excluded: (N, M) bool, keys that are not negatives of a query; its own key always counts.
        weights: (N,) weight of each query in the mean.
        positives: (N, M) bool, further positive keys of each query; its own key always is one.

    Returns:
        Scalar; 0 (with a gradient path) without queries.
    """
    if len(queries) == 0:
        return (queries.sum() + keys.sum()) * 0.0
    logits = queries @ keys.T / temperature
    if target is None:
        target = torch.arange(len(queries), device=queries.device)
    if excluded is None and positives is None:
        losses = functional.cross_entropy(logits, target, reduction="none")
    else:
        right = functional.one_hot(target, len(keys)).bool()
        if positives is not None:
            right |= positives
        if excluded is not None:
            logits = logits.masked_fill(excluded & ~right, -torch.inf)
        losses = -logits.log_softmax(1).masked_fill(~right, 0.0).sum(1) / right.sum(1)
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp_min(1e-6)


def superpixel_contrast(
    points: Tensor,
    pixels: Tensor,
    temperature: float = 0.07,
    excluded: Tensor | None = None,
    weights: Tensor | None = None,
    positives: Tensor | None = None,
) -> Tensor:
    """Superpoints against superpixels (Sautier et al., SLidR, CVPR 2022, equation 2).

    Args:
        points: (M, D) mean unit feature of the points of each superpixel; empty ones left out.
        pixels: (M, D) mean unit feature of all its pixels, in the same order.
        temperature: divisor of the inner products.
        excluded: (M, M) bool, see `false_negatives`.
        weights: (M,) see `balanced_anchors`.
        positives: (M, M) bool, superpixels of the same class.
    """
    return info_nce(
        points, pixels, temperature, excluded=excluded, weights=weights, positives=positives
    )


def point_pixel_contrast(points: Tensor, pixels: Tensor, temperature: float = 0.07) -> Tensor:
    """Single pairs (Liu et al., PPKT, 2021): (P, D) unit features of points and their pixels."""
    return info_nce(points, pixels, temperature)


def false_negatives(
    teacher: Tensor,
    quantile: float | None,
    classes: Tensor | None = None,
    sweeps: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Pairs of segments that are not negatives of each other.

    Args:
        teacher: (M, D) mean features of the frozen teacher. They are centered over the batch,
            since the features of many networks share a large common part.
        quantile: in 0..1; pairs whose cosine lies above this quantile of all pairs of different
            segments are excluded. None excludes none by it.
        classes: (M,) int64; segments of one class are excluded. IGNORE shares with none.
        sweeps: (M,) int64 sweep of each segment.
        places: (M,) int64 place of each segment; segments of different sweeps at one place may
            be the same object and are excluded.

    Returns:
        (M, M) bool; the losses ignore its diagonal.
    """
    excluded = torch.zeros(len(teacher), len(teacher), dtype=torch.bool, device=teacher.device)
    if quantile is not None and len(teacher) > 2:
        unit = functional.normalize(teacher - teacher.mean(0), dim=1)
        cosine = unit @ unit.T
        off = ~torch.eye(len(teacher), dtype=torch.bool, device=teacher.device)
        # kthvalue, since torch.quantile refuses more than 16 million entries.
        rank = max(1, min(int(off.sum()), round(quantile * int(off.sum()))))
        # The margin keeps rounding from telling apart the two entries of the pair at the quantile.
        excluded |= cosine > cosine[off].kthvalue(rank).values + 1e-6
    if classes is not None:
        excluded |= same_class(classes)
    if sweeps is not None and places is not None:
        excluded |= (places[:, None] == places) & (sweeps[:, None] != sweeps)
    return excluded


def same_class(classes: Tensor) -> Tensor:
    """(M, M) bool: pairs of one known class, from (M,) int64 classes, IGNORE for none."""
    return (classes[:, None] == classes) & (classes != IGNORE)[:, None]


def balanced_anchors(teacher: Tensor, threshold: float = 0.5) -> Tensor:
    """Weights that balance rare and common segments (ST-SLidR, CVPR 2023).

    A segment's commonness is the sum of its cosines above the threshold with all others, centered
    as in `false_negatives`.

    Args:
        teacher: (M, D) frozen teacher's mean features.
        threshold: lower cosines do not count.

    Returns:
        (M,) inverse commonness, mean 1.
    """
    unit = functional.normalize(teacher - teacher.mean(0), dim=1)
    cosine = unit @ unit.T
    common = torch.where(cosine >= threshold, cosine, 0).sum(1).clamp_min(1.0)
    weights = 1 / common
    return weights / weights.mean()


def point_to_segment(
    features: Tensor,
    segments: Tensor,
    centers: Tensor,
    temperature: float = 0.07,
    excluded: Tensor | None = None,
) -> Tensor:
    """Points against the features of segments, each segment counting the same.

    -1/M sum_i 1/N_i sum_{a in i} log(exp(<c_i, f_a>/t) / sum_j exp(<c_j, f_a>/t)): the terms
    inside a sweep and across sweeps of Liu et al., Seal, NeurIPS 2023.

    Args:
        features: (N, D) unit features of points.
        segments: (N,) int64 row of `centers` that each point belongs to.
        centers: (M, D) features of the segments.
        temperature: divisor of the inner products.
        excluded: (M, M) bool, segments that are not negatives of each other.

    Returns:
        Scalar; 0 (with a gradient path) without points.
    """
    sizes = torch.bincount(segments, minlength=len(centers))
    weights = 1 / sizes[segments].to(features.dtype)
    rows = None if excluded is None else excluded[segments]
    return info_nce(features, centers, temperature, segments, rows, weights)


def temporal_consistency(
    now: tuple[Tensor, Tensor],
    then: tuple[Tensor, Tensor],
    count: int,
    temperature: float = 0.07,
    excluded: Tensor | None = None,
) -> Tensor:
    """Points of one sweep against segment means of another, in both directions, added.

    Args:
        now: (N, D) unit features and (N,) int64 segments (IGNORE for none) of one sweep's points.
        then: the same of the other sweep; ids are shared.
        count: number S of segments; those without points in both sweeps are left out.
        temperature: divisor of the inner products.
        excluded: (S, S) bool, segments that are not negatives of each other.
    """
    means_now, sizes_now = segment_means(*now, count)
    means_then, sizes_then = segment_means(*then, count)
    shared = ((sizes_now > 0) & (sizes_then > 0)).nonzero().squeeze(1)
    position = torch.full((count + 1,), IGNORE, device=shared.device)  # the last serves IGNORE
    position[shared] = torch.arange(len(shared), device=shared.device)
    mask = None if excluded is None else excluded[shared][:, shared]
    total = torch.zeros((), device=shared.device)
    for (features, ids), means in ((now, means_then), (then, means_now)):
        rows = position[ids]
        member = rows != IGNORE
        total = total + point_to_segment(
            features[member], rows[member], means[shared], temperature, mask
        )
    return total
