# SPDX-License-Identifier: Apache-2.0
"""Places of bright panels before a dark wall, seen by a LiDAR and a camera at the same point."""

from __future__ import annotations

import numpy as np

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud

CAMERA = CameraModel.pinhole(120.0, 120.0, 99.5, 59.5, 200, 120)
FORWARD = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
_WALL_M = 30.0
_BEAMS, _COLUMNS = np.radians(np.linspace(-14, 14, 29)), np.radians(np.arange(-50, 50, 0.5))


class Place:
    """Panels at random azimuths, elevations and ranges."""

    def __init__(self, seed: int, panels: int = 9) -> None:
        rng = np.random.default_rng(seed)
        azimuth = np.linspace(-35, 35, panels, endpoint=False) + rng.uniform(0, 4, panels)
        low = rng.uniform(-12, 0, panels)
        self._azimuth = np.radians(np.stack([azimuth, azimuth + rng.uniform(2, 4, panels)]))
        self._elevation = np.radians(np.stack([low, low + rng.uniform(5, 11, panels)]))
        self._range = rng.uniform(6, 15, panels)
        self._gray = rng.uniform(120, 250, panels)

    def cloud(self, stamp_ns: int = 0) -> PointCloud:
        """A sweep, beam by beam."""
        elevation, azimuth = (a.ravel() for a in np.meshgrid(_BEAMS, _COLUMNS, indexing="ij"))
        panel = self._panel(azimuth, elevation)
        far = np.append(self._range, _WALL_M)[panel]
        flat = far * np.cos(elevation)
        xyz = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), far * np.sin(elevation)])
        ring = np.repeat(np.arange(len(_BEAMS)), len(_COLUMNS)).astype(np.uint16)
        return PointCloud(xyz.T.astype(np.float32), extra={"ring": ring}, stamp_ns=stamp_ns)

    def image(self, turned: np.ndarray | None = None) -> np.ndarray:
        """(H, W, 3) image of a camera that is turned by a rotation (3, 3) after `FORWARD`."""
        v, u = np.mgrid[: CAMERA.height, : CAMERA.width]
        rays = np.stack([u.ravel(), v.ravel(), np.ones(u.size)]).astype(np.float64)
        rays = np.linalg.inv(CAMERA.K) @ rays
        if turned is not None:
            rays = turned.T @ rays
        x, y, z = FORWARD[:3, :3].T @ rays
        panel = self._panel(np.arctan2(y, x), np.arctan2(z, np.hypot(x, y)))
        gray = np.append(self._gray, 40.0)[panel].reshape(u.shape)
        return np.repeat(gray[..., None], 3, axis=2).astype(np.uint8)

    def _panel(self, azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
        """(N,) number of the panel in each direction, -1 for the wall."""
        inside = (azimuth > self._azimuth[0, :, None]) & (azimuth < self._azimuth[1, :, None])
        inside &= elevation > self._elevation[0, :, None]
        inside &= elevation < self._elevation[1, :, None]
        empty = np.zeros((1, len(azimuth)), bool)
        return np.vstack([empty, inside]).argmax(axis=0) - 1
