# SPDX-License-Identifier: Apache-2.0
"""Results of the native library beside those of plain numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from pcseg_core import cloud_records
from pcseg_core.labels import LabelSpace
from pcseg_core.online import (
    boxes,
    free_space,
    grid,
    instances,
    label_images,
    moving,
    output_clouds,
    row_reductions,
    thing_parts,
)

properties = settings(max_examples=25, deadline=None)
MODULES = (
    *(boxes, cloud_records, free_space, grid, instances, label_images, moving, output_clouds),
    *(row_reductions, thing_parts),
)
SPACE = LabelSpace.load("street")
SEEDS = st.integers(0, 9999)
ODD = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, 1e-30)


@contextmanager
def plain() -> Iterator[None]:
    """Without the native library."""
    patches = [mock.patch.object(module, "optional_library", lambda: None) for module in MODULES]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def both(compute: Callable[[], Any]) -> tuple[Any, Any]:
    """The native result, and that of numpy."""
    native = compute()
    with plain():
        return native, compute()


def sweep(rng: np.random.Generator, count: int, odd: float = 0.1) -> np.ndarray:
    """(N, 3) points, some on one place, some that are no returns; rows of a wider array."""
    wide = rng.normal(size=(count, 5)).astype(np.float32) * [20, 20, 2, 1, 1]
    wide[rng.random(count) < 0.2] = wide[:1]
    wide[rng.random(count) < odd] = 0
    chosen = rng.random(wide.shape) < odd / 3
    wide[chosen] = rng.choice(ODD, int(chosen.sum()))
    return wide.astype(np.float32)[:, 1:4] if rng.random() < 0.5 else wide[:, :3].astype(np.float32)
