# SPDX-License-Identifier: Apache-2.0
"""Loads the networks that the parameters name. No ROS imports; torch is imported when called.

Importing torch takes seconds, so the node is on the graph before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from pcseg_core.bundled import BUNDLED
from pcseg_core.cloud import PointCloud
from pcseg_core.online.pipeline import SegmenterLike
from pcseg_ros.config import NodeConfig

if TYPE_CHECKING:
    from pcseg_core.online.segmenter import Segmenter
    from pcseg_core.vision.pixel_classes import PixelClasses


class NodeSegmenter(SegmenterLike, Protocol):
    """The part of `pcseg_core.online.segmenter.Segmenter` that the node uses."""

    @property
    def device(self) -> object:
        """Where the network runs; as text "cpu", "cuda" or "cuda:N"."""

    @property
    def engine(self) -> str:
        """Backend, instruction set and precision."""


def load_segmenter(config: NodeConfig) -> Segmenter:
    """The segmenter of the configured checkpoint.

    Raises:
        InputError: no usable checkpoint, or the device or backend is unavailable.
    """
    from pcseg_core.online.segmenter import Segmenter

    checkpoint = config.checkpoint or BUNDLED
    return Segmenter.load(checkpoint, config.device, config.precision, config.backend)


def load_teacher(config: NodeConfig) -> PixelClasses | None:
    """The configured camera teacher, if any.

    Raises:
        InputError: its weights or its label space cannot be read.
    """
    teacher = config.teacher.teacher_config()
    if teacher is None:
        return None
    from pcseg_core.models.inference import choose_device
    from pcseg_core.vision.pixel_classes import load_teacher as load

    return load(teacher, str(choose_device(config.device)))


def usual_sweep() -> PointCloud:
    """A sweep of 64 x 2048 beams, 1.8 m above a street of 16 x 120 m between walls.

    It fills as many voxels as a sweep of such a LiDAR in a real street.
    """
    elevation, azimuth = np.meshgrid(
        np.radians(np.linspace(-25, 10, 64)),
        np.linspace(-np.pi, np.pi, 2048, endpoint=False),
        indexing="ij",
    )
    ray = np.stack([np.cos(azimuth), np.sin(azimuth), np.tan(elevation)], axis=-1).reshape(-1, 3)
    with np.errstate(divide="ignore"):
        walls = np.minimum(60 / np.abs(ray[:, 0]), 8 / np.abs(ray[:, 1]))
        ground = np.where(ray[:, 2] < 0, -1.8 / ray[:, 2], np.inf)
    distance = np.minimum(walls, ground) + np.random.default_rng(0).normal(0, 0.02, len(ray))
    return PointCloud(ray * distance[:, None], np.full(len(ray), 0.1, np.float32))
