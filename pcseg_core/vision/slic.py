# SPDX-License-Identifier: Apache-2.0
"""SLIC superpixels (Achanta et al., TPAMI 2012): local k-means of color and position.

The image is resampled to a grid of square cells, one per segment. The nine candidate centers are
then the same for all pixels of a cell, and distances are one small matrix product per cell. The
centers move on a coarse copy of the image; pixels at full resolution are assigned once at the end.
`benchmarks/superpixels.py` compares time and explained color variance with other implementations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pcseg_core.errors import InputError
from pcseg_core.vision.regions import connected_regions
from pcseg_core.vision.superpixels import SegmentMap, check_image, resize_ids, tidy

COARSE_CELL = 16  # side of a cell in the coarse image [px]


class Slic:
    """SLIC superpixels: compact, of similar size, covering the image.

    Args:
        segments: approximate number of segments.
        compactness: weight of position against color, in units of CIELAB color difference; larger
            values give squarer segments.
        iterations: number of updates of the centers.
        blur_px: standard deviation of the Gaussian blur before pixels are assigned [px].
        min_area_ratio: pieces smaller than this share of the mean segment join a neighbor.

    Raises:
        InputError: a parameter out of range.
    """

    name = "slic"

    def __init__(
        self,
        segments: int = 150,
        compactness: float = 10.0,
        iterations: int = 10,
        blur_px: float = 2.0,
        min_area_ratio: float = 0.25,
    ) -> None:
        if segments < 1 or compactness <= 0 or iterations < 1 or blur_px < 0:
            raise InputError(
                f"SLIC with segments {segments}, compactness {compactness}, iterations "
                f"{iterations}, blur_px {blur_px}: the first three must be positive"
            )
        self.segments = segments
        self.compactness = compactness
        self.iterations = iterations
        self.blur_px = blur_px
        self.min_area_ratio = min_area_ratio
        self.parameters: dict[str, Any] = {
            "segments": segments,
            "compactness": compactness,
            "iterations": iterations,
            "blur_px": blur_px,
            "min_area_ratio": min_area_ratio,
            "version": 1,
        }

    def segment(self, image: npt.NDArray[np.uint8]) -> SegmentMap:
        """See SuperpixelGenerator."""
        check_image(image)
        raw = self.assign(image)
        height, width = image.shape[:2]
        min_area = max(1, round(self.min_area_ratio * height * width / self.segments))
        return tidy(connected_regions(raw), min_area=min_area)

    @torch.inference_mode()
    def assign(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """(H, W) int32 center of each pixel, before the clean-up of pieces."""
        height, width = image.shape[:2]
        grid = _Grid(height, width, self.segments, self.compactness)
        lab = _smooth(cielab(image), self.blur_px)
        fine = grid.cells(lab, grid.side)
        coarse = grid.cells(lab, min(grid.side, COARSE_CELL))
        centers = coarse.mean(1)
        for _ in range(self.iterations):
            centers = _move(coarse, centers, grid.nearest(coarse, centers))
        ids = grid.image(grid.nearest(fine, centers)).to(torch.int32)
        return resize_ids(ids.numpy(), height, width)


class _Grid:
    """Cells of an image, one per segment, each with nine candidate centers."""

    def __init__(self, height: int, width: int, segments: int, compactness: float) -> None:
        side = math.sqrt(height * width / segments)
        self.rows = min(height, max(1, round(height / side)))
        self.columns = min(width, max(1, round(width / side)))
        self.side = math.ceil(max(height / self.rows, width / self.columns))
        self.compactness = compactness
        around = torch.tensor([(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)])
        row = (torch.arange(self.rows)[:, None] + around[:, 0]).clamp(0, self.rows - 1)
        column = (torch.arange(self.columns)[:, None] + around[:, 1]).clamp(0, self.columns - 1)
        self.candidates = (row[:, None] * self.columns + column[None]).view(-1, 9)

    def cells(self, lab: Tensor, side: int) -> Tensor:
        """(1, 3, H, W) colors -> (cells, side * side, 5) color and scaled position of pixels."""
        size = (self.rows * side, self.columns * side)
        resampled = functional.interpolate(lab, size, mode="bilinear", antialias=True)
        scale = self.compactness / side
        y = (torch.arange(size[0]) + 0.5)[:, None].expand(size) * scale
        x = (torch.arange(size[1]) + 0.5)[None].expand(size) * scale
        pixels = torch.cat([resampled[0], y[None], x[None]])
        blocks = pixels.view(5, self.rows, side, self.columns, side)
        return blocks.permute(1, 3, 2, 4, 0).reshape(-1, side * side, 5)

    def nearest(self, cells: Tensor, centers: Tensor) -> Tensor:
        """(cells, P) nearest of the nine candidate centers of each pixel."""
        around = centers[self.candidates]
        # |x - c|^2 without |x|^2, which is the same for all centers.
        distance = torch.baddbmm(
            around.square().sum(2)[:, None], cells, around.transpose(1, 2), alpha=-2
        )
        return self.candidates.gather(1, distance.argmin(2))

    def image(self, values: Tensor) -> Tensor:
        """(cells, side * side) -> (rows * side, columns * side)."""
        side = math.isqrt(values.shape[1])
        blocks = values.view(self.rows, self.columns, side, side)
        return blocks.transpose(1, 2).reshape(self.rows * side, self.columns * side)


def _move(cells: Tensor, centers: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the pixels of each center; a center without pixels does not move."""
    flat = chosen.reshape(-1)
    sums = torch.zeros_like(centers).index_add_(0, flat, cells.reshape(-1, 5))
    count = torch.bincount(flat, minlength=len(centers))[:, None]
    return torch.where(count > 0, sums / count.clamp(min=1), centers)


def _smooth(image: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of (1, 3, H, W), borders repeated."""
    if deviation == 0:
        return image
    radius = math.ceil(3 * deviation)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / deviation).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(image, (radius, radius, radius, radius), mode="replicate")
    rows = functional.conv2d(padded, kernel, groups=3)
    return functional.conv2d(rows, kernel.transpose(2, 3), groups=3)


def cielab(image: npt.NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) sRGB -> (1, 3, H, W) CIELAB under D65 (IEC 61966-2-1 and CIE 15)."""
    code = torch.arange(256) / 255
    linear = torch.where(code > 0.04045, ((code + 0.055) / 1.055) ** 2.4, code / 12.92)
    rgb = linear[torch.from_numpy(image.astype(np.int32)).view(-1, 3)]
    xyz = rgb @ (_XYZ_OF_RGB / _XYZ_OF_RGB.sum(1, keepdim=True)).T
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-6) ** (1 / 3), xyz * (841 / 108) + 4 / 29)
    lab = f @ torch.tensor([[0.0, 500, 0], [116, -500, 200], [0, 0, -200]])
    lab[:, 0] -= 16
    return lab.T.reshape(1, 3, *image.shape[:2])


_XYZ_OF_RGB = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
