# SPDX-License-Identifier: Apache-2.0
"""Regression of frozen image features at the points that cameras see (ScaLR)."""

from __future__ import annotations

from torch import Tensor, nn

from pcseg_core.distill.losses import feature_regression
from pcseg_core.learning.dataset import Batch
from pcseg_core.learning.distributed import gather_rows
from pcseg_core.learning.objectives import Objective
from pcseg_core.models.student import StudentOutput


class Regression(Objective):
    """Distance of unit features, by the student's regression head or by one of this objective.

    Args:
        weight: of the loss.
        width: size of the student's features, for an own head; None uses the student's.
        channels: size of the image features, for an own head.
    """

    def __init__(self, weight: float, width: int | None = None, channels: int = 0) -> None:
        super().__init__()
        self.weight = weight
        self.head = None if width is None else nn.Linear(width, channels)

    def losses(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        if batch.pixels is None or batch.pixels.image is None:
            return {}
        voxel = output.voxels.inverse[batch.pixels.point]
        if self.head is not None:
            predicted = self.head(output.features[voxel])
        elif output.regressed is not None:
            predicted = output.regressed[voxel]
        else:
            return {}
        loss = feature_regression(gather_rows(predicted), gather_rows(batch.pixels.image))
        return {"regression": self.weight * loss}
