# SPDX-License-Identifier: Apache-2.0
"""The C interface gives the voxels, features and tables that Python makes."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np
import pytest
import torch

from pcseg_core.export.tables import TABLES, graph_inputs
from pcseg_core.models.student import Points, StudentConfig, input_features, voxel_edges
from pcseg_core.native import build, library
from pcseg_core.online.segmenter import Segmenter


class Settings(ctypes.Structure):
    _fields_ = (
        ("cylindrical", c_int32),
        ("voxel_size", c_double * 3),
        ("max_range_m", c_double),
        ("features", c_int32),
        ("feature", c_int32 * 9),
        ("divisor", c_float * 9),
    )


class Table(ctypes.Structure):
    _fields_ = (
        ("name", c_char_p),
        ("values", POINTER(c_int32)),
        ("offsets", c_int32),
        ("rows", c_int64),
    )


@pytest.fixture(scope="module")
def native() -> ctypes.CDLL:
    loaded = library.load()
    if isinstance(loaded, str):
        pytest.skip(loaded)
    loaded.pcseg_sweep_new.restype = c_void_p
    loaded.pcseg_sweep_new.argtypes = [POINTER(Settings)]
    loaded.pcseg_sweep_free.argtypes = [c_void_p]
    floats = POINTER(c_float)
    loaded.pcseg_sweep_build.argtypes = [c_void_p, floats, floats, c_int64, c_int64, c_int32]
    loaded.pcseg_sweep_rows.restype = c_int64
    loaded.pcseg_sweep_rows.argtypes = [c_void_p, c_int32]
    loaded.pcseg_sweep_features.restype = floats
    loaded.pcseg_sweep_features.argtypes = [c_void_p]
    loaded.pcseg_sweep_voxels.restype = POINTER(c_int32)
    loaded.pcseg_sweep_voxels.argtypes = [c_void_p]
    loaded.pcseg_sweep_table.argtypes = [c_void_p, c_int32, POINTER(Table)]
    return loaded


def settings_of(native: ctypes.CDLL, config: StudentConfig) -> Settings:
    features = input_features(config)
    settings = Settings(config.voxels == "cylindrical", voxel_edges(config), config.max_range_m)
    settings.features = len(features)
    for k, (name, divisor) in enumerate(features):
        settings.feature[k] = native.pcseg_feature(name.encode())
        settings.divisor[k] = divisor
    return settings


@contextmanager
def sweep_of(native: ctypes.CDLL, settings: Settings) -> Iterator[int]:
    sweep = native.pcseg_sweep_new(byref(settings))
    assert sweep
    try:
        yield sweep
    finally:
        native.pcseg_sweep_free(sweep)


def made(
    native: ctypes.CDLL, sweep: int, points: np.ndarray, channels: int, threads: int = 1
) -> dict[str, np.ndarray]:
    """Build from points (N, 4); returns all arrays by name."""
    first = points.ctypes.data_as(POINTER(c_float))
    strength = points[:, 3:].ctypes.data_as(POINTER(c_float))
    assert native.pcseg_sweep_build(sweep, first, strength, len(points), 4, threads) == 0
    rows = native.pcseg_sweep_rows(sweep, 0)
    arrays = {
        "features": (native.pcseg_sweep_features(sweep), (rows, channels)),
        "voxels": (native.pcseg_sweep_voxels(sweep), (len(points),)),
    }
    for index in range(len(TABLES)):
        table = Table()
        assert native.pcseg_sweep_table(sweep, index, byref(table)) == 0
        arrays[table.name.decode()] = (table.values, (table.offsets, table.rows))
    return {name: np.ctypeslib.as_array(*array).copy() for name, array in arrays.items()}


def street(count: int, seed: int = 0) -> np.ndarray:
    """Points (N, 4), some of them no returns, not finite, out of range or out of 0..1."""
    rng = np.random.default_rng(seed)
    points = rng.normal(0, (15, 15, 1, 1), (count, 4)).astype(np.float32)
    points[::50, :3], points[1::50, 0], points[2::50, 3] = 0, np.nan, np.nan
    points[3::50, 1], points[4::50, 3], points[5::50, 3] = np.inf, np.inf, -np.inf
    points[6::50, 0], points[7::50, 2] = 200, -0.0
    return points


def expected(segmenter: Segmenter, points: np.ndarray) -> dict[str, np.ndarray]:
    """The same arrays from the student's own voxels."""
    xyz = torch.from_numpy(points[:, :3].copy())
    square = xyz.square().sum(1)
    limit = segmenter.student.config.max_range_m
    kept = ((square <= limit**2) & (square > 0)).nonzero()[:, 0]
    strength = torch.from_numpy(points[:, 3].copy())[kept].nan_to_num(nan=0.0).clamp(0, 1)
    chosen = Points(xyz[kept], strength, torch.zeros(len(kept), dtype=torch.int64))
    voxels = segmenter.student.voxelize(chosen)
    row = np.full(len(points), -1, np.int32)
    row[kept.numpy()] = voxels.inverse.numpy()
    return {"voxels": row, **graph_inputs(segmenter.student.sparse_input(chosen, voxels, "torch"))}


