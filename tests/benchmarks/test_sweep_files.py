# SPDX-License-Identifier: Apache-2.0
"""Sweeps that anyone may bring: every file kind, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.sweeps import load_sweep
from pcseg_core.errors import InputError

POINTS = np.array([[1, 2, 3, 0.5], [-4, 5.5, 6, 0.25], [7, 8, 9.5, 0]], np.float32)


def test_kitti_and_nuscenes_bin(tmp_path: Path) -> None:
    POINTS.tofile(tmp_path / "kitti.bin")
    assert np.array_equal(load_sweep(tmp_path / "kitti.bin"), POINTS)
    rings = np.column_stack([POINTS, [0, 31, 2]]).astype(np.float32)
    rings.tofile(tmp_path / "sweep.bin")
    assert np.array_equal(load_sweep(tmp_path / "sweep.bin"), POINTS)


def test_twenty_floats_are_told_apart_by_the_ring(tmp_path: Path) -> None:
    """20 floats divide by 4 and by 5: only a column of whole numbers is a ring."""
    generator = np.random.default_rng(0)
    kitti = generator.random((5, 4)).astype(np.float32)
    kitti.tofile(tmp_path / "a.bin")
    assert load_sweep(tmp_path / "a.bin").shape == (5, 4)


@pytest.mark.parametrize("names", [("xyz", "intensity"), ("points",)])
def test_npz_drops_points_that_are_not_finite(tmp_path: Path, names: tuple[str, ...]) -> None:
    points = POINTS.copy()
    points[1, 0] = np.nan
    arrays = (points[:, :3], points[:, 3]) if len(names) == 2 else (points,)
    np.savez(tmp_path / "a.npz", **dict(zip(names, arrays, strict=True)))
    assert np.array_equal(load_sweep(tmp_path / "a.npz"), POINTS[[0, 2]])


HEADER = """# .PCD v0.7
VERSION 0.7
FIELDS x y z _ intensity
SIZE 4 4 4 1 4
TYPE F F F U F
COUNT 1 1 1 4 1
WIDTH 3
HEIGHT 1
POINTS 3
DATA """


def test_pcd_ascii_and_binary(tmp_path: Path) -> None:
    rows = "\n".join(f"{x} {y} {z} 0 0 0 0 {i}" for x, y, z, i in POINTS)
    (tmp_path / "a.pcd").write_text(HEADER + "ascii\n" + rows)
    assert np.allclose(load_sweep(tmp_path / "a.pcd"), POINTS)
    dtype = np.dtype([("xyz", "<f4", 3), ("pad", "u1", 4), ("i", "<f4")])
    table = np.zeros(3, dtype)
    table["xyz"], table["i"] = POINTS[:, :3], POINTS[:, 3]
    (tmp_path / "b.pcd").write_bytes((HEADER + "binary\n").encode() + table.tobytes())
    assert np.array_equal(load_sweep(tmp_path / "b.pcd"), POINTS)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.bin").write_bytes(b"\0" * 28)
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "text.pcd").write_text("hello")
    (tmp_path / "cut.pcd").write_bytes((HEADER + "binary\n").encode() + b"\0" * 10)
    (tmp_path / "packed.pcd").write_text(HEADER + "binary_compressed\n")
    (tmp_path / "bare.pcd").write_text("FIELDS x y z\nDATA ascii\n")
    np.savez(tmp_path / "other.npz", depth=np.zeros(3))
    for name, message in (
        ("odd.bin", "neither rows of 4 nor of 5"),
        ("empty.bin", "neither"),
        ("text.pcd", "no DATA line"),
        ("cut.pcd", "unknown or cut short"),
        ("packed.pcd", "unknown or cut short"),
        ("bare.pcd", "lacks"),
        ("other.npz", "found \\['depth'\\]"),
        ("absent.bin", "no such file"),
        ("sweep.ply", "expected a sweep ending in"),
    ):
        with pytest.raises(InputError, match=message):
            load_sweep(tmp_path / name)
