# SPDX-License-Identifier: Apache-2.0
"""Labels of a sweep drawn over a camera's image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pcseg_core.projection import Projection

RGB = npt.NDArray[np.uint8]


def draw_labels(
    image: RGB, projection: Projection, colors: RGB, *, radius_px: int = 1, opacity: float = 0.7
) -> RGB:
    """Draw the visible points as squares, near ones over far ones.

    Args:
        image: (H, W, 3) RGB; not changed.
        projection: of the N points into this image.
        colors: (N, 3) color of each point.
        radius_px: half side of a square [px].
        opacity: opacity of a square, 0..1.

    Returns:
        (H, W, 3) picture.
    """
    height, width = image.shape[:2]
    seen = np.flatnonzero(projection.visible)
    seen = seen[np.argsort(-projection.depth[seen])]
    pixels = np.rint(projection.uv[seen]).astype(np.int32)
    beside = np.arange(-radius_px, radius_px + 1, dtype=np.int32)
    rows = np.clip(pixels[:, 1, None, None] + beside[:, None], 0, height - 1)
    columns = np.clip(pixels[:, 0, None, None] + beside, 0, width - 1)
    squares = (rows * width + columns).reshape(len(seen), -1)
    owner = np.full(height * width, -1, np.int32)
    owner[squares] = seen[:, None]  # the last assignment wins: the nearest point
    painted = np.flatnonzero(owner >= 0)
    picture: RGB = image.reshape(-1, 3).copy()
    below = (1.0 - opacity) * picture[painted]
    picture[painted] = np.rint(np.float32(opacity) * colors[owner[painted]] + below)
    return picture.reshape(image.shape)
