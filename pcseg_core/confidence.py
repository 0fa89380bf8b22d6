# SPDX-License-Identifier: Apache-2.0
"""Calibrated confidence: temperatures of the logits that depend on range and entropy.

The logits of a point are divided by a positive number before the softmax. The most probable class
stays the same, the probabilities change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from pcseg_core.config import Section

Array = npt.NDArray[Any]

UNSURE = 0.3
"""Entropy above which points have their own temperature (Calib3D)."""
_LEAST, _MOST = 0.05, 20.0  # bounds of the temperatures
_LEAST_GAIN = 5e-3  # of the negative log-likelihood [nat], by each value beyond the first


class ConfidenceConfig(Section):
    """How the confidence is calibrated at the end of a training."""

    held_out: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="Share of the sweeps that is not trained on, to calibrate the confidence; if "
        "it is fewer than 5 sweeps, training sweeps are taken",
    )


class ConfidenceScaling(Section):
    """Depth-aware temperature scaling (Kong et al., "Calib3D", arXiv 2403.17010).

    The temperature is linear in the range and is multiplied by a factor where the entropy of the
    softmax is high. With `near` = `far` and the factor 1 it is temperature scaling (Guo et al.,
    "On Calibration of Modern Neural Networks", ICML 2017).
    """

    near: float = Field(gt=0, le=100, description="Temperature at the sensor")
    far: float = Field(gt=0, le=100, description="Temperature at `range_m` and beyond")
    range_m: float = Field(gt=0, description="Range of the temperature `far` [m]")
    unsure: float = Field(
        1.0, gt=0, le=100, description=f"Factor where the entropy, 0 to 1, is above {UNSURE}"
    )
    sweeps: int = Field(0, ge=0, description="Number of sweeps that it was fitted to")
    held_out: bool = Field(False, description="Whether the network was not trained on them")

    def temperatures(self, logits: Tensor, range_m: Tensor) -> Tensor:
        """(M,) temperature of each row of the logits (M, C) at these ranges (M,) [m]."""
        share = (range_m / self.range_m).clamp(0, 1)
        base = self.near + (self.far - self.near) * share
        if self.unsure == 1:
            return base
        return torch.where(entropy(logits.softmax(1)) > UNSURE, self.unsure * base, base)

    def apply(self, logits: Tensor, range_m: Tensor) -> Tensor:
        """The logits (M, C), each row divided by its temperature; see `temperatures`."""
        return logits / self.temperatures(logits, range_m)[:, None]


def entropy(probabilities: Tensor) -> Tensor:
    """(M,) entropy of rows of probabilities (M, C): 0 is certain, 1 is all classes alike."""
    terms = torch.xlogy(probabilities, probabilities)
    return -terms.sum(1) / math.log(max(probabilities.shape[1], 2))


@dataclass(frozen=True, eq=False)
class LabeledLogits:
    """Logits of labeled points.

    Attributes:
        logits: (N, C) float32.
        range_m: (N,) distance from the sensor [m].
        labels: (N,) int64 class of each.
    """

    logits: Array
    range_m: Array
    labels: Array


def fit_scaling(points: LabeledLogits, range_m: float, least: float = _LEAST) -> ConfidenceScaling:
    """The scaling of the largest likelihood of the labels.

    Dependence on the range, and the factor by entropy, are used where they lower the negative
    log-likelihood by at least 0.005 for each value. Labels that are worse far away look like a
    small dependence.

    Args:
        points: at least one.
        range_m: range of the temperature `far` [m].
        least: smallest value of each temperature and of the factor.
    """
    fit = _Fit(points, range_m, least)
    found, loss = fit.minimum(1)
    for count in (2, 3):
        values, lower = fit.minimum(count)
        if loss - lower >= _LEAST_GAIN * (count - len(found)):
            found, loss = values, lower
    near, far, unsure = _expanded(found)
    return ConfidenceScaling(near=near, far=far, range_m=range_m, unsure=unsure)


def _expanded(values: Array) -> tuple[float, float, float]:
    """`near`, `far` and `unsure` of one temperature, of the first two, or of all."""
    near = float(values[0])
    far = float(values[1]) if len(values) > 1 else near
    unsure = float(values[2]) if len(values) > 2 else 1.0
    return near, far, unsure


class _Fit:
    """Negative log-likelihood over the logarithms of the values of `_expanded`."""

    def __init__(self, points: LabeledLogits, range_m: float, least: float) -> None:
        self.bounds = math.log(least), math.log(_MOST)
        logits = np.asarray(points.logits, np.float64)
        self.labels = np.asarray(points.labels)[:, None]
        self.logits = logits - logits.max(1, keepdims=True)
        self.share = np.clip(np.asarray(points.range_m, np.float64) / range_m, 0, 1)
        likely = torch.from_numpy(logits).softmax(1)
        self.unsure = (entropy(likely) > UNSURE).numpy().astype(np.float64)

    def minimum(self, count: int) -> tuple[Array, float]:
        """The first `count` values at the minimum, and the loss there."""
        from scipy.optimize import minimize

        start, bounds = np.zeros(count), [self.bounds] * count
        found = minimize(self, start, jac=True, method="L-BFGS-B", bounds=bounds)
        return np.exp(found.x), float(found.fun)

    def __call__(self, logs: Array) -> tuple[float, Array]:
        """Loss and its gradient."""
        near, far, factor = _expanded(np.exp(logs))
        base = near + (far - near) * self.share
        temperature = base * np.where(self.unsure > 0, factor, 1.0)
        scaled = self.logits / temperature[:, None]
        raised = np.exp(scaled)
        total = raised.sum(1)
        own = np.take_along_axis(scaled, self.labels, 1)[:, 0]
        loss = float((np.log(total) - own).mean())
        # d loss / d log T = own - mean of the scaled logits
        slope = (own - (raised * scaled).sum(1) / total) / len(own)
        parts = (near * (1 - self.share) / base, far * self.share / base, self.unsure)
        if len(logs) == 1:
            return loss, slope.sum(keepdims=True)
        return loss, np.array([slope @ part for part in parts[: len(logs)]])
