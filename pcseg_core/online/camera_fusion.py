# SPDX-License-Identifier: Apache-2.0
"""Pixel classes of the current images: fused with the 3D prediction, or projected as labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.distill.evidence import PixelEvidence
from pcseg_core.distill.pseudo_labels import (
    PseudoLabelConfig,
    gather_evidence,
    label_points,
    pixels_of_points,
)
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace, group_probabilities, grouping

if TYPE_CHECKING:
    from pcseg_core.data.sample import CameraFrame
    from pcseg_core.vision.pixel_classes import PixelClasses

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

_FLOOR = np.float32(1e-3)  # of a probability, so that neither sensor rules out a class


class CameraFusionConfig(Section):
    """Weight of the images relative to the points."""

    renamed: ClassVar[dict[str, str]] = {"trust": "camera_weight"}

    camera_weight: float = Field(
        1.0,
        ge=0,
        le=4,
        description="Weight of a fully visible pixel's class relative to the point's; 1 takes "
        "both as independent and equally sure",
    )
    splat_radius_px: int = Field(2, ge=0, le=10, description="Occlusion splat radius [px]")
    border_px: float = Field(8.0, ge=0, description="Weight falls to 0 over this image border [px]")


class CameraLabeler:
    """Labels the pixels of images with the classes of a label space.

    Args:
        teacher: pixel classes.
        space: label space, usually that of the segmenter.

    Raises:
        InputError: the teacher's classes do not group into `space`.
    """

    def __init__(self, teacher: PixelClasses, space: LabelSpace) -> None:
        self._teacher, self._classes = teacher, len(space)
        self._groups = grouping(teacher.label_space, space)

    def label(self, frame: CameraFrame) -> PixelEvidence:
        """Label one image, whose `T_cam_lidar` includes the motion between sweep and image."""
        probabilities = self._teacher.probabilities(frame.image)
        grouped = group_probabilities(probabilities, self._groups, self._classes)
        return PixelEvidence(grouped, frame.camera, frame.T_cam_lidar)


def fuse_cameras(
    xyz: Array,
    probabilities: Array,
    images: Sequence[PixelEvidence],
    config: CameraFusionConfig | None = None,
) -> Float32:
    """Fuse the class probabilities of points with those of the pixels that they project to.

    Logarithmic pooling: p(c) ~ p_3d(c) * prod over images of p_image(c)^(w * weight), where w is
    `camera_weight`. The weight of a pixel falls at image borders and depth edges, and with the
    probability that its classes lack to 1. Points that no image sees keep their probabilities.

    Args:
        xyz: (N, 3) points in the LiDAR frame, deskewed [m].
        probabilities: (N, C) of the 3D network; rows of 0 (no label) stay 0.
        images: pixel classes; may be empty.
        config: settings; None takes the defaults.

    Returns:
        (N, C) fused probabilities.

    Raises:
        InputError: the numbers of points or of classes differ.
    """
    config = config or CameraFusionConfig()
    fused = np.array(probabilities, np.float32)
    if len(fused) != len(xyz):
        raise InputError(f"camera fusion: {len(fused)} probabilities for {len(xyz)} points")
    labeled = fused.sum(1) > 0
    for image in images:
        if len(image.probabilities) != fused.shape[1]:
            raise InputError(
                f"camera fusion: pixels of {len(image.probabilities)} classes for points of "
                f"{fused.shape[1]}"
            )
        seen, factor = _factors(xyz, image, config)
        seen, factor = seen[labeled[seen]], factor[labeled[seen]]
        updated = np.maximum(fused[seen], _FLOOR) * factor
        fused[seen] = updated / updated.sum(1, keepdims=True)
    return fused


def label_by_cameras(
    xyz: Array, images: Sequence[PixelEvidence], config: PseudoLabelConfig | None = None
) -> tuple[npt.NDArray[np.int16], Float32]:
    """Label points by the images alone: the weighted vote of the pixels that they project to.

    Args:
        xyz: (N, 3) points in the LiDAR frame, deskewed [m].
        images: pixel classes; may be empty.
        config: settings of the projection; its label space is not used. None takes the defaults.

    Returns:
        Labels (N,), IGNORE for points that no image sees, and their confidence (N,) in 0..1.
    """
    classes = len(images[0].probabilities) if images else 1
    evidence = gather_evidence(xyz, images, classes, config or PseudoLabelConfig())
    return label_points(evidence, len(xyz))


def _factors(
    xyz: Array, image: PixelEvidence, config: CameraFusionConfig
) -> tuple[npt.NDArray[np.intp], Float32]:
    """Points (M,) that an image sees, and the factors (M, C) of their probabilities."""
    seen, visible, pixels = pixels_of_points(xyz, image, config.splat_radius_px, config.border_px)
    known = pixels.sum(1, keepdims=True)
    sure = np.divide(pixels, known, out=np.full_like(pixels, 1 / pixels.shape[1]), where=known > 0)
    weight = config.camera_weight * visible[:, None] * known
    return seen, np.power(np.maximum(sure, _FLOOR), weight).astype(np.float32)
