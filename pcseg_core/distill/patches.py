# SPDX-License-Identifier: Apache-2.0
"""Image features of the points that cameras see, and the image patches those points lie in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pcseg_core.data.sample import Sample
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig, sample_map
from pcseg_core.projection import project_sample

_MIN_WEIGHT = 0.5  # trust in its pixel below which a point has no image feature


@dataclass
class PatchView:
    """What the cameras of one sweep show.

    Attributes:
        features: (S, D) float16 image features of points; the first camera that sees one counts.
        index: (S,) int32 positions of the points in the sweep.
        patch: (S,) int32 row of `patch_features` of each.
        patch_features: (R, D) float16 mean feature of each patch of the images.
    """

    features: npt.NDArray[np.float16]
    index: npt.NDArray[np.int32]
    patch: npt.NDArray[np.int32]
    patch_features: npt.NDArray[np.float16]


def camera_patches(
    sample: Sample,
    features_of: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
    config: PseudoLabelConfig,
    patch_px: int,
) -> PatchView:
    """Features of points and patches, for all cameras of a sweep.

    Args:
        sample: sweep with images.
        features_of: (H, W, 3) uint8 RGB -> (D, h, w) float32.
        config: projection settings.
        patch_px: edge of a patch on the map of features [px of the map]; those at the right and
            lower border may be smaller.
    """
    parts: list[tuple[npt.NDArray[Any], ...]] = []
    taken, patches = np.zeros(len(sample.cloud), bool), 0
    for k, frame in enumerate(sample.cameras):
        projection = project_sample(
            sample, k, splat_radius_px=config.splat_radius_px, border_px=config.border_px
        )
        seen = np.flatnonzero(projection.visible & (projection.weight > _MIN_WEIGHT) & ~taken)
        taken[seen] = True
        values = features_of(frame.image)
        uv, size = projection.uv[seen], (frame.camera.width, frame.camera.height)
        means = patch_means(values, patch_px)
        rows = patch_of(uv, size, values.shape[1:], patch_px) + patches
        patches += len(means)
        parts.append((sample_map(values, uv, size), seen, rows, means))
    if not parts:
        none = np.zeros((0, 1), np.float16)
        return PatchView(none, np.zeros(0, np.int32), np.zeros(0, np.int32), none)
    features, index, patch, patch_features = (np.concatenate(part) for part in zip(*parts))
    return PatchView(
        features.astype(np.float16),
        index.astype(np.int32),
        patch.astype(np.int32),
        patch_features.astype(np.float16),
    )


def patch_means(values: npt.NDArray[np.float32], patch_px: int) -> npt.NDArray[np.float32]:
    """(D, h, w) map -> (R, D) means over patches, row by row."""
    pooled = F.avg_pool2d(
        torch.from_numpy(np.ascontiguousarray(values)),
        patch_px,
        ceil_mode=True,
        count_include_pad=False,
    )
    means: npt.NDArray[np.float32] = pooled.flatten(1).T.numpy()
    return means


def patch_of(
    uv: npt.NDArray[np.floating], size: tuple[int, int], shape: tuple[int, ...], patch_px: int
) -> npt.NDArray[np.int64]:
    """Patch of each pixel.

    Args:
        uv: (S, 2) pixels of the image, integers at pixel centers.
        size: (width, height) of the image.
        shape: (h, w) of the map of features.
        patch_px: edge of a patch on the map.

    Returns:
        (S,) number of the patch, row by row.
    """
    height, width = shape
    columns = -(-width // patch_px)
    u = np.clip((uv[:, 0] + 0.5) * (width / size[0]), 0, width - 1e-3).astype(np.int64)
    v = np.clip((uv[:, 1] + 0.5) * (height / size[1]), 0, height - 1e-3).astype(np.int64)
    return (v // patch_px) * columns + u // patch_px
