# SPDX-License-Identifier: Apache-2.0
"""A recording of any reader with another calibration, or without the robot in its sweeps."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pcseg_core.body import without_body
from pcseg_core.data.calibration import Calibration
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from pcseg_core.data import Recording
    from pcseg_core.labels import LabelSpace


class Changed:
    """A recording whose samples a subclass changes. Attributes are those of the recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.name = recording.name
        self.pose_source = recording.pose_source
        self.label_space: LabelSpace | None = recording.label_space
        self.scenes: Sequence[str] = recording.scenes
        self.skipped: Counter[str] = recording.skipped

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "recording":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.recording, name)

    def __len__(self) -> int:
        return len(self.recording)

    def __getitem__(self, index: int) -> Sample:
        return self.recording[index]


class WithoutBody(Changed):
    """A recording without the returns from the robot itself; see `without_body`."""

    def __init__(self, recording: Recording, body: Sequence[float]) -> None:
        super().__init__(recording)
        self.body = body

    def __getitem__(self, index: int) -> Sample:
        sample = self.recording[index]
        return replace(sample, cloud=without_body(sample.cloud, self.body))


class Recalibrated(Changed):
    """A recording whose cameras have the extrinsics, intrinsics and time offsets of a calibration.

    Images whose corrected stamp has no pose are left out.
    """

    def __init__(self, recording: Recording, calibration: Calibration) -> None:
        """Check the names of the cameras against the first readable sample.

        Raises:
            InputError: the calibration has none of them.
        """
        super().__init__(recording)
        self.calibration = calibration
        if len(recording):
            calibration.check(recording[0].camera_names(), recording.name)

    def __getitem__(self, index: int) -> Sample:
        sample = self.recording[index]
        frames = [self._calibrated(frame) for frame in sample.cameras]
        if sample.trajectory is not None:
            frames = [frame for frame in frames if sample.trajectory.covers(frame.stamp_ns)]
        return replace(sample, cameras=frames)

    def _calibrated(self, frame: CameraFrame) -> CameraFrame:
        known = self.calibration.camera(frame.name)
        if known is None:
            return frame
        moved = copy.copy(frame.placed(known.extrinsic()))
        model = known.model()
        if model is not None and (model.width, model.height) != (
            frame.camera.width,
            frame.camera.height,
        ):
            raise InputError(
                f"{self.name}, {frame.name}: the calibration is for images of {model.width}x"
                f"{model.height}, these are {frame.camera.width}x{frame.camera.height}; give the "
                "calibration of the images as stored"
            )
        moved.camera = model or frame.camera
        moved.stamp_ns = frame.stamp_ns + known.time_offset_ns
        return moved
