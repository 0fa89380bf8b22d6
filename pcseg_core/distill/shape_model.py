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
_SPREAD_M = np.array([0.01, 0.02, 0.04, 0.08, 0.16])
_FORM = (2, len(_HEIGHT_M) + 2, len(_UPRIGHT) + 1, len(_SPREAD_M) + 1)
_RANGE_M = np.array([10.0, 20.0, 35.0])  # neighborhoods differ in size from zone to zone
_TONES = 8  # bins of brightness, with as many points each
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
    """Frequency of shapes by class, at zones of range.

    Form (ground, height, inclination, roughness) and brightness are taken for independent, given
    the class, the zone and whether the point is on the ground. Zones are conditions: a class that
    is mostly seen far away gains nothing from being far.

    Attributes:
        lies: (C,) bool, classes that lie on the ground.
        config: exponent, counting and physics.
    """

    lies: Bool
    config: ShapeConfig
    _counted: list[tuple[Shape, Int64, Float64]] = field(default_factory=list)
    _tables: tuple[Float64, Float64, Float64] | None = None

    def add(self, shape: Shape, labels: npt.NDArray[np.integer], weights: Float64) -> None:
        """Count points of a sweep with labels (N,), by weights (N,); 0 leaves a point out."""
        used = np.flatnonzero(weights > 0)
        self._counted.append((shape.at(used), labels[used].astype(np.int64), weights[used]))
        self._tables = None

    def logs(self, shape: Shape) -> Float64:
        """(N, C) log likelihood ratio of the shape of each point for each class.

        The ratio is that of a class to all classes alike; the exponent is applied.
        """
        if not any(len(labels) for _, labels, _ in self._counted):
            return self._physics(shape)
        edges, forms, tones = self._tables = self._tables or self._fit()
        zone = np.digitize(shape.range, _RANGE_M)
        ratio = forms[zone, _form(shape)] + tones[zone, shape.ground * 1, _tone(shape, edges)]
        logs: Float64 = self.config.weight * ratio + self._physics(shape)
        return logs

    def _fit(self) -> tuple[Float64, Float64, Float64]:
        """Edges of brightness, and log ratios by (zone, form, C) and (zone, ground, tone, C)."""
        shapes, labels, weights = zip(*self._counted)
        brightness = np.concatenate([shape.brightness for shape in shapes])
        edges = np.unique(np.quantile(brightness, np.arange(1, _TONES) / _TONES))
        zones, classes = len(_RANGE_M) + 1, len(self.lies)
        forms = np.zeros((zones, int(np.prod(_FORM)), classes))
        tones = np.zeros((zones, 2, _TONES, classes))
        for shape, label, weight in zip(shapes, labels, weights):
            zone = np.digitize(shape.range, _RANGE_M)
            np.add.at(forms, (zone, _form(shape), label), weight)
            np.add.at(tones, (zone, shape.ground * 1, _tone(shape, edges), label), weight)
        return edges, self._ratios(forms), self._ratios(tones)

    def _ratios(self, counts: Float64) -> Float64:
        """Log ratios (..., B, C) of the frequency of bins B within each class to the usual one."""
        totals = counts.sum(-2, keepdims=True)
        known = np.maximum(np.count_nonzero(totals, axis=-1, keepdims=True), 1)
        usual = (counts / np.maximum(totals, 1)).sum(-1, keepdims=True) / known
        shares = (counts + self.config.prior * usual) / (totals + self.config.prior)
        ratios: Float64 = np.log(np.maximum(shares, 1e-9) / np.maximum(usual, 1e-9))
        return np.where(usual > 0, ratios, 0.0)

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


def _form(shape: Shape) -> Int64:
    """(N,) number of the joint bin of ground, height, inclination and roughness."""
    height = np.digitize(shape.height, _HEIGHT_M)
    height[np.isnan(shape.height)] = len(_HEIGHT_M) + 1
    upright = np.digitize(shape.upright, _UPRIGHT)
    spread = np.digitize(shape.spread, _SPREAD_M)
    bins = np.ravel_multi_index((shape.ground.astype(np.int64), height, upright, spread), _FORM)
    return np.asarray(bins, np.int64)


def _tone(shape: Shape, edges: Float64) -> Int64:
    """(N,) number of the bin of brightness."""
    return np.digitize(shape.brightness, edges).astype(np.int64)
