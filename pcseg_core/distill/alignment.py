# SPDX-License-Identifier: Apache-2.0
"""Contrastive alignment of LiDAR features with image features: by class and by image patch.

The two contrastive terms of "Transferring CLIP's Knowledge into Zero-Shot Point Cloud Semantic
Segmentation" (Wang et al., ACM MM 2023, arXiv 2312.07221): global and semantic over the classes of
a batch, local and positional over the patches of its images. The paper gives neither temperature
nor patch size; those here are our own.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from pcseg_core.config import Section
from pcseg_core.distill.contrast import info_nce, segment_means


class AlignmentConfig(Section):
    """Weights of the two terms, and the features they compare."""

    global_weight: float = Field(
        1.0, ge=0, description="Weight of class prototypes across the batch"
    )
    local_weight: float = Field(
        1.0, ge=0, description="Weight of image patches against the points in them"
    )
    temperature: float = Field(0.07, gt=0, description="Divisor of the similarities")
    channels: int = Field(64, ge=2, le=4096, description="Size of the projected features")
    patch_px: int = Field(
        16, ge=1, le=256, description="Edge of a patch on the map of image features [map px]"
    )
    min_points: int = Field(3, ge=1, description="Patches with fewer points are left out")
    false_negative_quantile: float | None = Field(
        0.9,
        gt=0,
        lt=1,
        description="Pairs of patches whose image features are more similar than this quantile of "
        "all pairs are not negatives; null excludes none",
    )

    @property
    def active(self) -> bool:
        """Whether any term counts."""
        return self.global_weight + self.local_weight > 0


def global_alignment(
    points: Tensor, pixels: Tensor, labels: Tensor, temperature: float = 0.07
) -> Tensor:
    """Class prototypes of the points against those of the pixels, over the batch's classes.

    -1/|C| sum_c log softmax_c'(<P_c, Q_c'> / t), where P_c and Q_c are the unit means of the unit
    features of the points of class c and of their pixels.

    Args:
        points: (S, D) projected features of points.
        pixels: (S, D) projected features of their pixels.
        labels: (S,) int64 class of each pair, IGNORE for none.
        temperature: divisor of the inner products.

    Returns:
        Scalar; ln |C| for features without information, 0 (with a gradient path) without labels.
    """
    classes = int(labels.max()) + 1 if len(labels) else 0
    of_points, sizes = segment_means(functional.normalize(points, dim=1), labels, classes)
    of_pixels, _ = segment_means(functional.normalize(pixels, dim=1), labels, classes)
    present = sizes > 0
    return info_nce(
        functional.normalize(of_points[present], dim=1),
        functional.normalize(of_pixels[present], dim=1),
        temperature,
    )


def local_alignment(
    points: Tensor,
    patch_pixels: Tensor,
    patches: Tensor,
    temperature: float = 0.07,
    min_points: int = 1,
    excluded: Tensor | None = None,
) -> Tensor:
    """Image patches against the points in them.

    -1/R sum_r log softmax_r'(<u_r, v_r'> / t), where u_r is the unit mean of the unit features of
    the points in patch r and v_r the unit feature of the patch.

    Args:
        points: (S, D) projected features of points.
        patch_pixels: (R, D) projected features of patches.
        patches: (S,) int64 patch of each point, IGNORE for none.
        temperature: divisor of the inner products.
        min_points: patches with fewer points are left out, as queries and as negatives.
        excluded: (R, R) bool, patches that are not negatives of each other.

    Returns:
        Scalar; 0 (with a gradient path) without patches.
    """
    means, sizes = segment_means(functional.normalize(points, dim=1), patches, len(patch_pixels))
    kept = sizes >= min_points
    return info_nce(
        functional.normalize(means[kept], dim=1),
        functional.normalize(patch_pixels[kept], dim=1),
        temperature,
        excluded=None if excluded is None else excluded[kept][:, kept],
    )
