# SPDX-License-Identifier: Apache-2.0
"""The sample of all readers: a LiDAR sweep with images, poses and labels.

Frames and units are those of `pcseg_core.geometry`: meters, `T_a_b` maps points of frame b into
frame a, stamps are integer nanoseconds. Images, labels and depth maps of cameras are loaded on
access.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError
from pcseg_core.geometry import deskew

if TYPE_CHECKING:
    from pcseg_core.camera import CameraModel
    from pcseg_core.cloud import PointCloud
    from pcseg_core.geometry import Trajectory
    from pcseg_core.labels import LabelSpace

Array = npt.NDArray[Any]
Lazy: TypeAlias = "Array | Callable[[], Array] | None"


class CameraFrame:
    """One image with its camera model and extrinsics.

    Attributes:
        name: unique among the cameras of a recording, such as "image_02" or "/camera/front".
        stamp_ns: of the image (int nanoseconds).
        camera: model of the image as stored (a rectified image has a model without distortion).
        T_cam_lidar: (4, 4) float64 static extrinsic, LiDAR frame to camera optical frame
            (x right, y down, z forward), without ego motion; see `Sample.T_cam_lidar`.
    """

    def __init__(
        self,
        name: str,
        stamp_ns: int,
        camera: CameraModel,
        T_cam_lidar: Array,
        image: Array | Callable[[], Array],
        labels: Lazy = None,
        depth: Lazy = None,
        instances: Lazy = None,
    ) -> None:
        """Pixels are arrays, or functions that load them on every access.

        Functions must be picklable if worker processes read the recording.
        """
        self.name = name
        self.stamp_ns = int(stamp_ns)
        self.camera = camera
        self.T_cam_lidar: npt.NDArray[np.float64] = np.asarray(T_cam_lidar, dtype=np.float64)
        self._image = image
        self._labels = labels
        self._depth = depth
        self._instances = instances

    def placed(self, T_cam_lidar: Array) -> CameraFrame:
        """The same image with other extrinsics."""
        moved = copy.copy(self)
        moved.T_cam_lidar = np.asarray(T_cam_lidar, np.float64)
        return moved

    def decoded(self) -> CameraFrame:
        """The same frame with its image in memory.

        Raises:
            InputError: the image cannot be read or decoded, or is empty.
        """
        pixels = self.image
        if pixels.size == 0:
            raise InputError("the image is empty")
        kept = copy.copy(self)
        kept._image = pixels
        return kept

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, loaded on each access.

        Raises:
            InputError: the image cannot be read or decoded.
        """
        pixels = _load(self._image)
        assert pixels is not None
        result: npt.NDArray[np.uint8] = pixels
        return result

    @property
    def labels(self) -> npt.NDArray[np.int16] | None:
        """(H, W) int16 class ids, -1 without a class; None for an unlabeled image."""
        result: npt.NDArray[np.int16] | None = _load(self._labels)
        return result

    @property
    def depth(self) -> npt.NDArray[np.float32] | None:
        """(H, W) float32 z in the camera frame [m], NaN or infinity without a surface."""
        result: npt.NDArray[np.float32] | None = _load(self._depth)
        return result

    @property
    def instances(self) -> npt.NDArray[np.int32] | None:
        """(H, W) int32 instance ids, -1 without an instance."""
        result: npt.NDArray[np.int32] | None = _load(self._instances)
        return result

    def __repr__(self) -> str:
        return f"CameraFrame({self.name!r}, stamp_ns={self.stamp_ns})"


