# SPDX-License-Identifier: Apache-2.0
"""A small drive of two scenes with poses and cameras, and label files of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.label_files import encode_labels, label_paths, labels_yaml, raw_ids_of
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.geometry import Trajectory, from_euler, invert
from pcseg_core.labels import LabelSpace

STREET = LabelSpace.load("street")
START = 1_700_000_000_000_000_000
STEP = 100_000_000
LENS = CameraModel(
    32, 24, np.array([[20.0, 0, 15.5], [0, 20, 11.5], [0, 0, 1]]), (-0.2, 0.05, 0, 0), "plumb_bob"
)
AXES = np.array([[0.0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1]])


class Drive:
    """Two scenes of sweeps with a camera ahead and one aside, whose points are seen in motion."""

    name, label_space = "drive", None

    def __init__(self, sweeps: int = 4, posed: bool = True) -> None:
        self.scenes = ["a/1"] * (sweeps // 2) + ["b"] * (sweeps - sweeps // 2)
        self.skipped: Counter[str] = Counter()
        self.pose_source = "file" if posed else "none"
        stamps = START + STEP * np.arange(-2, sweeps + 2)
        poses = np.stack([from_euler(0, 0, 0.1 * k, (k + 5.0, 0.2 * k, 0)) for k in range(-2, 6)])
        self.trajectory = Trajectory(stamps, poses[: len(stamps)]) if posed else None

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        count = 50 + index
        xyz = rng.uniform(-20, 20, (count, 3)).astype(np.float32)
        xyz[3], xyz[4] = np.nan, 0
        cloud = PointCloud(
            xyz,
            rng.random(count).astype(np.float32),
            time=np.linspace(-0.05, 0.05, count),
            ring=rng.integers(0, 16, count).astype(np.uint16),
            stamp_ns=START + STEP * index,
        )
        image = rng.integers(0, 255, (24, 32, 3), np.uint8)
        aside = from_euler(0, 0, 1.5)
        frames = [
            CameraFrame("/cam/left", cloud.stamp_ns, LENS, AXES @ invert(aside), image),
            CameraFrame("/cam/front", cloud.stamp_ns + STEP // 4, LENS, AXES, image),
        ]
        scene = self.scenes[index]
        return Sample(cloud, frames, self.trajectory, name=f"{scene}/{index}", scene=scene)


def labels_of(index: int) -> np.ndarray:
    """(N,) class ids of the points of a sweep."""
    return np.random.default_rng(50 + index).integers(-1, len(STREET), 50 + index)


def write_labels(folder: Path) -> Path:
    """Label files of the drive."""
    drive, raw = Drive(), raw_ids_of(STREET)
    (folder / "labels.yaml").write_text(labels_yaml(STREET, raw))
    for index in range(len(drive)):
        path = folder / label_paths(drive)(drive[index], index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_labels(labels_of(index), raw))
    return folder
