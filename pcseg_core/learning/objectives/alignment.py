# SPDX-License-Identifier: Apache-2.0
"""Alignment of the student's features with image features, by class and by image patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcseg_core.distill.alignment import AlignmentConfig, global_alignment, local_alignment
from pcseg_core.distill.contrast import false_negatives
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import Batch
from pcseg_core.learning.distributed import gather_rows, ranks, rows_before
from pcseg_core.learning.objectives import Objective
from pcseg_core.models.student import StudentOutput


class Alignment(Objective):
    """The two contrastive terms, each with its own linear projections of points and pixels.

    Shared projections would have to encode classes and places at the same time.

    Args:
        point_channels: size of the student's features.
        pixel_channels: size of the image features.
        config: size of the projected features and the weights of the terms.
    """

    def __init__(self, point_channels: int, pixel_channels: int, config: AlignmentConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = nn.ModuleDict()
        for term, weight in (("global", config.global_weight), ("local", config.local_weight)):
            if weight:
                self.heads[f"{term}_points"] = nn.Linear(point_channels, config.channels)
                self.heads[f"{term}_pixels"] = nn.Linear(pixel_channels, config.channels)

    def losses(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        pixels = batch.pixels
        if pixels is None or batch.targets is None:
            return {}
        if len(pixels.point) == 0 and ranks()[1] == 1:
            return {}
        assert pixels.image is not None
        assert pixels.patch is not None and pixels.patch_image is not None
        voxel = output.voxels.inverse[pixels.point]
        before, _ = rows_before(len(pixels.patch_image), voxel.device)
        patch = torch.where(pixels.patch == IGNORE, IGNORE, pixels.patch + before)
        labels = batch.targets.labels[voxel]
        parts = (output.features[voxel], pixels.image, labels, patch, pixels.patch_image)
        return self.terms(*map(gather_rows, parts))

    def terms(
        self, points: Tensor, pixels: Tensor, labels: Tensor, patches: Tensor, patch_pixels: Tensor
    ) -> dict[str, Tensor]:
        """Weighted terms by name.

        Args:
            points: (S, C) student features of the points that a camera sees.
            pixels: (S, D) image features of their pixels.
            labels: (S,) int64 true or pseudo labels, IGNORE for none.
            patches: (S,) int64 row of each point's patch in `patch_pixels`, IGNORE for none.
            patch_pixels: (R, D) mean image feature of each patch.
        """
        config, heads, found = self.config, self.heads, {}
        if config.global_weight:
            found["global"] = config.global_weight * global_alignment(
                heads["global_points"](points),
                heads["global_pixels"](pixels),
                labels,
                config.temperature,
            )
        if config.local_weight:
            excluded = None
            if config.false_negative_quantile is not None:
                excluded = false_negatives(patch_pixels, config.false_negative_quantile)
            found["local"] = config.local_weight * local_alignment(
                heads["local_points"](points),
                heads["local_pixels"](patch_pixels),
                patches,
                config.temperature,
                config.min_points,
                excluded,
            )
        return found
