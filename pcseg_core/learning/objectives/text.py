# SPDX-License-Identifier: Apache-2.0
"""Text: the student's text head learns the features of pixels in the space of words."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcseg_core.distill.losses import class_weights, soft_cross_entropy, weighted_distance
from pcseg_core.learning.dataset import Batch
from pcseg_core.learning.distributed import gather_rows
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.recipe import TextConfig
from pcseg_core.models.student import Student, StudentOutput


class TextRegression(Objective):
    """Distance to pixel features, and cross-entropy of the classes by cosines.

    Args:
        config: weights of the losses.
        matrix: (C, D) class vectors.
        frequency: (C,) share of each class in the training data; None if the features of pixels
            are vectors of the text space themselves.
    """

    matrix: Tensor
    weights: Tensor
    turn: Tensor | None

    def __init__(
        self,
        config: TextConfig,
        matrix: npt.NDArray[np.float32],
        frequency: npt.NDArray[np.float64] | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.from_classes = frequency is not None
        # The losses only see the span of the class vectors. The head is trained in coordinates
        # turned so that the span lies along the first axes, and only there: in other directions
        # an adaptive optimizer would leave noise that hides the words.
        turn = np.linalg.svd(matrix.astype(np.float64))[2] if self.from_classes else None
        self.register_buffer("turn", None if turn is None else torch.from_numpy(turn).float())
        turned = matrix if turn is None else (matrix @ turn.T).astype(np.float32)
        self.rank = int(np.linalg.matrix_rank(matrix))
        self.register_buffer("matrix", torch.from_numpy(turned))
        shares = np.ones(len(matrix)) if frequency is None else frequency
        self.register_buffer(
            "weights", torch.from_numpy(class_weights(shares, config.class_balance))
        )

    @torch.no_grad()
    def prepare(self, student: Student) -> None:
        """Start the text head within the span of the class vectors."""
        head = student.text_head
        if self.turn is not None and head is not None:
            head.weight[self.rank :], head.bias[self.rank :] = 0.0, 0.0

    @torch.no_grad()
    def restore(self, student: Student) -> None:
        """Turn the trained text head back to the coordinates of the text space."""
        head = student.text_head
        if self.turn is not None and head is not None:
            turn = self.turn.to(head.weight)
            head.weight.copy_(turn.t() @ head.weight)
            head.bias.copy_(turn.t() @ head.bias)

    def losses(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        if batch.pixels is None or batch.pixels.text is None:
            return {}
        assert output.text_head is not None
        voxel = output.voxels.inverse[batch.pixels.point]
        return self.terms(output.text_head, output.features, batch.pixels.text, voxel)

    def terms(
        self, head: nn.Linear, features: Tensor, values: Tensor, voxel: Tensor
    ) -> dict[str, Tensor]:
        """Weighted losses by name.

        Args:
            head: the text head.
            features: (M, F) student features of the voxels.
            values: (S, K) features of pixels: class probabilities, or vectors of the space.
            voxel: (S,) int64 voxel of each.
        """
        config = self.config
        seen, pixels = mean_by_voxel(values, voxel)
        features, pixels = gather_rows(features[seen]), gather_rows(pixels)
        if not self.from_classes:
            unit, target = F.normalize(head(features), dim=1), F.normalize(pixels, dim=1)
            distance = weighted_distance((unit * target).sum(1), unit.new_ones(len(unit)))
            return {"text_distance": config.regression * distance}
        cosines = head_cosines(head, features, self.matrix)
        length = ((pixels @ (self.matrix @ self.matrix.t())) * pixels).sum(1).clamp_min(0).sqrt()
        weight = (pixels * self.weights).sum(1) * (length > 1e-3)
        losses = {}
        if config.regression:
            to_target = (cosines * pixels).sum(1) / length.clamp_min(1e-3)
            losses["text_distance"] = config.regression * weighted_distance(to_target, weight)
        if config.cross_entropy:
            used = self.matrix.square().sum(1) > 0.5
            likely = pixels[:, used] / pixels[:, used].sum(1, keepdim=True).clamp_min(1e-6)
            losses["text_classes"] = config.cross_entropy * soft_cross_entropy(
                cosines[:, used] / config.temperature, likely, weight
            )
        return losses


def head_cosines(head: nn.Linear, features: Tensor, vectors: Tensor) -> Tensor:
    """(S, C) cosines of head(features) and vectors (C, D), without the large (S, D) product.

    <W h + b, t> = <h, W't> + <b, t>, and |W h + b|^2 = <h, W'W h> + 2 <h, W'b> + <b, b>.
    """
    weight, bias = head.weight, head.bias
    dots = features @ (vectors @ weight).t() + vectors @ bias
    square = ((features @ (weight.t() @ weight)) * features).sum(1)
    square = square + 2 * features @ (weight.t() @ bias) + bias @ bias
    return dots / square.clamp_min(1e-12).sqrt()[:, None]


def mean_by_voxel(values: Tensor, voxel: Tensor) -> tuple[Tensor, Tensor]:
    """The voxels (V,) that have a value, in order, and their mean values (V, K)."""
    seen, inverse, counts = torch.unique(voxel, return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(seen), values.shape[1]).index_add_(0, inverse, values)
    return seen, sums / counts[:, None]
