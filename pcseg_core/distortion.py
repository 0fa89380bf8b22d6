# SPDX-License-Identifier: Apache-2.0
"""Lens distortion between ideal image coordinates (x/z, y/z) and those on the sensor.

Formulas and order of coefficients are those of OpenCV (calib3d and its fisheye module), which
sensor_msgs/CameraInfo refers to. Far from the axis a polynomial distortion is no longer monotone;
every model rejects rays beyond its monotone range.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from pcseg_core.errors import InputError

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

# Names used by drivers -> model.
NAMES = {
    "": "none",
    "none": "none",
    "plumb_bob": "plumb_bob",
    "rational_polynomial": "rational_polynomial",
    "equidistant": "equidistant",
    "fisheye": "equidistant",
}

_LIMIT_ANGLE = np.deg2rad(89.5)  # larger angles to the axis are rejected
# The inverse is ill-conditioned at the end of the monotone range; this share of it is used.
_MARGIN = 0.995
_MAX_COEFFICIENT = 1e6  # lenses stay below 1e4; beyond, the terms overflow
_NEGLIGIBLE = 1e-12  # smaller coefficients only disturb the search for roots
_TABLE_SIZE = 2048
_NEWTON_STEPS = 12


class Distortion(Protocol):
    """Both directions of a distortion, on arrays (N,)."""

    def distort(self, x: Float64, y: Float64) -> tuple[Float64, Float64, Bool]:
        """Distorted coordinates, and whether the ray lies in the monotone range."""

    def undistort(self, x: Float64, y: Float64) -> tuple[Float64, Float64]:
        """Ideal coordinates; NaN where no ray in the monotone range is imaged."""


def create_distortion(name: str, coefficients: tuple[float, ...]) -> Distortion:
    """Make the distortion of a CameraInfo.

    Raises:
        InputError: the model is unknown, the number of coefficients is wrong, or the sensor is
            tilted.
    """
    if name not in NAMES:
        known = ", ".join(sorted(filter(None, NAMES)))
        raise InputError(
            f"camera: unknown distortion model '{name}'; expected one of {known}, or rectify the "
            "images first"
        )
    if not all(abs(c) <= _MAX_COEFFICIENT for c in coefficients):
        raise InputError(
            f"camera: distortion coefficients must be finite and at most {_MAX_COEFFICIENT:g}, got "
            f"{coefficients}; calibrate the camera again"
        )
    coefficients = tuple(0.0 if abs(c) < _NEGLIGIBLE else c for c in coefficients)
    model = NAMES[name]
    if model == "equidistant":
        return _create_equidistant(coefficients)
    if not any(coefficients):
        return NoDistortion()
    if model == "none":
        raise InputError(
            f"camera: distortion coefficients {coefficients} without a distortion model; set "
            "CameraInfo.distortion_model"
        )
    return _create_polynomial(name, coefficients)


def _create_equidistant(coefficients: tuple[float, ...]) -> Equidistant:
    coefficients = _without_padding(coefficients, (0, 4))
    if len(coefficients) not in (0, 4):
        raise InputError(
            f"camera: the distortion model equidistant has 4 coefficients, got {len(coefficients)}"
        )
    return Equidistant(coefficients or (0.0,) * 4)


def _without_padding(
    coefficients: tuple[float, ...], lengths: tuple[int, ...]
) -> tuple[float, ...]:
    """The coefficients without zeros behind the longest known length that they fill."""
    known = max(length for length in lengths if length <= len(coefficients))
    return coefficients if any(coefficients[known:]) else coefficients[:known]


def _create_polynomial(name: str, coefficients: tuple[float, ...]) -> Polynomial:
    coefficients = _without_padding(coefficients, (0, 4, 5, 8, 12, 14))
    if len(coefficients) not in (4, 5, 8, 12, 14):
        raise InputError(
            f"camera: the distortion model {name} has 4, 5, 8, 12 or 14 coefficients, got "
            f"{len(coefficients)}"
        )
    if any(coefficients[12:]):
        raise InputError(
            "camera: a tilted sensor (coefficients 13 and 14 of the distortion) is not supported; "
            "rectify the images first"
        )
    return Polynomial(coefficients[:12] + (0.0,) * (12 - len(coefficients)))


class NoDistortion:
    """The ideal pinhole."""

    def distort(self, x: Float64, y: Float64) -> tuple[Float64, Float64, Bool]:
        return x, y, np.ones(len(x), dtype=bool)

    def undistort(self, x: Float64, y: Float64) -> tuple[Float64, Float64]:
        return x, y


class Polynomial:
    """plumb_bob and rational_polynomial, with thin prism terms: k1 k2 p1 p2 k3 k4 k5 k6 s1..s4.

    Attributes:
        limit: largest accepted radius hypot(x/z, y/z); up to it the distortion is monotone in
            every direction.
    """

    def __init__(self, coefficients: tuple[float, ...]) -> None:
        k1, k2, self.p1, self.p2, k3, k4, k5, k6, *self.prism = coefficients
        self.numerator = np.array([k3, k2, k1, 1.0])  # in r^2, highest power first
        self.denominator = np.array([k6, k5, k4, 1.0])
        self.is_rational = any((k4, k5, k6))
        self.has_prism = any(self.prism)
        self.limit = self._radial_limit()
        if self.p1 or self.p2 or self.has_prism:
            self.limit = self._directional_limit()
        self.radii = self._radii()
        self.distorted_radii = self.radii * self._radial(self.radii**2)[0]

    def _radial_limit(self) -> float:
        """Radius up to which r * N(r^2) / D(r^2) grows with r."""
        n, d = self.numerator, self.denominator
        # d/dr (r N/D) = (N D + 2 s (N' D - N D')) / D^2 with s = r^2.
        bend: Float64 = np.polysub(np.polymul(np.polyder(n), d), np.polymul(n, np.polyder(d)))
        slope = np.polyadd(np.polymul(n, d), np.polymul([2.0, 0.0], bend))
        turns = np.concatenate([_positive_roots(slope), _positive_roots(d)])
        return float(min([np.tan(_LIMIT_ANGLE), *(_MARGIN * np.sqrt(turns))]))

    def _directional_limit(self) -> float:
        """Radius up to which the Jacobian keeps its orientation, in every direction."""
        radius = self._radii()[:, None]
        angle = np.linspace(0.0, 2 * np.pi, 64, endpoint=False)
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        a, b, c, d = self._jacobian(x, y, radius**2, *self._radial(radius**2))
        turned = np.flatnonzero(np.any(a * d - b * c <= 0, axis=1))
        return _MARGIN * float(radius[turned[0] - 1, 0]) if len(turned) else self.limit

    def _radii(self) -> Float64:
        """Radii from 0 to the limit, evenly spaced in angle."""
        radii: Float64 = np.tan(np.linspace(0.0, np.arctan(self.limit), _TABLE_SIZE))
        return radii

    def _radial(self, s: Float64) -> tuple[Float64, Float64]:
        """The radial factor at s = r^2, and its derivative by s."""
        n, dn = _evaluate(self.numerator, s)
        if not self.is_rational:
            return n, dn
        d, dd = _evaluate(self.denominator, s)
        return n / d, (dn * d - n * dd) / (d * d)

    def distort(self, x: Float64, y: Float64) -> tuple[Float64, Float64, Bool]:
        s = x * x + y * y
        inside = s < self.limit**2
        s = np.where(inside, s, 0.0)
        xd, yd = self._apply(x, y, s, self._radial(s)[0])
        return xd, yd, inside

    def _apply(
        self, x: Float64, y: Float64, s: Float64, factor: Float64
    ) -> tuple[Float64, Float64]:
        p1, p2 = self.p1, self.p2
        xd = x * factor + 2 * p1 * x * y + p2 * (s + 2 * x * x)
        yd = y * factor + p1 * (s + 2 * y * y) + 2 * p2 * x * y
        if self.has_prism:
            s1, s2, s3, s4 = self.prism
            xd, yd = xd + s * (s1 + s2 * s), yd + s * (s3 + s4 * s)
        return xd, yd

    def _jacobian(
        self, x: Float64, y: Float64, s: Float64, factor: Float64, slope: Float64
    ) -> tuple[Float64, Float64, Float64, Float64]:
        """d(xd, yd) / d(x, y), row by row."""
        p1, p2 = self.p1, self.p2
        s1, s2, s3, s4 = self.prism
        gx, gy = s1 + 2 * s2 * s, s3 + 2 * s4 * s  # derivatives of the prism terms by s
        cross = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
        a = factor + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x + 2 * x * gx
        d = factor + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x + 2 * y * gy
        return a, cross + 2 * y * gx, cross + 2 * x * gy, d

    def undistort(self, x: Float64, y: Float64) -> tuple[Float64, Float64]:
        """Newton's method, started at the exact inverse of the radial part.

        Where it does not converge, it starts again from the nearest ray of a grid.
        """
        radius = np.hypot(x, y)
        start = np.interp(radius, self.distorted_radii, self.radii)
        scale = np.divide(start, radius, out=np.ones_like(radius), where=radius > 0)
        xn, yn = self._reject(x, y, *self._newton(x, y, x * scale, y * scale))
        lost = np.flatnonzero(np.isnan(xn) & np.isfinite(radius))
        if len(lost):
            rays, tree = self._grid
            xl, yl = x[lost], y[lost]
            nearest = tree.query(np.stack([xl, yl], axis=1))[1]
            xs, ys = rays[:, np.minimum(nearest, tree.n - 1)]  # n where the distance overflows
            xn[lost], yn[lost] = self._reject(xl, yl, *self._newton(xl, yl, xs, ys))
        return xn, yn

    @functools.cached_property
    def _grid(self) -> tuple[Float64, cKDTree]:
        """Rays (2, N) of the monotone range, and a tree of their distorted coordinates."""
        radius = self.radii[:: _TABLE_SIZE // 128, None]
        angle = np.linspace(0.0, 2 * np.pi, 128, endpoint=False)
        x, y = (radius * np.cos(angle)).ravel(), (radius * np.sin(angle)).ravel()
        s = x * x + y * y
        landed = self._apply(x, y, s, self._radial(s)[0])
        return np.stack([x, y]), cKDTree(np.stack(landed, axis=1))

    def _newton(self, x: Float64, y: Float64, xn: Float64, yn: Float64) -> tuple[Float64, Float64]:
        """Newton steps from (xn, yn) to the ray with the distorted coordinates (x, y)."""
        for _ in range(_NEWTON_STEPS):
            s = xn * xn + yn * yn
            factor, slope = self._radial(s)
            xd, yd = self._apply(xn, yn, s, factor)
            ex, ey = x - xd, y - yd
            if not np.any(np.abs(ex) + np.abs(ey) > 1e-13):
                break
            a, b, c, d = self._jacobian(xn, yn, s, factor, slope)
            with np.errstate(divide="ignore", invalid="ignore"):
                determinant = a * d - b * c
                xn, yn = xn + (d * ex - b * ey) / determinant, yn + (a * ey - c * ex) / determinant
            xn, yn = self._clip(xn, yn)
        return xn, yn

    def _clip(self, x: Float64, y: Float64) -> tuple[Float64, Float64]:
        """Clip steps to the monotone range."""
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.minimum(1.0, self.limit * (1 - 1e-12) / np.hypot(x, y))
        return x * scale, y * scale

    def _reject(self, x: Float64, y: Float64, xn: Float64, yn: Float64) -> tuple[Float64, Float64]:
        """NaN where no ray in the monotone range has the distorted coordinates x, y."""
        xd, yd, inside = self.distort(xn, yn)
        with np.errstate(invalid="ignore"):
            good = inside & (np.abs(xd - x) + np.abs(yd - y) < 1e-9 * (1 + np.hypot(x, y)))
        return np.where(good, xn, np.nan), np.where(good, yn, np.nan)


class Equidistant:
    """Fisheye (Kannala and Brandt 2006): theta_d = theta (1 + k1 theta^2 + ... + k4 theta^8)."""

    def __init__(self, coefficients: tuple[float, ...]) -> None:
        k1, k2, k3, k4 = coefficients
        self.polynomial = np.array([k4, k3, k2, k1, 1.0])  # in theta^2, highest power first
        self.slope = self.polynomial * np.array([9.0, 7.0, 5.0, 3.0, 1.0])
        turns = _MARGIN * np.sqrt(_positive_roots(self.slope))
        self.limit = float(min([_LIMIT_ANGLE, *turns]))
        self.angles = np.linspace(0.0, self.limit, _TABLE_SIZE)
        self.distorted_angles = self.angles * np.polyval(self.polynomial, self.angles**2)

    def distort(self, x: Float64, y: Float64) -> tuple[Float64, Float64, Bool]:
        radius = np.hypot(x, y)
        theta = np.arctan(radius)
        distorted = theta * np.polyval(self.polynomial, theta * theta)
        scale = np.divide(distorted, radius, out=np.ones_like(radius), where=radius > 1e-12)
        return x * scale, y * scale, theta < self.limit

    def undistort(self, x: Float64, y: Float64) -> tuple[Float64, Float64]:
        distorted = np.hypot(x, y)
        theta = np.interp(distorted, self.distorted_angles, self.angles)
        for _ in range(_NEWTON_STEPS):
            s = theta * theta
            error = distorted - theta * np.polyval(self.polynomial, s)
            with np.errstate(divide="ignore", invalid="ignore"):
                theta = np.clip(theta + error / np.polyval(self.slope, s), 0.0, self.limit)
            if not np.any(np.abs(error) > 1e-13):
                break
        scale = np.divide(
            np.tan(theta), distorted, out=np.ones_like(theta), where=distorted > 1e-12
        )
        inside = distorted < self.distorted_angles[-1]
        return np.where(inside, x * scale, np.nan), np.where(inside, y * scale, np.nan)


def _positive_roots(polynomial: Float64) -> Float64:
    roots = np.roots(polynomial)
    real: Float64 = roots[np.abs(roots.imag) < 1e-9 * (1 + np.abs(roots.real))].real
    return real[real > 0]


def _evaluate(polynomial: Float64, s: Float64) -> tuple[Float64, Float64]:
    """Value and derivative of a cubic at s."""
    c3, c2, c1, c0 = polynomial
    return ((c3 * s + c2) * s + c1) * s + c0, (3 * c3 * s + 2 * c2) * s + c1
