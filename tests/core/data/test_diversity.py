# SPDX-License-Identifier: Apache-2.0
"""Diversity of recordings: paths and ground whose streets, places and views are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from recordings import CAMERA, T_CAM_LIDAR, picture

from pcseg_core.cloud import PointCloud
from pcseg_core.data.bag_findings import about_classes, about_diversity
from pcseg_core.data.diversity import Diversity, diversity, expectation
from pcseg_core.data.ground_seen import near_ground
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, from_euler

SECOND = 1_000_000_000
GROUND = np.array([[-3.0, 0.0, -1.7]])  # behind the vehicle


class Driven:
    """A recording of one scene: a sweep per pose, one a second."""

    name, label_space = "driven", None

    def __init__(
        self, poses: Sequence[np.ndarray], xyz: np.ndarray = GROUND, known: bool = True
    ) -> None:
        self.stamps = [k * SECOND for k in range(len(poses))]
        self.trajectory = Trajectory(self.stamps, np.stack(poses)) if known else None
        self.pose_source = "exact" if known else "none"
        self.scenes = ["one"] * len(poses)
        self.skipped: Counter[str] = Counter()
        self.xyz, self.loaded = xyz, 0

    def __len__(self) -> int:
        return len(self.stamps)

    def __getitem__(self, index: int) -> Sample:
        self.loaded += 1
        stamp = self.stamps[index]
        cloud = PointCloud(self.xyz.astype(np.float32), stamp_ns=stamp)
        frame = CameraFrame("front", stamp, CAMERA, T_CAM_LIDAR, picture)
        return Sample(cloud, [frame], self.trajectory, scene="one")


def along(*legs: tuple[float, float]) -> list[np.ndarray]:
    """Poses every meter: legs of a length and a heading [degrees]; turns are on the spot."""
    poses, place = [], np.zeros(3)
    for length, degrees in legs:
        yaw = np.radians(degrees)
        for _ in range(round(length)):
            poses.append(from_euler(0.0, 0.0, yaw, tuple(place)))
            place = place + np.array([np.cos(yaw), np.sin(yaw), 0.0])
    return [*poses, from_euler(0.0, 0.0, np.radians(legs[-1][1]), tuple(place))]


@pytest.mark.parametrize(
    ("legs", "streets", "places", "turns"),
    [
        ([(420, 0)], 1, 8, 0),  # at 0, 60, ... 420 m
        ([(290, 0), (290, 180)], 1, 5, 1),  # the way back is known
        ([(120, 0), (120, 90), (120, 180), (120, 270)], 4, 8, 3),  # around a block
        ([(660, 0)], 2, 12, 0),  # a street has ten places
        ([(90, 0), (20, 40), (90, 80)], 2, 4, 1),  # a bend of 80 degrees
        ([(100, 0), (100, 40)], 1, 4, 0),
        ([(10, 0)], 1, 1, 0),
    ],
)
def test_streets_places_and_turns_by_hand(
    legs: list[tuple[float, float]], streets: int, places: int, turns: int
) -> None:
    found = diversity([Driven(along(*legs))])
    assert (found.streets, found.places, found.turns) == (streets, places, turns)
    assert found.distance_m == pytest.approx(sum(length for length, _ in legs))
    assert found.standing == 0.0


def test_a_street_in_one_line() -> None:
    summary = diversity([Driven(along((420, 0)))]).summary()
    assert summary == (
        "1 street, 420 m, 8 places: expect a segmenter for this street; record more places"
    )
    both = diversity([Driven(along((1200, 0))), Driven(along((50, 0)), known=False)])
    assert both.summary().startswith(
        "3 streets, 1.2 km, 21 places, 1 scene without poses, whose places are unknown: expect"
    )
    assert (both.recordings, both.scenes, both.posed, both.known_streets) == (2, 2, 1, 4)


def test_few_sweeps_are_loaded_and_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: CameraFrame) -> None:
        raise AssertionError("an image was loaded")

    monkeypatch.setattr(CameraFrame, "image", property(refuse))
    recording = Driven(along((420, 0)))
    diversity([recording])
    assert recording.loaded == 8


def test_noise_of_the_poses_of_a_standing_vehicle_is_no_distance() -> None:
    rng = np.random.default_rng(0)
    still = [from_euler(0.0, 0.0, 0.0, (*rng.normal(0, 0.02, 2), 0.0)) for _ in range(200)]
    found = diversity([Driven(still)])
    assert found.distance_m is not None and found.distance_m < 0.3
    assert (found.places, found.turns, found.standing) == (1, 0, 1.0)
    half = diversity([Driven([*along((99, 0)), *[from_euler(0, 0, 0, (99, 0, 0))] * 99])])
    assert half.standing == pytest.approx(99 / 198)
    (note,) = (f for f in about_diversity(found) if "stands still" in f.what)
    assert note.what == "the vehicle stands still for 100% of the time"


def test_ground_that_was_ahead_before_is_seen_from_the_path() -> None:
    """Behind the vehicle nothing is seen, unless it came from there."""
    found = diversity([Driven(along((20, 0)))])  # 8 sweeps: at 0, 3, 6, 9, 11, 14, 17 and 20 m
    assert found.ground_in_sweep == 0.0
    # The camera sees the ground from 5.9 m ahead: 2.9 m before the start, as 9 m on the way.
    assert found.ground_in_drive == pytest.approx(5 / 8)
    ahead = np.array([[6.0, 0.0, -1.7], [4.0, 4.5, -1.7]])  # the second is beside the image
    found = diversity([Driven(along((20, 0)), ahead)])
    assert found.ground_in_sweep == 0.5
    unposed = diversity([Driven(along((20, 0)), ahead, known=False)])
    assert unposed.ground_in_sweep == 0.5 and unposed.ground_in_drive is None
    assert unposed.distance_m is None and unposed.standing is None


def test_only_ground_near_the_vehicle_counts() -> None:
    xyz = [[5, 0, -1.7], [5, 1, -1.5], [6, 0, -1.9]]  # the ground
    other = [[7.9, 3, -1.7], [5, 0, -1.0], [1, 0, -0.5], [np.nan, 0, 0], [0, 0, 0]]
    assert np.allclose(near_ground(sample(np.array(xyz + other))), xyz)
    assert near_ground(sample(np.array([[5.0, 0, 2]]))).shape == (0, 3)
    gap = np.array([[3.0, 0, -1.0], [3.0, 0, -3.0]])  # nothing near the median
    assert near_ground(sample(gap)).shape == (0, 3)
    tilted = from_euler(0.0, 0.2, 0.0)  # of a mount whose poses tell
    turned = np.array(xyz) @ tilted[:3, :3]
    assert np.allclose(near_ground(sample(turned, Trajectory([0], tilted[None]))), turned)


def sample(xyz: np.ndarray, trajectory: Trajectory | None = None) -> Sample:
    return Sample(PointCloud(xyz.astype(np.float32), stamp_ns=0), trajectory=trajectory)


@pytest.mark.parametrize(
    ("streets", "words", "level"),
    [
        (1, "a segmenter for this street", "warning"),
        (16, "these streets and such that look like them", "warning"),
        (17, "carries to other streets of this kind", "note"),
        (43, "to those of other towns with errors", "note"),
    ],
)
def test_what_to_expect_by_the_number_of_streets(streets: int, words: str, level: str) -> None:
    assert words in expectation(streets)
    found = Diversity(
        recordings=1,
        sweeps=1,
        scenes=1,
        posed=1,
        streets=streets,
        places=streets,
        ground_in_drive=0.3,
        expectation=expectation(streets),
    )
    first, ground = about_diversity(found)
    assert first.level == level and first.do == expectation(streets)
    assert ground.what == "cameras see 30% of the ground within 8 m"


def test_classes_that_cameras_hardly_show_are_named() -> None:
    assert about_classes({"road": 0.9, "person": 0.1}) == []
    (finding,) = about_classes({"road": 0.9995, "person": 0.0005, "pole": 0.0})
    assert "person (0.05%), pole (0.00%)" in finding.what


def test_sweeps_that_cannot_be_read_are_left_out() -> None:
    recording = Driven(along((420, 0)))
    load: Callable[[int], Sample] = recording.__getitem__

    class Damaged(Driven):
        def __getitem__(self, index: int) -> Sample:
            if index == 0:
                raise InputError("cut off")
            return load(index)

    found = diversity([Damaged(along((420, 0)))])
    assert found.distance_m == pytest.approx(360) and found.places == 7  # from the second of 8
