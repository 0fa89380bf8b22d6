# SPDX-License-Identifier: Apache-2.0
"""Comparison of the sweeps of a topic with those that the network was trained on.

A network labels other intensities, ranges and densities than those of its training badly, and with
high confidence. Intensities of another sensor are mapped to those of the training; other
differences are reported. Each comparison takes a few quantiles of a sample of the points.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.cloud import PointCloud
from pcseg_core.config import Section
from pcseg_core.errors import InputError

Array = npt.NDArray[Any]

_SHARES = tuple(np.arange(1, 10) / 10)
_SAMPLE = 4096
# Sweeps with fewer returns are not judged.
_FEWEST_RETURNS = 1000
# Largest difference from the distribution of the training. Scenes of one sensor (10 recordings of
# an HDL-64E) reach 0.35 in intensity and 0.44 in range; sensors that a network fails on begin at
# 0.55.
_FAR_SHARE = 0.5
# Factors on the smallest and largest number of the training.
_FAR_RETURNS, _FAR_RINGS = 10.0, 2.0
_SATURATED_SHARE = 0.5
_EVERY = 10
SWEEPS_TO_MATCH = 10
"""Sweeps that the map of the intensities is fitted to."""

Deciles = tuple[float, float, float, float, float, float, float, float, float]


class InputStatistics(Section):
    """Scale and distribution of the sweeps that a network was trained on."""

    intensity_scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Factor that mapped the intensities of the messages to 0..1; none if unknown "
        "or different between recordings",
    )
    intensity: Deciles | None = Field(
        None, description="10 % to 90 % quantiles of the intensities in 0..1; none without them"
    )
    range_m: Deciles = Field(description="10 % to 90 % quantiles of the distance of returns [m]")
    returns: tuple[float, float] = Field(description="5 % and 95 % quantile of returns per sweep")
    rings: tuple[int, int] | None = Field(
        None, description="Smallest and largest number of beams; none if unknown"
    )
    time_field: str | None = Field(None, description="Field with the times of the points")
    stamp_reference: str | None = Field(
        None, description="Moment of the sweep that the stamps referred to"
    )
    deskewed: bool | None = Field(
        None, description="Whether the points were corrected for the motion within the sweep"
    )

    @classmethod
    def measure(
        cls,
        clouds: Iterable[PointCloud],
        intensity_scale: float | None = None,
        time_field: str | None = None,
        stamp_reference: str | None = None,
        deskewed: bool | None = None,
    ) -> InputStatistics:
        """Statistics of the sweeps of a training.

        Args:
            clouds: the sweeps, or some dozens of them from all recordings.
            intensity_scale, time_field, stamp_reference, deskewed: how they were read.

        Raises:
            InputError: no sweep has a return.
        """
        ranges, strengths, returns, rings = [], [], [], []
        for cloud in clouds:
            kept = cloud.finite
            sample = _sample(kept)
            if not len(sample):
                continue
            returns.append(np.count_nonzero(kept))
            ranges.append(_norm(cloud.xyz[sample]))
            if cloud.intensity is not None:
                strengths.append(_clipped(cloud.intensity[sample]))
            if cloud.ring is not None:
                rings.append(_count_rings(cloud.ring[kept]))
        if not returns:
            raise InputError("input statistics: no sweep with a return")
        return cls(
            intensity_scale=intensity_scale,
            intensity=_deciles(strengths) if strengths else None,
            range_m=_deciles(ranges),
            returns=(float(np.quantile(returns, 0.05)), float(np.quantile(returns, 0.95))),
            rings=(min(rings), max(rings)) if rings else None,
            time_field=time_field,
            stamp_reference=stamp_reference,
            deskewed=deskewed,
        )

    def time_options(
        self, time_field: str = "auto", stamp_reference: str = "auto"
    ) -> dict[str, str]:
        """Options of `pcseg_core.cloud.read_cloud`; what is "auto" is as in the training.

        The field of the training is preferred, not required: another sensor may lack it.
        """
        if time_field == "auto" and self.time_field:
            time_field = f"auto:{self.time_field}"
        if stamp_reference == "auto" and self.stamp_reference:
            stamp_reference = self.stamp_reference
        return {"time_field": time_field, "stamp_reference": stamp_reference}


class IntensityMatch:
    """Maps the intensities of another sensor to those of the training, by rank.

    Each intensity becomes the one that had its rank in the training: histogram matching (Gonzalez
    and Woods, Digital Image Processing, 4th edition, section 3.3), linear between the quantiles.
    The map is fitted to the first sweeps and then held. Intensities that are distributed as in the
    training stay as they are. So do those with few different values, whose ranks tell nothing.

    Args:
        trained: statistics of the training; without intensities nothing is mapped.

    Attributes:
        held: further sweeps do not change the map.
    """

    def __init__(self, trained: InputStatistics | None) -> None:
        self._target = None if trained is None else trained.intensity
        self.held = self._target is None
        self._samples: list[Array] = []
        self._curve: tuple[Array, Array] | None = None
        self._text = ""

    def observe(self, cloud: PointCloud) -> None:
        """Fit the map to a sweep too, unless it is held or the sweep has few returns."""
        if self.held or self._target is None or cloud.intensity is None:
            return
        kept = cloud.finite
        if np.count_nonzero(kept) < _FEWEST_RETURNS:
            return
        self._samples.append(_clipped(cloud.intensity[_sample(kept)]))
        values = np.concatenate(self._samples)
        self._curve = None
        if _distance(values, self._target) > _FAR_SHARE and len(set(_deciles(self._samples))) > 4:
            self._curve = _curve(values, self._target)
            self._text = (
                "intensities of another sensor: mapped to those of the training by rank (the "
                f"median {np.median(values):.3g} becomes {self._target[4]:.3g})"
            )
        if len(self._samples) == SWEEPS_TO_MATCH:
            self.hold()

    def hold(self) -> None:
        """Do not change the map any more."""
        self.held, self._samples = True, []

    def __call__(self, cloud: PointCloud) -> PointCloud:
        """The sweep with mapped intensities (N,) float32 in 0..1; itself without a map."""
        if self._curve is None or cloud.intensity is None:
            return cloud
        mapped = np.interp(_clipped(cloud.intensity), *self._curve).astype(np.float32)
        return replace(cloud, intensity=mapped)

    def __str__(self) -> str:
        """Sentence for logs; "" without a map."""
        return "" if self._curve is None else self._text


class IntensityMatches:
    """An `IntensityMatch` for each LiDAR of united sweeps; one for other sweeps.

    Args:
        trained: see `IntensityMatch`.
    """

    def __init__(self, trained: InputStatistics | None) -> None:
        self._trained = trained
        self._ended = trained is None or trained.intensity is None
        self._own: dict[int, IntensityMatch] = {}

    @property
    def held(self) -> bool:
        """Further sweeps of the LiDARs so far do not change their maps."""
        return self._ended or (bool(self._own) and all(own.held for own in self._own.values()))

    def observe(self, cloud: PointCloud) -> None:
        """See `IntensityMatch.observe`."""
        if self._ended or cloud.intensity is None:
            return
        for number, part, _ in _by_source(cloud):
            self._own.setdefault(number, IntensityMatch(self._trained)).observe(part)

    def hold(self) -> None:
        """Do not change the maps any more, nor make new ones."""
        self._ended = True
        for own in self._own.values():
            own.hold()

    def __call__(self, cloud: PointCloud) -> PointCloud:
        """See `IntensityMatch.__call__`."""
        if not str(self) or cloud.intensity is None:
            return cloud
        mapped = np.empty(len(cloud), np.float32)
        for number, part, rows in _by_source(cloud):
            own = self._own.get(number)
            found = part if own is None else own(part)
            assert found.intensity is not None
            mapped[rows] = found.intensity
        return replace(cloud, intensity=mapped)

    def __str__(self) -> str:
        """Sentences for logs; "" without a map."""
        several = len(self._own) > 1
        texts = {number: str(own) for number, own in sorted(self._own.items()) if str(own)}
        return "; ".join(f"source {n}: {text}" if several else text for n, text in texts.items())


def _by_source(cloud: PointCloud) -> Iterator[tuple[int, PointCloud, slice | Array]]:
    """Number of each LiDAR, its points with their intensities alone, and their rows."""
    if cloud.source is None or cloud.intensity is None:
        yield 0, cloud, slice(None)
        return
    for number in np.unique(cloud.source).tolist():
        rows = np.flatnonzero(cloud.source == number)
        part = PointCloud(cloud.xyz[rows])
        part.intensity = cloud.intensity[rows]  # not to the constructor, which warns of a scale
        yield number, part, rows


def _curve(values: Array, target: Deciles) -> tuple[Array, Array]:
    """Knots of the map: distinct intensities of a sensor, and those of the training."""
    given = np.concatenate([[0.0], np.quantile(values, _SHARES), [values.max()]])
    knots, knot_of = np.unique(given, return_inverse=True)
    wanted = np.array([0.0, *target, 1.0])
    return knots, np.bincount(knot_of, wanted) / np.bincount(knot_of)


class InputCheck:
    """Judges the sweeps of one topic; one in ten is examined.

    Args:
        trained: statistics of the training; without them only impossible intensities are found.
    """

    def __init__(self, trained: InputStatistics | None) -> None:
        self._trained = trained
        self._count = 0
        self._reason = ""

    def __call__(self, cloud: PointCloud) -> str:
        """How the sweeps differ from those of the training, or ""."""
        if self._count % _EVERY == 0:
            kept = cloud.finite
            returns = int(np.count_nonzero(kept))
            if returns < _FEWEST_RETURNS:
                return self._reason
            self._reason = "; ".join(self._differences(cloud, kept, returns))
        self._count += 1
        return self._reason

    def _differences(self, cloud: PointCloud, kept: Array, returns: int) -> list[str]:
        sample, trained = _sample(kept), self._trained
        found = _intensity_differences(cloud, sample, trained)
        if trained is None:
            return found
        median_m = float(np.median(_norm(cloud.xyz[sample])))
        if _distance(_norm(cloud.xyz[sample]), trained.range_m) > _FAR_SHARE:
            found.append(
                f"half of the returns are within {median_m:.1f} m, in the training within "
                f"{trained.range_m[4]:.1f} m"
            )
        low, high = trained.returns
        if not low / _FAR_RETURNS <= returns <= high * _FAR_RETURNS:
            found.append(f"{returns} returns per sweep, in the training {low:.0f} to {high:.0f}")
        if trained.rings is not None and cloud.ring is not None:
            rings, (least, most) = _count_rings(cloud.ring[kept]), trained.rings
            if not least / _FAR_RINGS <= rings <= most * _FAR_RINGS:
                found.append(f"{rings} beams, in the training {least} to {most}")
        return found


def _intensity_differences(
    cloud: PointCloud, sample: Array, trained: InputStatistics | None
) -> list[str]:
    if cloud.intensity is None:
        missing = "the points have no intensity, the network was trained with it"
        return [missing] if trained is not None and trained.intensity is not None else []
    values = _clipped(cloud.intensity[sample])
    saturated = float(np.mean(values >= 1))
    if saturated > _SATURATED_SHARE:
        share = f"{100 * saturated:.0f} % of the intensities are 1 or more"
        return [f"{share}; set intensity_scale to 1 / the sensor's maximum"]
    if trained is None or trained.intensity is None:
        return []
    if _distance(values, trained.intensity) <= _FAR_SHARE:
        return []
    median, usual = float(np.median(values)), trained.intensity[4]
    compared = f"the median intensity is {median:.3g}, in the training {usual:.3g}"
    return [f"{compared}: another sensor, or a wrong intensity_scale"]


def _sample(kept: Array) -> Array:
    """Indices of some thousand points of a mask, spread over the sweep."""
    indices = np.flatnonzero(kept)
    return indices[:: len(indices) // _SAMPLE | 1]  # odd: beams often alternate by powers of two


def _norm(xyz: Array) -> Array:
    distance: Array = np.linalg.norm(xyz.astype(np.float64), axis=1)
    return distance


def _clipped(intensity: Array) -> Array:
    """As the network sees them; NaN is 0."""
    clipped: Array = np.fmin(np.fmax(intensity, 0), 1)
    return clipped


def _count_rings(ring: Array) -> int:
    return int(np.count_nonzero(np.bincount(ring)))


def _deciles(parts: list[Array]) -> Deciles:
    quantiles = np.quantile(np.concatenate(parts).astype(np.float64), _SHARES)
    a, b, c, d, e, f, g, h, i = (float(f"{value:.4g}") for value in quantiles)
    return a, b, c, d, e, f, g, h, i


def _distance(values: Array, deciles: Deciles) -> float:
    """Largest difference (0..1) between the share of values below a decile and the decile.

    The Kolmogorov-Smirnov statistic at the deciles; equal values count on either side.
    """
    ordered = np.sort(values)
    below = np.searchsorted(ordered, deciles, "left") / len(ordered)
    within = np.searchsorted(ordered, deciles, "right") / len(ordered)
    shares = np.array(_SHARES)
    return float(np.max(np.maximum(below - shares, shares - within)))
