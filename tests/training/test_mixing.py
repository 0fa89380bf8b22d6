# SPDX-License-Identifier: Apache-2.0
"""Sectors of two sweeps, and things pasted on the ground of others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pcseg_core.distill.pixels import PointPixels
from pcseg_core.labels import IGNORE
from pcseg_core.learning.augment import AugmentConfig
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.finetune import FinetuneRecipe
from pcseg_core.learning.mixing import Cloud, MixConfig, mix_azimuths, mix_elevations, turned
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.things import Things, find_things, occlusion, paste, scaled, spherical

GROUND_M = -1.7
ROAD, PERSON, WALL = 0, 1, 2
STILL = dict.fromkeys(AugmentConfig.model_fields, 0) | {"beam_deg": 1, "corrupt": {}}


def cloud(xyz: np.ndarray, label: int) -> Cloud:
    count = len(xyz)
    return Cloud(
        np.asarray(xyz, np.float32),
        np.full(count, 0.5, np.float32),
        np.full(count, label, np.int64),
        np.ones(count, np.float32),
        np.arange(count),
    )


def ground(step_m: float = 0.25, reach_m: float = 15.0) -> np.ndarray:
    x, y = np.meshgrid(*[np.arange(-reach_m, reach_m, step_m)] * 2)
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, GROUND_M)], 1)


def person(x: float = 8.0, y: float = 0.0) -> np.ndarray:
    """The side of a person that the sensor sees, every 5 cm."""
    side, up = np.meshgrid(np.arange(-0.25, 0.3, 0.05), np.arange(0.1, 1.8, 0.05))
    return np.stack([np.full(side.size, x), y + side.ravel(), GROUND_M + up.ravel()], 1)


def sweep(scene: str = "a", *, confidence: float = 1.0) -> TrainingSweep:
    """A road with a person ahead and a long wall to the left."""
    x, z = np.meshgrid(np.arange(-12, 12, 0.2), np.arange(GROUND_M, 2, 0.2))
    wall = np.stack([x.ravel(), np.full(x.size, 12.0), z.ravel()], 1)
    parts = [ground(), person(), wall]
    label = np.repeat([ROAD, PERSON, WALL], [len(part) for part in parts]).astype(np.int16)
    xyz = np.concatenate(parts).astype(np.float32)
    sure = np.where(label == PERSON, confidence, 1.0).astype(np.float32)
    return TrainingSweep(xyz, np.full(len(xyz), 0.5, np.float32), label, sure, scene)


def test_an_azimuth_range_of_one_sweep_replaces_that_of_the_other() -> None:
    degrees = np.arange(-59.5, 60, 1)
    angle = np.radians(degrees)
    ring = np.stack([10 * np.cos(angle), 10 * np.sin(angle), 0 * angle], 1)
    rng = np.random.default_rng(0)
    first, second = turned(cloud(ring, 0), 150), turned(cloud(ring, 1), 150)
    mixed = mix_azimuths(first, second, 150.0, 120.0, rng)
    assert len(mixed.xyz) == 120  # each azimuth once, also beyond 180 degrees
    moved = turned(mixed, -150).xyz
    found = np.degrees(np.arctan2(moved[:, 1], moved[:, 0]))
    assert np.sort(found) == pytest.approx(degrees, abs=1e-3)
    other = np.sort(found[mixed.label == 1])
    assert 30 <= len(other) <= 90 and np.allclose(np.diff(other), 1, atol=1e-3)
    assert (mixed.origin[mixed.label == 1] == IGNORE).all()
    assert (first.xyz[mixed.origin[mixed.label == 0]] == mixed.xyz[mixed.label == 0]).all()


def test_elevations_are_in_turn_from_two_sweeps() -> None:
    angle = np.radians(np.linspace(-20, 5, 251))
    fan = np.stack([10 * np.cos(angle), 0 * angle, 10 * np.sin(angle)], 1)
    mixed = mix_elevations(cloud(fan, 0), cloud(fan, 1), 2, np.random.default_rng(1))
    assert len(mixed.xyz) == 251
    low, high = (mixed.label[side] for side in (mixed.xyz[:, 2] < -1.4, mixed.xyz[:, 2] > -1.2))
    assert len(np.unique(low)) == len(np.unique(high)) == 1 and low[0] != high[0]


def test_things_are_clusters_on_the_ground_of_classes_that_come_in_clusters() -> None:
    (found,) = find_things(sweep(), 0.6)
    assert (found.label, found.scene) == (PERSON, "a")
    assert found.center == pytest.approx([8, 0], abs=0.03)
    assert found.ground == pytest.approx(GROUND_M) and found.radius == pytest.approx(0.25)
    assert (found.cloud.xyz == person().astype(np.float32)).all()
    assert set(Things([sweep()], 0.6, MixConfig(things=1)).by_class) == {PERSON}
    assert list(find_things(sweep(confidence=0.5), 0.6)) == []
    floating = sweep()
    floating.xyz[floating.label == PERSON, 2] += 1.0
    assert list(find_things(floating, 0.6)) == []


def test_a_thing_stands_on_the_ground_at_its_distance_and_hides_what_is_behind() -> None:
    (thing,) = find_things(sweep(), 0.6)
    street = ground()
    street[:, 2] -= 0.3  # the sensor is higher there
    for seed in range(5):
        found = paste(cloud(street, ROAD), [thing], 90.0, 60.0, np.random.default_rng(seed))
        new = found.xyz[found.label == PERSON]
        assert len(new) == len(thing.cloud.xyz) and (found.origin[-len(new) :] == IGNORE).all()
        assert np.hypot(*new[:, :2].T).mean() == pytest.approx(8, abs=0.05)
        azimuth = np.degrees(np.arctan2(new[:, 1], new[:, 0]))
        assert azimuth.min() >= 60 and azimuth.max() <= 120
        assert new[:, 2].min() == pytest.approx(GROUND_M - 0.3 + 0.1, abs=1e-3)
        left = spherical(found.xyz[found.label == ROAD])
        behind = (np.abs(left[:, 0] - azimuth.mean()) < 1.5) & (left[:, 2] > 8.5)
        assert not (behind & (left[:, 1] < 0) & (left[:, 1] > -11)).any()
        gone = len(street) - len(left)
        assert 20 < gone < 400


def test_a_thing_is_not_put_where_something_stands_or_nothing_is_seen() -> None:
    (thing,) = find_things(sweep(), 0.6)
    above = np.array([0, 0, 1.0])
    blocked = np.concatenate([ground(), ground() + above])
    for street in (blocked, ground(reach_m=5.0), ground() - 1.5 * above):
        found = paste(cloud(street, ROAD), [thing], 0.0, 360.0, np.random.default_rng(0))
        assert (found.label == ROAD).all() and len(found.xyz) == len(street)


def test_what_stands_before_a_thing_hides_it() -> None:
    own = spherical(person())
    screen = person(4.0) * [1, 2, 1]
    hidden, seen = occlusion(spherical(screen), own)
    assert not hidden.any() and not seen.all()
    hidden, seen = occlusion(spherical(person(12.0)), own)
    assert hidden.mean() > 0.9 and seen.all()


def test_scaled_things_keep_their_feet_on_the_ground() -> None:
    (thing,) = find_things(sweep(), 0.6)
    large = scaled(thing, 1.5).cloud.xyz - [8, 0, GROUND_M]
    assert np.allclose(large, (thing.cloud.xyz - [8, 0, GROUND_M]) * 1.5, atol=1e-5)


@pytest.mark.parametrize("mix", [{"polar": 1.0}, {"laser": 1.0}, {"things": 4}])
def test_mixed_sectors_follow_seed_and_step_and_keep_features_with_their_points(
    mix: dict[str, float],
) -> None:
    sweeps = [sweep("a"), sweep("b")]
    for number, each in enumerate(sweeps):
        point = np.arange(len(each.xyz))
        each.pixels = PointPixels(point, image=np.full((len(point), 1), number, np.float16))
        each.intensity[:] = number
    recipe = FinetuneRecipe(
        mix=mix, augment=STILL, optimizer={"batch_size": 4, "sector_deg": 180.0}
    )
    sectors = LabeledSectors(sweeps, recipe)
    batches = sectors.draw(3)
    for batch, again in zip(batches, LabeledSectors(sweeps, recipe).draw(3)):
        assert torch.equal(batch.points.xyz, again.points.xyz)
        assert batch.pixels is not None and batch.pixels.image is not None
        of_sweep = batch.points.intensity[batch.pixels.point]
        assert torch.equal(of_sweep, batch.pixels.image[:, 0]) and len(of_sweep.unique()) == 1
        assert len(of_sweep) < len(batch.points.xyz) or "things" in mix
    assert any(len(b.pixels.point) < len(b.points.xyz) for b in batches if b.pixels is not None)
    plain = LabeledSectors(sweeps, replace_mix(recipe)).draw(3)[0]
    assert not torch.equal(plain.points.xyz[:500], batches[0].points.xyz[:500]) or (
        len(plain.points.xyz) != len(batches[0].points.xyz)
    )


def replace_mix(recipe: FinetuneRecipe) -> FinetuneRecipe:
    return recipe.model_copy(update={"mix": MixConfig()})


def test_a_lone_scene_is_mixed_with_itself() -> None:
    recipe = FinetuneRecipe(mix={"polar": 1.0}, optimizer={"batch_size": 1})
    (batch,) = LabeledSectors([replace(sweep())], recipe).draw(0)
    assert len(batch.points.xyz) > 0


def test_shares_of_sectors_sum_to_one_at_most() -> None:
    with pytest.raises(ValueError, match="expected a sum up to 1"):
        MixConfig(polar=0.7, laser=0.7)
