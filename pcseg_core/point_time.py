# SPDX-License-Identifier: Apache-2.0
"""Per-point times of a sweep, in the fields and units of common drivers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud_layout import Array
from pcseg_core.errors import InputError

Float64 = npt.NDArray[np.float64]

TIME_NAMES = ("t", "time", "timestamp", "time_stamp", "time_offset", "offset_time")

UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_STAMP_POSITION = {"start": 0.0, "mid": 0.5, "end": 1.0}
# Possible time span of the points of one message [s].
_SPAN_S = (5e-4, 2.0)
_USUAL_SPAN_S = 0.1
# Times farther from zero are absolute, not relative to the stamp [s].
_MAX_RELATIVE_S = 10.0
# Seconds since 1970 of the years 2001 to 2099; an absolute time fits it in one unit only.
_EPOCH_S = (1e9, 4.1e9)
# With fewer points the unit cannot be guessed.
_MIN_POINTS_FOR_UNIT = 100


def find_time_field(names: Iterable[str], time_field: str) -> str | None:
    """Name of the field with the per-point times; None if the cloud has none, or for "none".

    Raises:
        InputError: a field is requested by name and missing.
    """
    if time_field == "none":
        return None
    if time_field == "auto":
        return next((name for name in TIME_NAMES if name in names), None)
    if time_field not in names:
        raise InputError(
            f"cloud: no time field '{time_field}' (fields: {', '.join(names)}); set time_field to "
            "one of them, to 'auto' or to 'none'"
        )
    return time_field


def read_time(values: Array, unit: str, stamp_reference: str, stamp_ns: int) -> Float64:
    """Times in s relative to the stamp.

    Args:
        values: (N,) as stored, any number type. NaN stays NaN. In absolute times 0 (no return)
            becomes NaN.
        unit, stamp_reference: see `pcseg_core.cloud.read_cloud`.
        stamp_ns: stamp of the message.

    Raises:
        InputError: `unit` or `stamp_reference` is unknown, or no unit is possible.
    """
    if unit not in ("auto", *UNITS_S) or stamp_reference not in ("auto", *_STAMP_POSITION):
        raise InputError(
            "cloud: time_unit must be auto, s, ms, us or ns, and stamp_reference auto, start, mid "
            f"or end; got {unit} and {stamp_reference}"
        )
    times = values.astype(np.float64)
    known = np.isfinite(times)
    if times.max(where=known, initial=0.0) >= _EPOCH_S[0]:
        times[times == 0.0] = np.nan
        known = np.isfinite(times)
    if not known.any():
        return times
    first = float(times.min(where=known, initial=np.inf))
    last = float(times.max(where=known, initial=-np.inf))
    if unit == "auto":
        unit = _guess_unit(values.dtype, first, last, int(known.sum()))
    scale = UNITS_S[unit]
    offset = (times - first) * scale  # relative to the first point, to keep precision
    if stamp_reference != "auto":
        return offset - _STAMP_POSITION[stamp_reference] * (last - first) * scale
    return offset + _lead(first * scale, stamp_ns)


def _lead(first_s: float, stamp_ns: int) -> float:
    """Time of the first point relative to the stamp [s]."""
    if abs(first_s) <= _MAX_RELATIVE_S:
        return first_s
    # Absolute times. If their clock is not that of the stamp, only their differences count; most
    # drivers stamp the start of a sweep.
    lead = first_s - stamp_ns * 1e-9
    return lead if abs(lead) <= _SPAN_S[1] else 0.0


def _guess_unit(dtype: np.dtype[Any], first: float, last: float, count: int) -> str:
    for unit, scale in UNITS_S.items():
        if _EPOCH_S[0] <= first * scale <= _EPOCH_S[1] and dtype.itemsize == 8:
            return unit
    default = "s" if dtype.kind == "f" else "ns"
    span = last - first
    if span == 0 or count < _MIN_POINTS_FOR_UNIT:
        return default
    possible = [u for u, scale in UNITS_S.items() if _SPAN_S[0] <= span * scale <= _SPAN_S[1]]
    if default in possible:
        return default
    if not possible:
        raise InputError(
            f"cloud: the times of its points span {span:g}, which is no sweep in s, ms, us or ns; "
            "set time_unit, or time_field to 'none'"
        )
    return min(possible, key=lambda u: abs(np.log(span * UNITS_S[u] / _USUAL_SPAN_S)))
