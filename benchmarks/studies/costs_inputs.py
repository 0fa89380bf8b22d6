# SPDX-License-Identifier: Apache-2.0
"""What the parts of the cost study are measured on: two sweeps, an image, sectors of contrast."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.camera import CameraModel
from pcseg_core.data import open_recording
from pcseg_core.distill.cache import read_arrays, write_arrays
from pcseg_core.errors import InputError
from pcseg_core.geometry import deskew
from pcseg_core.learning.pairs import PairedSectors
from pcseg_core.learning.pretrain import new_observer, prepare
from pcseg_core.learning.recipe import Recipe, load_recipe
from pcseg_core.recipes import recipe_file
from pcseg_core.vision.encoder_kinds import load_encoder
from pcseg_core.vision.superpixel_kinds import SUPERPIXELS

Array = npt.NDArray[Any]

LOSSES = ("superpixel", "point_pixel", "temporal", "point_to_segment", "regression")
_FILE = "inputs.npz"


@dataclass(frozen=True)
class Inputs:
    """What parts are measured on.

    Attributes:
        folder: of the inputs; observations are kept in it.
        source: the recording.
        image: (H, W, 3) uint8 RGB.
        K: (3, 3) of its camera, without distortion.
        T_cam_lidar: (4, 4) for the first sweep.
        clouds: (N, 3) deskewed points of two sweeps in their LiDAR frames [m].
        poses: (4, 4) T_world_lidar of them.
        device: "cpu" or "cuda".
    """

    folder: Path
    source: str
    image: Array
    K: Array
    T_cam_lidar: Array
    clouds: tuple[Array, Array]
    poses: tuple[Array, Array]
    device: str = "cpu"

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Inputs:
        """The inputs that `store` left in a folder."""
        found = read_arrays(folder / _FILE)
        return cls(
            folder,
            found["source"].tobytes().decode(),
            found["image"],
            found["K"],
            found["T_cam_lidar"],
            (found["now"], found["then"]),
            (found["pose_now"], found["pose_then"]),
            device,
        )

    @property
    def camera(self) -> CameraModel:
        """Model of the camera."""
        (fx, _, cx), (_, fy, cy) = self.K[:2]
        height, width = self.image.shape[:2]
        return CameraModel.pinhole(fx, fy, cx, cy, width, height)


def store(source: str, folder: Path) -> None:
    """Store the first two sweeps of a recording with an image, and the observations of contrast.

    What is stored already is kept.

    Raises:
        InputError: fewer than two sweeps, no poses, or no image.
    """
    if (folder / _FILE).is_file():
        return
    recording = open_recording(source)
    if len(recording) < 2 or recording.pose_source == "none":
        raise InputError(f"{source}: expected two sweeps with poses")
    samples = [recording[k] for k in (0, 1)]
    arrays: dict[str, Array] = {"source": np.frombuffer(source.encode(), np.uint8)}
    for name, sample in zip(("now", "then"), samples):
        xyz, trajectory, pose = sample.cloud.xyz, sample.trajectory, sample.T_world_lidar
        if trajectory is None or pose is None or not sample.cameras:
            raise InputError(f"{source}: sweep {sample.name} lacks a pose or an image")
        if sample.cloud.time is not None:
            xyz = deskew(xyz, sample.cloud.time, trajectory, sample.stamp_ns)
        arrays |= {name: xyz[sample.cloud.finite], f"pose_{name}": pose}
    frame = samples[0].cameras[0]
    arrays |= {"image": frame.image, "K": frame.camera.K, "T_cam_lidar": samples[0].T_cam_lidar(0)}
    sectors(source, folder)
    write_arrays(folder / _FILE, arrays)


@cache
def sectors(source: str, folder: Path) -> PairedSectors:
    """Sectors of a recording for contrast, with its observations in a folder."""
    used = recipe()
    assert used.encoder is not None
    observer = new_observer(used, load_encoder(used.encoder), folder / "cache", "cpu")
    return PairedSectors(*prepare(observer, {source: open_recording(source)}, used), used)


def recipe() -> Recipe:
    """The recipe contrast with all objectives, and with SLIC."""
    base = load_recipe(recipe_file("contrast"))
    loss = base.loss.model_copy(update=dict.fromkeys(LOSSES, 1.0))
    superpixels = SUPERPIXELS.parse({"name": "slic"}, "superpixels")
    return base.model_copy(update={"loss": loss, "superpixels": superpixels})
