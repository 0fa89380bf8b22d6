# SPDX-License-Identifier: Apache-2.0
"""Targets of a 3D teacher: class probabilities and features of the voxels of the student."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pcseg_core.distill.lidar_teacher import LidarTeacher
from pcseg_core.distill.losses import class_weights, feature_regression, soft_divergence
from pcseg_core.learning.dataset import Batch
from pcseg_core.learning.distributed import gather_rows
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.objectives.text import mean_by_voxel
from pcseg_core.models.student import StudentOutput


class LidarDistillation(Objective):
    """Divergence from class probabilities, and distance to features through a linear layer.

    A voxel of the student takes the mean of its points. Probabilities are compared among the
    classes in `compared`; voxels weigh by the teacher's probability of these, and by class.

    Args:
        teacher: weights and temperature.
        compared: (C,) bool, classes of the student.
        counts: (C,) labeled points of each class in the training data.
        balance: exponent of the inverse class frequency, see `class_weights`.
        width: size of the student's features.
    """

    compared: Tensor
    weights: Tensor

    def __init__(
        self,
        teacher: LidarTeacher,
        compared: npt.NDArray[np.bool_],
        counts: npt.NDArray[np.int64],
        balance: float,
        width: int,
    ) -> None:
        super().__init__()
        self.logits, self.temperature = teacher.config.logits, teacher.config.temperature
        self.features = teacher.features_weight
        self.head = nn.Linear(width, teacher.channels) if self.features else None
        self.register_buffer("compared", torch.from_numpy(compared))
        weights = torch.from_numpy(class_weights(counts, balance))[self.compared]
        self.register_buffer("weights", weights)

    def losses(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        lidar, found = batch.lidar, {}
        if lidar is None:
            return {}
        voxel = output.voxels.inverse[lidar.point]
        if self.logits and lidar.probabilities is not None:
            seen, likely = mean_by_voxel(lidar.probabilities, voxel)
            likely = gather_rows(likely[:, self.compared])
            found["teacher_3d"] = self.logits * soft_divergence(
                gather_rows(output.logits[seen][:, self.compared]),
                likely,
                (likely * self.weights).sum(1),
                self.temperature,
            )
        if self.head is not None and lidar.features is not None:
            seen, features = mean_by_voxel(lidar.features, voxel)
            predicted = gather_rows(self.head(output.features[seen]))
            distance = feature_regression(predicted, gather_rows(features))
            found["features_3d"] = self.features * distance
        return found
