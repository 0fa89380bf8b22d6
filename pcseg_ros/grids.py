# SPDX-License-Identifier: Apache-2.0
"""The occupancy grid as an output of the node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from nav_msgs.msg import OccupancyGrid
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import PointCloud2

from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.online import grid
from pcseg_core.online.free_space import Beams
from pcseg_core.online.pipeline import LabeledSweep, Voxels
from pcseg_ros import conversions, qos, topics

LEFT_OUT = "grid left out"
_EARLY = 0.9  # share of a period after which the next grid is due: stamps jitter


class GridOutput:
    """Publishes the grid at its own rate, latched: Nav2's static layer asks for that.

    Args:
        node: owner of the topic.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._publisher = qos.create_output(node, OccupancyGrid, topics.GRID, qos.latched())
        self._costs: npt.NDArray[np.int8] | None = None
        self._costs_of: LabelSpace | None = None
        self._last_ns: int | None = None

    def destroy(self) -> None:
        """End the topic."""
        self._node.destroy_lifecycle_publisher(self._publisher)

    def wanted(self) -> bool:
        """There are subscribers."""
        return qos.has_subscribers(self._publisher)

    def publish(
        self,
        msg: PointCloud2,
        labeled: LabeledSweep,
        config: grid.GridConfig,
        fixed_frame: str,
        remembered: Callable[[float], Voxels | None],
    ) -> list[tuple[str, str]]:
        """Publish a grid if it is subscribed and due.

        Args:
            msg: the sweep.
            labeled: its labels.
            config: of the grid.
            fixed_frame: name of the frame of `labeled.pose`.
            remembered: gives the voxels of the last seconds, or None.

        Returns:
            (event, reason) of a grid that cannot be drawn.
        """
        if not (self.wanted() and self._is_due(conversions.stamp_ns(msg.header), config.rate_hz)):
            return []
        fixed = config.frame == "fixed"
        if fixed and labeled.pose is None:
            return [(LEFT_OUT, "the motion is not known; grid.frame sensor does without it")]
        try:
            costs = self._costs_for(labeled.label_space, config.costs)
        except InputError as error:
            return [(LEFT_OUT, str(error))]
        pose = labeled.pose if fixed and labeled.pose is not None else np.eye(4)
        voxels = remembered(grid.memory_s(config.decay_s))
        newest = grid.sweep_evidence(labeled)
        evidence = newest if voxels is None else grid.voxel_evidence(voxels, config.decay_s)
        beams = Beams.of(labeled.cloud)
        drawn = grid.draw_grid(evidence, newest.points, pose, costs, config, beams)
        frame = fixed_frame if fixed else msg.header.frame_id
        self._publisher.publish(conversions.grid_message(drawn, msg.header.stamp, frame))
        return []

    def _is_due(self, stamp_ns: int, rate_hz: float) -> bool:
        period_ns = _EARLY * 1e9 / rate_hz
        if self._last_ns is not None and 0 <= stamp_ns - self._last_ns < period_ns:
            return False
        self._last_ns = stamp_ns
        return True

    def _costs_for(self, space: LabelSpace, file: str) -> npt.NDArray[np.int8]:
        if self._costs is None or self._costs_of is not space:
            self._costs, self._costs_of = grid.read_costs(file, space), space
        return self._costs
