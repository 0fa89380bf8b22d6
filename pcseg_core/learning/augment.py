# SPDX-License-Identifier: Apache-2.0
"""Random sectors and changes of training clouds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pcseg_core.cloud import PointCloud
from pcseg_core.config import Section
from pcseg_core.corruptions import CORRUPTIONS, SEVERITIES, LabeledCloud, find_corruption
from pcseg_core.errors import InputError
from pcseg_core.geometry import elevation, from_euler
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.learning.mixing import Cloud

Array = npt.NDArray[Any]
Bool = npt.NDArray[np.bool_]
Rng = np.random.Generator

_CURVE_PIECES = 6  # straight pieces of a random curve of intensities


class AugmentConfig(Section):
    """Random changes of the training clouds."""

    rotate: bool = Field(True, description="Rotate about the vertical by any angle")
    flip: bool = Field(True, description="Mirror left and right with probability one half")
    scale: float = Field(0.05, ge=0, le=0.5, description="Largest relative change of scale")
    shift_z_m: float = Field(
        0.1, ge=0, le=2, description="Largest change of the mounting height [m]"
    )
    tilt_deg: float = Field(1.0, ge=0, le=15, description="Largest roll and pitch [deg]")
    stretch: float = Field(
        0.0, ge=0, le=0.5, description="Largest relative change of each axis of the sensor alone"
    )
    jitter_m: float = Field(0.01, ge=0, le=0.5, description="Deviation of noise on every point [m]")
    drop: float = Field(0.2, ge=0, lt=1, description="Largest share of points left out")
    beam_drop: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Largest share of elevation bands left out of every other cloud: near ground "
        "resembles far ground, and one LiDAR another",
    )
    beam_deg: float = Field(0.4, gt=0, le=10, description="Height of an elevation band [deg]")
    thin_m: float = Field(
        0.0,
        ge=0,
        le=200,
        description="Points nearer than a random distance up to this are thinned as if they were "
        "measured from there: near things look like far ones [m]",
    )
    thin_beams: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the thinned clouds that lose whole beams and columns near the "
        "sensor; the others lose single points",
    )
    coarse: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the clouds that keep every second to fourth elevation band and every "
        "first to third column, half as wide as a band: like a sensor with fewer beams",
    )
    intensity_gain: float = Field(
        0.1, ge=0, le=1, description="Largest relative change of intensity"
    )
    intensity_offset: float = Field(
        0.0, ge=0, le=1, description="Largest shift of the intensities of a cloud"
    )
    intensity_gamma: float = Field(
        0.0,
        ge=0,
        le=4,
        description="Intensities are raised to a power between 1 / (1 + this) and 1 + this",
    )
    intensity_curve: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Largest share of a random rising curve, one per cloud, in the intensities: "
        "other sensors have other curves",
    )
    intensity_noise: float = Field(
        0.0, ge=0, le=1, description="Deviation of noise on every intensity"
    )
    intensity_drop: float = Field(
        0.0, ge=0, le=1, description="Share of the clouds whose intensities are all 0"
    )
    corrupt: dict[str, float] = Field(
        default_factory=dict,
        description="Share of the clouds with a corruption, by its name; light, moderate and heavy "
        "are drawn evenly",
    )

    @model_validator(mode="after")
    def _one_corruption_per_cloud(self) -> AugmentConfig:
        check_shares(self.corrupt)
        return self


class PairAugmentConfig(Section):
    """Random changes of clouds and images together; pairs stay exact."""

    cuboid_drop: float = Field(
        0.5, ge=0, le=1, description="Share of the clouds that lose a box of points"
    )
    cuboid_extent: float = Field(
        0.2, gt=0, le=1, description="Largest box, as share of the extent of the cloud"
    )
    crop: float = Field(0.5, ge=0, le=1, description="Share of the images that are cropped")
    crop_area: tuple[float, float] = Field(
        (0.3, 1.0), description="Smallest and largest crop, as share of the image area"
    )
    min_pairs: int = Field(
        200, ge=0, description="Crops and boxes that leave fewer pairs are not applied"
    )
    mirror: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the images whose mirrored features are used; doubles the cache",
    )
    merge: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the clouds that are joined with the sweep before or after, if there "
        "are poses",
    )


class ScenePicker:
    """Draws a scene, then one of its sweeps.

    A scene is drawn with the square root of its number of sweeps: the diversity of places decides
    how well a network transfers, so that many short scenes outweigh one long one.

    Args:
        scenes: scene of each sweep.
    """

    def __init__(self, scenes: list[str]) -> None:
        members: dict[str, list[int]] = {}
        for i, scene in enumerate(scenes):
            members.setdefault(scene, []).append(i)
        self.members = list(members.values())
        sizes = np.sqrt([len(sweeps) for sweeps in self.members])
        self.probability = sizes / sizes.sum()

    def draw(self, rng: Rng) -> int:
        """Position of a sweep."""
        members = self.members[rng.choice(len(self.members), p=self.probability)]
        return members[rng.integers(len(members))]


def sector_mask(xyz: Array, center_deg: float, width_deg: float) -> Bool:
    """(N,) bool: points (N, 3) in a sector around an azimuth."""
    if width_deg >= 360:
        return np.ones(len(xyz), bool)
    azimuth = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0]))
    away = np.abs((azimuth - center_deg + 180) % 360 - 180)
    mask: Bool = away <= width_deg / 2
    return mask


def labeled_azimuth(xyz: Array, labels: Array, width_deg: float, rng: Rng) -> float:
    """Middle of a sector around a labeled point whose class is drawn evenly [deg]."""
    if width_deg >= 360:
        return 0.0
    present = np.flatnonzero(np.bincount(labels[labels != IGNORE]))
    if not len(present):
        return rng.uniform(-180, 180)
    members = np.flatnonzero(labels == rng.choice(present))
    x, y, _ = xyz[rng.choice(members)]
    return float(np.degrees(np.arctan2(y, x)) + rng.uniform(-0.4, 0.4) * width_deg)


def keep_some(xyz: Array, config: AugmentConfig, rng: Rng) -> Bool:
    """(N,) bool: a random share of the points, and in half of the calls of the elevation bands."""
    kept: Bool = rng.random(len(xyz)) >= rng.uniform(0, config.drop)
    if rng.random() < 0.5:
        return kept
    band = elevation_bands(xyz, config.beam_deg)
    bands = rng.random(int(180 / config.beam_deg) + 2) >= rng.uniform(0, config.beam_drop)
    return kept & bands[band]


def thin(xyz: Array, config: AugmentConfig, rng: Rng) -> Bool:
    """(N,) bool: points that are kept as if a sensor of fewer beams, or from farther, saw them.

    Points at a distance r below a random r0 are kept with probability (r / r0)^2, the ratio of
    the densities of a surface seen from r0 and from r.

    Args:
        xyz: (N, 3) points in the frame of the sensor, before other changes.
        config: `thin_m`, `thin_beams`, `coarse`, and `beam_deg` for bands and columns.
        rng: random numbers; not used where both are off.
    """
    keep: Bool = np.ones(len(xyz), bool)
    if config.thin_m:
        range_m = max(rng.uniform(0, config.thin_m), 1e-6)
        if rng.random() < config.thin_beams:
            share = np.linalg.norm(xyz, axis=1) / range_m
            for cells in (elevation_bands(xyz, config.beam_deg), _columns(xyz, config.beam_deg)):
                keep &= _spread(cells, rng) < share
        else:
            keep &= thinned(xyz, range_m, rng)
    if config.coarse and rng.random() < config.coarse:
        bands, columns = rng.integers(2, 5), rng.integers(1, 4)
        keep &= elevation_bands(xyz, config.beam_deg) % bands == rng.integers(bands)
        keep &= _columns(xyz, config.beam_deg) % columns == rng.integers(columns)
    return keep


def thinned(xyz: Array, range_m: float, rng: Rng) -> Bool:
    """(N,) bool: points that stay if surfaces nearer than a range get the density of that range.

    The returns per area of a surface fall with the square of the range.
    """
    share = np.linalg.norm(xyz, axis=1) / range_m
    kept: Bool = rng.random(len(xyz)) < np.square(share)
    return kept


def elevation_bands(xyz: Array, height_deg: float) -> Array:
    """(N,) intp number of the elevation band of each point, from straight down."""
    bands: Array = ((np.degrees(elevation(xyz)) + 90) / height_deg).astype(np.intp)
    return bands


def _columns(xyz: Array, beam_deg: float) -> Array:
    """(N,) intp number of the column of each point, half as wide as an elevation band."""
    azimuth = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0]))
    columns: Array = ((azimuth + 180) / (beam_deg / 2)).astype(np.intp)
    return columns


def _spread(cells: Array, rng: Rng) -> Array:
    """(N,) a number in 0..1 for each cell. Cells with numbers below any share are evenly spaced.

    Multiples of the golden ratio, modulo 1, divide the unit interval evenly for every count.
    """
    golden = (np.sqrt(5) - 1) / 2
    numbers: Array = (np.arange(cells.max(initial=0) + 1) * golden + rng.random()) % 1
    return numbers[cells]


def augment_points(xyz: Array, config: AugmentConfig, rng: Rng) -> Array:
    """Rotate, mirror, tilt, scale, stretch, shift and jitter (N, 3) float32 points of one sweep."""
    yaw = rng.uniform(-np.pi, np.pi) if config.rotate else 0.0
    roll, pitch = np.radians(rng.uniform(-1, 1, 2) * config.tilt_deg)
    matrix = from_euler(roll, pitch, yaw)[:3, :3] * (1 + rng.uniform(-1, 1) * config.scale)
    if config.flip and rng.random() < 0.5:
        matrix = matrix @ np.diag([1.0, -1.0, 1.0])
    if config.stretch:
        matrix = matrix @ np.diag(1 + rng.uniform(-1, 1, 3) * config.stretch)
    moved: Array = xyz @ matrix.T.astype(np.float32)
    moved[:, 2] += np.float32(rng.uniform(-1, 1) * config.shift_z_m)
    if config.jitter_m:
        moved += rng.standard_normal(moved.shape, dtype=np.float32) * np.float32(config.jitter_m)
    return moved


def augment_intensity(intensity: Array, config: AugmentConfig, rng: Rng) -> Array:
    """Change (N,) float32 intensities in 0..1 as another sensor would.

    A rising curve, a power, a factor, a shift and noise, in this order; or all 0.
    """
    changed, gain = intensity, rng.uniform(-1, 1) * config.intensity_gain
    if config.intensity_curve:
        changed = _bent(changed, rng.uniform(0, config.intensity_curve), rng)
    if config.intensity_gamma:
        changed = changed ** np.float32((1 + config.intensity_gamma) ** rng.uniform(-1, 1))
    changed = changed * np.float32(1 + gain)
    if config.intensity_offset:
        changed += np.float32(rng.uniform(-1, 1) * config.intensity_offset)
    if config.intensity_noise:
        noise = rng.standard_normal(len(changed), dtype=np.float32)
        changed += noise * np.float32(config.intensity_noise)
    if config.intensity_drop and rng.random() < config.intensity_drop:
        changed = np.zeros_like(changed)
    result: Array = np.clip(changed, 0, 1)
    return result


def _bent(values: Array, share: float, rng: Rng) -> Array:
    """(N,) float32 values in 0..1, mixed with a random rising curve through 0 and 1 of them."""
    knots = np.append(0.0, np.cumsum(rng.exponential(size=_CURVE_PIECES)))
    curve = np.interp(values, np.linspace(0, 1, len(knots)), knots / knots[-1])
    bent: Array = ((1 - share) * values + share * curve).astype(np.float32)
    return bent


def check_shares(shares: Mapping[str, float]) -> None:
    """Check the shares of the clouds with each corruption.

    Raises:
        InputError: no such corruption.
        ValueError: a share is outside of 0..1, or their sum is above 1.
    """
    for name, share in shares.items():
        find_corruption(name)
        if not 0 <= share <= 1:
            raise ValueError(f"corrupt.{name} is {share:g}; expected a share in 0..1")
    if sum(shares.values()) > 1:
        raise ValueError("corrupt: a cloud has one corruption; expected a sum up to 1")


def check_corruptions(shares: Mapping[str, float], space: LabelSpace | None) -> None:
    """Check that the classes of a training allow its corruptions.

    Raises:
        InputError: one chooses points by classes that are not there.
    """
    names = () if space is None else space.names
    for name in shares:
        if (needed := CORRUPTIONS[name].classes) and not needed & set(names):
            raise InputError(
                f"corrupt: {name} needs one of the classes {', '.join(sorted(needed))}; "
                f"the labels have {', '.join(names) or 'none'}"
            )


def corrupt_some(
    cloud: Cloud, shares: Mapping[str, float], space: LabelSpace | None, rng: Rng
) -> Cloud:
    """A cloud with one of the corruptions, or as it is.

    Points that a corruption invents have no label and no features.

    Args:
        cloud: points in the frame of the sensor, before other changes.
        shares: share of the clouds with each corruption.
        space: classes of the labels, which `check_corruptions` has accepted.
        rng: random numbers; not used without corruptions.
    """
    if not shares:
        return cloud
    place = np.searchsorted(np.cumsum(list(shares.values())), rng.random(), side="right")
    if place == len(shares):
        return cloud
    corruption = CORRUPTIONS[list(shares)[place]]
    severity = SEVERITIES[rng.integers(len(SEVERITIES))]
    scene = LabeledCloud(PointCloud(cloud.xyz, cloud.intensity), cloud.label, space)
    found = corruption.apply(scene, severity, rng)
    assert found.cloud.intensity is not None
    return Cloud(
        found.cloud.xyz,
        found.cloud.intensity,
        found.carry(cloud.label),
        np.where(found.invented, np.float32(0), cloud.confidence[found.source]),
        found.carry(cloud.origin),
    )


def draw_members(ids: Array, limit: int, rng: Rng) -> Array:
    """(N,) int64 ids with at most `limit` random members of each id, IGNORE elsewhere."""
    order = rng.permutation(len(ids))
    order = order[np.argsort(ids[order], kind="stable")]
    sorted_ids = ids[order]
    starts = np.flatnonzero(np.diff(sorted_ids, prepend=sorted_ids[:1] - 1))
    lengths = np.diff(np.append(starts, len(ids)))
    rank = np.arange(len(ids)) - np.repeat(starts, lengths)
    drawn = np.full(len(ids), IGNORE, np.int64)
    chosen = order[(rank < limit) & (sorted_ids != IGNORE)]
    drawn[chosen] = ids[chosen]
    return drawn
