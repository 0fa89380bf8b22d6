# SPDX-License-Identifier: Apache-2.0
"""Points against 3D boxes, with geometry worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from test_evaluator import Samples, reading

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import Box, CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.evaluation import evaluate_boxes
from pcseg_core.evaluation.boxes import annotated_region, box_class, grown

VEHICLE, PERSON, ROAD = 5, 6, 0


def box(label: str, x: float, y: float = 0.0, yaw: float = 0.0) -> Box:
    return Box(np.array([x, y, 0.0]), np.array([4.0, 2.0, 2.0]), yaw, label)


def boxed(points: list[tuple[float, float, float, int]], boxes: list[Box] | None) -> Sample:
    table = np.array(points, np.float64)
    cloud = PointCloud(table[:, :3], intensity=table[:, 3])
    return Sample(cloud, boxes=boxes, name="boxed")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Car", "vehicle"),
        ("Person_sitting", "person"),
        ("Cyclist", "either"),
        ("vehicle.bus.rigid", "vehicle"),
        ("vehicle.bicycle", "either"),
        ("human.pedestrian.adult", "person"),
        ("movable_object.barrier", None),
        ("Misc", None),
    ],
)
def test_words_of_the_data_sets(label: str, expected: str | None) -> None:
    assert box_class(label) == expected


def test_growing_moves_every_face_and_lifting_only_the_bottom() -> None:
    turned = box("Car", 10, yaw=np.pi / 2)  # 4 m along y, 2 m along x
    corner = np.array([[10.99, 1.99, 0.99], [11.1, 0, 0], [10, 2.1, 0], [10, 0, -0.95]])
    assert turned.contains(corner).tolist() == [True, False, False, True]
    assert grown(turned, 0.15).contains(corner).all()
    assert grown(turned, 0.0, lift_m=0.2).contains(corner).tolist() == [True, False, False, False]


def test_recall_and_share_inside_by_hand() -> None:
    in_box = [(10, 0, 0, VEHICLE)] * 6 + [(10, 0, 0.5, ROAD)] * 4
    low = [(10, 0, -0.9, ROAD)] * 5  # within 0.2 m of the bottom: not counted
    outside = [(20, 0, 0, VEHICLE)] * 2
    beside = [(10, 1.1, 0, VEHICLE)] * 2  # 0.1 m out: inside the margin
    report = evaluate_boxes(
        reading(), Samples([boxed(in_box + low + outside + beside, [box("Car", 10)])])
    )
    vehicle = report.classes["vehicle"]
    assert (vehicle.boxes, vehicle.points) == (1, 10)
    assert vehicle.recall == pytest.approx(6 / 10)
    assert vehicle.inside == pytest.approx(8 / 10)
    assert vehicle.found == 1.0
    assert report.classes["person"].recall is None


def test_riders_count_for_neither_and_against_neither() -> None:
    rider = [(10, 0, 0, VEHICLE)] * 3 + [(10, 0, 0.5, PERSON)] * 3
    report = evaluate_boxes(reading(), Samples([boxed(rider, [box("Cyclist", 10)])]))
    for figures in report.classes.values():
        assert (figures.boxes, figures.recall, figures.inside) == (0, None, None)


def test_a_box_of_few_points_is_not_judged_found_or_lost() -> None:
    report = evaluate_boxes(
        reading(), Samples([boxed([(10, 0, 0, VEHICLE)] * 4, [box("Car", 10)])])
    )
    assert report.classes["vehicle"].found is None
    assert report.classes["vehicle"].recall == 1.0


def test_points_that_no_camera_sees_are_not_held_against_it() -> None:
    points = [(10, 0, 0, VEHICLE), (-10, 0, 0, VEHICLE), (10, 30, 0, VEHICLE)]
    sample = boxed(points, [box("Car", 10)])
    T_cam_lidar = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    model = CameraModel.pinhole(100, 100, 99.5, 49.5, 200, 100)
    sample.cameras.append(
        CameraFrame("front", 0, model, T_cam_lidar, np.zeros((100, 200, 3), np.uint8))
    )
    assert annotated_region(sample).tolist() == [True, False, False]
    assert evaluate_boxes(reading(), Samples([sample])).classes["vehicle"].inside == 1.0


def test_no_boxes_at_all_is_an_error_but_an_empty_list_is_not() -> None:
    points = [(10.0, 0.0, 0.0, VEHICLE)]
    with pytest.raises(InputError, match="no sample has 3D boxes"):
        evaluate_boxes(reading(), Samples([boxed(points, None)]))
    report = evaluate_boxes(reading(), Samples([boxed(points, [])]))
    assert report.classes["vehicle"].inside == 0.0
