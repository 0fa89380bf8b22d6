# SPDX-License-Identifier: Apache-2.0
"""Smooth random functions of the position."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_WAVES = 8


class SmoothNoise:
    """A sum of plane waves with random directions, mean 0 and deviation about 1.

    Args:
        rng: draws directions and phases.
        size_m: typical wave length; waves are 0.6 to 2 times as long [m].
    """

    def __init__(self, rng: np.random.Generator, size_m: float) -> None:
        direction = rng.uniform(0, 2 * np.pi, _WAVES)
        rate = 2 * np.pi / (size_m * rng.uniform(0.6, 2.0, _WAVES))
        self._kx, self._ky = (rate * np.cos(direction), rate * np.sin(direction))
        self._phase = rng.uniform(0, 2 * np.pi, _WAVES)

    def __call__(self, x: Array, y: Array) -> Array:
        """(N,) values at positions (N,), (N,) [m]."""
        total = np.zeros(len(x))
        for kx, ky, phase in zip(self._kx, self._ky, self._phase):
            total += np.sin(kx * x + ky * y + phase)
        result: Array = total * np.sqrt(2 / _WAVES)
        return result
