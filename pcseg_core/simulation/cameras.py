# SPDX-License-Identifier: Apache-2.0
"""Cameras: lens, mounting, exposure and noise; images with ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.camera import CameraModel
from pcseg_core.config import Section
from pcseg_core.simulation.materials import Class
from pcseg_core.simulation.observe import Hits, observe
from pcseg_core.simulation.primitives import rotation_matrix
from pcseg_core.simulation.raycast import Rays, Tiles, grid_tiles
from pcseg_core.simulation.scene import Scene
from pcseg_core.simulation.shading import radiance

Array = npt.NDArray[Any]

# Columns: camera axes (x right, y down, z forward) in vehicle axes (x forward, y left, z up).
R_FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
_GAMMA = 1 / 2.2


class CameraSpec(Section):
    """A camera on the vehicle; the vehicle origin is on the ground below its center."""

    name: str = Field(default="camera_0", min_length=1, description="Name of the camera.")
    width: int = Field(default=640, ge=16, le=4096, description="Image width [px].")
    height: int = Field(default=384, ge=16, le=4096, description="Image height [px].")
    hfov_deg: float = Field(
        default=90.0, gt=5, lt=200, description="Horizontal field of view [deg]."
    )
    lens: Literal["pinhole", "fisheye"] = Field(
        default="pinhole", description="Projection; fisheye is equidistant."
    )
    distortion: tuple[float, ...] = Field(
        default=(), description="As in OpenCV: plumb_bob for pinhole, equidistant for fisheye."
    )
    rate_hz: float = Field(default=10.0, gt=0, le=200, description="Images per second [Hz].")
    offset_s: float = Field(
        default=0.03,
        ge=-1,
        le=1,
        description="Time from the start of the first sweep to the first image [s].",
    )
    position_m: tuple[float, float, float] = Field(
        default=(0.6, 0.0, 1.6), description="Position on the vehicle: forward, left, up [m]."
    )
    yaw_deg: float = Field(
        default=0.0, ge=-360, le=360, description="Yaw of the optical axis, left positive [deg]."
    )
    pitch_deg: float = Field(
        default=2.0, ge=-90, le=90, description="Pitch of the optical axis, down positive [deg]."
    )
    exposure_sway: float = Field(
        default=0.15, ge=0, le=1, description="Relative drift of the exposure over a drive."
    )
    vignetting: float = Field(
        default=0.3, ge=0, le=1, description="Loss of light at the corners of the image."
    )
    noise: float = Field(
        default=0.02, ge=0, le=1, description="Noise of a mid-gray pixel, relative to full scale."
    )


@dataclass(frozen=True)
class Picture:
    """An image with ground truth; see `pcseg_core.data.sample.CameraFrame` for dtypes."""

    image: Array
    labels: Array
    depth: Array
    instances: Array


class Camera:
    """A camera with its rays."""

    def __init__(self, spec: CameraSpec) -> None:
        self.spec = spec

    @cached_property
    def model(self) -> CameraModel:
        """The lens and image size.

        Raises:
            InputError: the distortion has a wrong number of coefficients.
        """
        spec = self.spec
        half = np.radians(spec.hfov_deg) / 2
        fisheye = spec.lens == "fisheye"
        focal = spec.width / 2 / (half if fisheye else np.tan(min(half, np.radians(85))))
        K = [[focal, 0, (spec.width - 1) / 2], [0, focal, (spec.height - 1) / 2], [0, 0, 1]]
        if fisheye:
            lens, D = "equidistant", spec.distortion or (0.0,) * 4
        else:
            lens, D = ("plumb_bob" if spec.distortion else "none"), spec.distortion
        return CameraModel(spec.width, spec.height, np.array(K), D, lens)

    @property
    def T_body_cam(self) -> Array:
        """(4, 4) camera optical frame to vehicle."""
        yaw, pitch = np.radians([self.spec.yaw_deg, self.spec.pitch_deg])
        pose = np.eye(4)
        pose[:3, :3] = rotation_matrix(yaw, pitch) @ R_FORWARD
        pose[:3, 3] = rotation_matrix(yaw) @ np.asarray(self.spec.position_m)
        return pose

    @cached_property
    def _rays(self) -> tuple[Array, Array, Tiles]:
        """Directions (N, 3) in the camera frame, their validity, and their tiles."""
        u, v = np.meshgrid(np.arange(self.spec.width), np.arange(self.spec.height))
        rays = self.model.unproject(np.stack([u.ravel(), v.ravel()], axis=1))
        valid = np.asarray(np.isfinite(rays).all(axis=1))
        rays[~valid] = (0.0, 0.0, 1.0)
        tiles = grid_tiles(rays @ R_FORWARD.T, self.spec.height, self.spec.width)
        return rays, valid, tiles

    def observe(self, scene: Scene, T_world_cam: Array, time_s: float, far_m: float) -> Hits:
        """Hits of all pixels, row by row."""
        directions, _, tiles = self._rays
        rays = Rays(
            T_world_cam[:3, 3],
            np.zeros((1, 3), np.float32),
            (directions @ T_world_cam[:3, :3].T).astype(np.float32),
            None,
            R_FORWARD @ T_world_cam[:3, :3].T,
            tiles,
        )
        return observe(scene, rays, time_s, far_m)

    def take(
        self, scene: Scene, T_world_cam: Array, time_s: float, seed: int, far_m: float = 250.0
    ) -> Picture:
        """Render an image; all pixels are exposed at `time_s` of the drive."""
        shape = (self.spec.height, self.spec.width)
        hits = self.observe(scene, T_world_cam, time_s, far_m)
        directions, valid, _ = self._rays
        light = radiance(hits)
        light[~valid] = 0.0
        image = self._develop(light.reshape(*shape, 3), time_s, np.random.default_rng(seed))
        labels = np.where(hits.label < 0, np.int16(Class.SKY), hits.label)
        labels[~valid] = -1
        depth = np.where(valid, hits.range * directions[:, 2], np.nan).astype(np.float32)
        instances = np.where(valid, hits.instance, -1).astype(np.int32)
        return Picture(image, labels.reshape(shape), depth.reshape(shape), instances.reshape(shape))

    def _develop(self, light: Array, time_s: float, rng: np.random.Generator) -> Array:
        """Light to 8 bit: lens blur, fall-off, exposure, noise, gamma."""
        spec = self.spec
        light = _blurred(light)
        # exposure metering without the top of the image and with little weight on the sky
        metered = np.minimum(light[spec.height // 3 :], 0.45).mean() + 0.02
        drift = 1 + spec.exposure_sway * np.sin(0.9 * time_s + len(spec.name))
        light = light * (0.22 / metered * drift * self._fall_off)[..., None].astype(np.float32)
        grain = rng.standard_normal(light.shape, np.float32)
        # shot noise grows with the square root of the light, read noise is constant
        light += grain * np.sqrt(np.maximum(light, 0) * 0.4 + 0.01) * np.float32(spec.noise)
        # soft highlights and shadows
        soft = np.where(light > 0.7, 1 - 0.3 * np.exp(-(light - 0.7) / 0.3), light)
        result: Array = (255 * np.clip(soft, 0, 1) ** np.float32(_GAMMA) + 0.5).astype(np.uint8)
        return result

    @cached_property
    def _fall_off(self) -> Array:
        """(H, W) relative illumination of each pixel."""
        v, u = np.mgrid[-1 : 1 : self.spec.height * 1j, -1 : 1 : self.spec.width * 1j]
        result: Array = (1 - self.spec.vignetting * (u**2 + v**2) / 2).astype(np.float32)
        return result


def _blurred(light: Array) -> Array:
    """Binomial blur of one pixel: a lens as sharp as the sensor."""
    for axis in (0, 1):
        padded = np.pad(light, [(1, 1) if k == axis else (0, 0) for k in range(3)], mode="edge")
        before, after = np.take(padded, range(light.shape[axis]), axis), None
        size = light.shape[axis]
        after = np.take(padded, range(2, size + 2), axis)
        light = 0.25 * before + 0.5 * light + 0.25 * after
    return light


def rig(
    count: int, width: int, height: int, lens: Literal["pinhole", "fisheye"] = "pinhole"
) -> tuple[CameraSpec, ...]:
    """`count` cameras evenly around the vehicle, the first one forward."""
    fields: dict[str, Any] = {"width": width, "height": height, "lens": lens}
    if lens == "fisheye":
        fields |= {"hfov_deg": 150.0, "distortion": (-0.02, 0.004, -0.001, 0.0)}
    return tuple(
        CameraSpec(name=f"camera_{k}", yaw_deg=360.0 * k / count, **fields) for k in range(count)
    )
