# SPDX-License-Identifier: Apache-2.0
"""Image features of the points that cameras see, and of the image patches around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.distill.cache import Stored
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig, sample_map
from pcseg_core.projection import Projection, project_cloud

Array = npt.NDArray[Any]
ImageFeatures: TypeAlias = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""(H, W, 3) uint8 RGB -> (D, h, w) float32 map over the whole image."""

_MIN_WEIGHT = 0.5  # of the projection, below which a point has no image features


@dataclass
class PointPixels:
    """Image features of the points of a sweep that a camera sees.

    Attributes:
        point: (S,) int32 positions of the points in the sweep.
        image: (S, D) float16 features of their pixels by the teacher, or None.
        text: (S, K) float16 features for the text head, or None.
        patch: (S,) int32 row of `patch_image` of each, or None.
        patch_image: (R, D) float16 mean of the teacher's features over each image patch, or None.
    """

    point: Array
    image: Stored | None = None
    text: Stored | None = None
    patch: Array | None = None
    patch_image: Array | None = None


class PixelSampler:
    """Samples image features at the pixels of points. The first camera that sees a point counts.

    Args:
        config: projection settings.
        identity: everything that the features depend on, as JSON can write it.
        image: the teacher's features, or None.
        text: features for the text head, or None.
        patch_px: edge of the patches on the map of `image` [px of the map]; None for no patches.
            Those at the right and lower border may be smaller.
    """

    def __init__(
        self,
        config: PseudoLabelConfig,
        identity: Mapping[str, Any],
        image: ImageFeatures | None = None,
        text: ImageFeatures | None = None,
        patch_px: int | None = None,
    ) -> None:
        self.config, self.image, self.text, self.patch_px = config, image, text, patch_px
        self.identity = {
            **identity,
            "patch_px": patch_px,
            "image": image is not None,
            "text": text is not None,
            "projection": config.model_dump(include={"splat_radius_px", "border_px"}),
        }

    def pixels(self, sample: Sample, xyz: Array) -> PointPixels:
        """Features of the points that the cameras of a sample see.

        Args:
            sample: sweep with images.
            xyz: (N, 3) its points, deskewed [m].
        """
        parts: list[dict[str, Array]] = []
        taken, patches = np.zeros(len(xyz), bool), 0
        for k, frame in enumerate(sample.cameras):
            projection = project_cloud(
                xyz,
                sample.T_cam_lidar(k),
                frame.camera,
                splat_radius_px=self.config.splat_radius_px,
                border_px=self.config.border_px,
            )
            seen = np.flatnonzero(projection.visible & (projection.weight > _MIN_WEIGHT) & ~taken)
            taken[seen] = True
            parts.append(self._of_camera(frame, projection, seen, patches))
            patches += len(parts[-1].get("patch_image", ()))
        if not parts:
            return self._none()
        return PointPixels(**{n: np.concatenate([p[n] for p in parts]) for n in parts[0]})

    def _of_camera(
        self, frame: CameraFrame, projection: Projection, seen: Array, patches: int
    ) -> dict[str, Array]:
        image, uv = frame.image, projection.uv[seen]
        size = (frame.camera.width, frame.camera.height)
        part: dict[str, Array] = {"point": seen.astype(np.int32)}
        if self.image is not None:
            values = self.image(image)
            part["image"] = sample_map(values, uv, size).astype(np.float16)
            if self.patch_px is not None:
                rows = patch_of(uv, size, values.shape[1:], self.patch_px) + patches
                part["patch"] = rows.astype(np.int32)
                part["patch_image"] = patch_means(values, self.patch_px).astype(np.float16)
        if self.text is not None:
            part["text"] = sample_map(self.text(image), uv, size).astype(np.float16)
        return part

    def _none(self) -> PointPixels:
        """The result without any camera."""
        rows, features = np.zeros(0, np.int32), np.zeros((0, 0), np.float16)
        patched = self.patch_px is not None
        return PointPixels(
            rows,
            None if self.image is None else features,
            None if self.text is None else features,
            rows if patched else None,
            features if patched else None,
        )


def patch_means(values: npt.NDArray[np.float32], patch_px: int) -> npt.NDArray[np.float32]:
    """(D, h, w) map -> (R, D) means over patches, row by row."""
    pooled = F.avg_pool2d(
        torch.from_numpy(np.ascontiguousarray(values)),
        patch_px,
        ceil_mode=True,
        count_include_pad=False,
    )
    means: npt.NDArray[np.float32] = pooled.flatten(1).T.numpy()
    return means


def patch_of(
    uv: npt.NDArray[np.floating], size: tuple[int, int], shape: tuple[int, ...], patch_px: int
) -> npt.NDArray[np.int64]:
    """Patch of each pixel.

    Args:
        uv: (S, 2) pixels of the image, integers at pixel centers.
        size: (width, height) of the image.
        shape: (h, w) of the map of features.
        patch_px: edge of a patch on the map.

    Returns:
        (S,) number of the patch, row by row.
    """
    height, width = shape
    columns = -(-width // patch_px)
    u = np.clip((uv[:, 0] + 0.5) * (width / size[0]), 0, width - 1e-3).astype(np.int64)
    v = np.clip((uv[:, 1] + 0.5) * (height / size[1]), 0, height - 1e-3).astype(np.int64)
    result: npt.NDArray[np.int64] = (v // patch_px) * columns + u // patch_px
    return result
