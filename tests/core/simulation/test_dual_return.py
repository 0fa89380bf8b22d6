# SPDX-License-Identifier: Apache-2.0
"""Second returns of the simulated LiDAR against hand-computed footprints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pcseg_core.data import open_recording
from pcseg_core.data.bag import BagRecording
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, from_euler
from pcseg_core.online.free_space import Beams, FreeSpace
from pcseg_core.returns import ReturnType, last_returns
from pcseg_core.simulation.lidar import Lidar, LidarSpec, Sweep
from pcseg_core.simulation.materials import Class, Material
from pcseg_core.simulation.observe import past_leaves
from pcseg_core.simulation.primitives import Kind, join, rod, solid
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.route import EPOCH_NS
from pcseg_core.simulation.to_bag import write_simulated_bag

HIGH_M = 60.0  # the LiDAR of these tests is above the ground of the town
EXACT = LidarSpec(
    beams=8,
    fov_up_deg=4.0,
    fov_down_deg=0.5,
    range_noise_m=0.0,
    dropout=0.0,
    intensity_noise=0.0,
    returns=2,
)
LAST = (ReturnType.DUAL_STRONGEST_LAST, ReturnType.DUAL_WEAK_LAST, ReturnType.DUAL_ONLY)


def pole(radius_m: float) -> np.ndarray:
    """A thin upright pole, 10 m ahead."""
    ends = [(10.0, 0.0, HIGH_M + z) for z in (-5.0, 20.0)]
    return rod(*ends, radius_m, Class.POLE, Material.METAL, (0.5, 0.5, 0.5))


def wall(face_m: float = 30.0) -> np.ndarray:
    """A wall across, whose face is at x = `face_m`."""
    center, size = (face_m + 0.5, 0.0, HIGH_M), (1.0, 20.0, 20.0)
    return solid(Kind.BOX, center, size, Class.WALL, Material.BRICK, (0.5, 0.5, 0.5))


def measure(drive: SimulatedDrive, *parts: np.ndarray) -> Sweep:
    """A sweep of the parts alone, from (0, 0, 60 m)."""
    scene = replace(drive.world.scene, still=join(parts), movers=())
    place = from_euler(0, 0, 0, (0, 0, HIGH_M))
    path = Trajectory(np.array([0, 2 * EPOCH_NS]), np.stack([place, place]))
    return Lidar(EXACT).sweep(scene, path, EPOCH_NS, 0, seed=0, frozen=True)


# The axes of the two columns ahead pass the pole at 15.3 mm, the rays around them at 5.5, 10.4,
# 20.2 and 25.1 mm.
@pytest.mark.parametrize(("radius_m", "rays"), [(0.008, 1), (0.012, 3), (0.018, 4)])
def test_a_thin_pole_in_front_of_a_wall_gives_two_returns(
    drive: SimulatedDrive, radius_m: float, rays: int
) -> None:
    sweep = measure(drive, pole(radius_m), wall())
    cloud, kind = sweep.cloud, sweep.cloud.extra["return_type"]
    ahead = np.abs(cloud.xyz[:, 1]) < 2e-3 * cloud.xyz[:, 0]
    on_pole, on_wall = ahead & (sweep.label == Class.POLE), ahead & (sweep.label == Class.WALL)
    assert on_pole.sum() == on_wall.sum() == 2 * EXACT.beams == (kind != 7).sum() / 2
    assert cloud.xyz[on_pole, 0] == pytest.approx(10, abs=0.02)
    # exact along the axis; else by the width of the beam, which is 1.5 mrad at 1 to 4 degrees
    assert cloud.xyz[on_wall, 0] == pytest.approx(30, abs=1e-4 if rays < 4 else 0.01)
    pole_kind, wall_kind = (
        (ReturnType.DUAL_WEAK_FIRST, ReturnType.DUAL_STRONGEST_LAST)
        if rays == 1  # the wall is dimmer by the distance, 0.28 of its power
        else (ReturnType.DUAL_STRONGEST_FIRST, ReturnType.DUAL_WEAK_LAST)
    )
    assert set(kind[on_pole]) == {pole_kind} and set(kind[on_wall]) == {wall_kind}
    for ring in range(EXACT.beams):  # both returns have the laser and the time of their beam
        times = [sorted(cloud.time[one & (cloud.ring == ring)]) for one in (on_pole, on_wall)]
        assert times[0] == times[1] and len(times[0]) == 2
    beside = (sweep.label == Class.WALL) & ~ahead & (np.abs(cloud.xyz[:, 1]) < 0.5)
    assert (kind[beside] == ReturnType.DUAL_ONLY).all()
    share = np.median(cloud.intensity[on_wall]) / np.median(cloud.intensity[beside])
    assert share == pytest.approx((7 - rays) / 7, rel=0.02)
    assert (last_returns(cloud) == np.isin(kind, LAST)).all()
    behind = np.array([[10, 0, 0.3], [20, 0, 0.6], [35, 0, 1.0]], np.float32).T
    free = FreeSpace(np.ascontiguousarray(cloud.xyz.T), Beams.of(cloud))
    assert free.passed(behind, 0.5).tolist() == [False, True, False]


@pytest.mark.parametrize(("gap_m", "returns"), [(0.9, 1), (1.1, 2)])
def test_surfaces_that_are_near_each_other_give_one_return(
    drive: SimulatedDrive, gap_m: float, returns: int
) -> None:
    sweep = measure(drive, pole(0.018), wall(10.0 + gap_m))
    ahead = np.abs(sweep.cloud.xyz[:, 1]) < 2e-3 * sweep.cloud.xyz[:, 0]
    assert ahead.sum() == returns * 2 * EXACT.beams
    assert (sweep.label[ahead] == Class.POLE).sum() == 2 * EXACT.beams


def test_a_long_footprint_on_the_road_is_one_surface(drive: SimulatedDrive) -> None:
    world = drive.world
    scene = replace(world.scene, still=pole(0.02), movers=())
    lidar = Lidar(EXACT.model_copy(update={"fov_up_deg": -1.0, "fov_down_deg": -8.0}))
    sweep = lidar.sweep(scene, world.trajectory, EPOCH_NS, 0, seed=0)
    assert len(sweep.cloud) > 5000 and np.linalg.norm(sweep.cloud.xyz, axis=1).max() > 50
    assert (sweep.cloud.extra["return_type"] == ReturnType.DUAL_ONLY).mean() > 0.999


def test_part_of_the_light_passes_between_leaves(drive: SimulatedDrive) -> None:
    center, size = (15.0, 0.0, HIGH_M), (4.0, 4.0, 4.0)
    closed = (9.0, 0, 0, 0)
    leaves = (Class.VEGETATION, Material.LEAVES, (0.1, 0.2, 0.1))
    crown = solid(Kind.FOLIAGE, center, size, *leaves, texture=closed)
    scene = replace(drive.world.scene, still=join([crown, wall()]), movers=())
    rays = np.stack(np.meshgrid(15.0, np.linspace(-1.4, 1.4, 60), np.linspace(-1.4, 1.4, 60)), -1)
    probe = replace(drive.world.probe(), scene=scene)
    before = probe.cast(np.array([0, 0, HIGH_M]), rays.reshape(-1, 3), 0.0)
    after = past_leaves(before, 120.0)
    assert (before.label == Class.VEGETATION).all()
    through = after.label == Class.WALL
    assert through.mean() == pytest.approx(0.15, abs=0.03)
    assert after.points[through, 0] == pytest.approx(30, abs=1e-3)
    assert (after.range[~through] == before.range[~through]).all()
    sweep = measure(drive, crown, wall())
    kind = sweep.cloud.extra["return_type"]
    paired = np.isin(sweep.label, [Class.VEGETATION, Class.WALL]) & (kind != ReturnType.DUAL_ONLY)
    assert paired.sum() > 100 and (sweep.label[paired] == Class.VEGETATION).mean() == 0.5


def test_one_return_and_the_strongest_are_nearly_the_same(drive: SimulatedDrive) -> None:
    world, spec = drive.world, drive.world.lidar
    one, two = (
        Lidar(spec.model_copy(update={"returns": returns})).sweep(
            world.scene, world.trajectory, EPOCH_NS, 0, seed=0
        )
        for returns in (1, 2)
    )
    assert "return_type" not in one.cloud.extra
    weak = (ReturnType.DUAL_WEAK_FIRST, ReturnType.DUAL_WEAK_LAST)
    strongest = ~np.isin(two.cloud.extra["return_type"], weak)
    assert strongest.sum() == pytest.approx(len(one.cloud), rel=0.02)
    assert np.median(two.exact_range[strongest]) == pytest.approx(
        np.median(one.exact_range), rel=0.01
    )


def test_both_returns_of_a_drive_through_a_bag(tmp_path: Path) -> None:
    drive = open_recording("simulated:seed=4,sweeps=1,beams=16,columns=720,cameras=0,returns=2")
    write_simulated_bag(drive, tmp_path / "bag")
    ours, read = drive[0], BagRecording(tmp_path / "bag", label_space="simulation")[0]
    kind = ours.cloud.extra["return_type"]
    assert kind.dtype == np.uint8 and (read.cloud.extra["return_type"] == kind).all()
    assert (read.labels == ours.labels).all() and (read.cloud.ring == ours.cloud.ring).all()
    assert read.cloud.time == pytest.approx(ours.cloud.time, abs=1e-7)
    assert 0.002 < np.mean(kind != ReturnType.DUAL_ONLY) < 0.2
    assert (last_returns(read.cloud) == np.isin(kind, LAST)).mean() > 0.999


def test_organized_clouds_have_one_return() -> None:
    with pytest.raises(InputError, match="'returns' is 2: an organized cloud has one point"):
        SimulatedDrive(0, returns=2, organized=True)
