# SPDX-License-Identifier: Apache-2.0
"""Clouds for other programs: layouts of labeled sweeps, and the points of named clouds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import byref, c_int32
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core import cloud_records
from pcseg_core.cloud import EncodedCloud, PointCloud2Like, append_fields, encode_cloud, structured
from pcseg_core.cloud_layout import DATATYPES, Field, positions
from pcseg_core.labels import IGNORE, LabelSpace, to_wire
from pcseg_core.native.library import check, library, optional_library, thread_count
from pcseg_core.native.structures import AutowareArgs, ChooseArgs, Points
from pcseg_core.online import row_reductions
from pcseg_core.online.class_maps import require_classes
from pcseg_core.online.instances import point_values

if TYPE_CHECKING:
    from pcseg_core.online.pipeline import LabeledSweep

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Profile: TypeAlias = Literal["append", "minimal", "autoware"]

_AUTOWARE_OFFSETS = {"x": 0, "y": 4, "z": 8, "class_id": 12, "probability": 16, "entropy": 20}
_AUTOWARE_BYTES = 24  # of a point

THE_REST = "*"
"""In the classes of a named cloud: those that no earlier cloud has."""

UNLABELED = "unlabeled"
"""In the classes of a named cloud: returns without a class."""


def entropy(probabilities: Float32 | None, count: int) -> Float32:
    """Shannon entropy of the class probabilities, divided by log C, as Autoware defines it.

    Args:
        probabilities: (N, C), rows of 0 for points without a label; None if unknown.
        count: number N of points.

    Returns:
        (N,) float32: 0 for a sure class, 1 for equal probabilities, NaN where unknown.
    """
    if probabilities is None:
        return np.full(count, np.nan, np.float32)
    return row_reductions.entropy(probabilities)


@dataclass(frozen=True)
class ExtraFields:
    """Fields that `append` and `minimal` add on request.

    Attributes:
        entropy: add `entropy`; see the function.
        probabilities: classes whose probability is added, as `p_` and the name of the class.
        more: further fields by name, (N,).
    """

    entropy: bool = False
    probabilities: Sequence[str] = ()
    more: Mapping[str, Array] | None = None

    def of(self, labeled: LabeledSweep) -> dict[str, Array]:
        """The fields of a sweep; probabilities that are unknown are NaN."""
        likely, count = labeled.probabilities, len(labeled.labels)
        fields: dict[str, Array] = dict(self.more or {})
        if self.entropy:
            fields["entropy"] = entropy(likely, count)
        for name in self.probabilities:
            column = np.full(count, np.nan, np.float32)
            if likely is not None:
                column = likely[:, labeled.label_space.index(name)]
            fields[f"p_{name}"] = column
        return fields


def append_labels(msg: PointCloud2Like, labeled: LabeledSweep, extra: ExtraFields) -> EncodedCloud:
    """The sweep as it came, with `label` (uint32), `confidence` (float32) and the extra fields."""
    return append_fields(msg, {**_labels(labeled), **extra.of(labeled)})


def minimal_cloud(msg: PointCloud2Like, labeled: LabeledSweep, extra: ExtraFields) -> EncodedCloud:
    """`x`, `y`, `z` (float32), `label`, `confidence` (20 bytes), and the extra fields."""
    fields = {**_positions(structured(msg)), **_labels(labeled), **extra.of(labeled)}
    return encode_cloud(fields, int(msg.height), int(msg.width))


def autoware_cloud(msg: PointCloud2Like, labeled: LabeledSweep, ids: Array) -> EncodedCloud:
    """Autoware's PointXYZCPE: exactly six fields, 24 bytes, without padding between points.

    `x`, `y`, `z` float32 at 0, 4, 8; `class_id` uint8 at 12; `probability` float32 at 16;
    `entropy` float32 at 20 (autoware_core#1288).

    Args:
        msg: the sweep; positions and organization are taken from it.
        labeled: its labels, and the probabilities if the entropy is to be known.
        ids: (C + 1,) uint8 of `autoware_ids`.
    """
    points = structured(msg)
    together = positions(points)
    if optional_library() is not None and together is not None:
        return _native_autoware(together, labeled, ids)
    known = labeled.labels != IGNORE
    fields = {
        **_positions(points),
        "class_id": point_values(labeled.labels, ids),
        "probability": np.where(known, labeled.confidence, np.float32(0)),
        "entropy": entropy(labeled.probabilities, len(labeled.labels)),
    }
    return encode_cloud(fields, int(msg.height), int(msg.width))


def _native_autoware(together: Float32, labeled: LabeledSweep, ids: Array) -> EncodedCloud:
    """The same in one pass, from positions (height, width, 3)."""
    height, width = together.shape[:2]
    buffer = cloud_records.zeros(_AUTOWARE_BYTES * height * width)
    labels, likely = np.ascontiguousarray(labeled.labels, np.int32), labeled.probabilities
    confidence = np.ascontiguousarray(labeled.confidence, np.float32)
    points = together.reshape(-1, 3)  # a copy where rows have padding
    likely, step = (None, 0) if likely is None else row_reductions.plain_rows(likely)
    args = AutowareArgs(
        Points.of(points),
        labels.ctypes.data,
        confidence.ctypes.data,
        None if likely is None else likely.ctypes.data,
        ids.ctypes.data,
        buffer.buffer_info()[0],
        step,
        0 if likely is None else likely.shape[1],
        len(ids) - 1,
    )
    finite = c_int32()
    check(library().pcseg_autoware_points(byref(args), byref(finite), thread_count()))
    row = _AUTOWARE_BYTES * width
    fields = [
        Field(name, offset, DATATYPES["u1" if name == "class_id" else "f4"])
        for name, offset in _AUTOWARE_OFFSETS.items()
    ]
    return EncodedCloud(
        height, width, fields, False, _AUTOWARE_BYTES, row, buffer, bool(finite.value)
    )


class CloudRule(Protocol):
    """Which points a named cloud has.

    Attributes:
        classes: names, `THE_REST` or `UNLABELED`; empty is every class.
        min_confidence: least confidence of each of them, or one for all; empty is 0.
        max_range_m: largest distance from the sensor [m]; 0 is no limit.
    """

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def min_confidence(self) -> Sequence[float]: ...

    @property
    def max_range_m(self) -> float: ...


def check_clouds(clouds: Mapping[str, CloudRule], space: LabelSpace) -> None:
    """Raise InputError if a cloud names a class that the space lacks."""
    for cloud, rule in clouds.items():
        named = [name for name in rule.classes if name not in (THE_REST, UNLABELED)]
        require_classes(named, space, f"clouds.{cloud}.classes")


def choose_points(
    clouds: Mapping[str, CloudRule], name: str, labeled: LabeledSweep
) -> npt.NDArray[np.bool_]:
    """(N,) bool: the points of a named cloud; points that are no returns are in none.

    Args:
        clouds: all rules by name; `THE_REST` depends on their order.
        name: of the cloud.
        labeled: the sweep.
    """
    least = _thresholds(clouds, name, labeled.label_space)
    limit = clouds[name].max_range_m
    squared = min(limit**2, float(np.finfo(np.float32).max)) if limit else np.inf
    library = optional_library()
    if library is None:
        return _numpy_choose(labeled, least, squared)
    chosen = np.empty(len(labeled.labels), np.bool_)
    labels = np.ascontiguousarray(labeled.labels, np.int32)
    confidence = np.ascontiguousarray(labeled.confidence, np.float32)
    args = ChooseArgs(
        Points.of(labeled.cloud.xyz),
        *(values.ctypes.data for values in (labels, confidence, least, chosen)),
        len(labeled.label_space),
        bool(np.isfinite(least[IGNORE])),
        squared,
    )
    check(library.pcseg_choose(byref(args), thread_count()))
    return chosen


def _numpy_choose(
    labeled: LabeledSweep, least: Float32, squared_m2: float
) -> npt.NDArray[np.bool_]:
    chosen: npt.NDArray[np.bool_] = labeled.confidence >= least.take(labeled.labels, mode="wrap")
    if np.isfinite(least[IGNORE]):
        chosen &= labeled.cloud.finite
    if np.isfinite(squared_m2):
        x, y, z = labeled.cloud.xyz.T
        with np.errstate(invalid="ignore", over="ignore"):
            chosen &= x * x + y * y + z * z <= np.float32(squared_m2)
    return chosen


def _thresholds(clouds: Mapping[str, CloudRule], name: str, space: LabelSpace) -> Float32:
    """(C + 1,) least confidence of each class and of no class; infinite for what is left out."""
    rule = clouds[name]
    least = np.full(len(space) + 1, np.inf, np.float32)
    confidences = list(rule.min_confidence) or [0.0]
    if not rule.classes:
        least[:-1] = confidences[0]
    confidences *= 1 if len(confidences) == len(rule.classes) else len(rule.classes)
    entries = dict(zip(rule.classes, confidences))
    earlier = takewhile(lambda other: other != name, clouds)
    taken = {entry for other in earlier for entry in clouds[other].classes}
    rest = entries.get(THE_REST, np.inf)
    for position, title in enumerate(space.names):
        if title in entries:
            least[position] = entries[title]
        elif title not in taken:
            least[position] = min(least[position], rest)
    if UNLABELED in entries:
        least[IGNORE] = 0.0  # they have no confidence
    return least


def _labels(labeled: LabeledSweep) -> dict[str, Array]:
    confidence = np.asarray(labeled.confidence, np.float32)
    return {"label": to_wire(labeled.labels), "confidence": confidence}


def _positions(points: Array) -> dict[str, Array]:
    """Coordinates as measured, float32."""
    return {axis: points[axis].astype(np.float32, copy=False) for axis in "xyz"}
