# SPDX-License-Identifier: Apache-2.0
"""Calibration at the end of a training: what is held out, and what it is fitted to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pcseg_core.learning.confidence import calibrate, held_out
from pcseg_core.models.student import Student
from tests.small_runs import SMALL, sweep


def scenes(*counts: int) -> list[bool]:
    """Which sweeps of scenes of these sizes are held out at a share of 10 %."""
    one = sweep("0")
    sweeps = [
        type(one)(**{**vars(one), "scene": str(k)}) for k, n in enumerate(counts) for _ in range(n)
    ]
    return held_out(sweeps, 0.1).tolist()


def test_small_trainings_hold_nothing_out() -> None:
    assert not any(scenes(40))
    assert not any(scenes(*[4] * 10))


def test_the_end_of_the_longest_of_few_scenes_is_held_out() -> None:
    assert scenes(20, 60) == [False] * 72 + [True] * 8
    assert np.flatnonzero(scenes(7, 8, 8, 8, 9, 9)).tolist() == [36, 37, 38, 39]  # half of it


def test_whole_scenes_are_held_out_where_there_are_many() -> None:
    held = scenes(*[4] * 20)
    assert [held[i : i + 4] for i in range(0, 80, 4)].count([True] * 4) == 2
    assert sum(held) == 8


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(SMALL, 8)


def test_training_sweeps_do_not_raise_the_confidence(student: Student) -> None:
    sweeps = [sweep("a", seed) for seed in range(3)]
    learned = Student(SMALL, 8)
    learned.load_state_dict(student.state_dict())
    with torch.no_grad():  # the classes 0 and 1 alone, with a confidence of a half
        learned.network.classifier.weight.zero_()
        learned.network.classifier.bias.copy_(torch.tensor([2.0, 2, *[-1] * 6]))
    assert calibrate(learned, sweeps, np.zeros(3, bool)) is None
    found = calibrate(learned, sweeps, np.array([True, True, False]))
    assert found is not None and found.held_out and found.sweeps == 2
    assert found.near < 0.7 and found.far < 0.7


def test_training_sweeps_lower_a_confidence_that_is_too_high(student: Student) -> None:
    found = calibrate(student, [sweep("a", seed) for seed in range(3)], np.zeros(3, bool))
    assert found is not None and not found.held_out and found.sweeps == 3
    assert min(found.near, found.far, found.unsure) >= 1


def test_too_few_labels_give_no_scaling(student: Student) -> None:
    bare = sweep("a")
    bare.label[:] = -1
    assert calibrate(student, [bare, sweep("a")], np.zeros(2, bool)) is None
