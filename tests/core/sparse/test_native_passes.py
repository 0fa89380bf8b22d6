# SPDX-License-Identifier: Apache-2.0
"""The native passes around the network give what torch gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.measure import threads
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.models.sweep_input import SweepInput, sweep_input
from pcseg_core.native import library, sweeps
from pcseg_core.online.point_labels import point_labels
from pcseg_core.sparse import Voxels, voxelize

pytestmark = pytest.mark.usefixtures("native")
CPU = torch.device("cpu")
properties = settings(max_examples=60, deadline=None)


def assert_same_voxels(found: Voxels, plain: Voxels) -> None:
    for name in ("coords", "inverse", "counts", "keys", "grid", "batch"):
        mine, theirs = getattr(found, name), getattr(plain, name)
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), name


def grouped(xyz: torch.Tensor, size: tuple[float, ...], batch: torch.Tensor | None) -> Voxels:
    return voxelize(xyz, size, batch, backend="native")


@properties
@given(
    st.integers(1, 60),
    st.sampled_from([1e-3, 0.3, 20.0, 5e3, 13106.0]),
    st.sampled_from([(0.1, 0.1, 0.1), (0.1, 0.25, 1.0), (0.3, 0.1, 0.7)]),
    st.sampled_from([1, 3, 512]),
    st.integers(0, 999),
)
def test_voxels_are_those_of_torch(
    count: int, reach: float, size: tuple[float, float, float], batches: int, seed: int
) -> None:
    """From all points in one voxel to keys of all 63 bits, on both sides of the origin."""
    rng = np.random.default_rng(seed)
    xyz = torch.from_numpy(rng.uniform(-reach, reach, (count, 3)).astype(np.float32))
    xyz[rng.random(count) < 0.2] = 0
    xyz[rng.random(count) < 0.2] = torch.tensor([-0.1, 0.1, -0.0])  # on the border of voxels
    batch = torch.from_numpy(rng.integers(0, batches, count)) if batches > 1 else None
    assert_same_voxels(grouped(xyz, size, batch), voxelize(xyz, size, batch, backend="torch"))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("reach", [30.0, 13106.0])
def test_many_points_on_any_number_of_threads(workers: int, reach: float) -> None:
    rng = np.random.default_rng(0)
    xyz = torch.from_numpy(rng.normal(size=(70_000, 3)).astype(np.float32) * 3)
    xyz[::1000] = torch.from_numpy(rng.uniform(-reach, reach, (70, 3)).astype(np.float32))
    batch = torch.from_numpy(rng.integers(0, 4, len(xyz)))
    with threads(workers):
        found = voxelize(xyz, 0.1, batch, backend="native")
    assert_same_voxels(found, voxelize(xyz, 0.1, batch, backend="torch"))


def test_cylindrical_voxels_are_those_of_torch() -> None:
    xyz = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * 20
    size = (0.2, math.radians(1), 0.2)
    found, plain = (voxelize(xyz, size, mode="cylindrical", backend=b) for b in ("native", "torch"))
    assert_same_voxels(found, plain)


def test_the_limits_of_the_keys() -> None:
    edge = torch.tensor([[131067.0, -131067.0, 0.0]])
    assert_same_voxels(voxelize(edge, 1.0, backend="native"), voxelize(edge, 1.0, backend="torch"))
    for backend in ("native", "torch"):
        for far in ([131067.02, 0, 0], [0, 0, -131068.0], [3e38, 0, 0]):
            with pytest.raises(InputError, match="voxels from the origin"):
                voxelize(torch.tensor([[0.0, 0, 0], far]), 1.0, backend=backend)
        with pytest.raises(InputError, match="1 of 2 are not finite"):
            voxelize(torch.tensor([[0.0, 0, 0], [0, math.nan, 0]]), 1.0, backend=backend)
        with pytest.raises(InputError, match="batch index 512"):
            voxelize(torch.zeros(2, 3), 1.0, torch.tensor([0, 512]), backend=backend)
        with pytest.raises(InputError, match="empty"):
            voxelize(torch.zeros(0, 3), 1.0, backend=backend)


def sweep_with_faults(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    xyz = rng.normal(size=(count, 3)).astype(np.float32) * rng.choice([0.05, 5, 40])
    intensity = rng.uniform(-0.2, 1.3, count).astype(np.float32)
    odd = rng.random(count) < 0.3
    values = [0, -0.0, math.nan, math.inf, -math.inf, 3e38, 1e-30, 80.0, -500.0]
    xyz[odd] = rng.choice(values, (count, 3)).astype(np.float32)[odd]
    intensity[odd] = rng.choice([math.nan, math.inf, -math.inf, 0, 1e30], count)[odd]
    xyz[rng.random(count) < 0.1] = 0
    return xyz, intensity


def assert_same_input(found: SweepInput, plain: SweepInput) -> None:
    assert torch.equal(found.inverse, plain.inverse)
    assert found.out_of_range == plain.out_of_range
    if found.sparse is None or plain.sparse is None:
        assert found.sparse is plain.sparse
        return
    assert torch.equal(found.sparse.cache.keys(1), plain.sparse.cache.keys(1))
    assert torch.equal(found.sparse.feats, plain.sparse.feats)


@properties
@given(
    st.integers(0, 200),
    st.lists(st.sampled_from(["x", "y", "z", "intensity", "one", "offset"]), min_size=1),
    st.booleans(),
    st.sampled_from([0.05, 0.1, 2.0]),
    st.integers(0, 999),
)
def test_the_input_of_a_sweep_is_that_of_torch(
    count: int, inputs: list[str], with_intensity: bool, voxel_m: float, seed: int
) -> None:
    xyz, intensity = sweep_with_faults(count, seed)
    given_intensity = intensity if with_intensity else None
    student = Student(config(tuple(inputs), voxel_m), 2)
    found, plain = (
        sweep_input(student, xyz, given_intensity, CPU, backend) for backend in ("native", "torch")
    )
    assert_same_input(found, plain)


def config(inputs: tuple[str, ...], voxel_m: float = 0.1, **options: object) -> StudentConfig:
    section = {"depth": 14, "width": 0.1, "inputs": inputs, "voxel_size_m": voxel_m, **options}
    return StudentConfig.model_validate(section)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_large_sweep_on_any_number_of_threads(workers: int) -> None:
    xyz, intensity = sweep_with_faults(60_000, 1)
    student = Student(config(("z", "intensity", "offset")), 2)
    with threads(workers):
        found = sweep_input(student, xyz, intensity, CPU, "native")
    assert_same_input(found, sweep_input(student, xyz, intensity, CPU, "torch"))
    frozen = np.concatenate([xyz, intensity[:, None]], 1)
    frozen.flags.writeable = False  # as a view of a message
    assert_same_input(found, sweep_input(student, frozen[:, :3], frozen[:, 3], CPU, "native"))


@pytest.mark.parametrize(
    "student",
    [
        config(("z", "range", "intensity")),
        config(("z", "intensity"), voxels="cylindrical"),
        config(("z", "offset"), rounding="round"),
        config(("z", "offset"), origin="minimum"),
        config(("z", "intensity"), reduce="first"),
    ],
)
def test_what_one_pass_cannot_compute(student: StudentConfig) -> None:
    xyz, intensity = sweep_with_faults(2000, 2)
    network = Student(student, 2)
    found, plain = (
        sweep_input(network, xyz, intensity, CPU, backend) for backend in ("native", "torch")
    )
    assert_same_input(found, plain)


def test_a_range_beyond_the_keys_is_an_error() -> None:
    student = Student(config(("z",), 0.00501).model_copy(update={"max_range_m": 5000.0}), 2)
    xyz = np.array([[4000, 0, 0]], np.float32)
    for backend in ("native", "torch"):
        with pytest.raises(InputError, match="voxels from the origin"):
            sweep_input(student, xyz, None, CPU, backend)


def logits_with_faults(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Many equal values, some rows that are not finite, some far apart."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, (rows, columns)).astype(np.float32) * rng.choice([1, 30, 0.1])
    odd = rng.random((rows, columns)) < 0.02
    values[odd] = rng.choice([math.nan, math.inf, -math.inf, 1e30, -1e30], odd.sum())
    return torch.from_numpy(values)


@properties
@given(st.integers(0, 50), st.integers(1, 40), st.booleans(), st.integers(0, 999))
def test_labels_are_those_of_torch(rows: int, columns: int, every: bool, seed: int) -> None:
    logits = logits_with_faults(rows, columns, seed)
    inverse = torch.from_numpy(np.random.default_rng(seed).integers(-1, max(rows, 1), 80))
    inverse[inverse >= rows] = -1
    found, plain = (
        point_labels([logits], inverse, columns, None, every, backend)
        for backend in ("native", "torch")
    )
    np.testing.assert_array_equal(found.labels, plain.labels)
    np.testing.assert_allclose(found.confidence, plain.confidence, atol=1e-6)
    assert found.not_finite == plain.not_finite
    assert (found.probabilities is None) == (not every)
    if found.probabilities is not None:
        np.testing.assert_allclose(found.probabilities, plain.probabilities, atol=1e-6)
        labeled = found.labels != IGNORE
        np.testing.assert_array_equal(found.probabilities.argmax(1)[labeled], found.labels[labeled])
        np.testing.assert_array_equal(found.probabilities.max(1), found.confidence)


@properties
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 20), st.integers(0, 999))
def test_words_of_one_class_add_up(rows: int, classes: int, words: int, seed: int) -> None:
    """In blocks, and with classes that no word has."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(rows, words)).astype(np.float32) * 3)
    owner = torch.from_numpy(rng.integers(0, classes, words))
    blocks, inverse = logits.split(7), torch.arange(rows)
    found, plain = (
        point_labels(blocks, inverse, classes, owner, True, backend)
        for backend in ("native", "torch")
    )
    assert found.probabilities is not None and plain.probabilities is not None
    np.testing.assert_allclose(found.probabilities, plain.probabilities, atol=1e-6)
    np.testing.assert_allclose(found.confidence, plain.confidence, atol=1e-6)
    chosen = plain.probabilities[np.arange(rows), found.labels]
    np.testing.assert_allclose(chosen, plain.confidence, atol=1e-6)


