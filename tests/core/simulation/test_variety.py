# SPDX-License-Identifier: Apache-2.0
"""Towns and LiDARs that are drawn at random: receivers, rough surfaces, mountings, losses."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pcseg_core.data import open_recording
from pcseg_core.errors import InputError
from pcseg_core.simulation.lidar import Lidar, LidarSpec
from pcseg_core.simulation.materials import Class, Material
from pcseg_core.simulation.observe import Hits
from pcseg_core.simulation.receiver import Receiver
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.roughness import shifts
from pcseg_core.simulation.towns import TOWNS, find_town
from pcseg_core.simulation.variety import VARIED, draw_lidar, draw_town, style_of


@pytest.fixture(scope="module")
def hits(drive: SimulatedDrive) -> Hits:
    """What rays of all directions below the horizon meet in a suburb."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(4000, 3))
    direction[:, 2] = -0.15 * np.abs(direction[:, 2])
    eye = drive.world.trajectory.at(drive.stamp_ns(0))[:3, 3]
    return drive.world.probe().cast(eye, direction, 0.0)


def test_a_seed_draws_one_lidar_and_one_town():
    assert draw_lidar(5) == draw_lidar(5) and style_of(VARIED, 5) == style_of(VARIED, 5)
    drawn = [draw_lidar(seed) for seed in range(40)]
    assert len({lidar.beams for lidar in drawn}) > 3
    assert len({lidar.receiver.gain for lidar in drawn}) == 40
    assert all(np.all(np.diff(lidar.elevations_deg) >= 0) for lidar in drawn)
    assert style_of(VARIED, 5) != style_of(VARIED, 6)


def test_named_towns_stay_as_they_are():
    assert style_of("suburb", 5) == find_town("suburb") and VARIED not in TOWNS
    assert not any(town.rough for town in TOWNS.values())
    assert draw_town(np.random.default_rng(0)).rough


def test_a_varied_drive_has_labels_and_intensities_of_its_sensor():
    drive = open_recording("simulated:seed=20002,sweeps=1,cameras=0,town=varied,sensor=varied")
    sample, lidar = drive[0], draw_lidar(20002)
    assert sample.cloud.intensity.min() >= 0 and sample.cloud.intensity.max() <= 1
    assert len(np.unique(sample.labels)) > 8 and sample.labels.min() >= 0
    assert sample.cloud.ring.max() == lidar.beams - 1
    road = sample.cloud.xyz[(sample.labels == Class.ROAD)]
    near = road[np.linalg.norm(road[:, :2], axis=1) < 6]
    assert np.median(near[:, 2]) == pytest.approx(-lidar.height_m, abs=0.25)


def test_elevations_belong_to_beams():
    with pytest.raises(ValueError, match="2 elevations for 3 beams"):
        LidarSpec(beams=3, elevations_deg=(0.0, 1.0))
    with pytest.raises(InputError, match="sensor"):
        open_recording("simulated:sensor=other")


def test_incidence_and_near_range_change_the_power(hits: Hits):
    asphalt = (hits.material == Material.ASPHALT) & (hits.range < 12)
    plain = Receiver().power(hits)[asphalt]
    flat = Receiver(incidence=0.0).power(hits)[asphalt]
    assert plain.std() / plain.mean() > 0.2 > 1e-6 + flat.std() / flat.mean()
    near = Receiver(incidence=0.0, near_m=12.0).power(hits)[asphalt]
    order = np.argsort(hits.range[asphalt])
    assert np.all(np.diff((near / flat)[order]) > -1e-6) and (near < flat).all()


def test_reflectivities_scatter_by_seed_but_signs_stay_bright(hits: Hits):
    one, other = (Receiver(material_scatter=0.5, seed=seed).power(hits) for seed in (1, 2))
    ground = hits.material == Material.ASPHALT
    assert np.ptp(one[ground] / other[ground]) == pytest.approx(0, abs=1e-9)
    assert one[ground][0] != pytest.approx(other[ground][0], rel=0.01)


def test_weak_returns_are_reported_as_zero_and_gain_is_clipped():
    power, ring = np.array([0.01, 0.1, 0.5]), np.array([0, 1, 1])
    reported = Receiver(zero=0.05, gain=4.0).reported(power, ring)
    assert reported.tolist() == [0.0, pytest.approx(0.4), 1.0]
    assert Receiver(gamma=0.5).reported(power, ring) == pytest.approx(np.sqrt(power))
    scattered = Receiver(beam_scatter=0.3).reported(np.full(3, 0.1), ring)
    assert scattered[0] != scattered[1] == scattered[2]


def test_only_leaves_and_grass_are_rough(hits: Hits):
    town = replace(find_town("suburb"), leaves_m=0.3, grass_m=0.1, lumps_m=0.05)
    shift = shifts(hits, town, 3, np.random.default_rng(0))
    leaves, grass = hits.material == Material.LEAVES, hits.material == Material.GRASS
    assert leaves.sum() > 20 and grass.sum() > 20
    assert (shift[leaves] != 0).all() and np.abs(shift[~leaves & ~grass]).max() == 0
    lawn = replace(town, leaves_m=0.0, lumps_m=0.0)
    higher = shifts(hits, lawn, 3, np.random.default_rng(0))[grass]
    rise = higher * hits.rays.direction[grass, 2]
    assert (higher < 0).all() and rise.max() < 0.1


def test_mixed_returns_lie_between_both_surfaces(drive: SimulatedDrive):
    ranges = []
    for share in (0.0, 1.0):
        spec = LidarSpec(beams=24, columns=360, range_noise_m=0.0, dropout=0.0, mixed=share)
        lidar = Lidar(spec.model_copy(update={"organized": True}))
        stamp = drive.stamp_ns(0)
        cloud = lidar.sweep(drive.world.scene, drive.world.trajectory, stamp, 0, 0).cloud
        ranges.append(np.linalg.norm(cloud.xyz, axis=1).reshape(24, 360))
    before, after = ranges
    next_ = np.roll(before, -1, axis=1)
    moved = (np.abs(after - before) > 1e-3) & np.isfinite(next_)
    assert moved.sum() > 20
    assert ((before < after) & (after < next_ + 1e-3))[moved].all()


def test_height_and_tilt_of_the_mounting():
    lidar = LidarSpec(height_m=2.4, tilt_deg=(2.0, -3.0))
    pose = SimulatedDrive(4, sweeps=1, cameras=0, lidar=lidar).world.T_body_lidar
    assert pose[2, 3] == 2.4
    assert np.degrees(np.arctan2(pose[2, 1], pose[2, 2])) == pytest.approx(2.0)
    assert np.degrees(np.arcsin(-pose[2, 0])) == pytest.approx(-3.0)
    options = {"lidar_height_m": 1.2, "lidar_pitch_deg": 5.0}
    pose = SimulatedDrive(4, sweeps=1, cameras=0, **options).world.T_body_lidar
    assert pose[2, 3] == 1.2 and np.degrees(np.arcsin(-pose[2, 0])) == pytest.approx(5.0)


def test_open_land_has_few_things_and_comes_by_name_only():
    assert find_town("field") not in TOWNS.values()
    drive = {"sweeps": 1, "cameras": 0, "beams": 16, "columns": 256}
    known = [SimulatedDrive(3, town=town, **drive)[0] for town in ("field", "suburb")]
    labels = [Counter(np.array(sample.label_space.names)[sample.labels]) for sample in known]
    assert labels[0]["building"] == 0 < labels[1]["building"]
