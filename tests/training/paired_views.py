# SPDX-License-Identifier: Apache-2.0
"""A short drive with one camera, and its observations for pretraining."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.distill.image_views import ImageViewer, ViewConfig, average_down
from pcseg_core.distill.observation import Observer
from pcseg_core.distill.temporal import TemporalConfig
from pcseg_core.geometry import Trajectory, from_euler, invert, transform
from pcseg_core.learning.dataset import StepDataset
from pcseg_core.learning.pairs import PairedSectors
from pcseg_core.learning.recipe import LossConfig, OptimizerConfig, Recipe
from pcseg_core.models.student import StudentConfig
from pcseg_core.vision.encoder_kinds import ESPNetv2FeaturesConfig
from pcseg_core.vision.image_cache import SuperpixelCache
from pcseg_core.vision.superpixels import SegmentMap

WIDTH, HEIGHT, TILE = 64, 48, 16
# LiDAR axes (x forward, y left, z up) into camera axes (z forward, x right, y down).
T_CAM_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)


class TileSegments:
    """Squares of the image, each of a class of its own."""

    name, parameters = "tiles", {"tile": TILE}

    def segment(self, image: np.ndarray) -> SegmentMap:
        rows, columns = np.indices(image.shape[:2]) // TILE
        ids = (rows * (WIDTH // TILE) + columns).astype(np.int32)
        return SegmentMap(ids, np.arange(ids.max() + 1, dtype=np.int16))


class Places:
    """Features that tell row and column of their pixel, and the image's red value."""

    name, channels, parameters = "places", 3, {"v": 1}

    def features(self, image: np.ndarray) -> np.ndarray:
        rows, columns = np.indices(image.shape[:2], np.float32)
        values = np.stack([rows, columns, image[..., 0].astype(np.float32)])
        return average_down(values, 4)


class Fakes:
    """A drive of given samples."""

    def __init__(self, samples: list[Any], scene: str = "street") -> None:
        self.samples, self.name, self.label_space = samples, "fakes", None
        self.scenes, self.pose_source = [scene] * len(samples), "exact"
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        if isinstance(self.samples[index], Exception):
            raise self.samples[index]
        return self.samples[index]


def sample(number: int = 0, **changes: Any) -> Sample:
    """A wall of points before the camera and two blocks behind, seen from a moving vehicle."""
    rng = np.random.default_rng(7)
    wall = rng.uniform((12, -9, -6), (12, 9, 6), (1500, 3))
    blocks = [rng.uniform((-9, y - 1, -1), (-7, y + 1, 1), (300, 3)) for y in (-5, 5)]
    stamps = np.arange(-1, 12) * 100_000_000
    poses = np.stack([from_euler(0, 0, 0.05 * k, (0.3 * k, 0, 0)) for k in range(-1, 12)])
    trajectory = Trajectory(stamps, poses)
    stamp = number * 100_000_000
    xyz = transform(invert(trajectory.at(stamp)), np.concatenate([wall, *blocks]))
    strength = rng.uniform(0, 1, len(xyz)).astype(np.float32)
    cloud = PointCloud(xyz.astype(np.float32), strength, frame_id="lidar", stamp_ns=stamp)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    camera = CameraModel.pinhole(32.0, 32.0, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5, WIDTH, HEIGHT)
    frame = CameraFrame("front", stamp, camera, T_CAM_LIDAR, changes.pop("image", image))
    values = {"cloud": cloud, "cameras": [frame], "trajectory": trajectory, "name": f"s{number}"}
    return Sample(**{**values, **changes})


def maker(folder: Path, mirror: bool = False) -> Observer:
    cache = SuperpixelCache(folder / "superpixels", TileSegments())
    return Observer(folder, images=ImageViewer(Places(), cache, ViewConfig(), mirror))


def quiet(_done: int, _total: int) -> None:
    pass


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "encoder": ESPNetv2FeaturesConfig(name="espnetv2"),
        "student": StudentConfig(depth=14, width=0.25, voxel_size_m=0.5),
        "optimizer": OptimizerConfig(steps=4, batch_size=4, sector_deg=360),
        "temporal": TemporalConfig(ground="ransac", clusterer="sklearn", ground_distance_m=0.01),
        "loss": LossConfig(temporal=1, point_to_segment=1, regression=1, point_pixel=1, pairs=64),
    }
    return Recipe(**{**values, **changes})


def batches(stored: Any, settings: Recipe, first: int, count: int, *share: int) -> StepDataset:
    return StepDataset(PairedSectors(*stored, settings), first, count, *share)
