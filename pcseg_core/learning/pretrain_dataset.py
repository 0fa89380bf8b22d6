# SPDX-License-Identifier: Apache-2.0
"""Pretraining batches: sectors of views with their superpixels and segments, pairs kept exact."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pcseg_core.errors import InputError
from pcseg_core.geometry import invert, transform
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import augment_points, keep_beams
from pcseg_core.learning.pretrain_recipe import PairAugmentConfig, PretrainRecipe
from pcseg_core.learning.views import CameraView, Entry, View, partners
from pcseg_core.models.student import Points

Array = npt.NDArray[Any]
Rng = np.random.Generator
_VIEWS_KEPT = 256  # views in memory, a few MB each
SEGMENTS_PER_SECTOR = 100_000  # more than any image or sweep has, to number them in a batch


@dataclass
class PretrainBatch:
    """Input and targets of one optimizer step.

    Attributes:
        points: sectors of sweeps.
        place: (B,) int64 place of each sector; the two sweeps of a pair share it.
        pixels: (R, D) float32 frozen features of drawn pixels of the superpixels that have points.
        pixel_segment: (R,) int64 superpixel of each pixel, unique in the step.
        pair_point: (P,) int64 points that a camera sees, once per camera.
        pair_segment: (P,) int64 superpixel under each; IGNORE for none.
        pair_feature: (P, D) float32 frozen feature of its pixel; (0, 0) where not asked for.
        segment_name: (S,) int64 superpixels in the batch.
        segment_class: (S,) int64 class of each, IGNORE for none.
        segment_sector: (S,) int64 sector of each.
        lasting: (N,) int64 segment across sweeps of each point, unique in the step and shared
            inside a pair; IGNORE for none or not drawn.
        second: (N,) bool, points of the later sweep of a pair.
    """

    points: Points
    place: Tensor
    pixels: Tensor
    pixel_segment: Tensor
    pair_point: Tensor
    pair_segment: Tensor
    pair_feature: Tensor
    segment_name: Tensor
    segment_class: Tensor
    segment_sector: Tensor
    lasting: Tensor
    second: Tensor

    def to(self, device: torch.device) -> PretrainBatch:
        """The batch on another device."""
        return PretrainBatch(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass
class Sector:
    """Part of one view, augmented; arrays as in the batch, numbered from 0 here."""

    xyz: Array
    intensity: Array
    place: int
    pixels: list[Array]
    pixel_segment: list[Array]
    pair_point: list[Array]
    pair_segment: list[Array]
    pair_feature: list[Array]
    segment_name: list[Array]
    segment_class: list[Array]
    lasting: Array
    second: bool


class PretrainDataset(Dataset[PretrainBatch]):
    """The batches of the steps first..first+count-1, each a function of (seed, step).

    Of several processes each takes its share of the same sectors.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        segments: Mapping[int, Path],
        recipe: PretrainRecipe,
        first: int,
        count: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.entries, self.segments, self.recipe = list(entries), dict(segments), recipe
        self.first, self.count, self.rank, self.world = first, count, rank, world
        self.partners = partners(self.entries, recipe.temporal.gap)
        scenes: dict[str, list[int]] = {}
        for i, entry in enumerate(self.entries):
            scenes.setdefault(entry.scene, []).append(i)
        self.scenes = list(scenes.values())
        # The square root lets many assorted scenes outweigh one long drive: diversity of places
        # decides how well the network transfers.
        sizes = np.sqrt([len(members) for members in self.scenes])
        self.probability = sizes / sizes.sum()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> PretrainBatch:
        step = self.first + index
        paired = self.recipe.loss.temporal > 0
        items = -(-self.recipe.optimizer.batch_size // (2 if paired else 1))
        sectors: list[Sector] = []
        for item in range(self.rank, items, self.world):
            rng = np.random.default_rng((self.recipe.seed, step, item))
            sectors += self._item(rng, item, paired)
        return collate(sectors, self.recipe)

    def _item(self, rng: Rng, item: int, paired: bool) -> list[Sector]:
        """One sector, the same one of two sweeps, or two of two places (also where poses lack)."""
        members = self.scenes[rng.choice(len(self.scenes), p=self.probability)]
        chosen = members[rng.integers(len(members))]
        view = load_view(self.entries[chosen].path)
        target = seen_point(view, rng)
        now, then = self._lasting(chosen)
        first = self._sector(chosen, target, now, 2 * item, False, rng)
        if not paired:
            return [first]
        # A random number is drawn only where it matters: with 1.0 the batches stay what they were.
        together = self.recipe.loss.paired
        if chosen in self.partners and (together == 1 or rng.random() < together):
            other = self.partners[chosen]
            pose = load_view(self.entries[other].path).pose
            moved = transform(invert(pose) @ view.pose, target[None])[0]
            return [first, self._sector(other, moved, then, 2 * item, True, rng)]
        other = int(rng.integers(len(self.entries)))
        target = seen_point(load_view(self.entries[other].path), rng)
        lasting = self._lasting(other)[0]
        return [first, self._sector(other, target, lasting, 2 * item + 1, False, rng)]

    def _lasting(self, chosen: int) -> tuple[Array | None, Array | None]:
        if chosen not in self.segments:
            return None, None
        return load_segments(self.segments[chosen])

    def _sector(
        self, chosen: int, target: Array, lasting: Array | None, place: int, second: bool, rng: Rng
    ) -> Sector:
        recipe = self.recipe
        view = load_view(self.entries[chosen].path)
        keep = sector_mask(view.xyz, target, recipe.optimizer.sector_deg)
        keep &= rng.random(len(keep)) >= rng.uniform(0, recipe.augment.drop)
        keep &= keep_beams(view.xyz, recipe.augment, rng)
        keep = drop_cuboid(view, keep, recipe.pairs, rng)
        position = np.full(len(view.xyz), IGNORE, np.int64)
        position[keep] = np.arange(keep.sum())
        xyz, intensity = view.xyz[keep], view.intensity[keep]
        if lasting is None:
            lasting = np.full(len(view.xyz), IGNORE)
        drawn = draw_members(lasting[keep], recipe.loss.points_per_segment, rng)
        if rng.random() < recipe.pairs.merge:
            more, strength = self._neighbor(chosen, target, rng)
            xyz, intensity = np.concatenate([xyz, more]), np.concatenate([intensity, strength])
            drawn = np.concatenate([drawn, np.full(len(more), IGNORE)])
        gain = rng.uniform(-1, 1) * recipe.augment.intensity_gain
        sector = Sector(
            augment_points(xyz, recipe.augment, rng),
            np.clip(intensity * np.float32(1 + gain), 0, 1),
            place,
            [],
            [],
            [],
            [],
            [],
            [],
            [],
            drawn,
            second,
        )
        for number, camera in enumerate(view.cameras):
            self._add_camera(sector, camera, number, position, rng)
        return sector

    def _neighbor(self, chosen: int, target: Array, rng: Rng) -> tuple[Array, Array]:
        """Points of the sector in the sweep before or after, seen from the chosen one."""
        entry = self.entries[chosen]
        near = [
            other
            for other in self.entries
            if entry.posed
            and other.posed
            and other.scene == entry.scene
            and abs(other.number - entry.number) == 1
        ]
        if not near:
            return np.zeros((0, 3), np.float32), np.zeros(0, np.float32)
        other = load_view(near[rng.integers(len(near))].path)
        moved = transform(invert(load_view(entry.path).pose) @ other.pose, other.xyz)
        keep = sector_mask(moved, target, self.recipe.optimizer.sector_deg)
        return moved[keep].astype(np.float32), other.intensity[keep]

    def _add_camera(
        self, sector: Sector, camera: CameraView, number: int, position: Array, rng: Rng
    ) -> None:
        loss = self.recipe.loss
        features = camera.features
        if camera.mirrored.size and rng.random() < self.recipe.pairs.mirror:
            features = camera.mirrored
        window = crop_window(camera, self.recipe.pairs, rng)
        kept = position[camera.point] != IGNORE
        kept &= inside(camera.pixel, window)
        pixel, segment = camera.pixel[kept], camera.segment[kept].astype(np.int64)
        base = number * (SEGMENTS_PER_SECTOR // 10)
        present = np.unique(segment[segment != IGNORE])
        row, column = drawn_pixels(camera.ids, window, present, loss.pixels_per_segment, rng)
        found = camera.ids[row, column].astype(np.int64)
        present = np.unique(found)  # a small segment may have no pixel in the smaller map
        segment = np.where(np.isin(segment, present), segment, IGNORE)
        sector.pixels.append(features[:, row, column].T.astype(np.float32))
        sector.pixel_segment.append(found + base)
        sector.pair_point.append(position[camera.point[kept]])
        sector.pair_segment.append(np.where(segment != IGNORE, segment + base, IGNORE))
        if loss.regression + loss.point_pixel > 0:
            values = features[:, pixel[:, 0], pixel[:, 1]].T
            sector.pair_feature.append(values.astype(np.float32))
        sector.segment_name.append(present + base)
        sector.segment_class.append(camera.classes[present].astype(np.int64))


@lru_cache(maxsize=_VIEWS_KEPT)
def load_view(path: Path) -> View:
    """A stored view; the last few hundred stay in memory.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return View.load(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: damaged ({error}); remove it and run again, it will be made anew"
        ) from None


@lru_cache(maxsize=4 * _VIEWS_KEPT)
def load_segments(path: Path) -> tuple[Array, Array]:
    """Segments of a sweep and of its partner, as stored."""
    with np.load(path, allow_pickle=False) as stored:
        return stored["now"].astype(np.int64), stored["then"].astype(np.int64)


def seen_point(view: View, rng: Rng) -> Array:
    """(3,) a point that a camera sees."""
    camera = view.cameras[rng.integers(len(view.cameras))]
    point: Array = view.xyz[camera.point[rng.integers(len(camera.point))]]
    return point


def sector_mask(xyz: Array, target: Array, width_deg: float) -> npt.NDArray[np.bool_]:
    """(N,) bool: points whose azimuth is near that of the target."""
    azimuth = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0]) - np.arctan2(target[1], target[0]))
    mask: npt.NDArray[np.bool_] = np.abs((azimuth + 180) % 360 - 180) <= width_deg / 2
    return mask


def drop_cuboid(view: View, keep: Array, config: PairAugmentConfig, rng: Rng) -> Array:
    """Leave out the points in a random box, unless that costs too many pairs."""
    if rng.random() >= config.cuboid_drop or not keep.any():
        return keep
    points = view.xyz[keep]
    extent = np.quantile(points, 0.95, axis=0) - np.quantile(points, 0.05, axis=0)
    half = extent * rng.uniform(0, config.cuboid_extent, 3) / 2
    half[2] = np.inf  # boxes from the ground up: half a car is an odd thing
    center = points[rng.integers(len(points))]
    left = keep & ~(np.abs(view.xyz - center) <= half).all(1)
    pairs = sum(int(left[camera.point].sum()) for camera in view.cameras)
    return left if pairs >= config.min_pairs else keep


def crop_window(
    camera: CameraView, config: PairAugmentConfig, rng: Rng
) -> tuple[int, int, int, int]:
    """First row, last row + 1, first and last column + 1 of the part of the map that is used."""
    height, width = camera.ids.shape
    whole = (0, height, 0, width)
    if rng.random() >= config.crop:
        return whole
    area = rng.uniform(*config.crop_area)
    ratio = np.exp(rng.uniform(-0.3, 0.3))
    rows = min(height, max(1, round(height * np.sqrt(area) * ratio)))
    columns = min(width, max(1, round(width * np.sqrt(area) / ratio)))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    window = (int(top), int(top + rows), int(left), int(left + columns))
    return window if inside(camera.pixel, window).sum() >= config.min_pairs else whole


def inside(pixel: Array, window: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    """(P,) bool: pixels (row, column) in a window."""
    low, high = np.array(window)[[0, 2]], np.array(window)[[1, 3]]
    return np.all((pixel >= low) & (pixel < high), axis=1)


def drawn_pixels(
    ids: Array, window: tuple[int, int, int, int], wanted: Array, limit: int, rng: Rng
) -> tuple[Array, Array]:
    """Rows and columns of at most `limit` pixels of each wanted segment inside a window."""
    top, bottom, left, right = window
    part = ids[top:bottom, left:right]
    known = np.zeros(int(ids.max(initial=IGNORE)) + 2, bool)
    known[wanted] = True  # the last entry serves IGNORE
    row, column = np.nonzero(known[part])
    chosen = draw_members(part[row, column], limit, rng) != IGNORE
    return row[chosen] + top, column[chosen] + left


def draw_members(ids: Array, limit: int, rng: Rng) -> Array:
    """(N,) int64 ids where at most `limit` random members of each id remain, IGNORE elsewhere."""
    order = rng.permutation(len(ids))
    order = order[np.argsort(ids[order], kind="stable")]
    sorted_ids = ids[order]
    starts = np.flatnonzero(np.diff(sorted_ids, prepend=sorted_ids[:1] - 1))
    lengths = np.diff(np.append(starts, len(ids)))
    rank = np.arange(len(ids)) - np.repeat(starts, lengths)
    drawn = np.full(len(ids), IGNORE, np.int64)
    chosen = order[(rank < limit) & (sorted_ids != IGNORE)]
    drawn[chosen] = ids[chosen]
    return drawn


def collate(sectors: list[Sector], recipe: PretrainRecipe) -> PretrainBatch:
    """Join sectors; names of segments become unique by sector and, across sweeps, by place."""
    starts = np.cumsum([0, *(len(s.xyz) for s in sectors)])
    sizes = np.diff(starts)
    joined: dict[str, list[Array]] = {name: [] for name in _JOINED}
    for number, (sector, start) in enumerate(zip(sectors, starts)):
        offset = number * SEGMENTS_PER_SECTOR
        for name in _JOINED:
            joined[name] += _renamed(name, getattr(sector, name), start, offset)
    names = np.concatenate([np.zeros(0, np.int64), *joined["segment_name"]])
    lasting = [_shifted(s.lasting, s.place * SEGMENTS_PER_SECTOR) for s in sectors]
    width = max((p.shape[1] for p in joined["pixels"]), default=0)
    return PretrainBatch(
        points=Points(
            torch.from_numpy(np.concatenate([s.xyz for s in sectors])),
            torch.from_numpy(np.concatenate([s.intensity for s in sectors])),
            torch.from_numpy(np.repeat(np.arange(len(sectors)), sizes)),
        ),
        place=torch.tensor([s.place for s in sectors]),
        pixels=_rows(joined["pixels"], width),
        pixel_segment=_ids(joined["pixel_segment"]),
        pair_point=_ids(joined["pair_point"]),
        pair_segment=_ids(joined["pair_segment"]),
        pair_feature=_rows(joined["pair_feature"], width),
        segment_name=torch.from_numpy(names),
        segment_class=_ids(joined["segment_class"]),
        segment_sector=torch.from_numpy(names // SEGMENTS_PER_SECTOR),
        lasting=_ids(lasting),
        second=torch.from_numpy(np.repeat([s.second for s in sectors], sizes)),
    )


_JOINED = (
    "pixels",
    "pixel_segment",
    "pair_point",
    "pair_segment",
    "pair_feature",
    "segment_name",
    "segment_class",
)


def _renamed(name: str, values: list[Array], start: int, offset: int) -> list[Array]:
    if name == "pair_point":
        return [value + start for value in values]
    if name in ("pixel_segment", "pair_segment", "segment_name"):
        return [_shifted(value, offset) for value in values]
    return values


def _shifted(ids: Array, offset: int) -> Array:
    return np.where(ids != IGNORE, ids + offset, IGNORE)


def _ids(parts: list[Array]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64))


def _rows(parts: list[Array], width: int) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros((0, width), np.float32), *parts]))
