# SPDX-License-Identifier: Apache-2.0
"""How diverse recordings are: streets, places, turns, and what cameras see of the ground.

A place is new ground: it begins after at least 60 m of driving since the last place, and at least
25 m from where the scene was before, the last 30 m aside. Driving a street again adds none. A
street is a row of at most ten places without a turn of more than 45 degrees. Scenes have frames of
their own, so what two of them share counts twice. A scene without poses counts as one street.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.data import Recording, evenly_spaced
from pcseg_core.data.ground_seen import ever_seen, near_ground, seen_from
from pcseg_core.data.sample import Sample
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory

Float64 = npt.NDArray[np.float64]

PLACE_STEP_M = 60.0  # driven between two places, at least
PLACE_RADIUS_M = 25.0  # around earlier ground no place begins
_JUST_DRIVEN_M = 30.0  # is no earlier ground
_EARLIER_STEP = 5  # steps of a path between the compared points
STREET_PLACES = 10
STREET_TURN_RAD = np.radians(45.0)
TURN_LENGTH_M = 30.0
STANDING_MPS = 0.2
STREETS_TO_CARRY = 17  # scenes whose segmenter was of use in places that it had not seen
STREETS_OF_MANY = 43  # scenes with which it was clearly better there
_STEP_M = 1.0  # of paths: shorter steps are noise of the poses
_SAMPLES = 8  # sweeps whose ground is looked at


class Diversity(Section):
    """How diverse recordings are, and what a segmenter trained on them can be expected to do."""

    recordings: int
    sweeps: int
    scenes: int
    posed: int = Field(description="scenes with poses; what follows is of these")
    streets: int = 0
    places: int = 0
    turns: int = Field(0, description="changes of heading above 45 degrees within 30 m")
    distance_m: float | None = Field(None, description="length of the path")
    standing: float | None = Field(None, description="share of the time below 0.2 m/s, 0..1")
    ground_in_sweep: float | None = Field(
        None, description="share of the ground within 8 m that the images of the sweep show, 0..1"
    )
    ground_in_drive: float | None = Field(
        None, description="share of it that cameras see from anywhere on the path, 0..1"
    )
    classes: dict[str, float] = Field(
        default_factory=dict, description="share of the points that cameras see, by class"
    )
    expectation: str = ""

    @property
    def known_streets(self) -> int:
        """Streets, and scenes without poses as one each."""
        return self.streets + self.scenes - self.posed

    def summary(self) -> str:
        """Streets, distance, places and what to expect, in one line."""
        parts = []
        if self.posed:
            driven = f"{self.distance_m or 0:.0f} m"
            if (self.distance_m or 0) >= 1000:
                driven = f"{(self.distance_m or 0) / 1000:.1f} km"
            parts += [_count(self.streets, "street"), driven, _count(self.places, "place")]
        if self.scenes > self.posed:
            unposed = _count(self.scenes - self.posed, "scene")
            parts.append(f"{unposed} without poses, whose places are unknown")
        return f"{', '.join(parts)}: {self.expectation}"


def diversity(
    recordings: Iterable[Recording], samples: Sequence[Sample] | None = None
) -> Diversity:
    """How diverse recordings are together; loads a few sweeps and no image.

    Args:
        recordings: one or more.
        samples: sweeps of a single recording, if they are loaded already: the first and the last of
            each scene, and some between.
    """
    opened = list(recordings)
    scenes, own, ever = 0, _Share(), _Share()
    drives: list[Drive] = []
    for recording in opened:
        scenes += len(set(recording.scenes))
        for members in _by_scene(_some(recording) if samples is None else samples):
            drive = Drive.of(members)
            drives += [drive] if drive is not None else []
            for sample in members:
                _look_at_ground(sample, drive, own, ever)
    found = Diversity(
        recordings=len(opened),
        sweeps=sum(map(len, opened)),
        scenes=scenes,
        posed=len(drives),
        streets=sum(drive.streets for drive in drives),
        places=sum(len(drive.places) for drive in drives),
        turns=sum(drive.turns for drive in drives),
        distance_m=sum(drive.distance_m for drive in drives) if drives else None,
        standing=_standing(drives),
        ground_in_sweep=own.value,
        ground_in_drive=ever.value,
    )
    return found.model_copy(update={"expectation": expectation(found.known_streets)})


def expectation(streets: int) -> str:
    """What a segmenter can be expected to do that is trained on so many streets."""
    if streets <= 1:
        return "expect a segmenter for this street; record more places"
    if streets < STREETS_TO_CARRY:
        return (
            "expect a segmenter for these streets and such that look like them; about "
            f"{STREETS_TO_CARRY} in different places carry to others"
        )
    if streets < STREETS_OF_MANY:
        return "expect a segmenter that carries to other streets of this kind; more places help"
    return "expect a segmenter that carries to other streets, to those of other towns with errors"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass
class _Share:
    """Mean of shares that are known."""

    values: list[float] = field(default_factory=list)

    @property
    def value(self) -> float | None:
        return float(np.mean(self.values)) if self.values else None


@dataclass(frozen=True)
class Drive:
    """The path of one scene.

    Attributes:
        stamps_ns: (M,) of the poses.
        poses: (M, 4, 4) T_world_lidar.
        path: (K,) indices of poses that are about 1 m apart, with the first and the last.
        driven_m: (K,) length of the path up to there.
    """

    stamps_ns: npt.NDArray[np.int64]
    poses: Float64
    path: npt.NDArray[np.intp]
    driven_m: Float64

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Drive | None:
        """The path between the first and the last of the sweeps of a scene; None without poses."""
        known = [s.trajectory for s in samples if s.trajectory is not None]
        stamps = [sample.stamp_ns for sample in samples]
        return cls.between(known[0], min(stamps), max(stamps)) if known else None

    @classmethod
    def between(cls, trajectory: Trajectory, first_ns: int, last_ns: int) -> Drive | None:
        """The path of a trajectory from one stamp to another; None if it has no pose there."""
        inside = (trajectory.stamps_ns > first_ns) & (trajectory.stamps_ns < last_ns)
        ends = [t for t in dict.fromkeys((first_ns, last_ns)) if trajectory.covers(t)]
        stamps = np.concatenate([trajectory.stamps_ns[inside], np.array(ends, np.int64)])
        if not len(stamps):
            return None
        poses = np.concatenate([trajectory.poses[inside], *(trajectory.at(t)[None] for t in ends)])
        order = np.argsort(stamps)
        stamps, poses = stamps[order], poses[order]
        path = _thinned(poses[:, :3, 3])
        steps = np.linalg.norm(np.diff(poses[path, :3, 3], axis=0), axis=1)
        return cls(stamps, poses, path, np.concatenate([[0.0], np.cumsum(steps)]))

    @property
    def distance_m(self) -> float:
        """Length of the path."""
        return float(self.driven_m[-1])

    @property
    def heading(self) -> Float64:
        """(K,) yaw along the path, without jumps [rad]."""
        rotation = self.poses[self.path, :2, 0]
        found: Float64 = np.unwrap(np.arctan2(rotation[:, 1], rotation[:, 0]))
        return found

    @property
    def turns(self) -> int:
        """Runs of the path where the heading changes by more than 45 degrees within 30 m."""
        before = np.searchsorted(self.driven_m, self.driven_m - TURN_LENGTH_M)
        turning = np.abs(self.heading - self.heading[before]) > STREET_TURN_RAD
        return int(turning[0]) + int((turning[1:] & ~turning[:-1]).sum())

    @property
    def places(self) -> list[int]:
        """Indices into `path` where a place begins, see the module."""
        found = [0]
        at = self.poses[self.path, :3, 3]
        before = np.searchsorted(self.driven_m, self.driven_m - _JUST_DRIVEN_M, side="right")
        for k in range(1, len(self.path)):
            if self.driven_m[k] - self.driven_m[found[-1]] >= PLACE_STEP_M:
                away = np.linalg.norm(at[: before[k] : _EARLIER_STEP] - at[k], axis=1)
                found += [k] if away.min() >= PLACE_RADIUS_M else []
        return found

    @property
    def streets(self) -> int:
        """Rows of places, see the module."""
        rows: list[list[int]] = []
        for k in self.places:
            if rows and self._continues(rows[-1], k):
                rows[-1].append(k)
            else:
                rows.append([k])
        return len(rows)

    def _continues(self, street: list[int], place: int) -> bool:
        """Whether a place lies on the street of earlier ones."""
        turned = _wrapped(self.heading[place] - self.heading[street[0]])
        driven = self.driven_m[place] - self.driven_m[street[-1]]
        straight = abs(turned) <= STREET_TURN_RAD
        return len(street) < STREET_PLACES and straight and bool(driven <= 2 * PLACE_STEP_M)

    def moving(self) -> npt.NDArray[np.bool_]:
        """(S,) whether the body moves, for each whole second, or for all of a shorter time."""
        time_s = (self.stamps_ns - self.stamps_ns[0]) * 1e-9
        seconds = max(1, int(time_s[-1])) if time_s[-1] else 0
        ticks = np.linspace(0.0, time_s[-1], seconds + 1)
        at = [np.interp(ticks, time_s, axis) for axis in self.poses[:, :3, 3].T]
        moved: Float64 = np.linalg.norm(np.diff(at, axis=1), axis=0)
        found: npt.NDArray[np.bool_] = moved >= STANDING_MPS * np.diff(ticks)
        return found


def _thinned(places: Float64) -> npt.NDArray[np.intp]:
    """Indices of positions (M, 3) that are at least 1 m apart, with the first and the last."""
    kept = [0]
    for k in range(1, len(places)):
        if np.linalg.norm(places[k] - places[kept[-1]]) >= _STEP_M:
            kept.append(k)
    kept += [len(places) - 1] if kept[-1] != len(places) - 1 else []
    return np.array(kept, np.intp)


def _wrapped(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _standing(drives: Sequence[Drive]) -> float | None:
    moving = np.concatenate([np.empty(0, bool), *(drive.moving() for drive in drives)])
    return 1 - float(moving.mean()) if len(moving) else None


def _some(recording: Recording) -> list[Sample]:
    """The ends of scenes with poses, and some sweeps between; unreadable ones are left out."""
    chosen = set(evenly_spaced(len(recording), _SAMPLES))
    if recording.pose_source != "none":
        names = list(recording.scenes)
        first = {name: k for k, name in reversed(list(enumerate(names)))}
        last = {name: k for k, name in enumerate(names)}
        chosen |= {*first.values(), *last.values()}
    found = []
    for index in sorted(chosen):
        try:
            found.append(recording[index])
        except InputError:
            continue  # the account tells of it
    return found


def _by_scene(samples: Iterable[Sample]) -> list[list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.scene, []).append(sample)
    return list(found.values())


def _look_at_ground(sample: Sample, drive: Drive | None, own: _Share, ever: _Share) -> None:
    """Add the shares of the ground near a sweep that its images, and cameras on the path, see."""
    try:
        ground = near_ground(sample)
        if not len(ground) or not sample.cameras:
            return
        own.values.append(float(seen_from(ground, sample.frames_at_sweep()).mean()))
        if drive is not None and sample.T_world_lidar is not None:
            seen = ever_seen(ground, sample, drive.poses[drive.path])
            ever.values.append(float(seen.mean()))
    except InputError:
        return  # a stamp without a pose
