# SPDX-License-Identifier: Apache-2.0
"""How likely shapes are for each class, counted at confident camera labels of the same run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.distill.ground import GroundMethod
from pcseg_core.distill.shape import Shape

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_HEIGHT_M = np.array([-0.3, 0.1, 0.25, 0.5, 1.0, 1.6, 2.3, 3.5, 6.0])
_UPRIGHT = np.array([0.2, 0.5, 0.8, 0.95])
_SPREAD_M = np.array([0.02, 0.05, 0.12])
_SIZES = (2, len(_HEIGHT_M) + 2, len(_UPRIGHT) + 1, len(_SPREAD_M) + 1)
_BINS = int(np.prod(_SIZES))
_LYING_M = 0.2  # points of the ground above this may be feet of things


class ShapeConfig(Section):
    """How the shape around points corrects their classes."""

    weight: float = Field(
        0.0, ge=0, le=2, description="Exponent of the likelihood of the shape; 0 uses no shape"
    )
    impossible: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Factor on classes that a shape rules out: standing things on the ground, and "
        "classes of the ground well above it",
    )
    standing_m: float = Field(
        0.5, gt=0, description="Upright surfaces above this height are not of the ground [m]"
    )
    ground: GroundMethod = Field(
        "auto", description="Ground of a sweep; auto is Patchwork++ if installed, else RANSAC"
    )
    min_confidence: float = Field(
        0.8, ge=0, le=1, description="Camera labels at least as sure as this are counted"
    )
    prior: float = Field(
        500.0, gt=0, description="Points by which the shapes of a class are drawn to those of all"
    )
    sweeps: int = Field(8, ge=1, description="Sweeps of each scene that shapes are counted in")


@dataclass
class ShapeModel:
    """Counts of shapes by class.

    Attributes:
        lies: (C,) bool, classes that lie on the ground.
        config: exponent, counting and physics.
        counts: (B, C) points of each class with each shape.
    """

    lies: Bool
    config: ShapeConfig
    counts: Float64 = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((_BINS, len(self.lies)))

    def add(self, shape: Shape, labels: npt.NDArray[np.integer], weights: Float64) -> None:
        """Count points of a sweep with labels (N,), by weights (N,); 0 leaves a point out."""
        used = weights > 0
        at = _bins(shape)[used] * self.counts.shape[1] + labels[used]
        self.counts += np.bincount(at, weights[used], self.counts.size).reshape(self.counts.shape)

    def logs(self, shape: Shape) -> Float64:
        """(N, C) log likelihood ratio of the shape of each point for each class.

        The ratio is that of a class to all classes alike; the exponent is applied.
        """
        totals = self.counts.sum(0)
        usual = (self.counts / np.maximum(totals, 1)).sum(1, keepdims=True)
        usual /= max(1, np.count_nonzero(totals))
        shares = (self.counts + self.config.prior * usual) / (totals + self.config.prior)
        ratio = np.log(np.maximum(shares, 1e-9) / np.maximum(usual, 1e-9))
        ratio[usual[:, 0] == 0] = 0
        result: Float64 = self.config.weight * ratio[_bins(shape)] + self._physics(shape)
        return result

    def _physics(self, shape: Shape) -> Float64:
        """(N, C) log factor of classes that cannot have a shape."""
        if not self.lies.any():
            return np.zeros((len(shape.height), len(self.lies)))
        height = np.nan_to_num(shape.height, nan=0.0)
        lying = shape.ground & (height < _LYING_M)
        standing = ~shape.ground & (height > self.config.standing_m) & (shape.upright > 0.5)
        standing |= ~shape.ground & (height > 2 * self.config.standing_m)
        ruled_out = (lying[:, None] & ~self.lies) | (standing[:, None] & self.lies)
        return np.where(ruled_out, np.log(self.config.impossible), 0.0)


def _bins(shape: Shape) -> Int64:
    """(N,) number of the joint bin of ground, height, inclination and roughness."""
    height = np.digitize(shape.height, _HEIGHT_M)
    height[np.isnan(shape.height)] = len(_HEIGHT_M) + 1
    upright = np.digitize(shape.upright, _UPRIGHT)
    spread = np.digitize(shape.spread, _SPREAD_M)
    return np.ravel_multi_index((shape.ground.astype(np.int64), height, upright, spread), _SIZES)
