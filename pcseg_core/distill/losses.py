# SPDX-License-Identifier: Apache-2.0
"""Losses between predictions and labels or image features, and what labels count."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pcseg_core.config import Section
from pcseg_core.labels import IGNORE, MAX_CLASSES

Array = npt.NDArray[Any]

_LEVELS = 1024  # of confidence; a power of two, so that levels are exact
_LOG_ZERO = -4.0  # logarithm of an impossible class in the reverse cross-entropy (Wang et al.)


class LabelLossConfig(Section):
    """Weights of the objectives that need labels, and the labels they use."""

    cross_entropy: float = Field(1.0, ge=0, description="Weight of the cross-entropy")
    lovasz: float = Field(1.0, ge=0, description="Weight of the Lovász-softmax loss")
    min_confidence: float = Field(
        0.6, ge=0, lt=1, description="Labels with less confidence are not trained on"
    )
    class_quota: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Least share of the labels of each class that is trained on: a class with "
        "fewer confident labels gets a lower min_confidence of its own (CBST)",
    )
    least_confidence: float = Field(
        0.3, ge=0, lt=1, description="class_quota lowers the min_confidence of no class below this"
    )
    class_balance: float = Field(
        0.5, ge=0, le=1, description="Exponent of the inverse class frequency in the class weights"
    )
    range_balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Exponent of the inverse frequency of the range within a class, in the weights "
        "of the cross-entropy; with 1 near and far labels of a class weigh the same in sum",
    )
    generalized: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Exponent q of the generalized cross-entropy, which learns less from labels "
        "that the network finds unlikely; 0 is the cross-entropy, 1 the mean absolute error",
    )
    reverse: float = Field(
        0.0, ge=0, description="Weight of the reverse cross-entropy (symmetric cross-entropy)"
    )
    bootstrap: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the network's own probabilities in the target (soft bootstrapping)",
    )


def confident_labels(
    label: Array, confidence: Array, required: float | Array
) -> npt.NDArray[np.int64]:
    """(N,) labels, IGNORE where the confidence is too low.

    Args:
        label: (N,) integers, IGNORE where unknown.
        confidence: (N,) float in 0..1.
        required: least confidence of all labels, or (C,) of those of each class.
    """
    label = label.astype(np.int64)
    least = required if np.ndim(required) == 0 else np.asarray(required)[label]
    return np.where(confidence >= least, label, IGNORE)


def required_confidence(
    labels: Iterable[tuple[Array, Array]], config: LabelLossConfig
) -> float | Array:
    """Least confidence of the labels that are trained on.

    Class-balanced: the threshold of a class falls until the quota of its labels is kept (Zou et
    al., CBST, ECCV 2018, arXiv 1810.07911, algorithm 2), but never above `min_confidence` nor
    below `least_confidence`.

    Args:
        labels: labels (N,), IGNORE where unknown, and confidences (N,) in 0..1 of each sweep; not
            read without a quota.
        config: quota and bounds.

    Returns:
        `min_confidence` without a quota, else (C,) the threshold of each class that has labels.
    """
    if config.class_quota == 0:
        return config.min_confidence
    counts = np.zeros((MAX_CLASSES, _LEVELS + 1), np.int64)
    for label, confidence in labels:
        known = label != IGNORE
        level = (confidence[known] * _LEVELS).astype(np.int64).clip(0, _LEVELS)
        np.add.at(counts, (label[known].astype(np.int64), level), 1)
    kept = counts[:, ::-1].cumsum(1)[:, ::-1]  # labels at or above each level
    enough = kept >= config.class_quota * kept[:, :1]
    highest = (enough.sum(1) - 1) / _LEVELS
    least: Array = highest.clip(min=config.least_confidence).clip(max=config.min_confidence)
    return least


def class_weights(counts: npt.ArrayLike, balance: float) -> npt.NDArray[np.float32]:
    """Inverse class frequencies to a power, with mean 1 over the labels.

    Args:
        counts: (C,) labels of each class; shares of any sum do as well.
        balance: the power; 0 weighs all classes equally, 1 makes their sums equal.

    Returns:
        (C,) weights; frequencies below 1e-4 count as 1e-4.
    """
    values = np.asarray(counts, np.float64)
    frequency = values / max(values.sum(), 1e-6)
    weights = np.maximum(frequency, 1e-4) ** -balance
    result: npt.NDArray[np.float32] = (weights / max((weights * frequency).sum(), 1e-6)).astype(
        np.float32
    )
    return result


def range_weights(counts: npt.ArrayLike, balance: float) -> npt.NDArray[np.float32]:
    """Inverse frequencies of the ranges within each class to a power, see `class_weights`.

    Args:
        counts: (C, B) labels of each class in each range.
        balance: the power; 0 weighs all ranges equally, 1 makes their sums equal.

    Returns:
        (C, B) weights, with mean 1 over the labels of each class; 1 for a class without labels.
    """
    weights = np.ones(np.shape(counts), np.float32)
    for row, found in zip(weights, np.asarray(counts)):
        if found.any():
            row[:] = class_weights(found, balance)
    return weights


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weight: Tensor, config: LabelLossConfig
) -> Tensor:
    """Weighted mean of the losses of labels, see `label_losses`.

    Args:
        logits: (N, C) float.
        labels: (N,) int64, IGNORE where there is no label.
        weight: (N,) non-negative.
        config: the kind of loss.

    Returns:
        Scalar; 0 (with a gradient path) where nothing is labeled.
    """
    weight = weight * (labels != IGNORE)
    losses = label_losses(logits, labels.clamp_min(0), config)
    return (losses * weight).sum() / weight.sum().clamp_min(1e-6)


def label_losses(logits: Tensor, labels: Tensor, config: LabelLossConfig) -> Tensor:
    """Cross-entropy of each label, or what bears wrong labels better.

    With p the probabilities, y the label and the options q, a and b of `config`:
    (1 - b) L(p_y) + b H(p) + a R(p_y). L is -log p_y or, for q > 0, the generalized cross-entropy
    (1 - p_y^q) / q (Zhang and Sabuncu, NeurIPS 2018, arXiv 1805.07836, equation 6). H is the
    entropy; with L = -log p_y both are soft bootstrapping (Reed et al., 2015, arXiv 1412.6596,
    equation 6). R is the reverse cross-entropy 4 (1 - p_y) of the symmetric cross-entropy (Wang
    et al., ICCV 2019, arXiv 1908.06112, equation 7, with log 0 = -4).

    Args:
        logits: (N, C) float.
        labels: (N,) int64 classes.
        config: `generalized` is q, `reverse` is a, `bootstrap` is b.

    Returns:
        (N,) losses.
    """
    q, share = config.generalized, config.bootstrap
    losses = F.cross_entropy(logits, labels, reduction="none")
    likely = -losses
    if q:
        losses = -torch.expm1(q * likely) / q
    if share:
        own = logits.log_softmax(1)
        losses = (1 - share) * losses - share * (own.exp() * own).sum(1)
    if config.reverse:
        losses = losses + config.reverse * _LOG_ZERO * torch.expm1(likely)
    return losses


def lovasz_softmax(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Lovász extension of the mean Jaccard loss over the classes present.

    Berman et al., CVPR 2018 (arXiv 1705.08790), equations 8 and 9 and algorithm 1.

    Args:
        probabilities: (N, C) float in 0..1.
        labels: (N,) int64, IGNORE where there is no label.

    Returns:
        Scalar in 0..1; 0 (with a gradient path) where nothing is labeled.
    """
    labeled = labels != IGNORE
    probabilities, labels = probabilities[labeled], labels[labeled]
    present = torch.unique(labels)
    if len(present) == 0:
        return probabilities.sum() * 0.0
    foreground = F.one_hot(labels, probabilities.shape[1])[:, present].to(probabilities.dtype)
    errors = (foreground - probabilities[:, present]).abs()
    errors, order = errors.sort(dim=0, descending=True)
    return (errors * _jaccard_gradient(foreground.gather(0, order))).sum(0).mean()


