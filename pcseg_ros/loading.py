# SPDX-License-Identifier: Apache-2.0
"""Loads the networks that the parameters name. No ROS imports; torch is imported when called.

Importing torch takes seconds, so the node is on the graph before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pcseg_core.bundled import BUNDLED
from pcseg_core.cloud import PointCloud
from pcseg_ros.config import NodeConfig

if TYPE_CHECKING:
    from pcseg_core.online.segmenter import Segmenter
    from pcseg_core.vision.pixel_classes import PixelClasses


def load_segmenter(config: NodeConfig) -> Segmenter:
    """The segmenter of the configured checkpoint.

    Raises:
        InputError: no usable checkpoint, or the device or backend is unavailable.
    """
    from pcseg_core.online.segmenter import Segmenter

    checkpoint = config.checkpoint or BUNDLED
    segmenter = Segmenter.load(checkpoint, config.device, config.precision, config.backend)
    segmenter.segment(_warm_up_cloud())  # libraries allocate and tune on first use
    return segmenter


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


def _warm_up_cloud() -> PointCloud:
    xyz = np.random.default_rng(0).uniform(-20.0, 20.0, (2000, 3))
    return PointCloud(xyz=xyz.astype(np.float32), intensity=np.zeros(len(xyz), np.float32))
