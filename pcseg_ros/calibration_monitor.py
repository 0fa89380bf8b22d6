# SPDX-License-Identifier: Apache-2.0
"""The calibration monitor of the node: compares cameras and sweeps in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pcseg_core.cloud import PointCloud
from pcseg_core.errors import PcsegError
from pcseg_core.online.pipeline import Sweep
from pcseg_ros.config import MonitorParameters
from pcseg_ros.worker import LatestWorker

if TYPE_CHECKING:
    from pcseg_core.calibration.monitor import CalibrationMonitor, Reading


class Logger(Protocol):
    """The part of rclpy's logger that is used."""

    def info(self, message: str) -> bool: ...

    def warning(self, message: str) -> bool: ...


class CalibrationThread:
    """Gives the images of a sweep to a monitor for each camera, every few seconds of the sweeps.

    Args:
        config: parameters.
        logger: is told when a warning begins and ends.
        on_error: called in the thread with an error that left a sweep without comparison.
    """

    def __init__(
        self, config: MonitorParameters, logger: Logger, on_error: Callable[[Exception], None]
    ) -> None:
        self._config = config
        self._logger = logger
        self._on_error = on_error
        self._worker: LatestWorker[tuple[Sweep, PointCloud]] | None = None
        self._monitors: dict[str, CalibrationMonitor] = {}
        self._taken_ns = 0

    def start(self) -> None:
        """Start the thread, unless the monitor is off; what was learned before is forgotten."""
        self._monitors, self._taken_ns = {}, 0
        if self._config.period_s:
            self._worker = LatestWorker(
                self._compare, lambda _, error: self._on_error(error), name="calibration"
            )

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False if it still runs after `timeout_s`."""
        worker, self._worker = self._worker, None
        return worker is None or worker.stop(timeout_s)

    def offer(self, sweep: Sweep, cloud: PointCloud) -> None:
        """Compare a sweep with its images, if the last one was long enough before.

        Args:
            sweep: as measured.
            cloud: its points as the labels have them.
        """
        since_s = abs(sweep.cloud.stamp_ns - self._taken_ns) * 1e-9
        if self._worker is not None and sweep.frames and since_s >= self._config.period_s:
            self._taken_ns = sweep.cloud.stamp_ns
            self._worker.offer((sweep, cloud))

    def values(self) -> dict[str, str]:
        """Keys and values for /diagnostics."""
        values = {}
        for name, monitor in list(self._monitors.items()):
            for key, value in _values(monitor.reading).items():
                values[f"calibration of {name}{key}"] = value
        return values

    def warnings(self) -> list[str]:
        """One sentence for each camera that does not look where it did."""
        return [
            f"camera {name}: {_sentence(monitor.reading)}"
            for name, monitor in list(self._monitors.items())
            if monitor.reading.warns
        ]

    def _compare(self, item: tuple[Sweep, PointCloud]) -> None:
        from pcseg_core.calibration.depth_edges import depth_edges  # the node starts without
        from pcseg_core.calibration.monitor import CalibrationMonitor, monitor_view

        sweep, cloud = item
        frames = sweep.frames() if sweep.frames else []
        pose = None
        with suppress(PcsegError):
            pose = (
                None
                if sweep.poses is None
                else sweep.poses(np.array([cloud.stamp_ns], np.int64))[0]
            )
        edges = depth_edges(sweep.cloud, cloud.xyz)
        for frame in frames:
            if frame.name not in self._monitors:
                made = CalibrationMonitor(self._config.images, self._config.max_rotation_deg)
                self._monitors[frame.name] = made
            monitor = self._monitors[frame.name]
            before = monitor.reading
            reading = monitor.add(monitor_view(frame, edges), pose)
            self._log(frame.name, before, reading)

    def _log(self, name: str, before: Reading, reading: Reading) -> None:
        if reading.warns and reading.verdict != before.verdict:
            self._logger.warning(f"camera {name}: {_sentence(reading)}")
        elif before.warns and not reading.warns:
            self._logger.info(f"camera {name}: the rotation is as learned again")


def _sentence(reading: Reading) -> str:
    if reading.verdict == "no match":
        return "its images do not fit the sweeps any more; was it turned or covered, or is it dark?"
    turned = "" if reading.turned_deg is None else f" by about {reading.turned_deg:.1f} degrees"
    return f"turned{turned} since the start; check its mount, then run `pcseg calibrate`"


def _values(reading: Reading) -> dict[str, str]:
    """The reading as text; keys continue "calibration of CAMERA"."""
    reason = f": {reading.reason}" if reading.reason else ""
    values = {"": f"{reading.verdict}{reason}"}
    if reading.score is not None:
        usual = "" if reading.usual_scores is None else " (usual {:.2f} to {:.2f})"
        values[", score"] = f"{reading.score:.2f}" + usual.format(*reading.usual_scores or ())
    if reading.rotation_deg is not None:
        x, y, z = reading.rotation_deg
        values[", rotation error (deg)"] = f"{x:.2f} {y:.2f} {z:.2f}"
        values[", interval (deg)"] = f"{reading.interval_deg:.2f}"
    if reading.turned_deg is not None:
        values[", turned (deg)"] = f"{reading.turned_deg:.2f} (usual up to {reading.limit_deg:.2f})"
    return values
