# SPDX-License-Identifier: Apache-2.0
"""Pairs of points and pixels: exact under augmentation, faults skipped, drawn by seed and step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paired_views import T_CAM_LIDAR, TILE, WIDTH, Fakes, batches, maker, quiet, recipe, sample

from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame
from pcseg_core.distill.image_views import map_pixels
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler
from pcseg_core.labels import IGNORE
from pcseg_core.learning.augment import draw_members
from pcseg_core.learning.dataset import NAMES_PER_SECTOR
from pcseg_core.learning.objectives.contrast import majority
from pcseg_core.learning.pairs import load
from pcseg_core.learning.recipe import AugmentConfig, PairAugmentConfig

STILL = AugmentConfig(
    rotate=False,
    flip=False,
    scale=0,
    shift_z_m=0,
    tilt_deg=0,
    jitter_m=0,
    drop=0,
    beam_drop=0,
    intensity_gain=0,
)


def test_a_view_pairs_every_point_with_its_pixel(stored: Any) -> None:
    view = stored[0][1].load()
    camera = view.images[0]
    xyz = view.xyz[camera.point].astype(float)
    u, v = 32 * -xyz[:, 1] / xyz[:, 0] + 31.5, 32 * -xyz[:, 2] / xyz[:, 0] + 23.5
    assert len(xyz) > 400 and (xyz[:, 0] > 0).all()
    row, column = camera.pixel.T
    # A pixel of the map is four of the image; its features are the mean row and column.
    assert np.abs(camera.features[0, row, column] - v).max() < 2.6
    assert np.abs(camera.features[1, row, column] - u).max() < 2.6
    tile = np.floor((v + 0.5) / TILE) * (WIDTH // TILE) + np.floor((u + 0.5) / TILE)
    assert (camera.segment == tile).mean() > 0.995  # but for rounding on the edges


def test_mirrored_features_lie_where_the_others_do(tmp_path: Path) -> None:
    camera = maker(tmp_path, mirror=True).observe_sample(sample(), "fakes").images[0]
    assert camera.mirrored is not None
    assert np.allclose(camera.mirrored[2], camera.features[2], atol=0.5)  # the same pixels
    assert np.allclose(camera.mirrored[1], (WIDTH - 1) - camera.features[1])


def test_poisoned_sweeps_and_images_are_counted_and_skipped(tmp_path: Path) -> None:
    poisoned = sample()
    xyz = poisoned.cloud.xyz.copy()
    xyz[::2] = np.nan
    half = PointCloud(xyz, poisoned.cloud.intensity, frame_id="lidar")
    none = PointCloud(np.full_like(xyz, np.nan), poisoned.cloud.intensity, frame_id="lidar")
    turned = sample().cameras[0]
    away = CameraFrame(
        "back", 0, turned.camera, T_CAM_LIDAR @ from_euler(0, 0, 0, (-900, 0, 0)), turned.image
    )

    def broken() -> np.ndarray:
        raise InputError("frame.png: cannot be decoded")

    samples = [
        sample(),
        sample(cloud=half),
        sample(cloud=none),
        sample(cameras=[]),
        sample(cameras=[away]),
        sample(image=np.zeros((0, 0, 3), np.uint8)),
        sample(image=broken),
        InputError("000007.bin: truncated"),
        sample(cameras=[turned, away]),
    ]
    made = maker(tmp_path)
    entries = made.observe({"fakes": Fakes(samples)}, quiet)
    assert [entry.index for entry in entries] == [0, 1, 8]
    assert np.isfinite(entries[1].load().xyz).all()
    assert len(entries[1].load().xyz) == len(xyz) // 2
    reasons = " | ".join(made.skipped)
    for words in (
        "no finite points",
        "no camera has an image",
        "no point of the sweep",
        "cannot be decoded",
        "truncated",
        "no camera sees any point",
    ):
        assert words in reasons
    with pytest.raises(InputError, match="none of the 1 sweeps"):
        maker(tmp_path / "other").observe({"fakes": Fakes([sample(cameras=[])])}, quiet)


def test_views_are_made_once_and_damage_is_mended(tmp_path: Path) -> None:
    first = maker(tmp_path).observe({"fakes": Fakes([sample()])}, quiet)
    again = maker(tmp_path).observe({"fakes": Fakes([InputError("must not be read")])}, quiet)
    assert first == again
    first[0].path.write_bytes(first[0].path.read_bytes()[:500])
    maker(tmp_path).observe({"fakes": Fakes([sample()])}, quiet)
    assert len(first[0].load().images) == 1


def test_a_view_damaged_during_training_is_named(stored: Any, tmp_path: Path) -> None:
    content = bytearray(Path(stored[0][0].path).read_bytes())
    content[len(content) // 2] ^= 0xFF  # the directory of the file is whole, its arrays are not
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(content)
    with pytest.raises(InputError, match="damaged.npz: damaged .* run again"):
        load(replace(stored[0][0], path=damaged))


def test_pairs_stay_exact_under_all_augmentations(stored: Any) -> None:
    """Intensity tells which point is which, wherever it was moved, and whatever was cut."""
    pairs = PairAugmentConfig(cuboid_drop=1, crop=1, min_pairs=20, merge=0)
    wild = AugmentConfig(intensity_gain=0, jitter_m=0, thin_m=5, coarse=0.2, stretch=0.1)
    dataset = batches(stored, recipe(pairs=pairs, augment=wild), 0, 6)
    where = {float(s): i for i, s in enumerate(stored[0][0].load().intensity)}
    checked = 0
    for batch in (dataset[k] for k in range(6)):
        pixels, segments = batch.pixels, batch.segments
        assert pixels is not None and pixels.image is not None and segments is not None
        seen = batch.points.intensity[pixels.point]
        named = segments.point_segment >= 0
        rows = segments.point_segment // NAMES_PER_SECTOR
        assert torch.equal(rows[named], batch.points.batch[pixels.point][named])
        point = np.array([where[float(s)] for s in seen])
        checked += len(point)
        # Sweeps differ in what they see of the same points; the feature tells the pixel.
        tile = segments.point_segment.numpy() % NAMES_PER_SECTOR
        v, u = pixels.image[:, 0].numpy(), pixels.image[:, 1].numpy()
        expected = np.floor(v / TILE) * (WIDTH // TILE) + np.floor(u / TILE)
        known = named.numpy()
        assert (tile == expected)[known].mean() > 0.85  # map pixels at the tiles' edges
        # The same thing has the same temporal segment in both sweeps of a pair.
        for place in segments.place.unique():
            sectors = (segments.place == place).nonzero().squeeze(1)
            member = torch.isin(batch.points.batch, sectors) & (segments.temporal != IGNORE)
            names: dict[float, int] = {}
            for s, name in zip(batch.points.intensity[member], segments.temporal[member]):
                assert names.setdefault(float(s), int(name)) == int(name)
    assert checked > 1000


def test_batches_depend_on_seed_and_step_and_ranks_share_them(stored: Any) -> None:
    settings = recipe()
    early, late = batches(stored, settings, 0, 9), batches(stored, settings, 3, 4)
    assert torch.equal(early[5].points.xyz, late[2].points.xyz)
    assert torch.equal(early[5].segments.pixels, late[2].segments.pixels)
    assert not torch.equal(early[5].points.xyz[:9], early[6].points.xyz[:9])
    halves = [batches(stored, settings, 0, 9, rank, 2)[5] for rank in (0, 1)]
    together = torch.cat([half.points.intensity for half in halves])
    assert torch.equal(together, early[5].points.intensity)
    places = torch.cat([half.segments.place for half in halves])
    assert sorted(places) == sorted(early[5].segments.place)
    with pytest.raises(InputError, match="gives 2 of 3 processes something to do.*at least 6"):
        batches(stored, settings, 0, 9, 0, 3)[5]


def test_members_are_drawn_by_segment() -> None:
    ids = np.array([3, 3, 3, IGNORE, 8, 3, 8])
    drawn = draw_members(ids, 2, np.random.default_rng(0))
    assert (drawn == 3).sum() == 2 and (drawn == 8).sum() == 2 and drawn[3] == IGNORE
    assert ((drawn == ids) | (drawn == IGNORE)).all()
    assert len(draw_members(ids[:0], 2, np.random.default_rng(0))) == 0


def test_map_pixels_and_majority_by_hand() -> None:
    uv = np.array([[-0.4, -0.4], [63.4, 47.4], [31.6, 3.4], [31.4, 3.6]])
    assert map_pixels(uv, (64, 48), (12, 16)).tolist() == [[0, 0], [11, 15], [0, 8], [1, 7]]
    ids, classes = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([4, 4, 1, IGNORE, 0])
    assert majority(ids, classes, 3).tolist() == [4, IGNORE, 0]
