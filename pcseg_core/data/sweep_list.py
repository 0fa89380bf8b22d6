# SPDX-License-Identifier: Apache-2.0
"""Lists of sweeps: CSV files whose first columns name a source and a place in it."""

from __future__ import annotations

import csv
from pathlib import Path

from pcseg_core.errors import InputError

COLUMNS = ("source", "scene", "sweep", "index")


def read_list(file: Path, source: str) -> set[int]:
    """Places of the sweeps of a source that a list names.

    Raises:
        InputError: not such a list, or it names no sweep of the source.
    """
    try:
        rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
        found = {int(row["index"]) for row in rows if row["source"] == source}
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{file}: not a list of `pcseg select`: {error}") from error
    if not found:
        named = ", ".join(sorted({str(row["source"]) for row in rows})[:5]) or "no source"
        raise InputError(f"{file}: names no sweep of {source}; it names those of {named}")
    return found
