# SPDX-License-Identifier: Apache-2.0
"""Windows that cover an image, for networks with an input of fixed size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float32 = npt.NDArray[np.float32]
_PADDING = 127  # gray level around images
_STRETCH = 1.05  # a window grows by at most this to cover a whole side


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


@dataclass(frozen=True)
class Window:
    """A square part of an image, which it may exceed.

    Attributes:
        top: first row [px].
        left: first column [px].
        side: [px].
    """

    top: int
    left: int
    side: int

    def cut(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """(H, W, 3) -> (side, side, 3); gray outside of the image."""
        top, left = max(0, self.top), max(0, self.left)
        part = image[top : self.top + self.side, left : self.left + self.side]
        if part.shape[:2] == (self.side, self.side):
            return part
        found = np.full((self.side, self.side, image.shape[2]), _PADDING, np.uint8)
        y, x = top - self.top, left - self.left
        found[y : y + part.shape[0], x : x + part.shape[1]] = part
        return found

    def placed(
        self, maps: Float32, seen: int, image: tuple[int, ...], size: tuple[int, ...]
    ) -> tuple[tuple[slice, slice], Float32, Float32]:
        """Maps of the window on the pixels of a map of the whole image.

        Args:
            maps: (C, h, w) of the window, scaled to seen x seen pixels.
            seen: side of the input of the network [px].
            image: height and width of the image [px].
            size: height and width of the map of the image.

        Returns:
            rows and columns of the map that the window covers; (C, rows, columns) the maps there,
            linear between their pixels; (rows, columns) weights in 0..1, 1 in the middle.
        """
        rows = _along(self.top, self.side, image[0] / size[0], size[0])
        columns = _along(self.left, self.side, image[1] / size[1], size[1])
        y, x = (_linear(p[1], seen, n) for p, n in zip((rows, columns), maps.shape[1:]))
        soft = [1 - np.abs(2 * p[1] - 1) for p in (rows, columns)]
        weights = np.maximum(soft[0], 1e-3)[:, None] * np.maximum(soft[1], 1e-3)
        return (rows[0], columns[0]), y @ maps @ x.T, weights.astype(np.float32)


def square_windows(image: tuple[int, ...], side: int, overlap: float) -> list[Window]:
    """Square windows that cover an image.

    A window that is larger than the image in one direction is centered there. One that all but
    covers the image in one direction grows to cover it.

    Args:
        image: height and width [px].
        side: of the windows [px].
        overlap: of neighboring windows, share of a window.
    """
    short = min(image)
    side = short if side < short <= side * _STRETCH else side
    tops, lefts = (starts(n, side, overlap) if n > side else [-((side - n) // 2)] for n in image)
    return [Window(top, left, side) for top in tops for left in lefts]


def _along(start: int, side: int, step: float, count: int) -> tuple[slice, npt.NDArray[np.float64]]:
    """The pixels of a map whose centers are in a window, and where there, 0..1.

    Args:
        start: of the window [px].
        side: of the window [px].
        step: pixels of the image per pixel of the map.
        count: pixels of the map.
    """
    where = ((np.arange(count) + 0.5) * step - start) / side
    inside = np.flatnonzero((where >= 0) & (where <= 1))
    return slice(inside[0], inside[-1] + 1), where[inside]


def _linear(where: npt.NDArray[np.float64], seen: int, count: int) -> Float32:
    """(len(where), count) matrix that interpolates linearly between values on a grid.

    Grids of convolutions with a stride have their outer values on the outer pixels where the stride
    divides `seen` - 1 (513 pixels, 33 values); others have values in the middle of equal parts.

    Args:
        where: places in the window, 0..1.
        seen: pixels of the network's input.
        count: values of the grid.
    """
    on_pixels = count > 1 and (seen - 1) % (count - 1) == 0
    at = (where * seen - 0.5) * (count - 1) / (seen - 1) if on_pixels else where * count - 0.5
    at = at.clip(0, count - 1)
    found: Float32 = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(count)), dtype=np.float32)
    return found
