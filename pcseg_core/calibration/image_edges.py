# SPDX-License-Identifier: Apache-2.0
"""Edges of images, smoothed in bands from coarse to fine.

As in Levinson and Thrun, "Automatic Online Calibration of Cameras and Lasers" (RSS 2013), edges
are spread over their surroundings, so that a small error of calibration lowers the score only a
little. Here this is a difference of Gaussians: its mean is 0, so that edges of depth that leave
the image, or lie anywhere by chance, count nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_SURROUND_DEG = 2.0  # contrast is relative to its mean over this distance
_LEAST_CONTRAST = 4.0  # gray values; less is noise
_STRONGEST = 4.0  # of an edge, relative to the surroundings
_WIDER = 4.0  # ratio of the two Gaussians
_CELLS = 2.0  # standard deviation of the finer Gaussian in cells of its map


def gray(image: npt.NDArray[np.uint8], step: int) -> Float32:
    """Gray values of an RGB image (H, W, 3), averaged over squares of `step` pixels."""
    values: Float32 = image.astype(np.float32) @ _LUMA
    return _reduced(values, step)


def contrast(image: Float32, pixel_deg: float) -> Float32:
    """(2, H, W) strength of the vertical and of the horizontal edges of a gray image.

    Args:
        image: (H, W) gray values, 0 to 255.
        pixel_deg: angle of a pixel [deg].
    """
    smooth = ndimage.gaussian_filter(image, 1.0)
    edges = np.abs(np.stack([ndimage.sobel(smooth, 1), ndimage.sobel(smooth, 0)]))
    surround = ndimage.uniform_filter(edges.sum(axis=0), 2 * round(_SURROUND_DEG / pixel_deg) + 1)
    result: Float32 = np.minimum(edges / (surround + _LEAST_CONTRAST), _STRONGEST)
    return result


def band(edges: Float32, sigma_px: float) -> tuple[Float32, int]:
    """Edges (2, H, W) in one band, on a grid of cells.

    Returns:
        (2, h, w) float32 of mean about 0 and variance 1, and the pixels per cell.
    """
    step = max(1, min(int(sigma_px / _CELLS), *edges.shape[1:]))
    cells = np.stack([_reduced(plane, step) for plane in edges])
    sigma = sigma_px / step
    fine = ndimage.gaussian_filter(cells, (0, sigma, sigma))
    result = fine - ndimage.gaussian_filter(cells, (0, _WIDER * sigma, _WIDER * sigma))
    result /= result.std(axis=(1, 2), keepdims=True) + 1e-6
    return result.astype(np.float32), step


def _reduced(plane: Float32, step: int) -> Float32:
    """Means over squares of `step` pixels; what is left at the right and bottom is dropped."""
    if step == 1:
        return plane
    height, width = (length // step for length in plane.shape)
    cut = plane[: height * step, : width * step]
    result: Float32 = cut.reshape(height, step, width, step).mean(axis=(1, 3))
    return result
