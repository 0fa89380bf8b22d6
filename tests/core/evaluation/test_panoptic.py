# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality, association and id switches, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pcseg_core.errors import InputError
from pcseg_core.metrics.panoptic import Association, Identities, PanopticQuality, lstq

GRASS, SKY, PERSON, DOG = range(4)


def points(*parts: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Classes and ids (N,) of parts: points, class, id."""
    rows = np.array(parts)
    return np.repeat(rows[:, 1], rows[:, 0]), np.repeat(rows[:, 2], rows[:, 0])


def test_panoptic_quality_of_a_sweep() -> None:
    # In the order of the points: 50 grass, 50 sky, 50 dog, and three persons.
    truth = points(
        (50, GRASS, 0),
        (50, SKY, 0),
        (50, DOG, 22),
        (150, PERSON, 33),
        (50, PERSON, 42),
        (100, PERSON, 11),
    )
    found = points(
        (40, GRASS, 0),
        (10, SKY, 0),
        (40, SKY, 0),
        (10, GRASS, 0),
        (50, PERSON, 35),
        (200, PERSON, 8),
        (100, PERSON, 95),
    )
    quality = PanopticQuality(4, min_points=1)
    quality.update(found[0], found[1], truth[0], truth[1])
    # Grass and sky: IoU 40 / 60 each. Persons: 150 / 200 and 100 / 100 are pairs, 42 is missed, 35
    # is wrong.
    assert quality.matched.tolist() == [1, 1, 2, 0]
    assert quality.wrong.tolist() == [0, 0, 1, 0] and quality.missed.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(quality.sq, [2 / 3, 2 / 3, 0.875, 0])
    np.testing.assert_allclose(quality.rq, [1, 1, 2 / 3, 0])
    np.testing.assert_allclose(quality.pq, [2 / 3, 2 / 3, 0.875 * 2 / 3, 0])


def test_points_without_a_class_and_small_segments_do_not_count() -> None:
    quality = PanopticQuality(4, min_points=10)
    truth = points((30, PERSON, 1), (9, PERSON, 2), (20, -1, 0))
    found = points((30, PERSON, 7), (9, DOG, 8), (20, DOG, 9))
    quality.update(found[0], found[1], truth[0], truth[1])
    assert quality.matched.tolist() == [0, 0, 1, 0]
    assert not quality.wrong.any() and not quality.missed.any()
    assert math.isnan(quality.pq[DOG]) and quality.pq[PERSON] == 1
    unlabeled = np.full(20, -1)
    quality.update(unlabeled, unlabeled * 0, np.full(20, PERSON), np.full(20, 3))
    assert quality.missed.tolist() == [0, 0, 1, 0]


def test_half_of_a_segment_is_no_partner() -> None:
    quality = PanopticQuality(4, min_points=1)
    truth, found = points((100, PERSON, 1)), points((50, PERSON, 1), (50, PERSON, 2))
    quality.update(found[0], found[1], truth[0], truth[1])
    assert quality.matched[PERSON] == 0 and quality.wrong[PERSON] == 2


def test_association_over_sweeps() -> None:
    association = Association(min_points=5)
    # A person of 10 points in three sweeps has the id 1 twice and then 2, which also has 10
    # points of grass. A dog of 20 points is found half, as a person.
    for k, one in enumerate((1, 1, 2)):
        truth = points((10, PERSON, 4), (10, GRASS, 0), (20, DOG, 4))
        found = points((10, PERSON, one), (10, GRASS, 2 * (k == 2)), (10, PERSON, 9), (10, SKY, 0))
        association.update("a", found[0], found[1], truth[0], truth[1])
    person = (20 * 20 / 30 + 10 * 10 / (30 + 20 - 10)) / 30
    dog = 30 * 30 / 60 / 60
    assert association.instances == 2
    assert np.isclose(association.quality, (person + dog) / 2)
    assert np.isclose(
        lstq(association.quality, np.array([0.5, np.nan, 0.7])), math.sqrt((person + dog) / 2 * 0.6)
    )


def test_ids_of_other_scenes_are_other_instances_and_few_points_do_not_count() -> None:
    association = Association(min_points=5)
    for scene in "ab":
        truth, found = points((10, PERSON, 1), (5, PERSON, 2)), points((10, PERSON, 1), (5, DOG, 3))
        association.update(scene, found[0], found[1], truth[0], truth[1])
    assert association.instances == 2 and association.quality == 1
    assert math.isnan(Association().quality)


def test_id_switches_and_instances_that_keep_their_id() -> None:
    identities = Identities(min_points=5)
    # One keeps its id while its neighbor takes over another, is not found once, and changes again.
    for second in (2, 2, 0, 3, 3, 2):
        truth = points((10, PERSON, 1), (10, PERSON, 2), (4, PERSON, 3))
        found = points((10, PERSON, 7), (10, PERSON, second), (4, PERSON, 8))
        identities.update("a", found[1], truth[1])
    assert identities.switches == 2
    assert identities.kept() == (1, 2) and identities.kept(least_sweeps=7) == (0, 0)
    assert np.isclose(identities.found, 11 / 12)


def test_an_instance_that_was_out_of_sight_may_come_back_as_another_one() -> None:
    identities = Identities(min_points=5, out_of_sight=3)
    nothing = np.zeros(10, np.int64)
    for found, seen in (
        (5, True),
        (5, True),
        (0, False),
        (5, True),
        (0, False),
        (0, False),
        (0, False),
        (6, True),
        (6, True),
        (6, True),
    ):
        identities.update("a", nothing + found, nothing + seen)
    assert identities.kept() == (2, 2)
    assert identities.switches == 1


def test_shapes_that_differ_are_refused() -> None:
    four, five = np.zeros(4, int), np.zeros(5, int)
    with pytest.raises(InputError, match=r"expected one shape"):
        PanopticQuality(4).update(four, four, five, four)
