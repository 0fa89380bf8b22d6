# SPDX-License-Identifier: Apache-2.0
"""A sweep before and after a corruption."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, LabelSpace

Array: TypeAlias = npt.NDArray[Any]
Rng: TypeAlias = np.random.Generator
Severity = Literal["light", "moderate", "heavy"]

SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True, eq=False)
class LabeledCloud:
    """A sweep with the classes of its points, by which some corruptions choose points.

    Attributes:
        cloud: N points as measured.
        labels: (N,) class ids of `space`, IGNORE for none: ground truth or a prediction; None if
            no corruption that needs classes is applied.
        space: classes of the labels.
    """

    cloud: PointCloud
    labels: Array | None = None
    space: LabelSpace | None = None

    def of_classes(self, names: frozenset[str], what: str) -> Array:
        """(N,) class ids where the class has one of the names, IGNORE elsewhere.

        Raises:
            InputError: there are no labels, or the space has none of the classes.
        """
        if self.labels is None or self.space is None:
            raise InputError(f"{what}: expected the class of each point; give labels and space")
        ids = [i for i, name in enumerate(self.space.names) if name in names]
        if not ids:
            raise InputError(
                f"{what}: label space '{self.space.name}' has none of its classes: "
                f"{', '.join(sorted(names))}"
            )
        return np.where(np.isin(self.labels, ids), self.labels, IGNORE)

    def intensity(self, what: str) -> npt.NDArray[np.float32]:
        """(N,) intensities of the points in 0..1.

        Raises:
            InputError: the cloud has no intensities.
        """
        if self.cloud.intensity is None:
            raise InputError(f"{what}: the cloud has no intensities, which decide what returns")
        values: npt.NDArray[np.float32] = np.clip(np.nan_to_num(self.cloud.intensity), 0, 1)
        return values


@dataclass(frozen=True, eq=False)
class Corrupted:
    """A corrupted sweep of M points.

    Attributes:
        cloud: the points that are left, some of them moved.
        source: (M,) int64 position of each point in the clean sweep.
        invented: (M,) bool: the point is a return of snow, fog or another laser, not of the
            surface. It has no true class.
    """

    cloud: PointCloud
    source: npt.NDArray[np.int64]
    invented: npt.NDArray[np.bool_]

    def carry(self, labels: Array) -> npt.NDArray[np.int64]:
        """(M,) labels of the points from those of the clean sweep (N,); IGNORE for invented."""
        return np.where(self.invented, IGNORE, labels[self.source]).astype(np.int64)


def corrupted(
    cloud: PointCloud,
    *,
    keep: Array | None = None,
    xyz: Array | None = None,
    intensity: Array | None = None,
    invented: Array | None = None,
) -> Corrupted:
    """The sweep with changed points.

    Args:
        cloud: N points.
        keep: (N,) bool, which points are left; None for all.
        xyz: (N, 3) new places [m]; None for the old ones.
        intensity: (N,) new intensities in 0..1; None for the old ones.
        invented: (N,) bool, see `Corrupted`; None for none.
    """
    count = len(cloud)
    changed = replace(
        cloud,
        xyz=cloud.xyz if xyz is None else xyz.astype(np.float32),
        intensity=cloud.intensity if intensity is None else intensity.astype(np.float32),
    )
    source = np.arange(count) if keep is None else np.flatnonzero(keep)
    flags = np.zeros(count, bool) if invented is None else invented
    whole = len(source) == count
    return Corrupted(changed if whole else changed.select(source), source, flags[source])


def ranges_of(cloud: PointCloud) -> npt.NDArray[np.float64]:
    """(N,) distances from the sensor [m]; 0 for points without a return."""
    finite = cloud.finite
    distance = np.zeros(len(cloud))
    distance[finite] = np.linalg.norm(cloud.xyz[finite].astype(np.float64), axis=1)
    return distance
