# SPDX-License-Identifier: Apache-2.0
"""Images of a sweep for contrast: frozen feature maps, superpixels and the points they show."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.data.sample import Sample
from pcseg_core.distill.cache import Stored, digest
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.labels import IGNORE
from pcseg_core.projection import project_cloud
from pcseg_core.vision.image_cache import SuperpixelCache, image_key
from pcseg_core.vision.pixel_features import PixelFeatures
from pcseg_core.vision.superpixel_kinds import SUPERPIXELS, SuperpixelConfig, SuperpixelOptions
from pcseg_core.vision.superpixels import resize_ids, segments_at

Array = npt.NDArray[Any]


class ViewConfig(Section):
    """Projection and resolution of the image features."""

    splat_radius_px: int = Field(default=2, ge=0, le=10, description="Occlusion splat radius [px]")
    border_px: float = Field(
        default=5.0, ge=0, description="Weight falls to 0 over this image border [px]"
    )
    min_weight: float = Field(
        default=0.3, ge=0, lt=1, description="Points whose projection weighs less are unpaired"
    )
    stride_px: int = Field(
        default=4, ge=1, le=64, description="Finer feature maps are averaged down to this [px]"
    )
    min_points: int = Field(
        default=3, ge=1, description="Superpixels with fewer points in a batch are left out"
    )


@dataclass
class ImageView:
    """One image of a sweep: frozen features, segments and the points that it shows.

    Attributes:
        features: (D, h, w) float16; the map covers the whole image.
        mirrored: the same of the mirrored image, mirrored back; None if not wanted.
        ids: (h, w) int32 segment of each pixel of the map, IGNORE for none.
        classes: (S,) int16 class of each segment, IGNORE for none.
        point: (P,) int32 points of the sweep that the camera sees.
        pixel: (P, 2) int16 row and column of each in the map.
        segment: (P,) int32 segment of each, read at the resolution of the image; IGNORE for none.
    """

    features: Stored
    ids: Array
    classes: Array
    point: Array
    pixel: Array
    segment: Array
    mirrored: Stored | None = None


class ImageViewer:
    """Makes the views of the images of sweeps.

    Args:
        encoder: frozen features.
        superpixels: segments, from a generator or from a folder.
        config: projection and resolution.
        mirror: also compute the features of mirrored images.
    """

    def __init__(
        self, encoder: PixelFeatures, superpixels: SuperpixelCache, config: ViewConfig, mirror: bool
    ) -> None:
        self.encoder, self.superpixels = encoder, superpixels
        self.config, self.mirror = config, mirror
        self.identity = {
            "encoder": [encoder.name, encoder.parameters],
            "superpixels": superpixels.manifest["hash"],
            "config": config.model_dump(mode="json", exclude={"min_points"}),
            "mirror": mirror,
        }

    def recording_name(self, name: str, source: str) -> str:
        """Name under which the superpixels of a recording are stored.

        Superpixels that others made are stored under its own name. Those that are made here also
        depend on its source, for another recording may have the same name.
        """
        if self.superpixels.generator is None:
            return name
        return f"{name}-{digest({'source': source})[:8]}"

    def views(
        self, sample: Sample, xyz: Array, recording: str, skipped: Counter[str]
    ) -> tuple[ImageView, ...]:
        """Views of all usable images of a sample, at least one.

        Args:
            sample: sweep with images.
            xyz: (N, 3) its points, deskewed [m].
            recording: name of the recording, under which the superpixels are stored.
            skipped: counts the reasons of unusable images.

        Raises:
            InputError: no image, or none that shows points.
        """
        if not sample.cameras:
            raise InputError("no camera has an image")
        views = []
        for k, frame in enumerate(sample.cameras):
            try:
                views.append(self._view(sample, k, xyz, recording))
            except PcsegError as error:
                skipped[f"image of {frame.name}: {error}"] += 1
        if not views:
            raise InputError("no camera sees any point")
        return tuple(views)

    def _view(self, sample: Sample, k: int, xyz: Array, recording: str) -> ImageView:
        frame, config = sample.cameras[k], self.config
        projection = project_cloud(
            xyz,
            sample.T_cam_lidar(k),
            frame.camera,
            splat_radius_px=config.splat_radius_px,
            border_px=config.border_px,
        )
        seen = np.flatnonzero(projection.visible & (projection.weight >= config.min_weight))
        if len(seen) == 0:
            raise InputError("it sees no point of the sweep")
        image = frame.image
        load = partial(getattr, frame, "image")
        segments = self.superpixels.get(recording, image_key(sample, k), load)
        classes = segments.classes
        if classes is None:
            classes = np.full(segments.count, IGNORE, np.int16)
        features = self._features(image)
        uv, size = projection.uv[seen], (frame.camera.width, frame.camera.height)
        return ImageView(
            features,
            resize_ids(segments.ids, *features.shape[1:]),
            classes,
            seen.astype(np.int32),
            map_pixels(uv, size, features.shape[1:]),
            segments_at(segments.ids, uv, size),
            self._features(image[:, ::-1])[:, :, ::-1] if self.mirror else None,
        )

    def _features(self, image: Array) -> Array:
        values = self.encoder.features(np.ascontiguousarray(image))
        factor = int(self.config.stride_px * values.shape[1] / image.shape[0])
        limit = float(np.finfo(np.float16).max)
        return np.clip(average_down(values, factor), -limit, limit).astype(np.float16)


def superpixel_cache(config: SuperpixelOptions, folder: Path, device: str) -> SuperpixelCache:
    """Superpixels of a configuration, each kind in its own folder below `folder`."""
    if isinstance(config, SuperpixelConfig) and config.name == "folder":
        assert config.folder is not None
        return SuperpixelCache(config.folder)
    generator = SUPERPIXELS.load(config, device)
    key = digest(generator.parameters)[:8]
    return SuperpixelCache(folder / f"superpixels-{config.name}-{key}", generator)


def average_down(values: Array, factor: int) -> Array:
    """Means of (D, h, w) over blocks of `factor` x `factor` pixels.

    Sides are first cut to multiples of the factor by nearest pixel, so that the map still covers
    the whole image.
    """
    if factor <= 1:
        return values
    depth, height, width = values.shape
    rows, columns = max(1, height // factor), max(1, width // factor)
    row = ((np.arange(rows * factor) + 0.5) * height / (rows * factor)).astype(np.intp)
    column = ((np.arange(columns * factor) + 0.5) * width / (columns * factor)).astype(np.intp)
    cut = values[:, row][:, :, column]
    means: Array = cut.reshape(depth, rows, factor, columns, factor).mean((2, 4))
    return means


def map_pixels(uv: Array, size: tuple[int, int], shape: tuple[int, ...]) -> Array:
    """(P, 2) int16 row and column, in a map of (h, w), of pixels of an image of (width, height)."""
    scale = np.array([shape[1] / size[0], shape[0] / size[1]])
    place = np.floor((uv + 0.5) * scale).astype(np.int64)
    place = np.clip(place, 0, [shape[1] - 1, shape[0] - 1])
    return np.ascontiguousarray(place[:, ::-1]).astype(np.int16)
