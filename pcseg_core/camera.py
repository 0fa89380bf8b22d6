# SPDX-License-Identifier: Apache-2.0
"""Camera models of sensor_msgs/CameraInfo: projection of points to pixels and back.

Frames are optical (REP-103): z forward, x right, y down. The integer pixel coordinate (u, v) is
the center of a pixel, so an image spans -0.5 to width - 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pcseg_core.distortion import Distortion, create_distortion
from pcseg_core.errors import InputError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


class CameraInfoLike(Protocol):
    """Fields read from a sensor_msgs/CameraInfo; ROS 1 messages have K, D, R, P in capitals."""

    width: int
    height: int
    distortion_model: str


@dataclass(frozen=True, eq=False)
class CameraModel:
    """A pinhole or fisheye camera.

    Points are in the message's `frame_id`. As in image_geometry, `P` projects that frame into the
    rectified image. A raw pixel is the rectified ray, rotated by the inverse of `R`, distorted by
    `D` and mapped by `K`. For a camera that is not part of a stereo pair, `R` is the identity and
    `P` repeats `K`.

    Attributes:
        width, height: image size after region of interest and binning [px].
        K: (3, 3) camera matrix of those images.
        D: distortion coefficients in OpenCV's order.
        distortion_model: "none", "plumb_bob", "rational_polynomial" or "equidistant".
        R: (3, 3) rotation from the raw camera frame into the rectified one.
        P: (3, 4) projection into the rectified image, or None.
        roi: (x, y, width, height) of the image on the full sensor; all 0 for the full sensor.
        binning: (x, y) sensor pixels per image pixel.
    """

    width: int
    height: int
    K: Float64
    D: tuple[float, ...] = ()
    distortion_model: str = "none"
    R: Float64 = field(default_factory=lambda: np.eye(3))
    P: Float64 | None = None
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)
    binning: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "K", _matrix(self.K, (3, 3), "K"))
        object.__setattr__(self, "R", _matrix(self.R, (3, 3), "R"))
        object.__setattr__(self, "D", tuple(float(d) for d in self.D))
        if self.P is not None:
            object.__setattr__(self, "P", _matrix(self.P, (3, 4), "P"))
            _check_offset(self._offset, self.P)
        if self.width <= 0 or self.height <= 0:
            raise InputError(f"camera: image size {self.width} x {self.height} must be positive")
        if self.K[0, 0] <= 0 or self.K[1, 1] <= 0:
            raise InputError(
                "camera: the focal length in K is not positive, so the camera is not calibrated; "
                "calibrate it, or give the calibration of the recording"
            )
        create_distortion(self.distortion_model, self.D)  # raises for unknown models

    @classmethod
    def pinhole(
        cls, fx: float, fy: float, cx: float, cy: float, width: int, height: int
    ) -> CameraModel:
        """Camera without distortion; focal lengths and principal point in pixels."""
        return cls(width, height, np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]))

    @classmethod
    def from_projection(cls, P: npt.ArrayLike, width: int, height: int) -> CameraModel:
        """Camera of a rectified image from its (3, 4) projection, offset included (KITTI's P2)."""
        matrix = _matrix(P, (3, 4), "P")
        return cls(width, height, matrix[:, :3], P=matrix)

    @classmethod
    def from_camera_info(cls, info: CameraInfoLike, rectified: bool = False) -> CameraModel:
        """Read a CameraInfo, with region of interest and binning as in REP-104.

        Args:
            info: the message; `roi` and `binning_x`, `binning_y` may be absent.
            rectified: True for rectified images (image_rect): uses P without distortion. False
                for raw images: uses K, D and R.

        Raises:
            InputError: the camera is not calibrated, or its distortion model is unknown.
        """
        K = _entry(info, "k", (3, 3))
        D = tuple(float(d) for d in _entry(info, "d", (-1,)))
        R, P = _entry(info, "r", (3, 3)), _entry(info, "p", (3, 4))
        if rectified and P[0, 0] <= 0:
            raise InputError(
                "camera: images are said to be rectified, but CameraInfo.p is not set; publish the "
                "projection matrix or use the raw images"
            )
        roi, binning = _roi(info), _binning(info)
        width = (roi[2] or int(info.width)) // binning[0]
        height = (roi[3] or int(info.height)) // binning[1]
        view = _view(roi, binning)
        full_P = view @ P if P[0, 0] > 0 else None
        if rectified:
            return cls(width, height, view @ P[:, :3], P=full_P, roi=roi, binning=binning)
        R = R if np.abs(R).sum() > 0 else np.eye(3)  # not filled in by the driver
        return cls(width, height, view @ K, D, info.distortion_model, R, full_P, roi, binning)

    def project(self, xyz_cam: npt.ArrayLike) -> tuple[Float64, npt.NDArray[np.bool_]]:
        """Pixels of points in the camera frame.

        Returns:
            uv (N, 2) float64 [px], NaN where invalid, and valid (N,) bool: finite, in front of the
            camera and within the monotone range of the distortion. Beyond that range points would
            fold back into the image. Valid pixels may lie outside the image: see `contains`.
        """
        points = np.asarray(xyz_cam, dtype=np.float64).reshape(-1, 3)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            q = points if self._is_plain else points @ self.R + self._offset
            xn, yn = q[:, 0] / q[:, 2], q[:, 1] / q[:, 2]
            valid = (q[:, 2] > 0) & np.isfinite(xn) & np.isfinite(yn)
            xd, yd, inside = self._distortion.distort(xn, yn)
        valid &= inside
        uv = np.empty((len(points), 2))
        with np.errstate(invalid="ignore", over="ignore"):
            uv[:, 0] = self.K[0, 0] * xd + self.K[0, 1] * yd + self.K[0, 2]
            uv[:, 1] = self.K[1, 1] * yd + self.K[1, 2]
        valid &= np.isfinite(uv).all(axis=1)
        if not valid.all():
            uv[~valid] = np.nan
        return uv, valid

    def unproject(self, uv: npt.ArrayLike, depth: npt.ArrayLike | None = None) -> Float64:
        """Viewing rays, or points, of pixels.

        Args:
            uv: (N, 2) pixel coordinates, sub-pixel allowed.
            depth: (N,) or one number: z in the camera frame [m]. None gives rays.

        Returns:
            (N, 3): unit directions in the camera frame, or points in the camera frame. NaN for
            pixels outside the valid range of the lens (see `project`).
        """
        pixels = np.asarray(uv, dtype=np.float64).reshape(-1, 2)
        yd = (pixels[:, 1] - self.K[1, 2]) / self.K[1, 1]
        xd = (pixels[:, 0] - self.K[0, 2] - self.K[0, 1] * yd) / self.K[0, 0]
        xn, yn = self._distortion.undistort(xd, yd)
        rays: Float64 = np.stack([xn, yn, np.ones_like(xn)], axis=1) @ self.R.T
        if depth is None:
            result: Float64 = rays / np.linalg.norm(rays, axis=1, keepdims=True)
            return result
        # A point is s * ray - origin, with s such that its z is the depth.
        origin = self.R @ self._offset
        scale = (np.asarray(depth, dtype=np.float64) + origin[2]) / rays[:, 2]
        values: Float64 = scale[:, None] * rays - origin
        return values

    def contains(self, uv: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """(N,) bool: the pixel coordinate lies in the image; False for NaN."""
        pixels = np.asarray(uv)
        u, v = pixels[..., 0], pixels[..., 1]
        inside: npt.NDArray[np.bool_] = (
            (u >= -0.5) & (u < self.width - 0.5) & (v >= -0.5) & (v < self.height - 0.5)
        )
        return inside

    def scaled(self, width: int, height: int) -> CameraModel:
        """The camera of the resized image, with the same outer edges (as cv2.resize does)."""
        sx, sy = width / self.width, height / self.height
        view = np.array([[sx, 0.0, 0.5 * sx - 0.5], [0.0, sy, 0.5 * sy - 0.5], [0.0, 0.0, 1.0]])
        P = None if self.P is None else view @ self.P
        return replace(self, width=width, height=height, K=view @ self.K, P=P)

    def without_distortion(self) -> tuple[CameraModel, Float64]:
        """The pinhole camera of the undistorted image, and (4, 4) camera frame to its frame.

        Its camera matrix is `K`: the image has about the same content. `undistort` of
        `pcseg_core.data.images` makes the image.
        """
        T_view_cam = np.eye(4)
        T_view_cam[:3, :3], T_view_cam[:3, 3] = self.R.T, self._offset
        return CameraModel(self.width, self.height, self.K), T_view_cam

    @cached_property
    def _distortion(self) -> Distortion:
        return create_distortion(self.distortion_model, self.D)

    @cached_property
    def _offset(self) -> Float64:
        """Translation of P in the raw camera frame [m]."""
        if self.P is None:
            return np.zeros(3)
        try:
            offset: Float64 = self.R.T @ np.linalg.solve(self.P[:, :3], self.P[:, 3])
        except np.linalg.LinAlgError:
            return np.full(3, np.nan)
        return offset

    @cached_property
    def _is_plain(self) -> bool:
        return bool(np.array_equal(self.R, np.eye(3)) and not self._offset.any())


def _matrix(values: npt.ArrayLike, shape: tuple[int, ...], name: str) -> Float64:
    matrix = np.array(values, dtype=np.float64)
    if matrix.size != np.prod(shape) or not np.isfinite(matrix).all():
        raise InputError(f"camera: {name} must be {shape} finite numbers, got {matrix.tolist()}")
    matrix = matrix.reshape(shape)
    matrix.flags.writeable = False
    return matrix


def _check_offset(offset: Float64, P: Float64) -> None:
    """Raise InputError unless a projection (3, 4) has a finite translation (3,)."""
    if not np.isfinite(offset).all():
        raise InputError(
            f"camera: the projection P = {P.tolist()} is singular; expected focal lengths and "
            "principal point in its first three columns: calibrate the camera again"
        )


def _entry(info: Any, name: str, shape: tuple[int, ...]) -> Float64:
    values = getattr(info, name, None)
    if values is None:
        values = getattr(info, name.upper())
    array = np.asarray(values, dtype=np.float64)
    if shape != (-1,) and array.size != np.prod(shape):
        raise InputError(
            f"camera: CameraInfo.{name} has {array.size} entries, expected {int(np.prod(shape))}"
        )
    if not np.isfinite(array).all():
        raise InputError(
            f"camera: the numbers in CameraInfo.{name} must be finite; calibrate the camera again"
        )
    return array.reshape(shape)


def _roi(info: Any) -> tuple[int, int, int, int]:
    roi = getattr(info, "roi", None)
    if roi is None:
        return (0, 0, 0, 0)
    return (int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height))


def _binning(info: Any) -> tuple[int, int]:
    """Binning; 0 means 1 (CameraInfo.msg)."""
    return max(1, int(getattr(info, "binning_x", 1))), max(1, int(getattr(info, "binning_y", 1)))


def _view(roi: tuple[int, int, int, int], binning: tuple[int, int]) -> Float64:
    """Matrix from sensor pixels to image pixels (REP-104, image_geometry)."""
    bx, by = binning
    return np.array([[1 / bx, 0.0, -roi[0] / bx], [0.0, 1 / by, -roi[1] / by], [0.0, 0.0, 1.0]])
