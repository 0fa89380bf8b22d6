# SPDX-License-Identifier: Apache-2.0
"""The networks that the parameters ask for. No ROS imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pcseg_core.bundled import BUNDLED, bundled_file
from pcseg_core.cloud import PointCloud
from pcseg_core.labels import LabelSpace
from pcseg_ros.config import NodeConfig


def load_segmenter(config: NodeConfig) -> Any:
    """The `Segmenter` of the configured checkpoint.

    Raises:
        InputError: there is no usable checkpoint, or the device or backend is not to be had.
    """
    # These bring torch, which takes seconds: the node is on the graph before.
    from pcseg_core.online.segmenter import Segmenter

    checkpoint = config.checkpoint or BUNDLED
    segmenter = Segmenter.load(checkpoint, config.device, config.precision, config.backend)
    segmenter.segment(_warm_up_cloud())  # libraries allocate and tune on first use
    return segmenter


def load_teacher(config: NodeConfig) -> Any:
    """The teacher of pixel classes, or None where none is configured.

    Raises:
        InputError: its weights or its label space cannot be read.
    """
    chosen = config.teacher
    if not chosen.weights:
        return None
    # These bring torch, which takes seconds.
    from pcseg_core.online.segmenter import choose_device
    from pcseg_core.vision.pixel_classes import ESPNetv2Classes

    device = str(choose_device(config.device))
    weights = bundled_file(chosen.weights) or Path(chosen.weights)
    space = LabelSpace.load(chosen.label_space)
    return ESPNetv2Classes(weights, space, (chosen.scale,), device=device)


def _warm_up_cloud() -> PointCloud:
    xyz = np.random.default_rng(0).uniform(-20.0, 20.0, (2000, 3))
    return PointCloud(xyz=xyz.astype(np.float32), intensity=np.zeros(len(xyz), np.float32))
