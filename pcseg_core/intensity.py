# SPDX-License-Identifier: Apache-2.0
"""Scale of the intensities of a topic or recording.

Drivers publish 0..1, 0..255 or raw counts; the network sees 0..1, clipped. The factor is, in this
order: given by the user; stored in the checkpoint by the training; known from the type of the
field (uint8); guessed from the bulk of the first sweeps. It is held for the topic or recording.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Array = npt.NDArray[Any]

# Quantile of the intensities that a range must contain. A larger share of outliers changes it.
_QUANTILE = 0.99
# Intensities of 0..1 may exceed 1 at retroreflectors.
_UNIT_RANGE_MARGIN = 2.0
_SWEEPS_TO_GUESS = 10
_FEWEST_VALUES = 100


class IntensityScale:
    """Factor that maps the intensities of one topic or recording to 0..1.

    Threads may share it.

    Args:
        given: factor set by the user, for example 1/255; None or 0 if not set.
        trained: factor stored in the checkpoint; None if unknown.
        sweeps: number of sweeps after which a guess is final.

    Raises:
        InputError: a factor is negative or not finite.

    Attributes:
        factor: the factor; None before the first values.
        source: "given", "checkpoint", "range of uint8", "guessed from N sweeps" or "" (no values).
    """

    def __init__(
        self,
        given: float | None = None,
        trained: float | None = None,
        sweeps: int = _SWEEPS_TO_GUESS,
    ) -> None:
        self.factor: float | None = None
        self.source = ""
        for factor, source in ((trained, "checkpoint"), (given, "given")):
            if factor:
                if not (np.isfinite(factor) and factor > 0):
                    raise InputError(
                        f"intensity scale {factor} ({source}): expected a factor above 0, such as "
                        "1/255, or 0 to guess it"
                    )
                self.factor, self.source = float(factor), source
        self._sweeps = 0 if self.factor is not None else sweeps
        self._tops: list[float] = []
        self._lock = threading.Lock()

    @property
    def final(self) -> bool:
        """Further sweeps do not change the factor."""
        return self.factor is not None and len(self._tops) >= self._sweeps

    def observe(self, values: Array) -> float:
        """Take the intensities of a sweep into account and return the factor.

        Args:
            values: (N,) as stored in the message. Values that are not finite or not positive do
                not count; a sweep with less than 100 others changes only a missing factor.
        """
        with self._lock:
            if self.factor is None and values.dtype == np.uint8:
                self.factor, self.source, self._sweeps = 1 / 255, "range of uint8", 0
            if not self.final:
                self._guess(values)
            return 1.0 if self.factor is None else self.factor

    def apply(self, values: Array) -> npt.NDArray[np.float32]:
        """`observe`, and the scaled intensities (N,); a view where the factor is 1.

        Outliers may exceed 1: the network clips them.
        """
        factor = self.observe(values)
        if factor == 1.0:
            return values.astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # 1e300 becomes inf
            return values.astype(np.float32) * np.float32(factor)

    def __str__(self) -> str:
        """Sentence for logs."""
        if self.factor is None:
            return "intensity scale not known yet"
        return f"intensity scale {self.factor:.6g} ({self.source})"

    def _guess(self, values: Array) -> None:
        with np.errstate(invalid="ignore"):
            counted = values[np.isfinite(values) & (values > 0)]
        top = float(np.quantile(counted, _QUANTILE)) if len(counted) else 0.0
        if len(counted) < _FEWEST_VALUES:
            if self.factor is None and len(counted):
                self.factor, self.source = _factor(top, values.dtype), "guessed from few points"
            return
        self._tops.append(top)
        self.factor = _factor(float(np.median(self._tops)), values.dtype)
        sweeps = len(self._tops)
        self.source = f"guessed from {sweeps} sweep{'s' if sweeps > 1 else ''}"


def guess_intensity_scale(values: Array) -> float:
    """Factor that maps the intensities (N,) of common drivers to 0..1.

    uint8 is divided by 255. Other types are 0..1 (floats), 0..255, or 0 to a power of two,
    whichever is the smallest range that contains 99 % of the values.
    """
    return IntensityScale(sweeps=1).observe(values)


def _factor(top: float, dtype: np.dtype[Any]) -> float:
    """Factor for intensities of which nearly all are at most `top`."""
    if dtype.kind == "f" and top <= _UNIT_RANGE_MARGIN:
        return 1.0
    # Powers of two: the guess hardly depends on which sweeps it is made from.
    return 1 / 255 if top <= 255 else float(2.0 ** -np.ceil(np.log2(top)))
