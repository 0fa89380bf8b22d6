# SPDX-License-Identifier: Apache-2.0
"""What a student asks of its network, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pcseg_core.sparse import SparseTensor


class Network(nn.Module, ABC):
    """Voxels in, features and class logits per voxel out; the base of all families.

    A family that needs positions reads them from the inputs x, y and z, which it then requires.

    Attributes:
        in_channels: input features of a voxel.
        out_channels: classes.
        feature_channels: channels C of `features`.
        classifier: from features to logits.
    """

    in_channels: int
    out_channels: int
    feature_channels: int
    classifier: nn.Linear

    @abstractmethod
    def features(self, x: SparseTensor) -> Tensor:
        """Features (M, C) before the classifier.

        Args:
            x: (M, in_channels) on the voxels of one or several sweeps, stride 1, see
                `Student.sparse_input`. A sweep has no influence on another one in evaluation mode.
        """

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Map voxels (M, in_channels) to logits (M, out_channels) on the same voxels."""
        return x.replace(self.classifier(self.features(x)))
