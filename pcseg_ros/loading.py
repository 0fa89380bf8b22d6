# SPDX-License-Identifier: Apache-2.0
"""The segmenter that the parameters ask for. No ROS imports."""

from __future__ import annotations

from typing import Any

import numpy as np

from pcseg_core.bundled import BUNDLED
from pcseg_core.cloud import PointCloud
from pcseg_ros.config import NodeConfig


def load_segmenter(config: NodeConfig) -> Any:
    """The `Segmenter` of the configured checkpoint.

    Raises:
        InputError: there is no usable checkpoint, or the device or backend is not to be had.
    """
    # These bring torch, which takes seconds: the node is on the graph before.
    from pcseg_core.online.segmenter import Segmenter
    from pcseg_core.sparse import set_backend

    set_backend(config.backend)  # for the whole process, which is this node's
    checkpoint = config.checkpoint or BUNDLED
    segmenter = Segmenter.load(checkpoint, config.device, config.precision)
    segmenter.segment(_warm_up_cloud())  # libraries allocate and tune on first use
    return segmenter


def _warm_up_cloud() -> PointCloud:
    xyz = np.random.default_rng(0).uniform(-20.0, 20.0, (2000, 3))
    return PointCloud(xyz=xyz.astype(np.float32), intensity=np.zeros(len(xyz), np.float32))
