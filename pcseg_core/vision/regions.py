# SPDX-License-Identifier: Apache-2.0
"""Connected regions of label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pcseg_core.labels import IGNORE


def connected_regions(labels: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Split a label map into 4-connected regions of equal label.

    Works on runs of equal labels within rows, which are far fewer than pixels.

    Args:
        labels: (H, W) integers; negative pixels belong to no region.

    Returns:
        (H, W) int32 region ids, consecutive from 0; IGNORE for negative labels.
    """
    height, width = labels.shape
    if labels.size == 0:
        return np.zeros((height, width), np.int32)
    starts = np.ones((height, width), bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = np.cumsum(starts.ravel()).reshape(height, width) - 1
    # Two runs touch in many columns: count the pair only where one of them begins.
    touching = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])
    above, below = runs[:-1][touching], runs[1:][touching]
    count = int(runs[-1, -1]) + 1
    graph = coo_array((np.ones(len(above), bool), (above, below)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    valid = labels[starts] >= 0  # in the order of the runs
    used = np.zeros(int(component.max()) + 1, bool)
    used[component[valid]] = True
    renumbered = np.where(used, np.cumsum(used) - 1, IGNORE).astype(np.int32)
    regions: npt.NDArray[np.int32] = renumbered[component][runs]
    return regions
