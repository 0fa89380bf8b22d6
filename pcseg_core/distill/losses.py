# SPDX-License-Identifier: Apache-2.0
"""Losses between predictions and labels or image features, and the weights of classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pcseg_core.labels import IGNORE


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


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, confidence: Tensor, class_weights: Tensor
) -> Tensor:
    """Cross-entropy, weighted by class and by the teacher's confidence.

    Args:
        logits: (N, C) float.
        labels: (N,) int64, IGNORE where there is no label.
        confidence: (N,) float in 0..1.
        class_weights: (C,) float.

    Returns:
        Scalar; 0 (with a gradient path) where nothing is labeled.
    """
    weights = confidence * class_weights[labels.clamp_min(0)] * (labels != IGNORE)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp_min(1e-6)


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
