# SPDX-License-Identifier: Apache-2.0
"""Views of samples, their pictures, and what a Rerun recording of them holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_evaluator import STREET, reading

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory
from pcseg_core.labels import LabelSpace
from pcseg_core.viewer.picture import draw
from pcseg_core.viewer.rerun import View, record, run_views, sample_view

T_CAM_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])


def seen_sample(stamp_ns: int = 5 * 10**7) -> Sample:
    """Five points: ahead, ahead and hidden behind it, behind, not finite, ahead to the left."""
    xyz = [[10, 0, 0], [20, 0, 0], [-10, 0, 0], [np.nan, 0, 0], [10, 2, 0]]
    answers = np.array([0, 3, 3, 3, -1], np.float32)
    cloud = PointCloud(np.array(xyz, np.float32), intensity=answers, stamp_ns=stamp_ns)
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = 2.0  # 2 m ahead within 0.1 s
    trajectory = Trajectory(np.array([0, 10**8]), poses)
    image = np.full((60, 100, 3), 90, np.uint8)
    model = CameraModel.pinhole(50, 50, 49.5, 29.5, 100, 60)
    frame = CameraFrame("front", stamp_ns, model, T_CAM_LIDAR, image)
    labels = np.array([0, 3, 0, 3, 5], np.int16)
    return Sample(cloud, [frame], trajectory, labels, STREET, name="s/0001")


def test_a_view_keeps_finite_points_and_visible_pixels() -> None:
    view = sample_view(seen_sample(), STREET, None)
    assert len(view.xyz) == 4
    assert view.labels is not None
    assert view.labels.tolist() == [0, 3, 0, 5]
    camera = view.cameras[0]
    assert camera.index.tolist() == [0, 3]  # positions among the finite points
    assert camera.uv == pytest.approx(np.array([[49.5, 29.5], [39.5, 29.5]]), abs=1e-4)
    assert pytest.approx(np.linalg.inv(T_CAM_LIDAR)) == camera.T_lidar_cam
    assert view.pose is not None
    assert view.pose[0, 3] == pytest.approx(1.0)
    assert list(view.layers(STREET.palette)) == ["label"]


def test_with_a_segmenter_the_labels_become_the_truth() -> None:
    view = sample_view(seen_sample(), STREET, reading())
    assert view.labels is not None
    assert view.truth is not None
    assert view.labels.tolist() == [0, 3, 3, -1]
    assert view.truth.tolist() == [0, 3, 0, 5]
    layers = view.layers(STREET.palette)
    assert list(layers) == ["label", "truth", "error", "confidence"]
    right = (layers["error"] == layers["error"][0]).all(axis=1)
    assert right.tolist() == [True, True, False, False]


def test_without_labels_height_and_intensity_are_shown() -> None:
    view = sample_view(seen_sample(), None, None)
    assert view.labels is None
    assert list(view.layers(STREET.palette)) == ["height", "intensity"]


def test_labels_of_another_space_are_grouped() -> None:
    sample = seen_sample()
    kitti = LabelSpace.load("semantic_kitti")
    sample.label_space = kitti
    sample.labels = np.array([kitti.index("parking")] * 5, np.int16)
    view = sample_view(sample, STREET, None)
    assert view.labels is not None
    assert set(view.labels.tolist()) == {STREET.index("road")}


def test_pictures_with_and_without_cameras_and_labels(tmp_path: Path) -> None:
    views = {
        "all": sample_view(seen_sample(), STREET, reading()),
        "raw": sample_view(seen_sample(), None, None),
        "bare": View("bare", 0, np.zeros((0, 3), np.float32)),
    }
    for name, view in views.items():
        draw(view, STREET if name == "all" else None, tmp_path / f"{name}.png")
        assert Image.open(tmp_path / f"{name}.png").size[0] == 1600
    pixels = np.asarray(Image.open(tmp_path / "all.png").convert("RGB"))
    assert (pixels == STREET.palette[0]).all(axis=2).any()


def test_views_of_a_run_compare_with_its_pseudo_labels(tiny_run: Path) -> None:
    views = list(run_views(tiny_run, None, [1]))
    assert views[0].name == "00001"
    assert views[0].confidence is not None
    assert views[0].confidence[:40] == pytest.approx(0.5)
    compared = next(run_views(tiny_run, reading(), [1]))
    assert views[0].labels is not None
    assert np.array_equal(compared.truth, views[0].labels)


def logged(path: Path) -> dict[str, str]:
    """Entity paths of a Rerun recording with the components that each one has."""
    command = [sys.executable, "-m", "rerun", "rrd", "print", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    entities: dict[str, str] = {}
    for entity, columns in re.findall(r" - (/\S*) - .*data columns: \[(.*)\]", done.stdout):
        entities[entity] = entities.get(entity, "") + columns
    return entities


def test_a_recording_holds_clouds_images_and_the_trajectory(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    path = tmp_path / "drive.rrd"
    views = [sample_view(seen_sample(stamp), STREET, reading()) for stamp in (0, 5 * 10**7)]
    assert record(views, STREET, path) == 2
    found = logged(path)
    for layer in ("label", "truth", "confidence", "error"):
        assert f"/world/lidar/{layer}" in found
    assert "class_ids" in found["/world/lidar/label"]
    assert "/world/trajectory" in found
    assert "EncodedImage" in found["/images/front"]
    assert "class_ids" in found["/images/front/points"]
    assert "image_from_camera" in found["/world/lidar/cameras/front"]


def test_a_failed_recording_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("rerun")

    def views() -> Any:
        yield sample_view(seen_sample(), STREET, None)
        raise InputError("sweep 1 is truncated")

    for source, message in ((views(), "truncated"), (iter(()), "nothing to show")):
        with pytest.raises(InputError, match=message):
            record(source, STREET, tmp_path / "drive.rrd")
    assert not list(tmp_path.iterdir())


def test_large_sweeps_are_thinned_evenly(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    rng = np.random.default_rng(0)
    view = View("big", 0, rng.normal(size=(50_000, 3)).astype(np.float32))
    record([view], None, tmp_path / "all.rrd")
    record([view], None, tmp_path / "few.rrd", max_points=1000)
    sizes = [(tmp_path / name).stat().st_size for name in ("few.rrd", "all.rrd")]
    assert sizes[0] < sizes[1] / 10
