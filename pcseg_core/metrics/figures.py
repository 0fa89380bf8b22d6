# SPDX-License-Identifier: Apache-2.0
"""Figures of a confusion matrix, also with road, sidewalk and terrain as one class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from pcseg_core.labels import LabelSpace, grouping
from pcseg_core.metrics.confusion import Confusion


class Figures(BaseModel):
    """Figures of one method over a set of points; None where a figure does not apply.

    Attributes:
        miou: mean IoU over the classes present in the truth.
        accuracy: share of points whose class is right.
        miou_merged_ground, accuracy_merged_ground: with road, sidewalk and terrain as one class.
        iou: class name -> IoU, None for classes neither true nor predicted.
    """

    model_config = ConfigDict(extra="forbid")

    miou: float | None
    accuracy: float | None
    miou_merged_ground: float | None = None
    accuracy_merged_ground: float | None = None
    iou: dict[str, float | None]

    @classmethod
    def of(cls, confusion: Confusion, names: tuple[str, ...], merge: Merge | None) -> Figures:
        """Figures of a confusion matrix over classes of these names."""
        merged = merge.apply(confusion) if merge else None
        return cls(
            miou=_finite(confusion.miou),
            accuracy=_finite(confusion.accuracy),
            miou_merged_ground=_finite(merged.miou) if merged else None,
            accuracy_merged_ground=_finite(merged.accuracy) if merged else None,
            iou={name: _finite(value) for name, value in zip(names, confusion.iou)},
        )


@dataclass(frozen=True)
class Merge:
    """A coarser space: `grouping` (C,) maps the ids of the measured space to its ids."""

    names: tuple[str, ...]
    grouping: npt.NDArray[np.int64]

    def apply(self, confusion: Confusion) -> Confusion:
        """The confusion matrix over the coarser classes."""
        return confusion.grouped(self.grouping, len(self.names))


def merge_of(space: LabelSpace) -> Merge | None:
    """The merge that counts road, sidewalk and terrain as ground, for the street space."""
    if space.name != "street":
        return None
    merged = LabelSpace.load("street_merged_ground")
    return Merge(merged.names, grouping(space, merged))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