@pytest.mark.parametrize("workers", [1, 3])
def test_softmax_of_every_instruction_set(workers: int) -> None:
    logits = logits_with_faults(9001, 8, 5)
    exact = logits.double().softmax(1)
    good = exact.isfinite().all(1)
    for isa in range(len(library.isa_names())):
        with threads(workers):
            winner, confidence, every = sweeps.classify(logits.numpy(), 8, None, True, isa)
        assert every is not None
        np.testing.assert_array_equal(winner[~good], IGNORE)
        np.testing.assert_array_equal(winner[good], exact[good].max(1).indices)
        np.testing.assert_allclose(every[good], exact[good], atol=3e-7)
        assert (confidence[~good] == 0).all() and (every[~good] == 0).all()


def test_points_of_rows_that_do_not_exist_get_no_label() -> None:
    """A damaged inverse reads no memory beyond the rows."""
    winner, confidence = np.array([3, 1], np.int32), np.array([0.5, 0.25], np.float32)
    inverse = np.array([1, -1, 2, 2**62, -(2**63), 0])
    labels, likely, every = sweeps.spread(inverse, winner, confidence, np.ones((2, 3), np.float32))
    assert labels.tolist() == [1, -1, -1, -1, -1, 3]
    assert likely.tolist() == [0.25, 0, 0, 0, 0, 0.5]
    assert every is not None and every.sum(1).tolist() == [3, 0, 0, 0, 0, 3]
