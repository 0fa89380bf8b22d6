# SPDX-License-Identifier: Apache-2.0
"""Per-point times of a sweep, in the fields and units of common drivers.

Unit and duration come from the bulk of the times. A time far from the bulk is unknown (NaN) for its
point alone. Times that cannot be those of a sweep are left out with a problem; the sweep stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud_layout import Array
from pcseg_core.errors import InputError

Float64 = npt.NDArray[np.float64]

_BASE_NAMES = (
    "t",
    "time",
    "timestamp",
    "time_stamp",
    "time_offset",
    "offset_time",
    "stamps",
    "timestamps",
    "offset",
    "point_time",
    "relative_time",
)
UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
TIME_NAMES = (
    *(name for name in _BASE_NAMES if name != "offset"),  # a bare "offset" may be anything
    *(f"{name}_{unit}" for name in _BASE_NAMES for unit in UNITS_S),
)
"""Names of fields with per-point times, by priority; a suffix _s, _ms, _us or _ns is the unit."""

LONGEST_SWEEP_S = 5.0
"""Times of the points of one sweep span at most this [s]."""

_LOOKS_LIKE_TIME = re.compile(r"time|stamp|(^|_)(s|sec|ms|msec|us|usec|ns|nsec)$", re.IGNORECASE)
_STAMP_POSITION = {"start": 0.0, "mid": 0.5, "end": 1.0}
# Possible duration of a sweep, for which a unit is chosen [s].
_SPAN_S = (5e-4, LONGEST_SWEEP_S)
_USUAL_SPAN_S = 0.1
# Times farther from zero are absolute, not relative to the stamp [s].
_MAX_RELATIVE_S = 10.0
# Largest difference between the stamp and the first point for clocks that agree [s].
_MAX_LEAD_S = 2.0
# Seconds since 1970 of the years 2001 to 2099; an absolute time fits it in one unit only.
_EPOCH_S = (1e9, 4.1e9)
# With fewer points the unit cannot be guessed.
_MIN_POINTS_FOR_UNIT = 100
# The bulk of the times lies between these quantiles.
_BULK = (0.05, 0.95)
# Times farther from the median than the duration of the bulk, and at least this, are outliers [s].
_MIN_OUTLIER_S = 0.25


def find_time_field(names: Iterable[str], time_field: str) -> str | None:
    """Name of the field with the per-point times; None if the cloud has none, or for "none".

    "auto" takes the first of `TIME_NAMES`; "auto:NAME" takes NAME where the cloud has it.

    Raises:
        InputError: a field is requested by name and missing.
    """
    if time_field == "none":
        return None
    if time_field.partition(":")[0] == "auto":
        wanted = (time_field.partition(":")[2], *TIME_NAMES)
        return next((name for name in wanted if name in names), None)
    if time_field not in names:
        raise InputError(
            f"cloud: no time field '{time_field}' (fields: {', '.join(names)}); set time_field to "
            "one of them, to 'auto' or to 'none'"
        )
    return time_field


def possible_time_fields(names: Iterable[str]) -> list[str]:
    """Fields whose names look like times; "auto" knows the names in `TIME_NAMES` only."""
    return [name for name in names if _LOOKS_LIKE_TIME.search(name)]


def unit_of_name(name: str) -> str:
    """Unit that the suffix of a field's name gives: "s", "ms", "us", "ns", or "auto"."""
    suffix = name.rpartition("_")[2] if "_" in name else ""
    return suffix if suffix in UNITS_S else "auto"


def read_time(
    values: Array, unit: str, stamp_reference: str, stamp_ns: int
) -> tuple[Float64 | None, str]:
    """Times relative to the stamp.

    Args:
        values: (N,) as stored, any number type. NaN and infinity become NaN; in absolute times 0
            (no return) does too.
        unit, stamp_reference: see `pcseg_core.cloud.read_cloud`.
        stamp_ns: stamp of the message.

    Returns:
        (N,) float64 [s], NaN where unknown; None if the times cannot be those of a sweep. And what
        is wrong with them, or "".

    Raises:
        InputError: `unit` or `stamp_reference` is unknown.
    """
    if unit not in ("auto", *UNITS_S) or stamp_reference not in ("auto", *_STAMP_POSITION):
        raise InputError(
            "cloud: time_unit must be auto, s, ms, us or ns, and stamp_reference auto, start, mid "
            f"or end; got {unit} and {stamp_reference}"
        )
    times = values.astype(np.float64)
    times[np.isinf(times)] = np.nan
    shown = times[np.isfinite(times) & (times != 0)]
    if len(shown) and np.median(shown[:: _stride(len(shown))]) >= _EPOCH_S[0]:
        times[times == 0] = np.nan
    known = np.isfinite(times)
    if not known.any():
        return times, ""
    with np.errstate(over="ignore", invalid="ignore"):  # a span of 1e308 becomes inf
        bulk = times[known]
        low, middle, high = np.quantile(bulk[:: _stride(len(bulk))], (_BULK[0], 0.5, _BULK[1]))
        span = (high - low) / (_BULK[1] - _BULK[0])
        chosen = _guess_unit(values.dtype, middle, span, len(bulk)) if unit == "auto" else unit
        scale = UNITS_S[chosen]
        far = known & (np.abs(times - middle) > max(span, _MIN_OUTLIER_S / scale))
        first = float(times.min(where=known & ~far, initial=np.inf))
        last = float(times.max(where=known & ~far, initial=-np.inf))
        duration_s = (last - first) * scale if np.isfinite(span) else np.inf
    if not duration_s <= LONGEST_SWEEP_S:
        return None, (
            f"the times of the points span {duration_s:g} s as {chosen}, more than "
            f"{LONGEST_SWEEP_S:g} s, and are left out; set time_unit, or time_field to another "
            "field or 'none'"
        )
    times[far] = np.nan
    offset = (times - first) * scale  # relative to the first point, to keep precision
    if stamp_reference != "auto":
        offset -= _STAMP_POSITION[stamp_reference] * duration_s
    else:
        offset += _lead(first * scale, stamp_ns)
    outliers = int(np.count_nonzero(far))
    share = f"{outliers} of {len(times)} points have times far from the others, taken as unknown"
    return offset, share if outliers else ""


def _stride(count: int) -> int:
    """Step that keeps a few thousand of `count` values, enough for their quantiles."""
    return max(1, count // 4096)


def _lead(first_s: float, stamp_ns: int) -> float:
    """Time of the first point relative to the stamp [s]."""
    if abs(first_s) <= _MAX_RELATIVE_S:
        return first_s
    # Absolute times. If their clock is not that of the stamp, only their differences count; most
    # drivers stamp the start of a sweep.
    lead = first_s - stamp_ns * 1e-9
    return lead if abs(lead) <= _MAX_LEAD_S else 0.0


def _guess_unit(dtype: np.dtype[Any], middle: float, span: float, count: int) -> str:
    """The unit in which the times are an epoch or the duration of a sweep."""
    for unit, scale in UNITS_S.items():
        if _EPOCH_S[0] <= middle * scale <= _EPOCH_S[1] and dtype.itemsize == 8:
            return unit
    default = "s" if dtype.kind == "f" else "ns"
    if span == 0 or count < _MIN_POINTS_FOR_UNIT:
        return default
    possible = [u for u, scale in UNITS_S.items() if _SPAN_S[0] <= span * scale <= _SPAN_S[1]]
    if default in possible or not possible:
        return default
    return min(possible, key=lambda u: abs(np.log(span * UNITS_S[u] / _USUAL_SPAN_S)))
