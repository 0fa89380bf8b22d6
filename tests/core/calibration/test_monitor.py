# SPDX-License-Identifier: Apache-2.0
"""The calibration monitor: learns the usual rotation, reports that it changed, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pcseg_core.calibration.alignment import View
from pcseg_core.calibration.depth_edges import depth_edges
from pcseg_core.calibration.monitor import CalibrationMonitor, monitor_view
from pcseg_core.camera import CameraModel
from pcseg_core.data.sample import CameraFrame
from tests.panels import CAMERA, FORWARD, Place

IMAGES = 3
LEARNED = IMAGES + 2 * IMAGES  # images until the usual rotation is known
GIVEN_DEG = (0.6, -0.4, 0.3)  # error of the calibration from the start


def turn(*degrees: float) -> np.ndarray:
    return Rotation.from_rotvec(np.radians(degrees)).as_matrix()


def view(seed: int, degrees: Iterable[float] = (0, 0, 0), panels: int = 9) -> View:
    """A place seen by a camera that was turned by this after the calibration."""
    place = Place(seed, panels)
    given = np.eye(4)
    given[:3, :3] = turn(*GIVEN_DEG).T
    image = place.image(turn(*degrees))
    frame = CameraFrame("front", 0, CAMERA, given @ FORWARD, image)
    return monitor_view(frame, depth_edges(place.cloud()))


@pytest.fixture(scope="module")
def clean() -> list[View]:
    return [view(seed) for seed in range(LEARNED + 3)]


@pytest.fixture(scope="module")
def learned(clean: list[View]) -> CalibrationMonitor:
    made = CalibrationMonitor(IMAGES, 0.8)
    for known in clean[:LEARNED]:
        made.add(known)
    return made


@pytest.fixture
def monitor(learned: CalibrationMonitor) -> CalibrationMonitor:
    """Has learned, from a calibration that is a little off."""
    return copy.deepcopy(learned)


def words(monitor: CalibrationMonitor, views: Iterable[View]) -> list[str]:
    return [monitor.add(v).verdict for v in views]


def test_the_usual_rotation_is_learned_and_held(clean: list[View]) -> None:
    monitor = CalibrationMonitor(IMAGES, 0.8)
    found = words(monitor, clean)
    assert found[: IMAGES - 1] == ["cannot tell"] * (IMAGES - 1)
    assert found[IMAGES - 1 : LEARNED] == ["learning"] * (LEARNED - IMAGES + 1)
    assert set(found[LEARNED:]) == {"as learned"}
    reading = monitor.reading
    assert reading.rotation_deg == pytest.approx(GIVEN_DEG, abs=0.3)
    assert reading.turned_deg is not None and reading.turned_deg < 0.3
    assert reading.limit_deg == 0.8 and reading.usual_scores is not None
    assert reading.score == pytest.approx(reading.usual_scores[1], rel=0.3)


@pytest.mark.parametrize("axis", range(3))
def test_a_turned_camera_is_reported_until_it_is_back(
    monitor: CalibrationMonitor, clean: list[View], axis: int
) -> None:
    degrees = 2.0 * np.eye(3)[axis]
    found = words(monitor, [view(50 + seed, degrees) for seed in range(IMAGES + 3)])
    assert "turned" not in found[:2] and found[-1] == "turned"  # three in a row
    assert monitor.reading.turned_deg == pytest.approx(2.0, abs=0.5) and monitor.reading.warns
    found = words(monitor, clean[: IMAGES + 2])
    assert found[:2] == ["turned"] * 2 and found[-1] == "as learned" and not monitor.reading.warns


def test_a_warning_needs_three_estimates_in_a_row(monitor: CalibrationMonitor) -> None:
    short = [view(50, (0, 3, 0)), view(51, (0, 3, 0)), view(52), view(53), view(54)]
    assert set(words(monitor, short)) == {"as learned"}


def test_images_of_other_places_do_not_match(monitor: CalibrationMonitor) -> None:
    for seed in range(IMAGES + 2):
        frame = CameraFrame("front", 0, CAMERA, FORWARD, Place(80 + seed).image())
        monitor.add(monitor_view(frame, depth_edges(Place(60 + seed).cloud())))
    assert monitor.reading.verdict == "no match" and "do not meet" in monitor.reading.reason


def test_a_platform_that_stands_still_tells_nothing(
    monitor: CalibrationMonitor, clean: list[View]
) -> None:
    pose = np.eye(4)
    assert monitor.add(clean[0], pose).verdict == "as learned"
    pose = pose.copy()
    pose[0, 3] = 0.1
    reading = monitor.add(clean[1], pose)
    assert reading.verdict == "cannot tell" and "stands still" in reading.reason
    pose[:3, :3] = turn(0, 0, 10)  # turning on the spot shows other edges
    assert monitor.add(clean[1], pose).verdict == "as learned"


def test_few_edges_tell_nothing(monitor: CalibrationMonitor) -> None:
    bare = view(90, panels=0)
    for _ in range(IMAGES):
        reading = monitor.add(bare)
    assert reading.verdict == "cannot tell" and "depth edges" in reading.reason


def test_another_camera_is_learned_anew(monitor: CalibrationMonitor) -> None:
    wider = CameraModel.pinhole(100.0, 100.0, 99.5, 59.5, 200, 120)
    place = Place(0)
    frame = CameraFrame("front", 0, wider, FORWARD, place.image())
    reading = monitor.add(monitor_view(frame, depth_edges(place.cloud())))
    assert reading.images == 1 and reading.limit_deg is None
