# SPDX-License-Identifier: Apache-2.0
"""Faults of the reported calibration and stamps; rendering stays exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.geometry import from_rotation

Array = npt.NDArray[Any]


class Faults(Section):
    """Errors of calibration and time, 0 by default; directions are drawn once per camera."""

    camera_rotation_deg: float = Field(
        default=0.0, ge=0, le=45, description="Error of each camera's reported rotation [deg]."
    )
    camera_translation_m: float = Field(
        default=0.0, ge=0, le=2, description="Error of each camera's reported position [m]."
    )
    stamp_offset_s: float = Field(
        default=0.0, ge=-0.5, le=0.5, description="Added to the reported stamps of all images [s]."
    )
    stamp_jitter_s: float = Field(
        default=0.0,
        ge=0,
        le=0.1,
        description="Standard deviation of the stamp error of each image, cut at 3 sigma [s].",
    )
    dropped_images: float = Field(default=0.0, ge=0, le=1, description="Share of dropped images.")

    def T_cam_lidar(self, exact: Array, seed: int, camera: int) -> Array:
        """(4, 4) reported extrinsic for the exact one."""
        rng = np.random.default_rng([seed, 11, camera])
        axis, shift = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
        turn = _rotation(axis, np.radians(self.camera_rotation_deg))
        # about the camera's own center, then moved
        error = from_rotation(turn, self.camera_translation_m * shift)
        reported: Array = error @ exact
        return reported

    def stamp_error_ns(self, seed: int, camera: int, image: int) -> int:
        """Error of the stamp of an image [ns]."""
        draw = float(np.clip(self._draw(seed, camera, image).normal(), -3, 3))
        return round((self.stamp_offset_s + self.stamp_jitter_s * draw) * 1e9)

    def drops(self, seed: int, camera: int, image: int) -> bool:
        """Whether an image is dropped."""
        return bool(self._draw(seed, camera, image).random(2)[1] < self.dropped_images)

    @staticmethod
    def _draw(seed: int, camera: int, image: int) -> np.random.Generator:
        return np.random.default_rng([seed, 12, camera, image])


def _rotation(axis: Array, angle: float) -> Array:
    """Rotation about a unit axis (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turned