@dataclass(frozen=True)
class Box:
    """A labeled 3D box in the LiDAR frame.

    Attributes:
        center: (3,) x, y, z [m].
        size: (3,) length along the heading, width, height [m].
        yaw: heading about +z, 0 along +x, counter-clockwise [rad].
        label: class name of the data set.

    Raises:
        InputError: numbers that are not finite, or a negative size.
    """

    center: npt.NDArray[np.float64]
    size: npt.NDArray[np.float64]
    yaw: float
    label: str

    def __post_init__(self) -> None:
        numbers = np.concatenate([self.center, self.size, [self.yaw]])
        if len(numbers) != 7 or not np.isfinite(numbers).all() or min(self.size) < 0:
            raise InputError(
                f"box '{self.label}': center {self.center.tolist()}, size {self.size.tolist()}, "
                f"yaw {self.yaw:g}; expected finite numbers, and sizes of 0 m or more"
            )

    def contains(self, xyz: Array) -> npt.NDArray[np.bool_]:
        """(N,) bool: points (N, 3) of the LiDAR frame inside the box or on its faces."""
        moved = np.asarray(xyz, dtype=np.float64) - self.center
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        along = moved[:, 0] * cos + moved[:, 1] * sin
        across = moved[:, 1] * cos - moved[:, 0] * sin
        own = np.abs(np.stack([along, across, moved[:, 2]], axis=1))
        inside: npt.NDArray[np.bool_] = np.all(own <= np.asarray(self.size) / 2, axis=1)
        return inside


@dataclass
class Sample:
    """One sweep with its images, poses and labels.

    Attributes:
        cloud: the sweep, in the LiDAR frame at `stamp_ns`, in recorded order.
        cameras: the image of each camera that has one near the sweep; may be empty.
        trajectory: T_world_lidar over time, or None without poses.
        labels: (N,) int16 class ids of `label_space`, -1 if unlabeled; None without labels.
        label_space: classes of `labels`.
        instances: (N,) int32 instance ids, -1 (or 0 in SemanticKITTI) for none.
        moving: (N,) uint8 UNKNOWN, STATIC or MOVING of `pcseg_core.labels`; None if the source does
            not tell what moves.
        boxes: 3D boxes in the LiDAR frame; None if the source has no boxes.
        name: unique in its recording.
        scene: samples of one scene share the world frame of their trajectories.
    """

    cloud: PointCloud
    cameras: list[CameraFrame] = field(default_factory=list)
    trajectory: Trajectory | None = None
    labels: npt.NDArray[np.int16] | None = None
    label_space: LabelSpace | None = None
    instances: npt.NDArray[np.int32] | None = None
    moving: npt.NDArray[np.uint8] | None = None
    boxes: list[Box] | None = None
    name: str = ""
    scene: str = ""

    @property
    def stamp_ns(self) -> int:
        """The sweep's stamp (int nanoseconds)."""
        return self.cloud.stamp_ns

    def T_cam_lidar(self, k: int) -> npt.NDArray[np.float64]:
        """(4, 4): LiDAR frame at the sweep's stamp to camera `k` at its image's stamp.

        With a trajectory this includes the motion between the two stamps; without one it is the
        static extrinsic.

        Raises:
            InputError: the trajectory does not cover one of the two stamps.
        """
        frame = self.cameras[k]
        if self.trajectory is None or frame.stamp_ns == self.stamp_ns:
            return frame.T_cam_lidar
        moved: npt.NDArray[np.float64] = frame.T_cam_lidar @ self.trajectory.relative(
            frame.stamp_ns, self.stamp_ns
        )
        return moved

    def frames_at_sweep(self) -> list[CameraFrame]:
        """The images, with the motion between sweep and image in their `T_cam_lidar`.

        Raises:
            InputError: the trajectory does not cover one of the stamps.
        """
        return [frame.placed(self.T_cam_lidar(k)) for k, frame in enumerate(self.cameras)]

    @property
    def T_world_lidar(self) -> npt.NDArray[np.float64] | None:
        """(4, 4) pose of the LiDAR at the sweep's stamp; None without a trajectory."""
        return None if self.trajectory is None else self.trajectory.at(self.stamp_ns)

    def deskewed(self) -> npt.NDArray[np.float32]:
        """(N, 3) points at the sweep's stamp [m]; as recorded without poses or times of points.

        Raises:
            InputError: the trajectory does not cover the sweep.
        """
        cloud = self.cloud
        if self.trajectory is None or cloud.time is None:
            return cloud.xyz
        return deskew(cloud.xyz, cloud.time, self.trajectory, cloud.stamp_ns)

    def camera_names(self) -> Sequence[str]:
        """Names of the cameras that have an image in this sample, in order."""
        return [frame.name for frame in self.cameras]


def _load(source: Lazy) -> Any:
    return source() if callable(source) else source
