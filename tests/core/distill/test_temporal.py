# SPDX-License-Identifier: Apache-2.0
"""Segments across sweeps: ground, clusters, the motion gate and shared ids."""

from pathlib import Path

import numpy as np
import pytest

from pcseg_core.distill.ground import ransac_ground
from pcseg_core.distill.observation import Observation, StoredObservation
from pcseg_core.distill.temporal import (
    TemporalConfig,
    ground_mask,
    hdbscan_labels,
    keep_largest,
    keep_static,
    partners,
    read_segments,
    segment_files,
    temporal_segments,
)
from pcseg_core.geometry import from_euler, invert, transform
from pcseg_core.labels import IGNORE


def block(center: tuple[float, float, float], points: int, seed: int = 0) -> np.ndarray:
    """A solid block of 1.5 m filled with points."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(-0.75, 0.75, (points, 3)) + center).astype(np.float32)


def tilted_ground(slope_deg: float, points: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """A tilted plane 1.7 m below the sensor, and its upward normal."""
    rng = np.random.default_rng(1)
    xyz = np.column_stack([rng.uniform(-25, 25, (points, 2)), rng.normal(0, 0.02, points)])
    T = from_euler(np.radians(slope_deg), 0, 0, (0, 0, -1.7))
    return transform(T, xyz).astype(np.float32), T[:3, 2]


@pytest.mark.parametrize("slope_deg", [0.0, 8.0])
def test_ransac_finds_the_ground_and_nothing_else(slope_deg: float) -> None:
    ground, normal = tilted_ground(slope_deg)
    things = np.concatenate(
        [ground[i] + normal * 1.5 + block((0, 0, 0), 50, i) / 2 for i in range(0, 400, 40)]
    ).astype(np.float32)
    mask = ransac_ground(np.concatenate([ground, things]))
    assert mask[: len(ground)].mean() > 0.99 and mask[len(ground) :].mean() < 0.01


def test_no_level_plane_is_no_ground() -> None:
    rng = np.random.default_rng(0)
    wall = np.column_stack([rng.uniform(0, 9, 500), np.zeros(500), rng.uniform(0, 9, 500)])
    assert not ransac_ground(wall.astype(np.float32)).any()
    assert not ransac_ground(np.zeros((2, 3), np.float32)).any()


@pytest.mark.parametrize("clusterer", ["hdbscan", "sklearn"])
def test_both_implementations_find_the_blocks(clusterer: str) -> None:
    if clusterer == "hdbscan":
        pytest.importorskip("hdbscan")
    points = np.concatenate([block((6.0 * k, 0, 0), 150, k) for k in range(4)])
    labels = hdbscan_labels(points, TemporalConfig(clusterer=clusterer))
    for k in range(4):
        own = labels[150 * k : 150 * (k + 1)]
        assert (own == np.bincount(own[own >= 0]).argmax()).mean() > 0.9
    assert len(set(labels[labels >= 0])) == 4


def test_segments_are_shared_between_moved_sweeps_and_movers_are_dropped() -> None:
    ground, _ = tilted_ground(0.0)
    houses = [block((8, 6, 0), 900, 1), block((-9, 4, 0), 700, 2), block((3, -10, 0), 500, 3)]
    pose = from_euler(0, 0, 0.2, (1.2, 0.1, 0.0))  # of the second sweep
    sweeps, owners = [], []
    for k, T in enumerate((np.eye(4), pose)):
        mover = block((15 + 1.2 * k, -3, 0), 600, 4)  # 12 m/s at 10 Hz
        parts = [ground, *houses, mover]
        owners.append(np.repeat(np.arange(5), [len(p) for p in parts]))
        sweeps.append(transform(invert(T), np.concatenate(parts)).astype(np.float32))
    config = TemporalConfig(ground="ransac", clusterer="sklearn")
    now, then = temporal_segments(sweeps, [np.eye(4), pose], config)
    assert (now[owners[0] == 0] == IGNORE).all()
    for house in (1, 2, 3):
        a, b = now[owners[0] == house], then[owners[1] == house]
        name = np.bincount(a[a >= 0]).argmax()
        assert (a == name).mean() > 0.95 and (b == name).mean() > 0.95
    assert np.bincount(now[owners[0] == 1] + 1).argmax() == 1  # the largest is 0
    assert (now[owners[0] == 4] == IGNORE).all() and (then[owners[1] == 4] == IGNORE).all()
    still = TemporalConfig(ground="ransac", clusterer="sklearn", gate_m=5.0)
    assert (temporal_segments(sweeps, [np.eye(4), pose], still)[0][owners[0] == 4] >= 0).any()


def test_the_gate_by_hand() -> None:
    points = np.array(
        [[0, 0, 0], [0.3, 0, 0], [5, 0, 0], [5.6, 0, 0], [9, 9, 0], [0, 40, 0], [20, 40, 0]], float
    )
    sweeps = np.array([0, 1, 0, 1, 0, 0, 1])
    ids = np.array([0, 0, 1, 1, 2, 3, 3])
    # 0 moves 0.3 m; 1 moves 0.6 m; 2 is in one sweep only; 3 is 20 m large.
    kept = keep_static(points, sweeps, 2, ids, TemporalConfig(gate_m=0.5))
    assert kept.tolist() == [0, 0, IGNORE, IGNORE, IGNORE, 3, 3]
    assert keep_static(points[:0], sweeps[:0], 2, ids[:0], TemporalConfig()).shape == (0,)


def test_the_largest_come_first() -> None:
    ids = np.array([7, 7, 2, IGNORE, 2, 2, 4])
    assert keep_largest(ids, 2).tolist() == [1, 1, 0, IGNORE, 0, 0, IGNORE]
    assert keep_largest(np.full(3, IGNORE), 5).tolist() == [IGNORE] * 3


def test_only_ground_or_nothing_gives_no_segments() -> None:
    ground, _ = tilted_ground(0.0, 500)
    config = TemporalConfig(ground="ransac", clusterer="sklearn")
    for cloud in (ground, ground[:0], ground[:1]):
        found = temporal_segments([cloud, cloud], [np.eye(4)] * 2, config)
        assert all((ids == IGNORE).all() and len(ids) == len(cloud) for ids in found)


def test_stored_segments_are_those_of_deskewed_points(tmp_path: Path) -> None:
    """Smeared by the motion within a sweep, the blocks are no clusters."""
    config = TemporalConfig(ground="ransac", ground_distance_m=0.01, clusterer="sklearn")
    blocks = np.concatenate([block((8.0 * k, 5, 0), 150, k) for k in range(3)])
    smeared = blocks * np.linspace(0.2, 9, len(blocks), dtype=np.float32)[:, None]
    stored = []
    for index in range(2):
        values = (smeared, blocks, np.ones(len(blocks), np.float32), np.eye(4))
        Observation("", "s", index, *values).save(tmp_path / f"{index}.npz")
        stored.append(StoredObservation(tmp_path / f"{index}.npz", "", "s", index, True))
    assert partners(stored, 1) == {0: 1} and partners(stored, 2) == {}
    told: list[tuple[int, int]] = []
    files = segment_files(stored, config, tmp_path / "segments", lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]
    now, then = read_segments(files[0])
    assert len(np.unique(now[now != IGNORE])) == 3 and np.array_equal(now, then)
    alone, none = read_segments(files[1])
    assert len(np.unique(alone[alone != IGNORE])) == 3 and len(none) == 0
    again = segment_files(stored, config, tmp_path / "segments", lambda *done: told.append(done))
    assert again == files and len(told) == 2


def test_patchwork_agrees_with_the_slope_of_a_real_sweep(shared_data: Path) -> None:
    pytest.importorskip("pypatchworkpp")
    from pcseg_core.data import open_recording

    drive = open_recording(f"semantic-kitti:{shared_data / 'semantic_kitti' / 'sequences' / '00'}")
    sample = drive[0]
    names = np.array([*drive.label_space.names, "none"])[sample.labels]
    ground = np.isin(names, ["road", "parking", "sidewalk", "terrain", "other-ground"])
    standing = np.isin(names, ["car", "building", "trunk", "pole", "fence", "person"])
    near = np.linalg.norm(sample.cloud.xyz, axis=1) < 30
    for kind in ("patchwork", "ransac"):
        mask = ground_mask(sample.cloud.xyz, TemporalConfig(ground=kind))
        assert mask[ground & near].mean() > 0.8, kind
        assert mask[standing & near].mean() < 0.15, kind
