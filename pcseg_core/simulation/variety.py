# SPDX-License-Identifier: Apache-2.0
"""Towns and LiDARs that are drawn at random, for networks that must work with real ones.

The ranges are wider than those of real streets and sensors: a network that is trained on all of
them meets the real ones as further cases (domain randomization, Tobin et al., 2017).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.lidar import LidarSpec
from pcseg_core.simulation.receiver import Receiver
from pcseg_core.simulation.towns import TOWNS, Town, find_town

Array = npt.NDArray[Any]
Rng = np.random.Generator

VARIED = "varied"
"""Name of the town that is drawn by the seed of the drive."""


def style_of(name: str, seed: int) -> Town:
    """Town by name; `VARIED` draws one.

    Raises:
        InputError: no such town.
    """
    if name == VARIED:
        return draw_town(np.random.default_rng([seed, 8]))
    return find_town(name)


def draw_town(rng: Rng) -> Town:
    """A named town with other streets, gardens, plants and traffic."""
    town = TOWNS[list(TOWNS)[rng.integers(len(TOWNS))]]
    return replace(town, **_streets(rng), **_gardens(rng), **_traffic(rng), **_surfaces(rng))


def _streets(rng: Rng) -> dict[str, Any]:
    narrow = rng.uniform(2.2, 5.0) if rng.random() < 0.8 else rng.uniform(5.0, 8.0)
    return {
        "lane_m": (narrow, narrow + 0.8),
        "bend_m": rng.uniform(0, 16),
        "relief_m": rng.uniform(0, 5),
        "parking": rng.uniform(0, 1),
        "parked": rng.uniform(0.2, 0.95),
        "sidewalk_m": rng.uniform(1.2, 4.5) if rng.random() < 0.85 else 1.1,
        "verge_m": rng.uniform(0.6, 4.0) if rng.random() < 0.45 else 0.0,
        "curb_m": rng.uniform(0.03, 0.2),
        "parks": rng.uniform(0, 0.3),
    }


def _gardens(rng: Rng) -> dict[str, Any]:
    near = rng.uniform(0, 1) if rng.random() < 0.4 else rng.uniform(1, 8)
    low = rng.uniform(0.5, 1.6)
    share = rng.dirichlet([1.0, 1.0, 1.3, 0.7])
    return {
        "gardens": bool(rng.random() < 0.7),
        "setback_m": (near, near + rng.uniform(0.3, 6)),
        "fences": share[0],
        "walls": share[1],
        "hedges": share[2],
        "wall_m": (low, low + rng.uniform(0.5, 2.2)),
        "annexes": rng.uniform(0, 0.7),
        "relief": rng.uniform(0, 1),
        "backed": rng.uniform(0, 0.8),
        "hedge_m": (low, low + rng.uniform(0.3, 1.8)),
        "bushes": rng.uniform(0, 1),
        "verge_bushes": rng.uniform(0, 0.5) * (rng.random() < 0.5),
        "street_trees": rng.uniform(0, 1),
        "garden_trees": rng.uniform(0, 1),
        "conifers": rng.uniform(0, 0.4),
    }


def _traffic(rng: Rng) -> dict[str, Any]:
    return {
        "vans": rng.uniform(0.04, 0.16),
        "high_vans": rng.uniform(0, 0.06),
        "trucks": rng.uniform(0, 0.1),
        "buses": rng.uniform(0, 0.05),
        "traffic": rng.uniform(0.05, 0.5),
        "people": rng.uniform(0.02, 0.6),
        "bicycles": rng.uniform(0.05, 0.6),
        "lamps_m": rng.uniform(15, 40),
        "signs": rng.uniform(0.2, 1),
        "posts": (0.8, rng.uniform(1, 2.5)),
    }


def _surfaces(rng: Rng) -> dict[str, Any]:
    return {
        "leaves_m": rng.uniform(0.05, 0.35),
        "grass_m": rng.uniform(0.02, 0.2),
        "lumps_m": rng.uniform(0.0, 0.08),
    }


def draw_lidar(seed: int) -> LidarSpec:
    """A LiDAR: beams and their elevations, mounting, intensities, noise and losses."""
    rng = np.random.default_rng([seed, 9])
    elevations = _elevations(rng)
    return LidarSpec(
        beams=len(elevations),
        columns=int(rng.choice([512, 1024, 1024, 1536, 2048][: 3 if len(elevations) > 64 else 5])),
        fov_up_deg=elevations[-1],
        fov_down_deg=elevations[0],
        elevations_deg=elevations,
        height_m=rng.uniform(1.4, 2.5),
        tilt_deg=(rng.normal(0, 0.8), rng.normal(0, 1.0)),
        range_noise_m=rng.uniform(0.005, 0.04),
        dropout=rng.uniform(0, 0.1) ** 1.5,
        intensity_noise=rng.uniform(0.05, 0.4),
        mixed=rng.uniform(0, 0.5),
        receiver=_receiver(rng, seed),
    )


def _elevations(rng: Rng) -> tuple[float, ...]:
    """Ascending elevations [deg] of one of several designs, slightly changed."""
    design = rng.choice(5, p=[0.35, 0.15, 0.2, 0.2, 0.1])
    if design == 0:  # two blocks, the upper one denser
        angles = np.r_[np.linspace(-24.5, -8.8, 32), np.linspace(-8.3, 2.0, 32)]
    elif design == 1:  # even, far down
        angles = np.linspace(-30.7, 10.7, 32)
    elif design == 2:  # even and symmetric
        angles = np.linspace(-1, 1, int(rng.choice([16, 32, 64, 128]))) * rng.uniform(15, 23)
    elif design == 3:  # dense around the horizon
        side = np.linspace(-1, 1, int(rng.choice([32, 40, 64, 128])))
        angles = 20 * np.sign(side) * np.abs(side) ** rng.uniform(1.5, 2.2) - 5
    else:  # even, wide
        angles = np.linspace(rng.uniform(-45, -20), rng.uniform(5, 45), int(rng.choice([64, 128])))
    angles = angles * rng.uniform(0.93, 1.07) + rng.normal(0, 0.5)
    angles = np.sort(angles + rng.normal(0, 0.05, len(angles)))
    return tuple(float(round(a, 3)) for a in np.clip(angles, -60, 60))


def _receiver(rng: Rng, seed: int) -> Receiver:
    gamma = rng.uniform(0.35, 1.2)
    return Receiver(
        full_power_m=rng.uniform(5, 60),
        falloff=rng.uniform(0, 1.6),
        near_m=rng.uniform(2, 12) if rng.random() < 0.5 else 0.0,
        incidence=rng.uniform(0, 1),
        # the median of streets is about 0.2 before the gain
        gain=float(np.exp(rng.uniform(np.log(0.1), np.log(4.0)))),
        gamma=gamma,
        weakest=float(np.exp(rng.uniform(np.log(0.001), np.log(0.03)))),
        zero=rng.uniform(0, 0.08) if rng.random() < 0.5 else 0.0,
        beam_scatter=rng.uniform(0, 0.3),
        material_scatter=rng.uniform(0.1, 0.6),
        patches=rng.uniform(0, 0.4),
        seed=seed,
    )
