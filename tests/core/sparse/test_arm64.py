# SPDX-License-Identifier: Apache-2.0
"""The native library on emulated ARM64 CPUs gives what torch and numpy give."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from ctypes import byref, c_int64
from pathlib import Path
from types import SimpleNamespace

import arm64
import numpy as np
import pytest
import test_native
import test_native_isas
import test_native_passes
import torch

from pcseg_core import projection
from pcseg_core.export.tables import TABLES
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.native import build, library, sweeps, tensors
from pcseg_core.online import row_reductions
from pcseg_core.online.voxel_table import VoxelTable
from tests.core.export import test_sweep_tables as exported

pytestmark = pytest.mark.timeout(900)  # the build takes its time on a busy machine

CPUS = {
    "cortex-a72": ("neon",),
    "neoverse-n1": ("neon", "neondot"),
    "max": ("neon", "neondot", "neonbf16"),
}
OWN = [
    *((0, dtype) for dtype in tensors.DTYPES),
    (1, torch.uint8),
    (2, torch.bfloat16),
    (2, torch.uint8),
]
"""Types whose products a set computes with instructions of its own."""
every_set = pytest.mark.parametrize("isa", range(3), ids=CPUS["max"])
floats = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The program that calls, and the library."""
    arm64.require_tools()
    folder = tmp_path_factory.mktemp("arm64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", arm64.COMPILER)
        path = build.build(folder, ("-O1",))  # half the time of a full build
    source = Path(__file__).with_name("arm64_calls.cpp")
    return arm64.compile_program(folder, [source]), path


