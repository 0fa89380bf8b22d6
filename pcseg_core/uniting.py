# SPDX-License-Identifier: Apache-2.0
"""Unite sweeps of several LiDARs into one, as they were measured: each point keeps its time.

A united sweep is in one frame, as if one LiDAR had measured all points. Since the LiDARs are fixed
to each other, the deskewing of the pipeline then moves every point from its own time to one moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import LazyFields, PointCloud
from pcseg_core.cloud_layout import Array, EncodedCloud, PointCloud2Like, structured
from pcseg_core.cloud_writer import encode_cloud
from pcseg_core.geometry import transform
from pcseg_core.labels import WIRE_UNLABELED
from pcseg_core.point_time import TIME_NAMES

SOURCE = "source"
"""Field with the number of the LiDAR of each point (uint8)."""
MAX_LIDARS = 16


@dataclass(frozen=True)
class Part:
    """The sweep of one LiDAR.

    Attributes:
        cloud: in its own frame, times relative to its own stamp.
        T_united_lidar: (4, 4) place of the LiDAR in the frame of the united sweep.
        source: number of the LiDAR.
    """

    cloud: PointCloud
    T_united_lidar: Array
    source: int


def unite(parts: Sequence[Part], stamp_ns: int, frame_id: str) -> PointCloud:
    """One sweep of the points of several, in the order of the parts.

    Points without a return stay as they are. A point without a time takes the stamp of its sweep.
    Rings of different LiDARs get different numbers.

    Args:
        parts: at least one, in the order of `source`.
        stamp_ns: of the united sweep; its times are relative to it.
        frame_id: frame of the united sweep.

    Returns:
        A cloud with `time`, `source` and `origins`, unorganized. Its `extra` holds the fields of
        all parts; a field that a part lacks is 0 there, `label` is unlabeled.
    """
    clouds = [part.cloud for part in parts]
    origins = np.zeros((max(part.source for part in parts) + 1, 3), np.float32)
    for part in parts:
        origins[part.source] = part.T_united_lidar[:3, 3]
    return PointCloud(
        xyz=np.concatenate([_moved(part) for part in parts]),
        intensity=_intensities(clouds),
        time=np.concatenate([_times(cloud, stamp_ns) for cloud in clouds]),
        ring=_rings(clouds),
        frame_id=frame_id,
        stamp_ns=stamp_ns,
        extra=UnitedFields([(cloud.extra, len(cloud)) for cloud in clouds]),
        problems=[
            (event, f"'{cloud.frame_id}': {why}")
            for cloud in clouds
            for event, why in cloud.problems
        ],
        source=np.repeat(
            np.array([part.source for part in parts], np.uint8), [len(cloud) for cloud in clouds]
        ),
        origins=origins,
    )


def united_message(
    messages: Sequence[PointCloud2Like], cloud: PointCloud, xyz: npt.NDArray[np.float32]
) -> EncodedCloud:
    """The fields of the messages that all of them have, with `source`.

    Times of the points are left out, as they are relative to different stamps, and a program that
    deskews by them would do so twice.

    Args:
        messages: those of the parts of a united cloud, in its order.
        cloud: the united cloud.
        xyz: (N, 3) its points, deskewed.
    """
    points = [structured(message).reshape(-1) for message in messages]
    fields: dict[str, Array] = dict(zip("xyz", np.ascontiguousarray(xyz.T, np.float32)))
    for name in _common(points):
        fields[name] = np.concatenate([_native(part[name]) for part in points])
    assert cloud.source is not None
    return encode_cloud({**fields, SOURCE: cloud.source})


def _common(points: Sequence[Array]) -> list[str]:
    """Fields that all have with one type, in the order of the first; no positions, no times."""
    kinds = [{name: _kind(part.dtype[name]) for name in part.dtype.names or ()} for part in points]
    own = (*"xyz", *TIME_NAMES, SOURCE)
    return [
        name
        for name, kind in kinds[0].items()
        if name not in own and all(other.get(name) == kind for other in kinds)
    ]


def _kind(dtype: np.dtype[Any]) -> np.dtype[Any]:
    native: np.dtype[Any] = dtype.newbyteorder("=")
    return native


def _native(values: Array) -> Array:
    return values.astype(_kind(values.dtype.base), copy=False)


class UnitedFields(LazyFields):
    """Fields of several clouds one after the other, put together when they are asked for.

    Args:
        parts: fields and number of points of each cloud.
    """

    def __init__(self, parts: Sequence[tuple[Mapping[str, Array], int]]) -> None:
        self._parts = parts
        self._names = dict.fromkeys(name for fields, _ in parts for name in fields)

    def __getitem__(self, name: str) -> Array:
        held = [fields[name] for fields, _ in self._parts if name in fields]
        if not held:
            raise KeyError(name)
        shape, kind, none = held[0].shape[1:], np.result_type(*held), 0
        if name == "label":
            none, kind = WIRE_UNLABELED, np.result_type(kind, np.uint16)
        filled = [
            fields[name]
            if name in fields and fields[name].shape[1:] == shape
            else np.full((count, *shape), none, kind)
            for fields, count in self._parts
        ]
        return np.concatenate(filled)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _moved(part: Part) -> npt.NDArray[np.float32]:
    xyz = part.cloud.xyz
    if np.array_equal(part.T_united_lidar, np.eye(4)):
        return xyz
    with np.errstate(invalid="ignore", over="ignore"):  # points without a return, and infinite ones
        moved = transform(part.T_united_lidar, xyz)
    x, y, z = xyz.T
    moved[(x == 0) & (y == 0) & (z == 0)] = 0
    return np.asarray(moved, np.float32)


def _times(cloud: PointCloud, stamp_ns: int) -> npt.NDArray[np.float64]:
    later_s = 1e-9 * (cloud.stamp_ns - stamp_ns)
    if cloud.time is None:
        return np.full(len(cloud), later_s)
    return np.where(np.isfinite(cloud.time), cloud.time, 0.0) + later_s


def _intensities(clouds: Sequence[PointCloud]) -> npt.NDArray[np.float32] | None:
    if all(cloud.intensity is None for cloud in clouds):
        return None
    return np.concatenate(
        [
            np.zeros(len(cloud), np.float32) if cloud.intensity is None else cloud.intensity
            for cloud in clouds
        ]
    )


def _rings(clouds: Sequence[PointCloud]) -> npt.NDArray[np.uint16] | None:
    rings, first = [], 0
    for cloud in clouds:
        if cloud.ring is None:
            return None
        rings.append(cloud.ring.astype(np.int64) + first)
        first += int(cloud.ring.max()) + 1 if len(cloud) else 0
    return np.minimum(np.concatenate(rings), 65535).astype(np.uint16)
