# SPDX-License-Identifier: Apache-2.0
"""A labeled sweep as formats write it, and its images without distortion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pcseg_core.camera import CameraModel
from pcseg_core.data.images import undistort
from pcseg_core.data.sample import CameraFrame, Sample

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ExportSweep:
    """A sweep with its labels.

    Attributes:
        sample: the sweep with images and poses.
        labels: (N,) class ids, negative for none.
        place: unique relative path without suffix: NAME, or SCENE/NAME.
    """

    sample: Sample
    labels: npt.NDArray[np.integer]
    place: str

    def points(self, deskewed: bool) -> npt.NDArray[np.float32]:
        """(N, 4) x, y, z [m], intensity 0 to 1; points without a return are (0, 0, 0).

        Args:
            deskewed: correct the points for the motion within the sweep, if poses and times of
                the points are known.

        Raises:
            InputError: the trajectory does not cover the sweep.
        """
        cloud = self.sample.cloud
        xyz = self.sample.deskewed() if deskewed else cloud.xyz
        points = np.zeros((len(cloud), 4), np.float32)
        points[:, :3] = np.where(cloud.finite[:, None], xyz, 0)
        if cloud.intensity is not None:
            points[:, 3] = np.nan_to_num(cloud.intensity)
        return points


@dataclass(frozen=True)
class View:
    """An image without distortion.

    Attributes:
        frame: the image as recorded.
        model: pinhole camera of the image without distortion.
        T_cam_lidar: (4, 4) LiDAR frame to the frame of `model`, without ego motion.
    """

    frame: CameraFrame
    model: CameraModel
    T_cam_lidar: Float64

    @classmethod
    def of(cls, frame: CameraFrame) -> View:
        """The view of a frame; its image is not loaded."""
        model, T_view_cam = frame.camera.without_distortion()
        return cls(frame, model, T_view_cam @ frame.T_cam_lidar)

    def save(self, path: Path) -> None:
        """Write the image without distortion.

        Raises:
            InputError: the image cannot be read.
        """
        image = Image.fromarray(undistort(self.frame.image, self.frame.camera))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            image.save(path, quality=95)
        else:
            image.save(path, compress_level=1)


def front_view(sample: Sample) -> View | None:
    """The view that looks most along the x axis of the LiDAR; None without images."""
    views = [View.of(frame) for frame in sample.cameras]
    return max(views, key=lambda view: float(view.T_cam_lidar[2, 0]), default=None)
