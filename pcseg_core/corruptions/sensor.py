# SPDX-License-Identifier: Apache-2.0
"""Faults of mounting and sensor: motion blur, crosstalk, incomplete echoes."""

from __future__ import annotations

import numpy as np

from pcseg_core.corruptions.corrupted import Corrupted, LabeledCloud, Rng, Severity, corrupted
from pcseg_core.labels import IGNORE

_BLUR_M: dict[Severity, float] = {"light": 0.20, "moderate": 0.25, "heavy": 0.30}
_CROSSTALK: dict[Severity, float] = {"light": 0.006, "moderate": 0.008, "heavy": 0.010}
_CROSSTALK_DEVIATION = 3.0  # of the coordinates [m], and of the intensity
_LOST_ECHOES: dict[Severity, float] = {"light": 0.75, "moderate": 0.85, "heavy": 0.95}
_FEWEST_ECHOES = 10  # classes with more points lose some

THINGS = frozenset(
    {
        "bicycle",
        "bus",
        "car",
        "construction_vehicle",
        "motorcycle",
        "other-vehicle",
        "trailer",
        "train",
        "truck",
        "vehicle",
    }
)
"""Names of the classes that lose echoes, in all label spaces."""


def motion_blur(scene: LabeledCloud, severity: Severity, rng: Rng) -> Corrupted:
    """The sensor shakes: one random shift of the sweep, and a small one of each point.

    Deviation of the shift: 0.20, 0.25 or 0.30 m along each axis. Of each point: a tenth of it
    along x and y, a twentieth along z, cut at 3 deviations.
    """
    deviation = _BLUR_M[severity]
    shift = rng.standard_normal(3) * deviation
    each = np.clip(rng.standard_normal(scene.cloud.xyz.shape), -3, 3)
    blurred = scene.cloud.xyz + shift + each * (deviation * np.array([0.1, 0.1, 0.05]))
    moved = np.where(scene.cloud.finite[:, None], blurred, scene.cloud.xyz)
    return corrupted(scene.cloud, xyz=moved)


def crosstalk(scene: LabeledCloud, severity: Severity, rng: Rng) -> Corrupted:
    """Pulses of other LiDARs: 0.6, 0.8 or 1.0 % of the points are noise.

    Their coordinates get noise with a deviation of 3 m along each axis, their intensity one of 3,
    clipped to 0..1.
    """
    cloud = scene.cloud
    order = rng.permutation(np.flatnonzero(cloud.finite))
    chosen = order[: round(_CROSSTALK[severity] * len(order))]
    noise = rng.standard_normal((len(order), 4))[: len(chosen)] * _CROSSTALK_DEVIATION
    xyz, invented = cloud.xyz.copy(), np.zeros(len(cloud), bool)
    xyz[chosen] += noise[:, :3].astype(np.float32)
    invented[chosen] = True
    intensity = None
    if cloud.intensity is not None:
        intensity = cloud.intensity.copy()
        intensity[chosen] = np.clip(intensity[chosen] + noise[:, 3], 0, 1)
    return corrupted(cloud, xyz=xyz, intensity=intensity, invented=invented)


def incomplete_echo(scene: LabeledCloud, severity: Severity, rng: Rng) -> Corrupted:
    """Dark paint returns little: vehicles lose 75, 85 or 95 % of their points.

    The points of each class of `THINGS` with more than 10 points in the sweep are drawn together.
    """
    things = scene.of_classes(THINGS, "incomplete-echo")
    keep = np.ones(len(things), bool)
    for thing in np.unique(things[things != IGNORE]):
        members = rng.permutation(np.flatnonzero((things == thing) & scene.cloud.finite))
        if len(members) > _FEWEST_ECHOES:
            keep[members[: int(_LOST_ECHOES[severity] * len(members))]] = False
    return corrupted(scene.cloud, keep=keep)
