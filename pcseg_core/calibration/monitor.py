# SPDX-License-Identifier: Apache-2.0
"""Watches the rotation of a camera while the platform drives.

The monitor estimates the rotation from the newest images, as `pcseg calibrate` does from a whole
drive, learns its usual value, and reports when it leaves it: the camera was knocked. It corrects
nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from pcseg_core.calibration.alignment import Alignment, View, camera_poses, frame_view, same_camera
from pcseg_core.calibration.depth_edges import DepthEdges
from pcseg_core.calibration.estimate import Estimate, estimate, search
from pcseg_core.calibration.verdict import LEAST_SCORE
from pcseg_core.data.sample import CameraFrame

Float64 = npt.NDArray[np.float64]
Word = Literal["learning", "as learned", "turned", "no match", "cannot tell"]

_ROTATION = range(3)  # of a change
_LEARNED_WINDOWS = 2  # lengths of the window, after the first, that the usual rotation is of
_IN_A_ROW = 3
_CALMER = 0.6  # share of the limit that ends a warning
_LEAST_EDGES = 60  # per image
_LEAST_SHARE = 0.5  # of the smallest usual score, with the best rotation
_WIDEST_DEG = 1.0  # interval of a rotation that tells something
_MOVED_M, _MOVED_DEG = 0.5, 5.0  # less motion shows the same edges again
_PIXEL_DEG = 0.2  # smaller pixels are reduced: the finest band is as wide
_MAX_EDGES = 400  # per image


@dataclass(frozen=True)
class Reading:
    """What the newest images of a camera say.

    Attributes:
        verdict: "turned" and "no match" are warnings; the others are not.
        reason: why the images cannot tell.
        images: number of images that were compared.
        score: mean of the image edges at the depth edges, in deviations, with the usual
            rotation; None before anything was compared.
        rotation_deg: (3,) estimated rotation vector in the camera frame that `T_cam_lidar` lacks
            [deg]; None if unknown.
        interval_deg: largest half width of its 95 % intervals [deg].
        turned_deg: angle between it and the usual rotation [deg]; None while learning.
        limit_deg: largest such angle that is usual [deg].
        usual_scores: smallest and largest score while learning.
    """

    verdict: Word = "learning"
    reason: str = ""
    images: int = 0
    score: float | None = None
    rotation_deg: Float64 | None = None
    interval_deg: float | None = None
    turned_deg: float | None = None
    limit_deg: float | None = None
    usual_scores: tuple[float, float] | None = None

    @property
    def warns(self) -> bool:
        """The camera does not look where it did."""
        return self.verdict in ("turned", "no match")


@dataclass(frozen=True)
class _Usual:
    """What was learned."""

    rotation: Float64
    limit_deg: float
    scores: tuple[float, float]


def monitor_view(frame: CameraFrame, edges: DepthEdges) -> View:
    """The view of an image for a monitor, without its pixels.

    Args:
        frame: with `T_cam_lidar` from the sweep to the image.
        edges: of the sweep.

    Raises:
        InputError: the image does not decode.
    """
    view = frame_view(frame, edges, camera_poses(frame, None, 0), _PIXEL_DEG, _MAX_EDGES)
    nothing = np.zeros((0, 0, 3), np.uint8)
    empty = CameraFrame(frame.name, frame.stamp_ns, frame.camera, frame.T_cam_lidar, nothing)
    return replace(view, frame=empty)


class CalibrationMonitor:
    """Follows the rotation of one camera.

    The usual rotation is the median of the estimates from the first `3 * images` images. It is
    left when three estimates in a row are farther from it than `limit_deg` and their interval,
    and reached again when three in a row are nearer than 60 % of the limit.

    Args:
        images: number of the newest images that are compared together.
        max_rotation_deg: rotation that is usual [deg]; if estimates scatter more while learning,
            twice their largest distance from the usual rotation.

    Attributes:
        reading: the newest result.
    """

    def __init__(self, images: int, max_rotation_deg: float) -> None:
        self._max_rotation_deg = max_rotation_deg
        self._views: deque[View] = deque(maxlen=images)
        self._pose: Float64 | None = None
        self._learned: list[tuple[Float64, float]] = []
        self._usual: _Usual | None = None
        self._warning: Word | None = None
        self._row = 0  # estimates in a row that contradict the verdict
        self.reading = Reading()

    def add(self, view: View, pose: Float64 | None = None) -> Reading:
        """Compare the next image.

        Args:
            view: see `monitor_view`.
            pose: (4, 4) of the platform in a fixed frame; None takes each image as a new place.
        """
        if self._pose is not None and pose is not None and not _moved(self._pose, pose):
            return self._tell(self._unknown("the platform stands still"))
        self._pose = pose
        if self._views and not same_camera(self._views[0].frame, view.frame):
            self._views.clear()
            self._learned, self._usual, self._warning, self._row = [], None, None, 0
        self._views.append(view)
        return self._tell(self._compared())

    def _compared(self) -> Reading:
        """What the images say by themselves."""
        count, edges = len(self._views), sum(len(view.edges) for view in self._views)
        if count < (self._views.maxlen or 0):
            return self._unknown(f"{count} of {self._views.maxlen} images")
        if edges < _LEAST_EDGES * count:
            return self._unknown(f"{edges} depth edges, expected {_LEAST_EDGES * count}")
        alignment = Alignment(self._views)
        usual = np.zeros(7)
        if self._usual is not None:
            usual[:3] = self._usual.rotation
        change = search(alignment, usual, _ROTATION)
        found = estimate(alignment, change, _ROTATION)
        reading = replace(
            self._unknown(""),
            score=alignment.score(usual, -1),
            rotation_deg=change[:3],
            interval_deg=float(found.intervals[:3].max()),
        )
        least = LEAST_SCORE
        if self._usual is not None:
            least = max(least, _LEAST_SHARE * self._usual.scores[0])
        if alignment.score(change, -1) < least:
            reason = "edges of images and depth do not meet"
            word: Word = "cannot tell" if self._usual is None else "no match"
            return replace(reading, verdict=word, reason=reason, rotation_deg=None)
        if found.intervals[:3].max() > _WIDEST_DEG:
            reason = f"the interval of the rotation is {reading.interval_deg:.1f} degrees"
            return replace(reading, reason=reason)
        return self._judged(reading, change[:3], found)

    def _judged(self, reading: Reading, rotation: Float64, found: Estimate) -> Reading:
        """Compare a known rotation with the usual one, or learn it."""
        if self._usual is None:
            self._learn(rotation, found.before)
            return replace(reading, verdict="learning")
        away = rotation - self._usual.rotation
        turned, limit = float(np.linalg.norm(away)), self._usual.limit_deg
        if self._warning is not None:
            limit *= _CALMER
        significant = away @ np.linalg.solve(found.covariance[:3, :3], away) > 4
        word: Word = "turned" if turned > limit and significant else "as learned"
        return replace(reading, verdict=word, turned_deg=turned)

    def _learn(self, rotation: Float64, score: float) -> None:
        self._learned.append((rotation, score))
        if len(self._learned) <= _LEARNED_WINDOWS * (self._views.maxlen or 0):
            return
        rotations = np.stack([rotation for rotation, _ in self._learned])
        scores = [score for _, score in self._learned]
        usual: Float64 = np.median(rotations, axis=0)
        spread = float(np.linalg.norm(rotations - usual, axis=1).max())
        limit_deg = max(self._max_rotation_deg, 2 * spread)
        self._usual = _Usual(usual, limit_deg, (min(scores), max(scores)))

    def _tell(self, reading: Reading) -> Reading:
        """The reading with the verdict that holds until enough images contradict it."""
        if reading.verdict in ("as learned", "turned", "no match"):
            contradicts = reading.warns != (self._warning is not None)
            self._row = self._row + 1 if contradicts else 0
            if self._row == _IN_A_ROW or (reading.warns and not contradicts):
                self._warning = reading.verdict if reading.warns else None
                self._row = 0
            word: Word = "as learned" if self._warning is None else self._warning
            reading = replace(reading, verdict=word)
        elif self._warning is not None:
            reading = replace(reading, verdict=self._warning)
        self.reading = reading
        return reading

    def _unknown(self, reason: str) -> Reading:
        reading = Reading("cannot tell", reason, len(self._views))
        if self._usual is None:
            return reading
        return replace(reading, limit_deg=self._usual.limit_deg, usual_scores=self._usual.scores)


def _moved(before: Float64, after: Float64) -> bool:
    """Whether the platform sees other edges than before."""
    turn = Rotation.from_matrix(before[:3, :3].T @ after[:3, :3]).magnitude()
    shift = np.linalg.norm(after[:3, 3] - before[:3, 3])
    return bool(shift > _MOVED_M or np.degrees(turn) > _MOVED_DEG)
