# SPDX-License-Identifier: Apache-2.0
"""Errors of a calibration that a drive finds, and what it cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pcseg_core.calibration import verdict
from pcseg_core.calibration.alignment import Alignment, View, camera_poses, pose_error
from pcseg_core.calibration.calibrate import check_calibration, collect_views, with_neighbors
from pcseg_core.calibration.estimate import Estimate, estimate, restricted, search
from pcseg_core.calibration.verdict import judge
from pcseg_core.data import Recording
from pcseg_core.data.sample import Sample
from pcseg_core.errors import InputError

AsDrive = Callable[[list[Sample]], Recording]


def _disturbed(samples: list[Sample], views: list[View], change: np.ndarray) -> list[View]:
    """The views with an error of the calibration and of the stamps."""
    moved = []
    for sample, view in zip(samples, views):
        frame = view.frame.placed(pose_error(change) @ view.frame.T_cam_lidar)
        frame.stamp_ns += round(change[6] * 1e9)
        poses = camera_poses(frame, sample.trajectory, sample.stamp_ns)
        moved.append(replace(view, poses=poses, frame=frame))
    return moved


def test_an_exact_calibration_is_consistent(samples: list[Sample], as_drive: AsDrive) -> None:
    checked = check_calibration(as_drive(samples), whole=False)
    (camera,) = checked.report.cameras
    assert camera.verdict == "consistent" and camera.correction is None
    assert camera.rotation is not None and camera.rotation.size < 0.2
    (frame,) = checked.frames()
    np.testing.assert_array_equal(frame.T_cam_lidar, samples[0].cameras[0].T_cam_lidar)
    assert not checked.time_offsets()


def test_an_error_of_rotation_and_time_is_found(samples: list[Sample], views: list[View]) -> None:
    change = np.array([1.0, -1.2, 0.8, 0.0, 0.0, 0.0, 0.06])
    camera = judge("front", _disturbed(samples, views, change), whole=False)
    assert camera.verdict == "off" and camera.rotation is not None and camera.time is not None
    assert camera.rotation.verdict == camera.time.verdict == "off"
    left = pose_error(camera.change) @ pose_error(change)
    assert np.degrees(np.arccos((np.trace(left[:3, :3]) - 1) / 2)) < 0.3
    assert camera.change[6] == pytest.approx(-0.06, abs=0.015)
    assert camera.score is not None and camera.score_corrected is not None
    assert camera.score < 0.5 * camera.score_corrected


def test_static_edges_tell_the_translation(samples: list[Sample], views: list[View]) -> None:
    change = np.array([0.0, 0.0, 0.0, 0.0, 0.1, 0.0, 0.0])
    moved = _disturbed(samples, views, change)
    static = [
        replace(view, edges=replace(view.edges, static=np.ones(len(view.edges), bool)))
        for view in moved
    ]
    known, unknown = (judge("front", each, whole=False).translation for each in (static, moved))
    assert known is not None and unknown is not None
    assert unknown.verdict == "consistent" and known.verdict == "off"
    np.testing.assert_allclose(known.value, -change[3:6], atol=0.05)
    assert known.reason.startswith("z: the interval of 0.1") and known.value[2] == 0


def test_an_unknown_time_is_not_made_up_for(samples: list[Sample], views: list[View]) -> None:
    """In a turn, another rotation looks like another time."""
    change = np.array([1.0, -1.2, 0.8, 0.0, 0.0, 0.0, 0.1])
    alignment = Alignment(_disturbed(samples, views, change))
    whole = estimate(alignment, search(alignment))
    without_time = restricted(alignment, whole, range(6))
    np.testing.assert_allclose(without_time.change[:3], -change[:3], atol=0.3)
    assert not without_time.change[6]


def test_neighbors_are_half_a_second_apart_and_of_the_same_scene(
    samples: list[Sample], as_drive: AsDrive
) -> None:
    drive = as_drive([_at(sample, 0.1 * number) for number, sample in enumerate(samples)])
    found = [other and other.stamp_ns for _, other in with_neighbors(drive, range(6))]
    assert found == [500_000_000, None, None, None, None, 0]
    drive.scenes = ["one"] * 5 + ["other"]
    assert [other for _, other in with_neighbors(drive, range(6))] == [None] * 6


def _at(sample: Sample, stamp_s: float) -> Sample:
    return replace(sample, cloud=replace(sample.cloud, stamp_ns=round(1e9 * stamp_s)))


def test_nothing_is_corrected_while_the_rotation_is_unknown(
    views: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an open field, position and time reach their bounds."""
    change = np.array([0.1, 0.0, 0.0, 0.6, 0.0, 0.0, 0.15])
    covariance = np.diag([1.0, 0.01, 0.01, 1e-6, 1e-6, 1e-6, 1e-8])
    found = Estimate(change, covariance, before=0.4, after=0.6)
    monkeypatch.setattr(verdict, "search", lambda *given: change)
    monkeypatch.setattr(verdict, "estimate", lambda *given: found)
    monkeypatch.setattr(verdict, "restricted", lambda alignment, whole, free: whole)
    camera = judge("front", views, whole=False)
    assert camera.verdict == "cannot tell" and "interval of 2 deg" in camera.reason
    assert camera.correction is None and camera.translation is not None
    assert camera.translation.verdict == "cannot tell"
    assert camera.translation.reason == "the rotation is not known"


def test_images_of_other_places_tell_nothing(views: list[View]) -> None:
    swapped = [replace(a, maps=b.maps) for a, b in zip(views, views[3:] + views[:3])]
    camera = judge("front", swapped)
    assert camera.verdict == "cannot tell" and camera.correction is None
    assert "edges" in camera.reason or "differ" in camera.reason


def test_a_drive_without_poses_tells_nothing_about_time(
    samples: list[Sample], as_drive: AsDrive
) -> None:
    standing = [replace(sample, trajectory=None) for sample in samples]
    (camera,) = check_calibration(as_drive(standing), whole=False).report.cameras
    assert camera.time is not None and camera.time.verdict == "cannot tell"
    assert "no poses" in camera.time.reason


def test_too_little_to_compare(samples: list[Sample], views: list[View], as_drive: AsDrive) -> None:
    one = judge("front", views[:1])
    assert one.verdict == "cannot tell" and "1 images with a sweep, expected 5" in one.reason
    nine = slice(0, 9)
    few = [
        replace(view, edges=view.edges.select(nine), horizontal=view.horizontal[nine])
        for view in views
    ]
    assert "54 depth edges" in judge("front", few).reason
    blind = [replace(sample, cameras=[]) for sample in samples]
    with pytest.raises(InputError, match="no camera has an image near a sweep"):
        check_calibration(as_drive(blind))


def test_images_of_another_size_are_left_out(samples: list[Sample]) -> None:
    small = samples[1].cameras[0].placed(samples[1].cameras[0].T_cam_lidar)
    small.camera = small.camera.scaled(160, 96)
    pairs = [(samples[0], None), (replace(samples[1], cameras=[small]), None)]
    (found,) = collect_views(pairs).values()
    assert len(found) == 1
