# SPDX-License-Identifier: Apache-2.0
"""What the estimate of a camera's calibration says: consistent, off, or nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.calibration.alignment import Alignment, View, pose_error
from pcseg_core.calibration.estimate import GROUPS, Estimate, estimate, restricted, search, spread
from pcseg_core.config import Section

Float64 = npt.NDArray[np.float64]
UNITS = {"rotation": "deg", "translation": "m", "time": "s"}
Word = Literal["consistent", "off", "cannot tell"]

LEAST_VIEWS = 5
_LEAST_EDGES = 500  # of all views together
LEAST_SCORE = 0.18  # images of other places reach 0.07
_PARTS = 3  # of the drive that are searched by themselves
_MAX_SPREAD_DEG = 0.8  # between the rotations that parts of the drive find
# Errors up to these are consistent: exact calibrations seem off by up to 0.15 deg and 9 cm, from
# static edges alone by up to 3 cm.
_TOLERANCE = {"rotation": 0.25, "translation": 0.12, "time": 0.015}
_STATIC_TOLERANCE = _TOLERANCE | {"translation": 0.04}
# A place of the change whose interval is wider is not corrected.
_WIDEST = {"rotation": 0.4, "translation": 0.1, "time": 0.02}


class Error(Section):
    """One part of the error of a calibration.

    The error is the correction: the rotation vector and translation, in the camera frame, that
    `T_cam_lidar` lacks, or the time that the stamps of the images lack.
    """

    verdict: Word
    reason: str = Field(default="", description="why the drive cannot tell, or which of x, y, z")
    size: float = Field(description="length of the correction [deg, m or s]")
    interval: float | None = Field(description="half width of its 95 % interval")
    value: tuple[float, ...] = Field(description="the correction; 0 where it is not known")
    intervals: tuple[float, ...] = Field(description="half widths of the intervals of its values")


class CameraVerdict(Section):
    """The calibration of one camera."""

    camera: str
    verdict: Word
    reason: str = Field(default="", description="why the drive cannot tell")
    images: int = Field(description="images with a sweep near them that were compared")
    edges: int = Field(default=0, description="depth edges in or around these images")
    rotation: Error | None = Field(default=None, description="in degrees")
    translation: Error | None = Field(default=None, description="in meters")
    time: Error | None = Field(default=None, description="in seconds")
    score: float | None = Field(
        default=None, description="mean of the image edges at the depth edges, in deviations"
    )
    score_corrected: float | None = Field(default=None, description="the same after the correction")
    correction: tuple[float, ...] | None = Field(
        default=None,
        description="what a corrected calibration applies: rotation vector [deg] and translation "
        "[m] after T_cam_lidar, and seconds added to the stamps; null unless the verdict is off",
    )

    def error(self, group: str) -> Error | None:
        """The error of "rotation", "translation" or "time"; None if nothing was estimated."""
        errors = {"rotation": self.rotation, "translation": self.translation, "time": self.time}
        return errors[group]

    @property
    def change(self) -> Float64:
        """The correction (7,), 0 where there is none; see `Alignment`."""
        return np.zeros(7) if self.correction is None else np.array(self.correction)

    def corrected(self, T_cam_lidar: Float64) -> Float64:
        """The extrinsic (4, 4) after the correction."""
        result: Float64 = pose_error(self.change) @ T_cam_lidar
        return result


def judge(camera: str, views: Sequence[View], whole: bool = True) -> CameraVerdict:
    """Search the error of a camera's calibration.

    Args:
        camera: its name.
        views: its images, in the order of the drive.
        whole: also compare parts of the drive. False is faster.
    """
    edges = sum(len(view.edges) for view in views)
    nothing = CameraVerdict(camera=camera, verdict="cannot tell", images=len(views), edges=edges)
    if len(views) < LEAST_VIEWS:
        return _because(nothing, f"{len(views)} images with a sweep, expected {LEAST_VIEWS}")
    if edges < _LEAST_EDGES:
        return _because(nothing, f"{edges} depth edges in all images, expected {_LEAST_EDGES}")
    alignment = Alignment(views)
    change = search(alignment)
    best = estimate(alignment, change)
    nothing = nothing.model_copy(update=_scores(best))
    if best.after < LEAST_SCORE:
        return _because(nothing, "edges of images and depth do not meet under any calibration")
    if whole and (problem := _disagreement(views, change)):
        return _because(nothing, problem)
    alignment, best = _refined(alignment, change, best)
    nothing = nothing.model_copy(update=_scores(best))
    free = [k for k in range(7) if _known(best, k)]
    found = restricted(alignment, best, free)
    return _judged(nothing, found, free, alignment)


def _scores(found: Estimate) -> dict[str, float]:
    return {"score": found.before, "score_corrected": found.after}


def _because(verdict: CameraVerdict, reason: str) -> CameraVerdict:
    return verdict.model_copy(update={"reason": reason})


def _disagreement(views: Sequence[View], change: Float64) -> str:
    """Why parts of the drive contradict each other; empty if they do not."""
    cuts = np.linspace(0, len(views), _PARTS + 1).round().astype(int)
    parts = [views[a:b] for a, b in itertools.pairwise(cuts)]
    usable = [Alignment(part) for part in parts if any(len(view.edges) for view in part)]
    widest = float(np.max(spread(usable, change)[:3]))
    if widest <= _MAX_SPREAD_DEG:
        return ""
    return f"parts of the drive differ by {widest:.1f} degrees"


def _refined(alignment: Alignment, change: Float64, best: Estimate) -> tuple[Alignment, Estimate]:
    """The estimate of the static edges, if they suffice for it, with their alignment.

    An image and a sweep are not of the same moment: an object that moves is elsewhere in the image.
    All edges tell the rotation well enough, but not the translation.
    """
    static = Alignment([view.of_static() for view in alignment.views])
    if sum(len(view.edges) for view in static.views) < _LEAST_EDGES:
        return alignment, best
    found = estimate(static, search(static, change, levels=(2,)))
    apart = np.abs(found.change - best.change)[:3]
    agrees = bool(np.all(apart <= (found.intervals + best.intervals)[:3]))
    if agrees and float(found.intervals[:3].max()) <= _WIDEST["rotation"]:
        return static, found
    return alignment, best


def _known(found: Estimate, k: int) -> bool:
    """Whether a place of the change is known well enough to correct it."""
    interval, value = float(found.intervals[k]), abs(float(found.change[k]))
    return interval <= max(_WIDEST[_group(k)], value / 2)


def _group(k: int) -> str:
    return next(name for name, places in GROUPS.items() if k in range(7)[places])


def _judged(
    verdict: CameraVerdict, found: Estimate, free: Sequence[int], alignment: Alignment
) -> CameraVerdict:
    tolerances = _STATIC_TOLERANCE if alignment.static else _TOLERANCE
    errors = {group: _error(group, found, free, tolerances[group]) for group in GROUPS}
    if errors["rotation"].verdict == "cannot tell":  # it would be taken for the others
        unknown = {"verdict": "cannot tell", "reason": "the rotation is not known"}
        told = [group for group, error in errors.items() if error.verdict != "cannot tell"]
        known = {group: errors[group].model_copy(update=unknown) for group in told}
        errors |= known
    off = [group for group, error in errors.items() if error.verdict == "off"]
    told = [group for group, error in errors.items() if error.verdict != "cannot tell"]
    word: Word = "off" if off else "consistent" if "rotation" in told else "cannot tell"
    update: dict[str, object] = {**errors, "verdict": word}
    if word == "cannot tell":
        update["reason"] = errors["rotation"].reason
    if off:
        kept = [k for k in free if _group(k) in off]
        fixed = found if kept == list(free) else restricted(alignment, found, kept)
        update |= {"correction": tuple(fixed.change.tolist()), "score_corrected": fixed.after}
    return verdict.model_copy(update=update)


def _error(group: str, found: Estimate, free: Sequence[int], tolerance: float) -> Error:
    places = range(7)[GROUPS[group]]
    known = [k for k in places if k in free]
    intervals = found.intervals[list(places)]
    value, widest = found.change[list(places)], float(np.max(intervals))
    size = float(np.linalg.norm(value))
    interval = None
    if known:
        block = found.covariance[np.ix_(known, known)]
        interval = float(2 * np.sqrt(np.linalg.eigvalsh(block)[-1]))
    common = {
        "size": size,
        "interval": interval,
        "value": tuple(value.tolist()),
        "intervals": tuple(intervals.tolist()),
    }
    wide = f"the interval of {widest:.2g} {UNITS[group]} is too wide for a correction"
    if interval is None or (group == "rotation" and len(known) < len(places)):
        return Error(verdict="cannot tell", reason=wide, **common)
    off = size > max(interval, tolerance)
    unknown = " and ".join(axis for k, axis in zip(places, "xyz") if k not in known)
    reason = f"{unknown}: {wide}" if unknown else ""
    return Error(verdict="off" if off else "consistent", reason=reason, **common)
