# SPDX-License-Identifier: Apache-2.0
"""Scale of the intensities of a topic or recording.

Drivers publish 0..1, 0..255 or raw counts; the network sees 0..1, clipped. The factor is, in this
order: given by the user; stored in the checkpoint by the training; known from the type of the
field (uint8); guessed from the bulk of the first sweeps. It is held for the topic or recording.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Array = npt.NDArray[Any]

# Share of the positive intensities that a range must contain.
_QUANTILE = 0.99
# Intensities of 0..1 may exceed 1 at retroreflectors.
_UNIT_RANGE_MARGIN = 2.0
_SWEEPS_TO_GUESS = 10
_FEWEST_VALUES = 100
_SAMPLE = 4096


class IntensityScale:
    """Factor that maps the intensities of one topic or recording to 0..1.

    One thread at a time may use it.

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
        self._samples: list[Array] = []

    @property
    def final(self) -> bool:
        """Further sweeps do not change the factor."""
        return self.factor is not None and len(self._samples) >= self._sweeps

    def observe(self, values: Array) -> float:
        """Take the intensities of a sweep into account and return the factor.

        Args:
            values: (N,) as stored in the message. Values that are not finite or not positive do
                not count; a sweep with less than 100 others changes only a missing factor.
        """
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
            scaled: npt.NDArray[np.float32] = values.astype(np.float32) * np.float32(factor)
            return scaled

    def __str__(self) -> str:
        """Sentence for logs."""
        if self.factor is None:
            return "intensity scale not known yet"
        return f"intensity scale {self.factor:.6g} ({self.source})"

    def _guess(self, values: Array) -> None:
        counted = values[np.isfinite(values) & (values > 0)]
        if len(counted) < _FEWEST_VALUES:
            if self.factor is None and len(counted):
                self.factor, self.source = _factor(counted), "guessed from few points"
            return
        self._samples.append(counted[:: max(1, len(counted) // _SAMPLE)].astype(counted.dtype))
        self.factor = _factor(np.concatenate(self._samples))
        sweeps = len(self._samples)
        self.source = f"guessed from {sweeps} sweep{'s' if sweeps > 1 else ''}"
        if self.final:
            self._samples = [np.zeros(0)] * sweeps  # only their number counts


def guess_intensity_scale(values: Array) -> float:
    """Factor that maps the intensities (N,) of common drivers to 0..1.

    uint8 is divided by 255. Other types are 0..1 (floats), 0..255, or 0 to a power of two,
    whichever is the smallest range that contains 99 % of the values.
    """
    return IntensityScale(sweeps=1).observe(values)


def _factor(values: Array) -> float:
    """Factor for intensities (N,), positive."""
    top = float(np.quantile(values, _QUANTILE))
    if values.dtype.kind == "f" and top <= _UNIT_RANGE_MARGIN:
        return 1.0
    # Powers of two: the guess hardly depends on which sweeps it is made from.
    return 1 / 255 if top <= 255 else float(2.0 ** -np.ceil(np.log2(top)))
