# SPDX-License-Identifier: Apache-2.0
"""Returns from the robot itself, which are no part of its surroundings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError

Float32 = npt.NDArray[np.float32]

_CORNERS = "x_min, y_min, z_min, x_max, y_max, z_max"


def read_body(values: str | Sequence[float]) -> tuple[float, ...]:
    """The corners of a box around the robot: least x, y, z, then largest x, y, z [m].

    Args:
        values: six numbers, or a text of them with commas in between; none for no box.

    Raises:
        InputError: not six finite numbers, or a least one that is not below the largest.
    """
    parts = values.split(",") if isinstance(values, str) else list(values)
    if not parts or parts == [""]:
        return ()
    try:
        box = tuple(float(part) for part in parts)
    except ValueError:
        box = ()
    finite = len(box) == 6 and bool(np.isfinite(box).all())
    if not finite or any(low >= high for low, high in zip(box[:3], box[3:])):
        given = values if isinstance(values, str) else ", ".join(map(str, values))
        raise InputError(f"body is '{given:.100}'; expected {_CORNERS} in m")
    return box


def without_body(cloud: PointCloud, body: Sequence[float]) -> PointCloud:
    """The cloud with the returns in a box taken for points without a return.

    They keep their rows, so that labels belong to the points as measured, and get NaN as
    coordinates: they have no label, no beam passes there, and no output counts them.

    Args:
        cloud: as measured, not deskewed: the robot moves along with the sensor.
        body: from `read_body`, in the frame of the cloud.
    """
    if not body:
        return cloud
    low, high = np.asarray(body, np.float32).reshape(2, 3)
    with np.errstate(invalid="ignore"):  # points without a return may be NaN
        inside = ((cloud.xyz >= low) & (cloud.xyz <= high)).all(1)
    xyz = cloud.xyz.copy()
    xyz[inside] = np.nan
    return replace(cloud, xyz=xyz)


def with_body(xyz: Float32, measured: Float32) -> Float32:
    """Coordinates where those that `without_body` took away are as measured.

    The robot moves along with the sensor, so its returns need no deskewing.

    Args:
        xyz: (N, 3) without the robot, deskewed [m].
        measured: (N, 3) the same points as measured, with the robot [m].
    """
    return np.where(np.isnan(xyz), measured, xyz)
