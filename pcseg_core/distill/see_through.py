# SPDX-License-Identifier: Apache-2.0
"""Depth layers: points that a camera sees through a mesh, a fence or foliage.

The laser passes where the pixel shows the mesh, so a depth test of single pixels does not help.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.distill.ground import find_ground, ground_classes
from pcseg_core.labels import LabelSpace
from pcseg_core.projection import Projection

Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]


class SeeThroughConfig(Section):
    """When a point lies behind a depth layer that something standing in front of it makes."""

    patch_px: int = Field(
        0, ge=0, le=200, description="Edge of the image patches [px]; 0 tests nothing"
    )
    share: float = Field(
        0.25, gt=0, le=1, description="Share of the points of a patch that make a near layer"
    )
    margin_m: float = Field(1.5, gt=0, description="Points farther than this behind a layer [m]")
    margin_ratio: float = Field(
        0.1, ge=0, le=1, description="The same as a share of the layer's depth; the sum counts"
    )


@dataclass(frozen=True)
class SeeThrough:
    """The test for the points of one sweep.

    Attributes:
        ground: (N,) bool, points of the ground.
        classes: (C,) bool, classes that lie on the ground.
        config: patches and layers.
    """

    ground: Bool
    classes: Bool
    config: SeeThroughConfig

    @classmethod
    def of(
        cls, xyz: npt.NDArray[np.floating], space: LabelSpace, config: SeeThroughConfig
    ) -> SeeThrough:
        """The test for (N, 3) points, LiDAR frame, z up [m], and the classes of a space."""
        finite = np.isfinite(xyz).all(1)
        ground = np.zeros(len(xyz), bool)
        if finite.any():
            ground[finite] = find_ground(xyz[finite])
        return cls(ground, ground_classes(space), config)

    def keep(self, projection: Projection, seen: npt.NDArray[np.intp], pixels: Float32) -> Bool:
        """(M,) bool: seen points (M,) whose pixels (M, C) are theirs.

        Points behind a layer are dropped, but for points of the ground at pixels of the ground.
        """
        inside = np.flatnonzero(projection.in_image)
        far = np.zeros(len(projection), bool)
        far[inside] = behind_layers(
            projection.uv[inside], projection.depth[inside], ~self.ground[inside], self.config
        )
        agree = self.ground[seen] & self.classes[pixels.argmax(1)]
        result: Bool = ~far[seen] | agree
        return result


def behind_layers(uv: Float32, depth: Float32, standing: Bool, config: SeeThroughConfig) -> Bool:
    """Points far behind the near layer of an image patch around them.

    The nearest standing points of a patch make a layer if they are at least `share` of all points
    there. The depth of the layer is that of its farthest point.

    Args:
        uv: (N, 2) pixels of points in the image.
        depth: (N,) their depth [m].
        standing: (N,) bool, points that can make a layer; those of the ground cannot.
        config: patches and layers.

    Returns:
        (N,) bool.
    """
    behind = np.zeros(len(uv), bool)
    for shift in np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * (config.patch_px / 2):
        cells = np.floor((uv + shift) / config.patch_px).astype(np.int64)
        _, patch, counts = np.unique(
            (cells[:, 1] << 20) + cells[:, 0], return_inverse=True, return_counts=True
        )
        layer = _layer_depth(patch, counts, depth, standing, config.share)[patch]
        behind |= depth > layer * (1 + config.margin_ratio) + config.margin_m
    return behind


def _layer_depth(
    patch: npt.NDArray[np.intp],
    counts: npt.NDArray[np.intp],
    depth: Float32,
    standing: Bool,
    share: float,
) -> Float32:
    """(P,) depth within which a share of the points of each patch stands; inf where too few do."""
    at = np.flatnonzero(standing)
    order = at[np.lexsort((depth[at], patch[at]))]
    found = np.bincount(patch[at], minlength=len(counts))
    first = np.cumsum(found) - found
    needed = np.ceil(share * counts).astype(np.intp)
    result = np.full(len(counts), np.inf, np.float32)
    enough = found >= needed
    result[enough] = depth[order[(first + needed - 1)[enough]]]
    return result
