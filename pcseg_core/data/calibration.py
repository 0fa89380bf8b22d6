# SPDX-License-Identifier: Apache-2.0
"""A calibration file: poses of the sensors relative to the LiDAR, instead of those of a recording.

cameras:
  camera_2:                       # camera name, or image topic
    T_cam_lidar:                  # LiDAR frame into optical frame, 4x4 or its first 3 rows
      - [0.0, -1.0, 0.0, 0.0]
      - [0.0, 0.0, -1.0, -0.1]
      - [1.0, 0.0, 0.0, -0.3]
    width: 1242                   # this and the following: only without CameraInfo
    height: 375
    K: [721.5, 0.0, 609.6, 0.0, 721.5, 172.9, 0.0, 0.0, 1.0]
    distortion_model: plumb_bob   # none, plumb_bob, rational_polynomial or equidistant
    D: [-0.3, 0.1, 0.0, 0.0, 0.0]
    time_offset_s: 0.02           # added to the stamps of the images [s]; default 0
T_body_lidar:                     # only if the poses are of another frame, as in Odometry
  - [1.0, 0.0, 0.0, 0.8]          # LiDAR frame into the frame of the poses
  - [0.0, 1.0, 0.0, 0.0]
  - [0.0, 0.0, 1.0, 1.7]
lidars:                           # only for several LiDARs: all but the first
  /left/points:                   # topic, or frame of its clouds
    T_united_lidar:               # its frame into that of the first LiDAR (of the united sweep)
      - [1.0, 0.0, 0.0, 0.5]
      - [0.0, 1.0, 0.0, 0.8]
      - [0.0, 0.0, 1.0, -1.0]
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import Field, field_validator, model_validator

from pcseg_core.camera import CameraModel
from pcseg_core.config import Section, load_yaml
from pcseg_core.data.sample import CameraFrame
from pcseg_core.errors import InputError
from pcseg_core.files import write_atomic

Float64 = npt.NDArray[np.float64]
Numbers = tuple[float, ...]


class CameraCalibration(Section):
    """One camera. Give all intrinsics, or none to take them from CameraInfo."""

    T_cam_lidar: tuple[Numbers, ...] = Field(
        description="3 or 4 rows of 4: LiDAR frame into the optical frame of the camera [m]"
    )
    width: int | None = Field(default=None, gt=0, description="image width [px]")
    height: int | None = Field(default=None, gt=0, description="image height [px]")
    K: Numbers | None = Field(default=None, description="3x3 camera matrix, row by row [px]")
    distortion_model: str = Field(
        default="none", description="none, plumb_bob, rational_polynomial or equidistant"
    )
    D: Numbers = Field(default=(), description="distortion coefficients in OpenCV's order")
    R: Numbers | None = Field(
        default=None, description="3x3 rectification, row by row; raw images only"
    )
    P: Numbers | None = Field(default=None, description="3x4 projection, row by row")
    time_offset_s: float = Field(
        default=0.0, ge=-1, le=1, description="added to the stamps of the images [s]"
    )

    @field_validator("T_cam_lidar")
    @classmethod
    def _rigid(cls, rows: tuple[Numbers, ...]) -> tuple[Numbers, ...]:
        return _check_rigid(rows)

    @model_validator(mode="after")
    def _whole(self) -> CameraCalibration:
        given = [self.K is not None, self.width is not None, self.height is not None]
        if any(given) and not all(given):
            raise ValueError("width, height and K belong together: give all three or none")
        for name, count in (("K", 9), ("R", 9), ("P", 12)):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f"{name} has {len(values)} numbers, expected {count}")
        self.model()  # raises for numbers that are no camera
        return self

    def extrinsic(self) -> Float64:
        """T_cam_lidar (4, 4)."""
        return _matrix(self.T_cam_lidar)

    @property
    def time_offset_ns(self) -> int:
        """Added to the stamps of the images [ns]."""
        return round(self.time_offset_s * 1e9)

    def model(self) -> CameraModel | None:
        """The camera model, or None if only the extrinsics are given."""
        if self.K is None or self.width is None or self.height is None:
            return None
        return CameraModel(
            self.width,
            self.height,
            np.array(self.K).reshape(3, 3),
            self.D,
            self.distortion_model,
            np.eye(3) if self.R is None else np.array(self.R).reshape(3, 3),
            None if self.P is None else np.array(self.P).reshape(3, 4),
        )


class LidarCalibration(Section):
    """One of several LiDARs."""

    T_united_lidar: tuple[Numbers, ...] = Field(
        description="3 or 4 rows of 4: frame of the LiDAR into that of the united sweep [m]"
    )

    @field_validator("T_united_lidar")
    @classmethod
    def _rigid(cls, rows: tuple[Numbers, ...]) -> tuple[Numbers, ...]:
        return _check_rigid(rows)


class Calibration(Section):
    """Sensors of a platform."""

    cameras: dict[str, CameraCalibration] = Field(
        default_factory=dict, description="camera name or image topic: its calibration"
    )
    lidars: dict[str, LidarCalibration] = Field(
        default_factory=dict, description="topic or frame of a LiDAR: its calibration"
    )
    T_body_lidar: tuple[Numbers, ...] | None = Field(
        default=None, description="LiDAR frame into the frame of the poses [m]"
    )

    @field_validator("T_body_lidar")
    @classmethod
    def _rigid(cls, rows: tuple[Numbers, ...] | None) -> tuple[Numbers, ...] | None:
        return None if rows is None else _check_rigid(rows)

    def camera(self, *names: str) -> CameraCalibration | None:
        """The camera with the first known of several names; None if there is none."""
        return next((self.cameras[name] for name in names if name in self.cameras), None)

    def lidar(self, *names: str) -> Float64 | None:
        """T_united_lidar (4, 4) of the LiDAR with the first known name; None if there is none."""
        found = next((self.lidars[name] for name in names if name in self.lidars), None)
        return None if found is None else _matrix(found.T_united_lidar)

    def check(self, names: Collection[str], source: str) -> None:
        """Raise InputError if both have cameras, but none in common.

        Args:
            names: of the cameras that are read; none if only sweeps are.
            source: the recording, for the message.
        """
        if self.cameras and names and not set(self.cameras) & set(names):
            raise InputError(
                f"{source}: the calibration is of other cameras ({', '.join(self.cameras)}); "
                f"expected some of: {', '.join(names)}"
            )

    def body(self) -> Float64 | None:
        """T_body_lidar (4, 4), or None."""
        return None if self.T_body_lidar is None else _matrix(self.T_body_lidar)


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration file.

    Raises:
        InputError: the file is missing, or an entry is missing, unknown or invalid.
    """
    return load_yaml(path, Calibration)