@pytest.fixture(scope="module")
def cpu(
    built: tuple[Path, Path], request: pytest.FixtureRequest
) -> Iterator[arm64.EmulatedLibrary]:
    """All that the CPU "max" has, unless a test names others."""
    made = arm64.EmulatedLibrary(*built, getattr(request, "param", "max"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def emulated(cpu: arm64.EmulatedLibrary, monkeypatch: pytest.MonkeyPatch) -> arm64.EmulatedLibrary:
    """Python's calls go to the emulated library."""
    monkeypatch.setattr(tensors, "threaded_library", lambda: cpu)
    for module in (library, sweeps):
        monkeypatch.setattr(module, "isa_names", cpu.isa_names)
    for module in (tensors, sweeps):
        monkeypatch.setattr(module, "_pointer", cpu.pointer)
    return cpu


@pytest.mark.parametrize(("cpu", "names"), CPUS.items(), indirect=["cpu"], ids=CPUS)
def test_sets_of_a_cpu(cpu: arm64.EmulatedLibrary, names: tuple[str, ...]) -> None:
    """Found at run time; none of them has an instruction that the CPU lacks."""
    assert cpu.isa_names() == names
    assert [cpu.call("pcseg_has_bfloat16", isa) & 1 for isa in range(3)] == [0, 0, len(names) == 3]
    for isa in range(len(names)):
        for dtype in (torch.float32, torch.bfloat16):
            test_native_isas.test_rows_beyond_a_block(33, (33, 17), isa, dtype)
        test_native_isas.test_integers_equal_the_definition(33, (33, 17), isa)
        gradient(isa, 40, 9, 21, 8)


def gradient(isa: int, *shape: int) -> None:
    test_native.test_weight_gradient_equals_the_definition.hypothesis.inner_test(isa, *shape)


@floats
@every_set
@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse"])
@pytest.mark.parametrize("widths", [(3, 5), (31, 33), (64, 16)])
def test_dense_convolution(
    kind: str, widths: tuple[int, int], isa: int, dtype: torch.dtype
) -> None:
    test_native_isas.test_dense_convolution(kind, widths, isa, dtype)


@floats
@every_set
def test_rows_beyond_a_block(isa: int, dtype: torch.dtype) -> None:
    """Also channels beyond one pass, odd numbers of rows and of words."""
    for rows in (0, 1, 257):
        for widths in ((1, 1), (38, 49)):
            test_native_isas.test_rows_beyond_a_block(rows, widths, isa, dtype)
    any_shape = test_native.test_any_shape_equals_the_definition.hypothesis.inner_test
    any_shape(isa, 50, 61, 30, 21, 8, 0.5, True, True, True, 0)  # of the exact size
    many = 133 if dtype == torch.float32 else 261
    test_native_isas.test_rows_beyond_a_block(31, (many, 6), isa, dtype)


@every_set
def test_integers(isa: int) -> None:
    for rows in (0, 1, 257):
        for widths in ((1, 1), (33, 17), (64, 48)):
            test_native_isas.test_integers_equal_the_definition(rows, widths, isa)
    test_native_isas.test_integers_equal_the_definition(31, (1042, 6), isa)
    test_native_isas.test_integers_are_rounded_and_saturate(isa)


@pytest.mark.parametrize(("isa", "dtype"), OWN)
def test_same_bits_for_any_number_of_threads(isa: int, dtype: torch.dtype) -> None:
    test_native_isas.check_threads(isa, dtype, 520)


@every_set
def test_weight_gradient(isa: int) -> None:
    for shape in ((1, 1, 1, 1), (700, 70, 37, 8)):
        gradient(isa, *shape)


@pytest.mark.parametrize(("count", "extent"), [(1, 3), (9000, 25), (9000, 100000)])
def test_maps(count: int, extent: int) -> None:
    test_native.test_maps_equal_the_plain_ones(count, extent, 3)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("workers", [1, 3])
def test_voxels_and_input_features(workers: int) -> None:
    """Bit for bit: no multiplication is contracted with an addition."""
    for reach in (30.0, 13106.0):
        test_native_passes.test_many_points_on_any_number_of_threads(workers, reach)
    test_native_passes.test_a_large_sweep_on_any_number_of_threads(workers)


def test_labels() -> None:
    test_native_passes.test_softmax_of_every_instruction_set(3)
    test_native_passes.test_points_of_rows_that_do_not_exist_get_no_label()


def test_occlusion(cpu: arm64.EmulatedLibrary) -> None:
    rng = np.random.default_rng(0)
    uv = rng.uniform(0, (640, 480), (3000, 2)).astype(np.float32)
    values = rng.random(3000, np.float32)
    for reach in (1, 2):
        penalty = rng.random((2 * reach + 1, 2 * reach + 1), np.float32)
        size = 481 + 2 * reach, 641 + 2 * reach
        found = np.empty_like(values)
        pointers = map(cpu.pointer, (uv, values, penalty, found))
        args = library.HighestArgs(*pointers, len(uv), *size, 1, reach)
        assert cpu.pcseg_highest(byref(args)) == 0
        plain = projection._numpy_highest(uv, values, penalty, size, 1)
        np.testing.assert_array_equal(found, plain)


def test_rows(cpu: arm64.EmulatedLibrary) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((500, 7), np.float32)
    winner, top = np.empty(500, np.int32), np.empty(500, np.float32)
    assert cpu.call("pcseg_row_top", values, 500, 7, 7, winner, top) == 0
    for found, plain in zip((winner, top), row_reductions._numpy_top(values), strict=True):
        np.testing.assert_array_equal(found, plain)

    used = np.flatnonzero(rng.random(500) < 0.7)
    group = rng.integers(0, 9, len(used)).astype(np.int32)
    means = np.empty((9, 7), np.float32)
    counts = len(used), 9
    assert cpu.call("pcseg_row_means", values, 500, 7, used, group, *counts, means) == 0
    plain = row_reductions._numpy_means(values, used, group, 9)
    np.testing.assert_allclose(means, plain, rtol=1e-6)

    store = rng.random((500, 9), np.float32)
    at, fade = rng.permutation(500)[:300], rng.random(300, np.float32)
    expected, look = store.copy(), rng.random((300, 7), np.float32)
    plain = row_reductions._numpy_accumulate(expected, at, fade, look.copy(), 0.25)
    arguments = (store, 500, 7, at, fade, look, 300, 0.25, winner)
    assert cpu.call("pcseg_row_accumulate", *arguments) == 0
    np.testing.assert_allclose(store, expected, atol=1e-5)
    np.testing.assert_array_equal(winner[:300], plain[0])
    np.testing.assert_allclose(look, plain[1], atol=1e-5)


def test_search(cpu: arm64.EmulatedLibrary) -> None:
    """Of keys that are there, of new ones, and of more than fit."""
    rng = np.random.default_rng(0)
    keys, table = rng.integers(0, 900, 2000), VoxelTable(512, 3)
    hit, first = np.empty((2, 2000), np.int64)
    voxel, count = np.empty(2000, np.int32), c_int64()
    args = library.VoxelTable(cpu.pointer(table._slots), cpu.pointer(table.rows), table._bits, 3)
    for _ in range(2):
        given = args, keys, 2000, 1.0, hit, voxel, first, count
        assert cpu.call("pcseg_voxel_locate", *given) == 0
        found = voxel >= 0
        rows = hit[: count.value]
        assert 400 < len(rows) == len(np.unique(rows)) <= 512
        assert np.array_equal(table._keys[rows[voxel[found]]], keys[found])
        assert np.array_equal(keys[first[: count.value]], table._keys[rows])
        assert not found.all()


def test_sweep_tables(cpu: arm64.EmulatedLibrary) -> None:
    """The C interface of exported networks."""

    def number(name: bytes) -> int:
        return cpu.call("pcseg_feature", np.frombuffer(name + b"\0", np.uint8).copy())

    config = StudentConfig(depth=14, width=0.1, inputs=("range", "one", "intensity", "offset"))
    student, points = Student(config, 2), exported.street(3000)
    settings = exported.settings_of(SimpleNamespace(pcseg_feature=number), config)
    wanted = exported.expected(SimpleNamespace(student=student), points)
    sweep = cpu.call("pcseg_sweep_new", settings)
    xyz, intensity = points[:, :3].copy(), np.zeros((3000, 3), np.float32)
    intensity[:, 0] = points[:, 3]
    assert cpu.call("pcseg_sweep_build", sweep, xyz, intensity, 3000, 3, 2) == 0
    places = {"features": cpu.call("pcseg_sweep_features", sweep)}
    places["voxels"] = cpu.call("pcseg_sweep_voxels", sweep)
    for index, table in enumerate(TABLES):
        facts = np.zeros(4, np.int64)  # name, values, offsets (int32), rows
        assert cpu.call("pcseg_sweep_table", sweep, index, facts) == 0
        assert (int(facts.view(np.int32)[4]), int(facts[3])) == wanted[table.name].shape
        places[table.name] = int(facts[1])
    for name, values in wanted.items():
        found = np.empty_like(values)
        cpu.call("memcpy", found, places[name], found.nbytes)
        np.testing.assert_allclose(found, values, atol=1e-6 * (name == "features"), err_msg=name)
    cpu.call("pcseg_sweep_free", sweep)


def test_the_file_is_checked_on_its_machine(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert library.check_file(built[1]) == ""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert "for this machine" in library.check_file(built[1])
