# SPDX-License-Identifier: Apache-2.0
"""Simulated drives as a reader: options, determinism, faults, and a drive through a bag."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pcseg_core.data import open_recording
from pcseg_core.errors import InputError
from pcseg_core.geometry import invert
from pcseg_core.labels import LabelSpace, grouping
from pcseg_core.simulation import TOWNS, CameraSpec, Faults, LidarSpec
from pcseg_core.simulation.materials import Class
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.to_bag import CLOUD_TOPIC, write_simulated_bag

TINY = {"beams": 16, "columns": 360, "width": 160, "height": 96}


def same(a, b) -> bool:
    return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")


def test_label_space_is_the_simulators():
    space = LabelSpace.load("simulation")
    assert space.names == tuple(c.name.lower().replace("_", "-") for c in Class)
    street = LabelSpace.load("street")
    table = grouping(space, street)
    assert [space.names[k] for k in np.flatnonzero(table < 0)] == ["sky"]
    assert set(table[table >= 0]) == set(range(len(street)))
    assert (grouping(space, LabelSpace.load("cityscapes")) >= 0).all()


def test_same_seed_same_samples_in_any_order(drive: SimulatedDrive):
    options = drive.options.model_dump(exclude={"seed"})
    again = pickle.loads(pickle.dumps(SimulatedDrive(4, **options)))
    later = again[5]
    for index in (5, 2):
        a, b = drive[index], later if index == 5 else again[index]
        assert same(a.cloud.xyz, b.cloud.xyz) and same(a.labels, b.labels)
        assert same(a.cloud.intensity, b.cloud.intensity) and same(a.instances, b.instances)
    one, other = drive[5].cameras[1], pickle.loads(pickle.dumps(later)).cameras[1]
    assert same(one.image, other.image) and same(one.labels, other.labels)
    assert not same(drive[4].cameras[0].image, drive[5].cameras[0].image)


def test_a_sample_is_complete(drive: SimulatedDrive):
    sample = drive[-1]
    cloud = sample.cloud
    count = len(cloud)
    assert 0.5 * 32 * 720 < count <= 32 * 720 and cloud.finite.all()
    assert cloud.ring.max() == 31 and (np.diff(cloud.time) >= 0).all()
    assert cloud.time.min() >= 0 and cloud.time.max() < 0.1
    assert cloud.intensity.min() >= 0 and cloud.intensity.max() <= 1
    assert sample.labels.dtype == np.int16 and sample.labels.shape == (count,)
    assert sample.labels.min() >= 0 and sample.labels.max() < Class.SKY
    assert sample.instances.dtype == np.int32
    things = np.isin(sample.labels, [Class.CAR, Class.PERSON, Class.BICYCLE, Class.RIDER])
    assert things.any() and (sample.instances[things] >= 0).all()
    assert (sample.instances[sample.labels == Class.ROAD] < 0).all()
    frame = sample.cameras[0]
    assert frame.image.shape == (192, 320, 3) and frame.image.dtype == np.uint8
    assert frame.labels.dtype == np.int16 and frame.depth.dtype == np.float32
    sky = frame.labels == Class.SKY
    assert 0.02 < sky.mean() < 0.8 and (np.isinf(frame.depth) == sky).all()
    assert drive.scenes == [drive.name] * 6 and sample.scene == drive.name
    assert sample.trajectory.covers(sample.stamp_ns + 100_000_000)


def test_beams_fire_where_and_when_they_should(drive: SimulatedDrive):
    cloud = drive[0].cloud
    azimuth = np.arctan2(cloud.xyz[:, 1], cloud.xyz[:, 0])
    # clockwise from the rear: the front comes in the middle of the sweep
    assert cloud.time == pytest.approx((np.pi - azimuth) / (2 * np.pi) * 0.1, abs=1e-4)
    elevation = np.arctan2(cloud.xyz[:, 2], np.hypot(*cloud.xyz[:, :2].T))
    expected = np.radians(-25 + 35 * cloud.ring.astype(float) / 31)
    assert elevation == pytest.approx(expected, abs=1e-5)


def test_organized_clouds_keep_their_slots():
    sample = SimulatedDrive(1, sweeps=1, organized=True, cameras=0, **TINY)[0]
    assert (sample.cloud.height, sample.cloud.width) == (16, 360)
    lost = ~sample.cloud.finite
    assert 0.02 < lost.mean() < 0.6 and same(lost, sample.labels < 0)
    assert same(sample.cloud.ring.reshape(16, 360)[:, 0], np.arange(16))


def test_range_noise_is_what_was_asked_for():
    exact, noisy = (
        SimulatedDrive(1, sweeps=1, cameras=0, range_noise_m=noise, organized=True, **TINY)
        for noise in (0.0, 0.05)
    )
    ranges = [np.linalg.norm(d[0].cloud.xyz, axis=1) for d in (exact, noisy)]
    assert np.nanstd(ranges[1] - ranges[0]) == pytest.approx(0.05, rel=0.1)


def test_solid_state_pattern_stays_in_view_and_never_repeats():
    drive = SimulatedDrive(2, sweeps=2, pattern="solid-state", cameras=0, range_noise_m=0.0, **TINY)
    first, second = drive[0].cloud, drive[1].cloud
    azimuth = np.degrees(np.arctan2(first.xyz[:, 1], first.xyz[:, 0]))
    assert np.abs(azimuth).max() <= 55.1 and azimuth.min() < -45 and azimuth.max() > 45
    count = min(len(first), len(second))
    rays = [
        c.xyz[:count] / np.linalg.norm(c.xyz[:count], axis=1, keepdims=True)
        for c in (first, second)
    ]
    assert np.median(np.linalg.norm(rays[0] - rays[1], axis=1)) > 0.05
    spinning = SimulatedDrive(2, sweeps=1, cameras=0, range_noise_m=0.0, **TINY)[0]
    found, usual = (np.bincount(s.labels, minlength=21) > 0 for s in (drive[0], spinning))
    assert (found & usual)[[Class.ROAD, Class.BUILDING]].all()


def test_intensity_tells_materials_apart_but_not_surely(drive: SimulatedDrive):
    samples = [drive[k] for k in (0, 3, 5)]
    labels = np.concatenate([s.labels for s in samples])
    intensity = np.concatenate([s.cloud.intensity for s in samples])
    near = np.concatenate([np.linalg.norm(s.cloud.xyz, axis=1) < 15 for s in samples])
    road, paint = (intensity[near & (labels == c)] for c in (Class.ROAD, Class.LANE_MARKING))
    assert np.median(paint) > 2 * np.median(road)
    leaves = intensity[near & (labels == Class.VEGETATION)]
    wall = intensity[near & (labels == Class.BUILDING)]
    low, high = np.quantile(leaves, [0.1, 0.9])
    assert np.mean((wall > low) & (wall < high)) > 0.3


def test_fisheye_and_distorted_lenses_see_the_same_world():
    rig = (
        CameraSpec(name="wide", lens="fisheye", hfov_deg=190, width=200, height=160, noise=0.0),
        CameraSpec(name="bent", distortion=(-0.25, 0.06, 0, 0, 0), width=160, height=96, noise=0.0),
        CameraSpec(name="plain", width=160, height=96, noise=0.0),
    )
    sample = SimulatedDrive(4, sweeps=1, rig=rig, **{k: TINY[k] for k in ("beams", "columns")})[0]
    wide, bent, plain = sample.cameras
    u, v = np.meshgrid(np.arange(30, 130, 5), np.arange(20, 80, 5))
    depth = plain.depth[v, u].ravel()
    hit = np.isfinite(depth) & (depth < 40)
    points = plain.camera.unproject(np.stack([u.ravel(), v.ravel()], 1)[hit], depth[hit])
    for other in (wide, bent):
        uv, valid = other.camera.project(points)  # all three stand in the same place
        inside = valid & other.camera.contains(uv)
        column, row = np.rint(uv[inside]).astype(int).T
        found = other.depth[row, column]
        assert inside.mean() > 0.5
        assert np.mean(np.abs(found - depth[hit][inside]) < 0.1 * depth[hit][inside]) > 0.9
    corner = wide.labels[0, 0]  # beyond what an equidistant lens of this view images, or sky
    assert corner in (-1, Class.SKY, Class.BUILDING, Class.VEGETATION)


def test_cameras_have_rates_and_offsets_of_their_own():
    rig = (
        CameraSpec(name="slow", rate_hz=4.0, offset_s=0.02, width=32, height=32),
        CameraSpec(name="fast", rate_hz=30.0, offset_s=0.011, width=32, height=32),
    )
    drive = SimulatedDrive(0, sweeps=10, rig=rig, beams=1, columns=16)
    start = drive.stamp_ns(0)
    stamps = {"slow": [], "fast": []}
    for frame in drive.images_between(start, start + 10**9):
        stamps[frame.name].append((frame.stamp_ns - start) / 1e9)
    assert stamps["slow"] == pytest.approx(0.02 + np.arange(4) / 4, abs=1e-8)
    assert stamps["fast"] == pytest.approx(0.011 + np.arange(30) / 30, abs=1e-8)
    paired = [{f.name: f.stamp_ns for f in drive[k].cameras} for k in range(10)]
    middle = [drive.stamp_ns(k) + 50_000_000 for k in range(10)]
    assert all(abs(p["fast"] - m) <= 17_000_000 for p, m in zip(paired, middle))
    assert len({p["slow"] for p in paired if "slow" in p}) == 5  # two or three sweeps share one


def test_reported_calibration_is_wrong_and_the_picture_right():
    right = SimulatedDrive(4, sweeps=1, **TINY)
    wrong = SimulatedDrive(
        4, sweeps=1, faults=Faults(camera_rotation_deg=2.0, camera_translation_m=0.1), **TINY
    )
    a, b = right[0].cameras, wrong[0].cameras
    errors = [y.T_cam_lidar @ invert(x.T_cam_lidar) for x, y in zip(a, b)]
    for error in errors:
        angle = np.degrees(np.arccos((np.trace(error[:3, :3]) - 1) / 2))
        assert angle == pytest.approx(2.0, abs=1e-6)
        assert np.linalg.norm(error[:3, 3]) == pytest.approx(0.1, abs=1e-9)
    assert not np.allclose(errors[0], errors[1])  # each camera has its own
    assert same(a[0].image, b[0].image)


def test_stamps_lie_and_the_picture_does_not():
    right = SimulatedDrive(4, sweeps=8, **TINY)
    late = SimulatedDrive(4, sweeps=8, faults=Faults(stamp_offset_s=0.2), **TINY)
    a, b = right[1].cameras[0], late[3].cameras[0]
    assert b.stamp_ns == a.stamp_ns + 200_000_000
    assert same(a.image, b.image)
    shaky = SimulatedDrive(4, sweeps=50, faults=Faults(stamp_jitter_s=0.005), beams=1, columns=16)
    exact = SimulatedDrive(4, sweeps=50, beams=1, columns=16)
    span = (exact.stamp_ns(0), exact.stamp_ns(50))
    jitter = np.array(
        [
            x.stamp_ns - y.stamp_ns
            for x, y in zip(shaky.images_between(*span), exact.images_between(*span))
        ]
    )
    assert 3e6 < jitter.std() < 7e6 and np.abs(jitter).max() <= 15_000_000


def test_dropped_images_are_missing_and_counted():
    drive = SimulatedDrive(4, sweeps=60, faults=Faults(dropped_images=0.5), beams=1, columns=16)
    counts = [len(drive[k].cameras) for k in range(60)]
    assert 0.3 < np.mean(counts) / 2 < 0.7
    assert sum(drive.skipped.values()) == 120 - sum(counts)
    assert not SimulatedDrive(4, sweeps=2, faults=Faults(dropped_images=1.0), **TINY)[1].cameras


@pytest.mark.parametrize("town", TOWNS)
def test_every_town_can_be_driven_through(town: str):
    drive = SimulatedDrive(21, town=town, sweeps=4, stride=25, cameras=1, **TINY)
    labels = np.concatenate([drive[k].labels for k in range(4)])
    seen = np.bincount(labels, minlength=21)
    assert (seen[[Class.ROAD, Class.SIDEWALK, Class.BUILDING]] > 100).all()
    for k in range(4):
        ranges = np.linalg.norm(drive[k].cloud.xyz, axis=1)
        assert ranges.min() > 1.2  # nothing drives into the recording vehicle
    picture = drive[3].cameras[0].image
    assert 40 < picture.mean() < 220 and picture.std() > 20


def test_drives_differ_between_seeds_and_towns():
    drives = [SimulatedDrive(k, sweeps=1, **TINY) for k in range(5)]
    assert len({d.world.town for d in drives}) == 5
    drives.append(SimulatedDrive(5, town=drives[0].world.town, sweeps=1, **TINY))
    first, again = drives[0][0].cloud.xyz, drives[5][0].cloud.xyz
    assert first.shape != again.shape or not np.allclose(first, again)


def test_text_options():
    drive = open_recording("simulated:seed=3,sweeps=7,town=suburb,beams=32,camera_rotation_deg=1")
    assert (len(drive), drive.world.town, drive.world.lidar.beams) == (7, "suburb", 32)
    assert drive.faults.camera_rotation_deg == 1.0 and drive.options.seed == 3
    assert drive.pose_source == "exact" and drive.label_space.name == "simulation"
    assert open_recording("simulated:").options.sweeps == 20
    with pytest.raises(IndexError):
        drive[7]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=3,sweep=20", "did you mean 'sweeps'"),
        ("seed", "key=value"),
        ("seed=x", "'seed' is 'x'"),
        ("beams=0", "'beams' is '0'"),
        ("town=atlantis", "known towns: center"),
        ("dropped_images=2", "'dropped_images' is '2'"),
    ],
)
def test_bad_options_say_what_is_wrong(text: str, expected: str):
    with pytest.raises(InputError, match=expected):
        open_recording(f"simulated:{text}")
    with pytest.raises(InputError, match="sweps"):
        SimulatedDrive(0, sweps=3)


def test_a_lidar_in_full():
    lidar = LidarSpec(beams=16, columns=180, fov_up_deg=15, fov_down_deg=-15, range_max_m=30)
    cloud = SimulatedDrive(0, sweeps=1, cameras=0, lidar=lidar)[0].cloud
    assert np.linalg.norm(cloud.xyz, axis=1).max() < 30.2 and cloud.ring.max() <= 15


@pytest.mark.parametrize("organized", [False, True])
def test_a_drive_through_a_bag(tmp_path: Path, organized: bool):
    from pcseg_core.data.bag import BagRecording
    from pcseg_core.data.bag_reader import BagFile

    drive = SimulatedDrive(
        4, sweeps=4, organized=organized, faults=Faults(camera_rotation_deg=0.5), **TINY
    )
    written = write_simulated_bag(drive, tmp_path / "bag", raw_images=True)
    assert written.counts[CLOUD_TOPIC] == 4 and written.counts["/camera_1/image"] == 4
    bag = BagRecording(tmp_path / "bag", label_space="simulation")
    assert len(bag) == 4
    for index in range(4):
        a, b = drive[index], bag[index]
        assert b.cloud.stamp_ns == a.stamp_ns and b.cloud.frame_id == "lidar"
        assert (b.cloud.height, b.cloud.width) == (a.cloud.height, a.cloud.width)
        assert same(a.cloud.xyz, b.cloud.xyz) and same(a.labels, b.labels)
        assert same(a.cloud.ring, b.cloud.ring)
        assert b.cloud.intensity == pytest.approx(a.cloud.intensity, abs=1e-6)
        assert b.cloud.time == pytest.approx(a.cloud.time, abs=1e-7)
        assert same(a.instances, b.cloud.extra["instance"])
    a, b = drive[2], bag[2]
    for k, frame in enumerate(b.cameras):
        assert frame.stamp_ns == a.cameras[k].stamp_ns
        assert same(frame.image, a.cameras[k].image)
        assert frame.T_cam_lidar == pytest.approx(a.cameras[k].T_cam_lidar, abs=1e-9)
        assert b.T_cam_lidar(k) == pytest.approx(a.T_cam_lidar(k), abs=2e-4)
    # Sweeps are recorded when they have been measured, as those of a driver.
    recorded = [ns for _, ns, _ in BagFile(tmp_path / "bag").messages([CLOUD_TOPIC])]
    assert recorded == [drive[index].stamp_ns + 100_000_000 for index in range(4)]


def test_a_bag_holds_every_sweep(tmp_path: Path):
    with pytest.raises(InputError, match="stride 1"):
        write_simulated_bag(SimulatedDrive(0, stride=2, **TINY), tmp_path / "bag")
    assert not (tmp_path / "bag").exists()
