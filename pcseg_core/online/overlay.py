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
    """Draw the points that the camera sees as squares, near ones over far ones.

    Args:
        image: (H, W, 3) RGB; not changed.
        projection: of the N points into this image.
        colors: (N, 3) colour of each point.
        radius_px: half side of a square.
        opacity: of a square, 0 to 1.

    Returns:
        (H, W, 3) picture.
    """
    height, width = image.shape[:2]
    seen = np.flatnonzero(projection.visible)
    seen = seen[np.argsort(-projection.depth[seen])]
    pixels = np.rint(projection.uv[seen]).astype(np.int64)
    layer = image.copy()
    for row in range(-radius_px, radius_px + 1):
        for column in range(-radius_px, radius_px + 1):
            v = np.clip(pixels[:, 1] + row, 0, height - 1)
            u = np.clip(pixels[:, 0] + column, 0, width - 1)
            layer[v, u] = colors[seen]
    blended = opacity * layer.astype(np.float32) + (1.0 - opacity) * image
    picture: RGB = np.rint(blended).astype(np.uint8)
    return picture
