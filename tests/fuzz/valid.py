# SPDX-License-Identifier: Apache-2.0
"""What every reader promises of what it returns."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from pcseg_core.cloud import PointCloud
from pcseg_core.data import Recording, Sample, account, readable
from pcseg_core.errors import InputError
from pcseg_core.point_time import LONGEST_SWEEP_S

MAX_REASON = 2500  # characters


def check_cloud(cloud: PointCloud, count: int | None = None) -> None:
    """Shapes, types and ranges of a sweep of `count` points."""
    count = len(cloud) if count is None else count
    assert cloud.xyz.shape == (count, 3) and cloud.xyz.dtype == np.float32
    assert cloud.height * cloud.width == count
    if cloud.intensity is not None:
        assert cloud.intensity.shape == (count,) and cloud.intensity.dtype == np.float32
    if cloud.ring is not None:
        assert cloud.ring.shape == (count,) and cloud.ring.dtype == np.uint16
    if cloud.time is not None:
        assert cloud.time.shape == (count,) and cloud.time.dtype == np.float64
        assert not np.isinf(cloud.time).any()
        known = cloud.time[np.isfinite(cloud.time)]
        assert not len(known) or np.ptp(known) <= LONGEST_SWEEP_S * (1 + 1e-6)
    for values in cloud.extra.values():
        assert len(values) == count
    for event, reason in cloud.problems:
        assert len(event) + len(reason) <= MAX_REASON
    assert cloud.finite.shape == (count,)


def check_pose(T: np.ndarray) -> None:
    """(4, 4), finite and rigid."""
    assert T.shape == (4, 4) and np.isfinite(T).all()
    R = T[:3, :3]
    assert np.abs(R @ R.T - np.eye(3)).max() < 0.05 and np.linalg.det(R) > 0


def check_sample(sample: Sample) -> None:
    """Shapes agree, labels are in the class table, poses are poses."""
    check_cloud(sample.cloud)
    assert sample.cloud.finite.any()
    if sample.labels is not None:
        assert sample.label_space is not None and sample.labels.shape == (len(sample.cloud),)
        assert sample.labels.min(initial=-1) >= -1
        assert sample.labels.max(initial=-1) < len(sample.label_space)
    if sample.instances is not None:
        assert sample.instances.shape == (len(sample.cloud),)
    if sample.trajectory is not None:
        assert np.isfinite(sample.trajectory.poses).all()
    for box in sample.boxes or ():
        assert np.isfinite(box.center).all() and np.isfinite(box.size).all()
        assert np.isfinite(box.yaw) and box.center.shape == box.size.shape == (3,)
        assert (box.size >= 0).all()
    for frame in sample.cameras:
        check_pose(frame.T_cam_lidar)
        try:
            image = frame.image
        except InputError as error:
            assert len(str(error)) <= MAX_REASON
            continue
        assert image.shape == (frame.camera.height, frame.camera.width, 3)
        assert image.dtype == np.uint8


def check_recording(recording: Recording) -> dict[str, str]:
    """All samples and the account; returns a digest of each readable sweep by its name."""
    found = {}
    for _, sample in readable(recording):
        check_sample(sample)
        found[sample.name] = digest(sample.cloud.xyz, sample.cloud.intensity, sample.labels)
    total = account(recording)
    assert all(count >= 0 for count in total.used.values())
    assert not total.unexplained() or getattr(recording, "bag", None) is not None
    assert all(len(line) <= 20 * MAX_REASON for line in total.lines())
    for reason in recording.skipped:
        assert len(reason) <= MAX_REASON, reason[:200]
    return found


def digest(*arrays: Any) -> str:
    """A hash of arrays, and of which are None."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(b"-" if array is None else np.ascontiguousarray(array).tobytes() + b"+")
    return state.hexdigest()[:16]


def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Equal arrays; NaN equals NaN."""
    if a is None or b is None:
        return a is b
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