def save_calibration(
    path: str | Path,
    frames: list[CameraFrame],
    time_offsets: Mapping[str, float] | None = None,
    T_body_lidar: Float64 | None = None,
) -> None:
    """Write the calibration of the cameras of a sample, for another recording.

    Args:
        path: the file.
        frames: one image of each camera.
        time_offsets: seconds to add to the stamps of the images, by camera.
        T_body_lidar: (4, 4) see `Calibration`.
    """
    offsets = time_offsets or {}
    content: dict[str, object] = {
        "cameras": {frame.name: _describe(frame, offsets.get(frame.name, 0.0)) for frame in frames}
    }
    if T_body_lidar is not None:
        content["T_body_lidar"] = T_body_lidar.tolist()
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    write_atomic(path, text)


def _check_rigid(rows: tuple[Numbers, ...]) -> tuple[Numbers, ...]:
    if len(rows) not in (3, 4) or any(len(row) != 4 for row in rows):
        raise ValueError("expected 3 or 4 rows of 4 numbers")
    R, t = np.array(rows)[:3, :3], np.array(rows)[:3, 3]
    if not np.isfinite(t).all():
        raise ValueError(f"its translation {t.tolist()} is not finite")
    if not np.allclose(R @ R.T, np.eye(3), atol=1e-3) or np.linalg.det(R) < 0:
        raise ValueError("its upper left 3x3 is not a rotation")
    return rows


def _matrix(rows: tuple[Numbers, ...]) -> Float64:
    T = np.eye(4)
    T[:3] = np.array(rows)[:3]
    return T


def _describe(frame: CameraFrame, time_offset_s: float) -> dict[str, object]:
    model = frame.camera
    described: dict[str, object] = {
        "T_cam_lidar": frame.T_cam_lidar.tolist(),
        "width": model.width,
        "height": model.height,
        "K": model.K.reshape(-1).tolist(),
        "distortion_model": model.distortion_model,
        "D": list(model.D),
    }
    if not np.array_equal(model.R, np.eye(3)):
        described["R"] = model.R.reshape(-1).tolist()
    if model.P is not None:
        described["P"] = model.P.reshape(-1).tolist()
    if time_offset_s:
        described["time_offset_s"] = time_offset_s
    return described
