# SPDX-License-Identifier: Apache-2.0
"""Corruptions of LiDAR sweeps: the eight kinds of Robo3D at three severities.

The kinds and severities are those of Kong et al., "Robo3D: Towards Robust and Reliable 3D
Perception against Corruptions", ICCV 2023. The module of each kind names the model behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pcseg_core.cloud import PointCloud
from pcseg_core.corruptions.beams import beam_missing, cross_sensor
from pcseg_core.corruptions.corrupted import SEVERITIES, Corrupted, LabeledCloud, Rng, Severity
from pcseg_core.corruptions.fog import fog
from pcseg_core.corruptions.sensor import THINGS, crosstalk, incomplete_echo, motion_blur
from pcseg_core.corruptions.snow import snow
from pcseg_core.corruptions.wet_ground import GROUND, wet_ground
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "Corrupted",
    "Corruption",
    "LabeledCloud",
    "Severity",
    "corrupt",
    "find_corruption",
]


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        apply: (sweep with classes, severity, random numbers) -> corrupted sweep.
        intensity: it needs intensities.
        classes: names of the classes of which it needs at least one; empty if it needs none.
    """

    apply: Callable[[LabeledCloud, Severity, Rng], Corrupted]
    intensity: bool = False
    classes: frozenset[str] = frozenset()

    def missing(self, cloud: PointCloud, space: LabelSpace) -> str | None:
        """The reason why it cannot be applied to such clouds and classes, or None."""
        if self.intensity and cloud.intensity is None:
            return "the clouds have no intensities"
        if self.classes and not self.classes & set(space.names):
            wanted = ", ".join(sorted(self.classes))
            return f"label space '{space.name}' has none of the classes {wanted}"
        return None


CORRUPTIONS: dict[str, Corruption] = {
    "fog": Corruption(fog, intensity=True),
    "wet-ground": Corruption(wet_ground, intensity=True, classes=GROUND),
    "snow": Corruption(snow, intensity=True),
    "motion-blur": Corruption(motion_blur),
    "beam-missing": Corruption(beam_missing),
    "crosstalk": Corruption(crosstalk),
    "incomplete-echo": Corruption(incomplete_echo, classes=THINGS),
    "cross-sensor": Corruption(cross_sensor),
}


def find_corruption(name: str) -> Corruption:
    """A corruption by name.

    Raises:
        InputError: there is none of this name.
    """
    if name not in CORRUPTIONS:
        raise InputError(f"no corruption '{name}'; expected one of {', '.join(CORRUPTIONS)}")
    return CORRUPTIONS[name]


def corrupt(
    name: str, severity: Severity, scene: LabeledCloud, seed: int = 0, sweep: int = 0
) -> Corrupted:
    """Corrupt one sweep.

    The result depends on the arguments alone. All severities use the same random numbers.

    Args:
        name: of `CORRUPTIONS`.
        severity: of `SEVERITIES`.
        scene: the sweep, with the classes of its points where the corruption needs them. Fields
            beyond coordinates, intensity, time and ring are left out of the result.
        seed, sweep: of the random numbers; a drive numbers its sweeps.

    Raises:
        InputError: no such corruption or severity, or the sweep lacks what it needs.
    """
    corruption = find_corruption(name)
    if severity not in SEVERITIES:
        raise InputError(f"no severity '{severity}'; expected one of {', '.join(SEVERITIES)}")
    rng = np.random.default_rng((seed, sweep, list(CORRUPTIONS).index(name)))
    bare = replace(scene, cloud=replace(scene.cloud, extra={}))
    return corruption.apply(bare, severity, rng)
