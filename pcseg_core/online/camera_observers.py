# SPDX-License-Identifier: Apache-2.0
"""Pixel labels of the images of a sweep, as the pipeline waits for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pcseg_core.cloud import PointCloud
from pcseg_core.distill.evidence import PixelEvidence
from pcseg_core.labels import LabelSpace
from pcseg_core.online.camera_fusion import CameraLabeler
from pcseg_core.online.sweep import Sweep

if TYPE_CHECKING:
    from pcseg_core.vision.pixel_classes import PixelClasses

Evidence: TypeAlias = "Sequence[PixelEvidence] | None"


class CameraObserver(Protocol):
    """Labels the pixels of a sweep's images, immediately or in a thread of its own."""

    def observe(self, sweep: Sweep, cloud: PointCloud, space: LabelSpace) -> Callable[[], Evidence]:
        """Start labeling; the returned function waits for the evidence and gives None if late."""


class ImmediateCameras:
    """Labels the images of a sweep when the pipeline waits for the evidence.

    Args:
        teacher: pixel classes that group into those of the segmenter.
    """

    def __init__(self, teacher: PixelClasses) -> None:
        self._teacher = teacher

    def observe(self, sweep: Sweep, cloud: PointCloud, space: LabelSpace) -> Callable[[], Evidence]:
        """See `CameraObserver`."""
        frames = sweep.frames
        labeler = CameraLabeler(self._teacher, space)
        return lambda: [] if frames is None else [labeler.label(frame) for frame in frames()]