@pytest.mark.parametrize(
    "inputs", [("z", "intensity"), ("x", "y", "offset"), ("range", "one", "intensity", "offset")]
)
def test_arrays_equal_those_of_the_student(
    inputs: tuple[str, ...], native: ctypes.CDLL, make_segmenter: Callable[..., Segmenter]
) -> None:
    """Also after a larger sweep, and on two threads."""
    segmenter = make_segmenter(inputs=inputs, voxel_size_m=0.3)
    channels = segmenter.student.network.in_channels
    with sweep_of(native, settings_of(native, segmenter.student.config)) as sweep:
        for count, threads in ((20000, 1), (3000, 2), (60, 1)):
            points = street(count, seed=count)
            given, wanted = (
                made(native, sweep, points, channels, threads),
                expected(segmenter, points),
            )
            assert given.keys() == wanted.keys()
            for name in wanted.keys() - {"features"}:
                assert np.array_equal(given[name], wanted[name]), name
            assert np.allclose(given["features"], wanted["features"], rtol=0, atol=1e-6)


def test_cylindrical_voxels(native: ctypes.CDLL, make_segmenter: Callable[..., Segmenter]) -> None:
    """Functions of the C library may differ from torch's in the last bit, at borders of voxels."""
    segmenter = make_segmenter(voxels="cylindrical", voxel_size_m=0.3, azimuth_deg=0.7)
    points = street(3000)
    with sweep_of(native, settings_of(native, segmenter.student.config)) as sweep:
        given, wanted = made(native, sweep, points, 2), expected(segmenter, points)
    assert abs(len(given["features"]) - len(wanted["features"])) < 5
    assert ((given["voxels"] < 0) == (wanted["voxels"] < 0)).all()


def test_no_points_and_no_usable_points(
    native: ctypes.CDLL, make_segmenter: Callable[..., Segmenter]
) -> None:
    settings = settings_of(native, make_segmenter().student.config)
    with sweep_of(native, settings) as sweep:
        made(native, sweep, street(500), 2)
        for points in (np.zeros((0, 4), np.float32), np.zeros((3, 4), np.float32)):
            given = made(native, sweep, points, 2)
            assert given.pop("voxels").tolist() == [-1] * len(points)
            assert all(array.size == 0 for array in given.values())


def test_bad_arguments_are_refused(
    native: ctypes.CDLL, make_segmenter: Callable[..., Segmenter]
) -> None:
    assert native.pcseg_tables_version() == 1
    assert native.pcseg_feature(b"color") == -1 and native.pcseg_feature(None) == -1
    assert not native.pcseg_sweep_new(None)
    config = make_segmenter().student.config
    for change in (
        {"features": 0},
        {"features": 10},
        {"max_range_m": math.nan},
        {"max_range_m": 1e9},
        {"voxel_size": (c_double * 3)(0.1, 0, 0.1)},
        {"feature": (c_int32 * 9)(99)},
        {"divisor": (c_float * 9)(0)},
    ):
        settings = settings_of(native, config)
        for name, value in change.items():
            setattr(settings, name, value)
        assert not native.pcseg_sweep_new(byref(settings)), change
    points, table = np.ones((2, 4), np.float32), Table()
    first = points.ctypes.data_as(POINTER(c_float))
    with sweep_of(native, settings_of(native, config)) as sweep:
        assert native.pcseg_sweep_build(sweep, first, None, 2, 4, 1) == 0
        assert native.pcseg_sweep_rows(sweep, 0) == 1
        for count, step in ((-1, 4), (2, 2)):
            assert native.pcseg_sweep_build(sweep, first, None, count, step, 1) == 1
            assert native.pcseg_sweep_rows(sweep, 0) == 0
        assert native.pcseg_sweep_build(sweep, None, None, 2, 4, 1) == 1
        assert native.pcseg_sweep_rows(sweep, 5) == native.pcseg_sweep_rows(None, 0) == -1
        assert native.pcseg_sweep_table(sweep, 13, byref(table)) == 1


def test_the_header_is_plain_c(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "main.c").write_text(
        '#include "pcseg.h"\nint main(void) { return PCSEG_TABLES - 13; }\n'
    )
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{build.SOURCES}"]
    command = [compiler, *flags, str(tmp_path / "main.c"), "-o", str(tmp_path / "main")]
    subprocess.run(command, check=True, timeout=60)
    subprocess.run([str(tmp_path / "main")], check=True, timeout=60)
