# SPDX-License-Identifier: Apache-2.0
"""Objects of a sweep: what is one, what is two, what is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcseg_core.errors import InputError
from pcseg_core.online.instances import cluster_instances

CAR, PERSON, ROAD = 5, 6, 0


def box(x: float, y: float, points: int, seed: int = 0, size: float = 1.0) -> np.ndarray:
    offsets = np.random.default_rng(seed).uniform(-size / 2, size / 2, (points, 3))
    return (np.array([x, y, 0.0]) + offsets).astype(np.float32)


def test_two_cars_a_person_beside_one_of_them_and_the_road() -> None:
    xyz = np.concatenate(
        [box(5, 0, 200), box(5, 3, 200), box(5.4, 0.4, 100), box(0, 0, 500, 0, 30)]
    )
    labels = np.repeat([CAR, CAR, PERSON, ROAD], [200, 200, 100, 500])
    ids = cluster_instances(xyz, labels, [CAR, PERSON])
    assert ids.dtype == np.uint32
    parts = [set(part.tolist()) for part in np.split(ids, [200, 400, 500])]
    assert parts == [{1}, {2}, {3}, {0}]


def test_gap_of_one_cell_joins_and_of_three_parts() -> None:
    line = np.zeros((40, 3), np.float32)
    line[:20, 0] = 0.1  # cell 0
    for gap, instances in ((1.1, 1), (3.1, 2)):  # cells apart
        line[20:, 0] = gap
        ids = cluster_instances(line, np.full(40, CAR), [CAR], cell_m=1.0)
        assert len(np.unique(ids)) == instances


def test_height_does_not_part_and_few_points_are_no_instance() -> None:
    tall = np.zeros((20, 3), np.float32)
    tall[:, 2] = np.linspace(0, 10, 20)
    assert (cluster_instances(tall, np.full(20, PERSON), [PERSON]) == 1).all()
    assert not cluster_instances(tall[:9], np.full(9, PERSON), [PERSON]).any()


def test_points_without_position_and_far_ones_have_none() -> None:
    xyz = np.concatenate([box(3, 3, 20), np.full((5, 3), np.nan), box(1e6, 0, 20)])
    ids = cluster_instances(xyz, np.full(45, CAR), [CAR])
    assert (ids[:20] == 1).all() and not ids[20:].any()
    nothing = np.zeros((0, 3), np.float32)
    assert len(cluster_instances(nothing, np.zeros(0, int), [CAR])) == 0


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="3 points, 2 labels"):
        cluster_instances(np.zeros((3, 3)), np.zeros(2, int), [CAR])


@given(st.integers(0, 2**31), st.integers(1, 300), st.floats(0.05, 2.0))
def test_ids_are_dense_and_never_mix_classes(seed: int, count: int, cell: float) -> None:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-10, 10, (count, 3)).astype(np.float32)
    labels = rng.integers(0, 4, count)
    ids = cluster_instances(xyz, labels, [1, 3], cell_m=cell, min_points=2)
    present = np.unique(ids[ids > 0])
    assert present.tolist() == list(range(1, len(present) + 1))
    for number in present:
        members = ids == number
        assert members.sum() >= 2 and len(np.unique(labels[members])) == 1
    assert set(np.unique(labels[ids > 0])) <= {1, 3}
