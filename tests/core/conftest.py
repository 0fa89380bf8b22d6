# SPDX-License-Identifier: Apache-2.0
"""A small real run directory, and SemanticKITTI folders made of a few hundred points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROAD, BUILDING, CAR, PERSON = 40, 50, 10, 30  # raw ids of SemanticKITTI


def street_points(seed: int, count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 4) of a flat road, two walls and a car, with raw labels (N,) uint32."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, count)
    xyz = rng.uniform((-20, -5, -1.75), (20, 5, -1.65), (count, 3))
    wall = kinds == 1
    xyz[wall, 1] = np.where(rng.random(wall.sum()) < 0.5, -6, 6)
    xyz[wall, 2] = rng.uniform(-1.7, 3, wall.sum())
    car = kinds == 2
    xyz[car] = rng.uniform((5, 1, -1.5), (9, 3, 0), (car.sum(), 3))
    intensity = np.choose(kinds, [0.2, 0.5, 0.8])
    points = np.column_stack([xyz, intensity]).astype(np.float32)
    return points, np.choose(kinds, [ROAD, BUILDING, CAR]).astype(np.uint32)


@pytest.fixture
def sequence(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder with velodyne/ and labels/ of scans of different sizes."""

    def make(name: str = "drive", scans: int = 2) -> Path:
        folder = tmp_path / name
        (folder / "velodyne").mkdir(parents=True)
        (folder / "labels").mkdir()
        for scan in range(scans):
            points, labels = street_points(scan, 600 + 37 * scan)
            points.tofile(folder / "velodyne" / f"{scan:06d}.bin")
            labels.tofile(folder / "labels" / f"{scan:06d}.label")
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as training leaves it: checkpoint of a small network, pseudo labels."""
    import torch

    from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, save_checkpoint
    from pcseg_core.labels import LabelSpace, grouping, regroup
    from pcseg_core.models.student import Student, StudentConfig

    folder = tmp_path_factory.mktemp("run")
    fine, space = LabelSpace.load("semantic_kitti"), LabelSpace.load("street")
    torch.manual_seed(3)
    config = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5)
    meta = CheckpointMeta(
        student=config.model_dump(mode="json"),
        label_space=space.to_dict(),
        recipe={"loss": {"min_confidence": 0.6, "class_balance": 0.5}},
    )
    save_checkpoint(folder / FILE_NAME, Student(config, len(space)).state_dict(), meta)
    (folder / "pseudo_labels").mkdir()
    for index in range(3):
        points, raw = street_points(100 + index)
        labels = regroup(fine.from_raw(raw), grouping(fine, space)).astype(np.int16)
        confidence = np.full(len(labels), 0.9, np.float32)
        labels[:40], confidence[:40] = 7, 0.5  # wrong, and not confident enough to be used
        np.savez(
            folder / "pseudo_labels" / f"{index:05d}.npz",
            xyz=points[:, :3],
            intensity=points[:, 3],
            label=labels,
            confidence=confidence,
            scene="a",
        )
    return folder
