# SPDX-License-Identifier: Apache-2.0
"""Points of the ground of a sweep, by Patchwork++ where installed, else by RANSAC."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError, require
from pcseg_core.labels import LabelSpace, grouping

Array = npt.NDArray[Any]
Bool = npt.NDArray[np.bool_]
GroundMethod: TypeAlias = Literal["auto", "ransac", "patchwork"]


def find_ground(
    xyz: Array, method: GroundMethod = "auto", distance_m: float = 0.25, iterations: int = 200
) -> Bool:
    """(N,) bool: points of the ground, by Patchwork++ (Lee et al., 2022) or RANSAC.

    Args:
        xyz: (N, 3) finite points, LiDAR frame, z up [m].
        method: auto is Patchwork++ if installed, else RANSAC.
        distance_m, iterations: see `ransac_ground`.
    """
    if method == "patchwork" or (method == "auto" and find_spec("pypatchworkpp") is not None):
        return _patchwork(xyz)
    return ransac_ground(xyz, distance_m, iterations)


def ground_classes(space: LabelSpace) -> Bool:
    """(C,) bool: classes that lie on the ground, such as road; all False if that is unknown."""
    merged = LabelSpace.load("street_merged_ground")
    try:
        return np.asarray(grouping(space, merged) == merged.index("ground"))
    except InputError:
        return np.zeros(len(space), bool)


def ransac_ground(
    xyz: Array, distance_m: float = 0.25, iterations: int = 200, seed: int = 0
) -> Bool:
    """Points near or below the level plane with the most inliers.

    All planes are tested at once on a sample of the points.

    Args:
        xyz: (N, 3) points, z up [m].
        distance_m: distance to the plane that counts as near.
        iterations: number of planes.
        seed: of the planes and the sample.

    Returns:
        (N,) bool; all False without a plane within 20 degrees of level.
    """
    rng = np.random.default_rng(seed)
    low = xyz[xyz[:, 2] <= np.quantile(xyz[:, 2], 0.6)] if len(xyz) else xyz
    if len(low) < 3:
        return np.zeros(len(xyz), bool)
    corners = low[rng.integers(len(low), size=(iterations, 3))].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1)
    level = np.abs(normals[:, 2]) > np.cos(np.radians(20)) * np.maximum(length, 1e-9)
    if not level.any():
        return np.zeros(len(xyz), bool)
    normals, corners = normals[level] / length[level, None], corners[level]
    normals *= np.sign(normals[:, 2:])
    sample = low[rng.integers(len(low), size=min(len(low), 4000))]
    heights = sample @ normals.T - (corners[:, 0] * normals).sum(1)
    best = int((np.abs(heights) < distance_m).sum(0).argmax())
    inliers = sample[np.abs(heights[:, best]) < distance_m]
    normal, offset = _refine(inliers)
    mask: Bool = xyz @ normal - offset < distance_m
    return mask


def _refine(points: Array) -> tuple[Array, float]:
    """Upward normal (3,) and offset of the plane through points, by least squares."""
    middle = points.mean(0)
    normal = np.linalg.svd((points - middle).astype(np.float64), full_matrices=False)[2][2]
    normal = normal * np.sign(normal[2])
    return normal, float(middle @ normal)


def _patchwork(xyz: Array) -> Bool:
    patchwork = require("pypatchworkpp", "segments")
    parameters = patchwork.Parameters()
    parameters.verbose = False
    # It needs the height of the sensor: estimated from the low points around the vehicle.
    around = xyz[np.linalg.norm(xyz[:, :2], axis=1) < 20]
    if len(around):
        parameters.sensor_height = float(np.clip(-np.quantile(around[:, 2], 0.1), 0.3, 4.0))
    with _quiet():  # it prints to stdout, which is for results
        estimator = patchwork.patchworkpp(parameters)
    estimator.estimateGround(np.column_stack([xyz, np.zeros(len(xyz))]).astype(np.float32))
    mask = np.zeros(len(xyz), bool)
    mask[np.asarray(estimator.getGroundIndices(), np.int64)] = True
    return mask


@contextmanager
def _quiet() -> Iterator[None]:
    """Discard what native code writes to stdout."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
