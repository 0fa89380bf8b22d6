# SPDX-License-Identifier: Apache-2.0
"""The thread that draws labels over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pcseg_core.data.sample import CameraFrame
from pcseg_core.online.pipeline import LabeledSweep
from pcseg_ros.outputs import SweepOutputs
from pcseg_ros.synchronization import ReceivedSweep
from pcseg_ros.worker import LatestWorker


@dataclass
class Drawing:
    """A labeled sweep to be drawn over its images."""

    labeled: LabeledSweep
    received: ReceivedSweep


FramesOf: TypeAlias = Callable[[Drawing, Sequence[str]], Sequence[CameraFrame]]


class OverlayThread:
    """Draws the overlays of the newest sweep; inference does not wait for them.

    Args:
        outputs: publishes them.
        frames: decoded images of a sweep's cameras.
        on_error: called in the thread with an error of a drawing.
    """

    def __init__(
        self, outputs: SweepOutputs, frames: FramesOf, on_error: Callable[[Exception], None]
    ) -> None:
        self._outputs = outputs
        self._frames = frames
        self._worker = LatestWorker[Drawing](
            self._draw, lambda _, error: on_error(error), name="overlays"
        )

    def offer(self, drawing: Drawing) -> None:
        """Draw a sweep if there are subscribers; it replaces one that still waits."""
        if drawing.received.images and self._outputs.wanted_overlays():
            self._worker.offer(drawing)

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False if it still runs after `timeout_s`."""
        return self._worker.stop(timeout_s)

    def _draw(self, drawing: Drawing) -> None:
        images = drawing.received.images
        wanted = [name for name in self._outputs.wanted_overlays() if name in images]
        for frame in self._frames(drawing, wanted):
            header = images[frame.name].header
            self._outputs.publish_overlay(header, frame, drawing.labeled)
