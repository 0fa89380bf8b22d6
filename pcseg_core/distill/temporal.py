# SPDX-License-Identifier: Apache-2.0
"""Temporal segments: clusters above the ground that the sweeps of a scene share.

Sweeps are moved into one frame by their poses, ground points are removed, the remaining points are
clustered once, and every point takes the id of its cluster, so that sweeps share ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core import copies
from pcseg_core.config import Section
from pcseg_core.distill.cache import digest, read_arrays, write_arrays
from pcseg_core.distill.ground import GroundMethod, find_ground
from pcseg_core.distill.observation import StoredObservation
from pcseg_core.errors import require
from pcseg_core.geometry import invert, transform
from pcseg_core.labels import IGNORE

Array = npt.NDArray[Any]
Bool = npt.NDArray[np.bool_]
Int32 = npt.NDArray[np.int32]
Progress = Callable[[int, int], None]

_FEW = 8  # sweeps that are clustered faster than processes start


class TemporalConfig(Section):
    """How segments across sweeps are found."""

    gap: int = Field(default=1, ge=1, le=20, description="Distance of paired sweeps, in sweeps")
    ground: GroundMethod = Field(
        default="auto", description="Ground removal; auto is Patchwork++ if installed, else RANSAC"
    )
    ground_distance_m: float = Field(
        default=0.25, gt=0, le=2, description="RANSAC: points nearer to the plane are ground [m]"
    )
    ground_iterations: int = Field(default=200, ge=1, description="RANSAC: number of planes")
    max_range_m: float = Field(
        default=50.0, gt=1, le=500, description="Points beyond are in no segment [m]"
    )
    voxel_m: float = Field(
        default=0.2, gt=0, le=2, description="Voxels that are clustered in place of points [m]"
    )
    min_cluster_size: int = Field(
        default=20, ge=2, description="HDBSCAN: smallest cluster, in voxels"
    )
    clusters: int = Field(
        default=50, ge=1, le=10_000, description="Number of largest clusters to keep"
    )
    clusterer: Literal["auto", "hdbscan", "sklearn"] = Field(
        default="auto", description="Implementation of HDBSCAN; auto is hdbscan if installed"
    )
    gate_m: float = Field(
        default=0.5,
        gt=0,
        description="Clusters whose center moves more than this between sweeps are dropped [m]",
    )
    gate_extent_m: float = Field(
        default=12.0,
        gt=0,
        description="Larger clusters are kept: their center moves with the visible part [m]",
    )


def temporal_segments(
    clouds: Sequence[Array], poses: Sequence[Array], config: TemporalConfig
) -> list[Int32]:
    """Segments that several sweeps share.

    Args:
        clouds: (N_i, 3) finite points of each sweep in its LiDAR frame, deskewed [m].
        poses: (4, 4) T_world_lidar of each sweep.
        config: how segments are found.

    Returns:
        (N_i,) int32 per sweep: 0 is the largest cluster; IGNORE for ground, noise, far points,
        small clusters, clusters seen in one sweep only and clusters that move.
    """
    to_first = [invert(poses[0]) @ pose for pose in poses]
    used, aligned, sweep = [], [], []
    for k, (xyz, T) in enumerate(zip(clouds, to_first)):
        near = np.linalg.norm(xyz, axis=1) <= config.max_range_m
        keep = np.flatnonzero(near & ~ground_mask(xyz, config))
        used.append(keep)
        aligned.append(transform(T, xyz[keep]))
        sweep.append(np.full(len(keep), k))
    points, sweeps = np.concatenate(aligned), np.concatenate(sweep)
    ids = keep_static(points, sweeps, len(clouds), cluster(points, config), config)
    ids = keep_largest(ids, config.clusters)
    result = []
    for k, (xyz, keep) in enumerate(zip(clouds, used)):
        own = np.full(len(xyz), IGNORE, np.int32)
        own[keep] = ids[sweeps == k]
        result.append(own)
    return result


def ground_mask(xyz: Array, config: TemporalConfig) -> Bool:
    """(N,) bool: points of the ground, by Patchwork++ (Lee et al., 2022) or RANSAC."""
    return find_ground(xyz, config.ground, config.ground_distance_m, config.ground_iterations)


def cluster(xyz: Array, config: TemporalConfig) -> Int32:
    """HDBSCAN over occupied voxels; points take the cluster of their voxel.

    With voxels the density depends less on the distance from the sensor, and there are far fewer
    of them than points.

    Returns:
        (N,) int32 cluster, IGNORE for noise.
    """
    cells = np.floor(xyz / config.voxel_m).astype(np.int64) + (1 << 20)
    keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    if len(counts) <= config.min_cluster_size:
        return np.full(len(xyz), IGNORE, np.int32)
    sums = [np.bincount(inverse, xyz[:, axis], len(counts)) for axis in range(3)]
    centers = np.stack(sums, 1) / counts[:, None]
    return hdbscan_labels(centers, config)[inverse]


def hdbscan_labels(points: Array, config: TemporalConfig) -> Int32:
    """HDBSCAN (Campello et al., 2013) with Euclidean distance; (N,) int32, IGNORE for noise."""
    size = config.min_cluster_size
    if config.clusterer == "sklearn" or (
        config.clusterer == "auto" and find_spec("hdbscan") is None
    ):
        sklearn_cluster = require("sklearn.cluster", "segments")
        found = sklearn_cluster.HDBSCAN(min_cluster_size=size, n_jobs=1, copy=True)
        result: Int32 = found.fit_predict(points).astype(np.int32)
        return result
    hdbscan = require("hdbscan", "segments")
    found = hdbscan.HDBSCAN(
        min_cluster_size=size, approx_min_span_tree=True, leaf_size=100, core_dist_n_jobs=1
    )
    values: Int32 = found.fit_predict(points).astype(np.int32)
    return values


def keep_static(
    points: Array, sweeps: Array, count: int, ids: Array, config: TemporalConfig
) -> Int32:
    """Drop clusters that are not in all sweeps, or whose center moves from sweep to sweep.

    Args:
        points: (N, 3) in one frame [m].
        sweeps: (N,) sweep of each point, 0 to count - 1.
        count: number of sweeps.
        ids: (N,) cluster of each point, IGNORE for none.
        config: the gate.
    """
    clusters = int(ids.max(initial=IGNORE)) + 1
    low, high = np.full((clusters, 3), np.inf), np.full((clusters, 3), -np.inf)
    member = ids != IGNORE
    np.minimum.at(low, ids[member], points[member])
    np.maximum.at(high, ids[member], points[member])
    extent = np.linalg.norm((high - low)[:, :2], axis=1)
    middles = np.full((count, clusters, 3), np.nan)
    for k in range(count):
        chosen = member & (sweeps == k)
        sizes = np.bincount(ids[chosen], minlength=clusters)
        for axis in range(3):
            total = np.bincount(ids[chosen], points[chosen, axis], clusters)
            middles[k, :, axis] = np.divide(
                total, sizes, out=np.full(clusters, np.nan), where=sizes > 0
            )
    in_all = np.isfinite(middles).all((0, 2))
    moved = np.linalg.norm(np.diff(middles, axis=0), axis=2).max(0, initial=0.0)
    with np.errstate(invalid="ignore"):
        static = in_all & ((moved <= config.gate_m) | (extent > config.gate_extent_m))
    kept = np.append(static, False)[ids]
    return np.where(kept, ids, IGNORE).astype(np.int32)


def keep_largest(ids: Array, count: int) -> Int32:
    """Renumber the `count` largest clusters from 0, largest first; others become IGNORE."""
    found, sizes = np.unique(ids[ids != IGNORE], return_counts=True)
    order = np.argsort(-sizes, kind="stable")[:count]
    table = np.full(int(ids.max(initial=IGNORE)) + 2, IGNORE, np.int32)
    table[found[order]] = np.arange(len(order), dtype=np.int32)
    return table[ids]


def partners(observations: Sequence[StoredObservation], gap: int) -> dict[int, int]:
    """By position, the observation `gap` sweeps later in the scene; both must have poses."""
    place = {(o.scene, o.index): i for i, o in enumerate(observations) if o.posed}
    return {
        i: place[o.scene, o.index + gap]
        for i, o in enumerate(observations)
        if o.posed and (o.scene, o.index + gap) in place
    }


def segment_files(
    observations: Sequence[StoredObservation],
    config: TemporalConfig,
    folder: Path,
    progress: Progress,
) -> dict[int, Path]:
    """Segments of every sweep and its partner (or of it alone), a file each, made in parallel.

    Resumes: existing files are kept.

    Args:
        observations: stored sweeps.
        config: how segments are found.
        folder: of the files; several runs may share it.
        progress: called with (files made, files to make).

    Returns:
        By position, a file for `read_segments`.
    """
    joblib = require("joblib", "segments")

    pairs = partners(observations, config.gap)
    key = digest(config.model_dump(mode="json"))
    files = {i: folder / f"{o.path.stem}-{key}.npz" for i, o in enumerate(observations)}
    missing = [i for i, file in files.items() if not copies.exists(file)]
    jobs = (
        joblib.delayed(_write_segments)(
            observations[i], observations[pairs[i]] if i in pairs else None, config, files[i]
        )
        for i in missing
    )
    workers = -1 if len(missing) > _FEW else 1
    for done, _ in enumerate(joblib.Parallel(n_jobs=workers, return_as="generator")(jobs)):
        progress(done + 1, len(missing))
    return files


def read_segments(file: Path) -> tuple[Array, Array]:
    """Segments (N,) int64 of a sweep and (M,) of its partner, empty without one."""
    arrays = read_arrays(file)
    return arrays["now"].astype(np.int64), arrays["then"].astype(np.int64)


def _write_segments(
    now: StoredObservation, then: StoredObservation | None, config: TemporalConfig, file: Path
) -> None:
    sweeps = [stored.load() for stored in (now, then) if stored is not None]
    poses = [sweep.pose if then else np.eye(4) for sweep in sweeps]
    ids = temporal_segments([sweep.deskewed for sweep in sweeps], poses, config)
    second = ids[1] if then else np.zeros(0, np.int32)
    write_arrays(file, {"now": ids[0].astype(np.int16), "then": second.astype(np.int16)})
