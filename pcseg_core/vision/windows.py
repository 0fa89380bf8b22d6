# SPDX-License-Identifier: Apache-2.0
"""Windows that cover an image, for networks with an input of fixed size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Starts of evenly spread windows that cover a length, with at least this overlap."""
    if length <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // step) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def mean_of_windows(
    predict: Callable[[Tensor], Tensor], image: Tensor, side: int, overlap: float = 0.25
) -> Tensor:
    """Mean prediction over square windows of an image.

    Args:
        predict: (1, 3, side, side) -> (C, h, w), of one size for all windows.
        image: (1, 3, H, W), both sides at least `side`.
        side: of the windows [px].
        overlap: of neighboring windows, share of a window.

    Returns:
        (C, H * h / side, W * w / side) rounded down.
    """
    height, width = image.shape[-2:]
    total: Tensor | None = None
    count = torch.zeros(0)
    for top in starts(height, side, overlap):
        for left in starts(width, side, overlap):
            found = predict(image[..., top : top + side, left : left + side])
            rows, columns = found.shape[-2:]
            if total is None:
                size = height * rows // side, width * columns // side
                total, count = found.new_zeros(len(found), *size), found.new_zeros(size)
            y = min(round(top * rows / side), total.shape[1] - rows)
            x = min(round(left * columns / side), total.shape[2] - columns)
            total[:, y : y + rows, x : x + columns] += found
            count[y : y + rows, x : x + columns] += 1
    assert total is not None
    return total / count.clamp_min(1)
