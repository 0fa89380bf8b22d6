# SPDX-License-Identifier: Apache-2.0
"""Sectors of labeled sweeps, mixed and augmented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcseg_core.distill.cache import Stored
from pcseg_core.distill.lidar_teacher import LidarTargets
from pcseg_core.distill.losses import required_confidence
from pcseg_core.distill.pixels import PointPixels
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.learning.augment import (
    ScenePicker,
    augment_intensity,
    augment_points,
    check_corruptions,
    corrupt_some,
    keep_some,
    labeled_azimuth,
    sector_mask,
    thin,
)
from pcseg_core.learning.dataset import Batch, LidarBatch, PixelBatch, TrainingSweep, sector_points
from pcseg_core.learning.distributed import check_batch, from_first
from pcseg_core.learning.mixing import Cloud, mix_azimuths, mix_elevations, turned
from pcseg_core.learning.recipe import TrainingRecipe
from pcseg_core.learning.shards import StoredSweeps, scenes_of
from pcseg_core.learning.things import Things, paste

Array = npt.NDArray[Any]
Rng = np.random.Generator

_THING_SWEEPS = 2000  # of shards, whose things are kept
_DRAWS = 10  # of another scene, before the sweep may be of the same scene


class LabeledSectors:
    """Sectors around labeled points whose class is drawn evenly.

    Args:
        sweeps: labeled sweeps.
        recipe: optimizer, augmentation, mixing, least confidence and seed.
        space: classes of the labels; some corruptions of the augmentation need them.

    Attributes:
        required: least confidence of the labels, see `required_confidence`.

    Raises:
        InputError: a corruption needs classes that are not there.
    """

    def __init__(
        self,
        sweeps: Sequence[TrainingSweep],
        recipe: TrainingRecipe,
        space: LabelSpace | None = None,
    ) -> None:
        self.sweeps, self.recipe, self.space = sweeps, recipe, space
        check_corruptions(recipe.augment.corrupt, space)
        labels = ((sweep.label, sweep.confidence) for sweep in sweeps)
        self.required = from_first(lambda: required_confidence(labels, recipe.loss))
        self.scenes = ScenePicker(scenes_of(sweeps))
        self.things = Things(self._with_things(), self.required, recipe.mix)

    def _with_things(self) -> Sequence[TrainingSweep]:
        """Sweeps whose things are kept in memory: of shards, evenly spaced ones."""
        if not self.recipe.mix.things:
            return ()
        few = isinstance(self.sweeps, StoredSweeps) and len(self.sweeps) > _THING_SWEEPS
        return self.sweeps[:: -(-len(self.sweeps) // _THING_SWEEPS)] if few else self.sweeps

    def draw(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """See `Sectors`. Several processes draw other sectors than one, but the same in all orders.

        Raises:
            InputError: there are more processes than sectors.
        """
        count = self.recipe.optimizer.batch_size
        if world == 1:
            rng = np.random.default_rng((self.recipe.seed, step))
            return [self._sector(rng) for _ in range(count)]
        check_batch(count, world)
        seeds = ((self.recipe.seed, step, item) for item in range(rank, count, world))
        return [self._complete(self._sector(np.random.default_rng(seed))) for seed in seeds]

    def _complete(self, sector: Batch) -> Batch:
        """The sector with empty targets where it has none: all processes take the same steps."""
        pixels, lidar = self._blank
        seen = sector.pixels
        if seen is None or (seen.image is not None and seen.image.shape[1] == 0):
            sector = replace(sector, pixels=pixels)
        return sector if sector.lidar is not None else replace(sector, lidar=lidar)

    @cached_property
    def _blank(self) -> tuple[PixelBatch | None, LidarBatch | None]:
        """Targets without a row, as wide as those of the sweeps; None where sweeps have none."""
        none, first = np.zeros(0, np.int64), self.sweeps[0]
        lidar = None if first.lidar is None else _targets_of(first.lidar, none)
        if first.pixels is None:
            return None, lidar
        found = (sweep.pixels for sweep in self.sweeps if sweep.pixels is not None)
        wide = next((one for one in found if len(one.point)), first.pixels)
        pixels = _pixels_of(wide, none, int(wide.point.max(initial=0)) + 1)
        if pixels.patch_image is not None:
            pixels = replace(pixels, patch_image=pixels.patch_image[:0])
        return pixels, lidar

    def _sector(self, rng: Rng) -> Batch:
        config, sweep = self.recipe.augment, self.sweeps[self.scenes.draw(rng)]
        cloud, azimuth = self._cloud(sweep, rng)
        cloud = self._mixed(cloud, azimuth, sweep.scene, rng)
        cloud = corrupt_some(cloud, config.corrupt, self.space, rng)
        cloud = cloud.take(thin(cloud.xyz, config, rng))
        xyz = augment_points(cloud.xyz, config, rng)
        intensity = augment_intensity(cloud.intensity, config, rng)
        count = len(sweep.xyz)
        return Batch(
            sector_points(xyz, intensity),
            torch.from_numpy(cloud.label),
            torch.from_numpy(cloud.confidence),
            None if sweep.pixels is None else _pixels_of(sweep.pixels, cloud.origin, count),
            None if sweep.lidar is None else _targets_of(sweep.lidar, cloud.origin),
        )

    def _cloud(self, sweep: TrainingSweep, rng: Rng) -> tuple[Cloud, float]:
        """A sector of a sweep without some of its points, and its middle azimuth [deg]."""
        labels, width = sweep.confident(self.required), self.recipe.optimizer.sector_deg
        azimuth = labeled_azimuth(sweep.xyz, labels, width, rng)
        mask = sector_mask(sweep.xyz, azimuth, width)
        keep = np.flatnonzero(mask & keep_some(sweep.xyz, self.recipe.augment, rng))
        parts = (sweep.xyz, sweep.intensity, labels, sweep.confidence, np.arange(len(labels)))
        return Cloud(*(part[keep] for part in parts)), azimuth

    def _mixed(self, cloud: Cloud, azimuth: float, scene: str, rng: Rng) -> Cloud:
        """A sector with parts of another scene and things of others, as `recipe.mix` says."""
        mix, width = self.recipe.mix, self.recipe.optimizer.sector_deg
        kind = rng.random() if mix.polar + mix.laser > 0 else 1.0
        if kind < mix.polar + mix.laser:
            other, middle = self._cloud(self._of_other_scene(scene, rng), rng)
            other = turned(other, azimuth - middle)
            if kind < mix.polar:
                cloud = mix_azimuths(cloud, other, azimuth, width, rng)
            else:
                cloud = mix_elevations(cloud, other, mix.laser_bands, rng)
        if mix.things:
            cloud = paste(cloud, self.things.draw(rng), azimuth, width, rng)
        return cloud

    def _of_other_scene(self, scene: str, rng: Rng) -> TrainingSweep:
        """A sweep of another scene; any sweep if there is hardly another."""
        for _ in range(_DRAWS):
            sweep = self.sweeps[self.scenes.draw(rng)]
            if sweep.scene != scene:
                break
        return sweep


def _pixels_of(pixels: PointPixels, origin: Array, count: int) -> PixelBatch:
    """Pixels of the points at positions `origin` (K,) among `count`; none for IGNORE."""
    position = np.full(count, IGNORE, np.int64)
    known = np.flatnonzero(origin != IGNORE)
    position[origin[known]] = known
    moved = position[pixels.point]
    rows = np.flatnonzero(moved != IGNORE)

    def floats(values: Stored | None, rows: Array | slice) -> Tensor | None:
        return None if values is None else torch.from_numpy(values[rows].astype(np.float32))

    return PixelBatch(
        torch.from_numpy(moved[rows]),
        floats(pixels.image, rows),
        floats(pixels.text, rows),
        None if pixels.patch is None else torch.from_numpy(pixels.patch[rows].astype(np.int64)),
        floats(pixels.patch_image, slice(None)),
    )


def _targets_of(lidar: LidarTargets, origin: Array) -> LidarBatch:
    """Targets of the points at positions `origin` (K,) of a sweep; none for IGNORE."""
    rows = np.where(origin != IGNORE, lidar.voxel[origin], IGNORE)
    point = np.flatnonzero(rows != IGNORE)
    needed, place = np.unique(rows[point], return_inverse=True)

    def floats(values: Stored | None) -> Tensor | None:
        if values is None:
            return None
        return torch.from_numpy(values[needed].astype(np.float32)[place])

    logarithms = floats(lidar.log_probabilities)
    likely = None if logarithms is None else logarithms.exp()
    return LidarBatch(torch.from_numpy(point), likely, floats(lidar.features))