def _jaccard_gradient(foreground: Tensor) -> Tensor:
    """Discrete derivative of the Jaccard loss as sorted errors join, column by column."""
    total = foreground.sum(0)
    joined = foreground.cumsum(0)
    union = total + torch.arange(1, len(foreground) + 1, device=foreground.device)[:, None] - joined
    jaccard = 1.0 - (total - joined) / union
    return torch.diff(jaccard, dim=0, prepend=torch.zeros_like(jaccard[:1]))


def feature_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean distance of unit vectors (Puy et al., ScaLR, CVPR 2024): mean |s/|s| - t/|t||.

    Args:
        student: (N, D) predicted features.
        teacher: (N, D) frozen image features of the same points.

    Returns:
        Scalar in 0..2; 0 (with a gradient path) for no points.
    """
    if len(student) == 0:
        return student.sum() * 0.0
    difference = F.normalize(student, dim=1) - F.normalize(teacher, dim=1)
    # The root of zero has no gradient; identical features must not poison the step with NaN.
    return difference.square().sum(1).clamp_min(1e-12).sqrt().mean()


def weighted_distance(cosines: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean distance of pairs of unit vectors, |s - t| = sqrt(2 - 2 <s, t>).

    Args:
        cosines: (N,) of the pairs.
        weight: (N,) non-negative.

    Returns:
        Scalar in 0..2; 0 (with a gradient path) where no weight is.
    """
    # The root of zero has no gradient; identical features must not poison the step with NaN.
    distance = (2 - 2 * cosines).clamp_min(1e-6).sqrt()
    return (distance * weight).sum() / weight.sum().clamp_min(1e-6)


def soft_divergence(logits: Tensor, likely: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Weighted mean divergence from a teacher's class probabilities, both softened.

    T^2 sum_i w_i KL(q_i || softmax(z_i / T)) / sum_i w_i with q_i proportional to p_i^(1/T), the
    softmax of the teacher's logits divided by T (Hinton et al., 2015). The factor T^2 keeps the
    gradient at one size for all T.

    Args:
        logits: (N, C) z of the student.
        likely: (N, C) p of the teacher, positive; sums need not be 1.
        weight: (N,) w, non-negative.
        temperature: T.

    Returns:
        Scalar, at least 0; 0 (with a gradient path) where no weight is.
    """
    target = (likely.clamp_min(1e-9).log() / temperature).log_softmax(1)
    own = (logits / temperature).log_softmax(1)
    losses = (target.exp() * (target - own)).sum(1)
    return temperature**2 * (losses * weight).sum() / weight.sum().clamp_min(1e-6)


def soft_cross_entropy(logits: Tensor, likely: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean cross-entropy against class probabilities.

    Args:
        logits: (N, C) float.
        likely: (N, C) target probabilities.
        weight: (N,) non-negative.

    Returns:
        Scalar; 0 (with a gradient path) where no weight is.
    """
    losses = -(likely * logits.log_softmax(1)).sum(1)
    return (losses * weight).sum() / weight.sum().clamp_min(1e-6)
