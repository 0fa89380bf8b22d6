# SPDX-License-Identifier: Apache-2.0
"""Sectors for contrast: points with their pixels and superpixels, often two sweeps of one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pcseg_core.distill.image_views import ImageView
from pcseg_core.distill.observation import Observation, StoredObservation
from pcseg_core.distill.temporal import partners, read_segments
from pcseg_core.geometry import invert, transform
from pcseg_core.labels import IGNORE
from pcseg_core.learning.augment import (
    PairAugmentConfig,
    ScenePicker,
    augment_intensity,
    augment_points,
    draw_members,
    keep_some,
    sector_mask,
    thin,
)
from pcseg_core.learning.dataset import (
    NAMES_PER_SECTOR,
    Batch,
    PixelBatch,
    SegmentBatch,
    sector_points,
)
from pcseg_core.learning.distributed import check_batch
from pcseg_core.learning.recipe import Recipe

Array = npt.NDArray[Any]
Bool = npt.NDArray[np.bool_]
Rng = np.random.Generator
Window = tuple[int, int, int, int]

_KEPT = 256  # observations in memory, a few MB each
_NAMES_PER_IMAGE = NAMES_PER_SECTOR // 10


class PairedSectors:
    """Sectors of observations: single ones, or the same sector of two sweeps (temporal term).

    Args:
        observations: stored sweeps with image views.
        segments: by position, the file of temporal segments; empty without.
        recipe: optimizer, augmentation, losses and seed.
    """

    def __init__(
        self,
        observations: Sequence[StoredObservation],
        segments: Mapping[int, Path],
        recipe: Recipe,
    ) -> None:
        self.observations, self.segments, self.recipe = observations, segments, recipe
        self.partners = partners(observations, recipe.temporal.gap)
        self.next = partners(observations, 1)
        self.previous = {later: earlier for earlier, later in self.next.items()}
        self.scenes = ScenePicker([stored.scene for stored in observations])

    def draw(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """See `Sectors`.

        Raises:
            InputError: there are more processes than sectors, or pairs of them.
        """
        paired = self.recipe.loss.temporal > 0
        size, together = self.recipe.optimizer.batch_size, 2 if paired else 1
        check_batch(size, world, together)
        items = -(-size // together)
        sectors: list[Batch] = []
        for item in range(rank, items, world):
            rng = np.random.default_rng((self.recipe.seed, step, item))
            sectors += self._item(rng, item, paired)
        return sectors

    def _item(self, rng: Rng, item: int, paired: bool) -> list[Batch]:
        """One sector, the same one of two sweeps, or two of two places (also without poses)."""
        chosen = self.scenes.draw(rng)
        sweep = self._load(chosen)
        target = seen_point(sweep, rng)
        now, then = self._temporal(chosen)
        first = self._sector(chosen, sweep.xyz[target], now, 2 * item, False, rng)
        if not paired:
            return [first]
        # A random number is drawn only if it matters, so that recipes with 1.0 do not change.
        together = self.recipe.loss.paired
        if chosen in self.partners and (together == 1 or rng.random() < together):
            other = self.partners[chosen]
            moved = transform(
                invert(self._load(other).pose) @ sweep.pose, sweep.deskewed[target][None]
            )
            return [first, self._sector(other, moved[0], then, 2 * item, True, rng)]
        other = int(rng.integers(len(self.observations)))
        sweep = self._load(other)
        point = sweep.xyz[seen_point(sweep, rng)]
        temporal = self._temporal(other)[0]
        return [first, self._sector(other, point, temporal, 2 * item + 1, False, rng)]

    def _load(self, position: int) -> Observation:
        return load(self.observations[position])

    def _temporal(self, position: int) -> tuple[Array | None, Array | None]:
        file = self.segments.get(position)
        return (None, None) if file is None else load_segments(file)

    def _sector(
        self, chosen: int, target: Array, temporal: Array | None, place: int, second: bool, rng: Rng
    ) -> Batch:
        """The sector around a point (3,) of an observation."""
        recipe, sweep = self.recipe, self._load(chosen)
        center = float(np.degrees(np.arctan2(target[1], target[0])))
        keep = sector_mask(sweep.xyz, center, recipe.optimizer.sector_deg)
        keep &= keep_some(sweep.xyz, recipe.augment, rng)
        keep[keep] = thin(sweep.xyz[keep], recipe.augment, rng)
        keep = drop_cuboid(sweep, keep, recipe.pairs, rng)
        position = np.full(len(sweep.xyz), IGNORE, np.int64)
        position[keep] = np.arange(keep.sum())
        if temporal is None:
            temporal = np.full(len(sweep.xyz), IGNORE)
        drawn = draw_members(temporal[keep], recipe.loss.points_per_segment, rng)
        xyz, intensity = sweep.xyz[keep], sweep.intensity[keep]
        if rng.random() < recipe.pairs.merge:
            more, strength = self._neighbor(chosen, center, rng)
            xyz = np.concatenate([sweep.deskewed[keep], more])
            intensity = np.concatenate([intensity, strength])
            drawn = np.concatenate([drawn, np.full(len(more), IGNORE)])
        intensity = augment_intensity(intensity, recipe.augment, rng)
        xyz = augment_points(xyz, recipe.augment, rng)
        cameras = [
            self._camera(view, k * _NAMES_PER_IMAGE, position, rng)
            for k, view in enumerate(sweep.images)
        ]
        joined = {
            name: torch.from_numpy(np.concatenate([camera[name] for camera in cameras]))
            for name in cameras[0]
        }
        pixels = PixelBatch(joined.pop("point"), joined.pop("image", None))
        segments = SegmentBatch(
            torch.tensor([place]),
            torch.full((len(xyz),), second),
            torch.from_numpy(drawn),
            **joined,
        )
        return Batch(sector_points(xyz, intensity), pixels=pixels, segments=segments)

    def _neighbor(self, chosen: int, center_deg: float, rng: Rng) -> tuple[Array, Array]:
        """Points of the sector in the sweep before or after, in the frame of the chosen one."""
        near = [side[chosen] for side in (self.previous, self.next) if chosen in side]
        if not near:
            return np.zeros((0, 3), np.float32), np.zeros(0, np.float32)
        other = self._load(near[rng.integers(len(near))])
        moved = transform(invert(self._load(chosen).pose) @ other.pose, other.deskewed)
        keep = sector_mask(moved, center_deg, self.recipe.optimizer.sector_deg)
        return moved[keep].astype(np.float32), other.intensity[keep]

    def _camera(self, view: ImageView, base: int, position: Array, rng: Rng) -> dict[str, Array]:
        """Arrays of one image, by the names of `SegmentBatch` and `PixelBatch`.

        Args:
            view: the image.
            base: first name of its superpixels.
            position: (N,) position of each point of the sweep in the sector, IGNORE for none.
            rng: random numbers.
        """
        loss = self.recipe.loss
        features = view.features
        if view.mirrored is not None and rng.random() < self.recipe.pairs.mirror:
            features = view.mirrored
        window = crop_window(view, self.recipe.pairs, rng)
        kept = (position[view.point] != IGNORE) & inside(view.pixel, window)
        pixel, segment = view.pixel[kept], view.segment[kept].astype(np.int64)
        present = np.unique(segment[segment != IGNORE])
        row, column = drawn_pixels(view.ids, window, present, loss.pixels_per_segment, rng)
        found = view.ids[row, column].astype(np.int64)
        present = np.unique(found)  # a small segment may have no pixel in the smaller map
        segment = np.where(np.isin(segment, present), segment, IGNORE)
        arrays = {
            "point": position[view.point[kept]],
            "point_segment": np.where(segment != IGNORE, segment + base, IGNORE),
            "pixels": features[:, row, column].T.astype(np.float32),
            "pixel_segment": found + base,
            "names": present + base,
            "classes": view.classes[present].astype(np.int64),
        }
        if loss.regression + loss.point_pixel > 0:
            arrays["image"] = features[:, pixel[:, 0], pixel[:, 1]].T.astype(np.float32)
        return arrays


@lru_cache(maxsize=_KEPT)
def load(stored: StoredObservation) -> Observation:
    """A stored observation; the last few hundred stay in memory."""
    return stored.load()


@lru_cache(maxsize=4 * _KEPT)
def load_segments(file: Path) -> tuple[Array, Array]:
    """Temporal segments of a sweep and of its partner."""
    return read_segments(file)


def seen_point(sweep: Observation, rng: Rng) -> int:
    """Position of a point that a camera sees."""
    view = sweep.images[rng.integers(len(sweep.images))]
    return int(view.point[rng.integers(len(view.point))])


def drop_cuboid(sweep: Observation, keep: Bool, config: PairAugmentConfig, rng: Rng) -> Bool:
    """Leave out the points in a random box, unless that costs too many pairs."""
    if rng.random() >= config.cuboid_drop or not keep.any():
        return keep
    points = sweep.xyz[keep]
    extent = np.quantile(points, 0.95, axis=0) - np.quantile(points, 0.05, axis=0)
    half = extent * rng.uniform(0, config.cuboid_extent, 3) / 2
    half[2] = np.inf  # from the ground up, so that no object is cut at a height
    center = points[rng.integers(len(points))]
    left = keep & ~(np.abs(sweep.xyz - center) <= half).all(1)
    pairs = sum(int(left[view.point].sum()) for view in sweep.images)
    return left if pairs >= config.min_pairs else keep


def crop_window(view: ImageView, config: PairAugmentConfig, rng: Rng) -> Window:
    """First row, last row + 1, first and last column + 1 of the part of the map that is used."""
    height, width = view.ids.shape
    whole = (0, height, 0, width)
    if rng.random() >= config.crop:
        return whole
    area = rng.uniform(*config.crop_area)
    ratio = np.exp(rng.uniform(-0.3, 0.3))
    rows = min(height, max(1, round(height * np.sqrt(area) * ratio)))
    columns = min(width, max(1, round(width * np.sqrt(area) / ratio)))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    window = (int(top), int(top + rows), int(left), int(left + columns))
    return window if inside(view.pixel, window).sum() >= config.min_pairs else whole


def inside(pixel: Array, window: Window) -> Bool:
    """(P,) bool: pixels (row, column) in a window."""
    low, high = np.array(window)[[0, 2]], np.array(window)[[1, 3]]
    contained: Bool = np.all((pixel >= low) & (pixel < high), axis=1)
    return contained


def drawn_pixels(
    ids: Array, window: Window, wanted: Array, limit: int, rng: Rng
) -> tuple[Array, Array]:
    """Rows and columns of at most `limit` pixels of each wanted segment inside a window."""
    top, bottom, left, right = window
    part = ids[top:bottom, left:right]
    highest = max(int(ids.max(initial=IGNORE)), int(wanted.max(initial=IGNORE)))
    known = np.zeros(highest + 2, bool)  # a coarse map may lack the last segments
    known[wanted] = True  # the last entry serves IGNORE
    row, column = np.nonzero(known[part])
    chosen = draw_members(part[row, column], limit, rng) != IGNORE
    return row[chosen] + top, column[chosen] + left
