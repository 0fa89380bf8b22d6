# SPDX-License-Identifier: Apache-2.0
"""Confusion matrix and calibration against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pcseg_core.errors import InputError
from pcseg_core.metrics.confusion import Calibration, Confusion


def counted(pred: list[int], truth: list[int], classes: int = 3) -> Confusion:
    confusion = Confusion(classes)
    confusion.update(np.array(pred), np.array(truth))
    return confusion


def test_hand_computed_figures() -> None:
    # class 0: 2 right, 1 taken for 1; class 1: 1 right, 1 taken for 0; class 2: absent in truth
    confusion = counted(pred=[0, 0, 1, 1, 0], truth=[0, 0, 0, 1, 1])
    assert confusion.matrix.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert confusion.iou[:2] == pytest.approx([2 / 4, 1 / 3])
    assert np.isnan(confusion.iou[2])
    assert confusion.miou == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert confusion.accuracy == pytest.approx(3 / 5)
    assert confusion.recall[:2] == pytest.approx([2 / 3, 1 / 2])
    assert confusion.precision[:2] == pytest.approx([2 / 3, 1 / 2])


def test_truth_below_zero_is_left_out_whatever_was_predicted() -> None:
    confusion = counted(pred=[0, 2, -1], truth=[0, -1, -100])
    assert confusion.points == 1
    assert confusion.accuracy == 1.0
    assert confusion.miou == 1.0


def test_a_missing_prediction_is_a_miss() -> None:
    confusion = counted(pred=[0, -1, -1, 1], truth=[0, 0, 1, 1])
    assert confusion.unpredicted.tolist() == [1, 1, 0]
    assert confusion.iou[:2] == pytest.approx([1 / 2, 1 / 2])
    assert confusion.accuracy == pytest.approx(1 / 2)


def test_a_class_only_predicted_has_iou_zero_but_is_not_in_the_mean() -> None:
    confusion = counted(pred=[0, 0, 0, 2], truth=[0, 0, 0, 0])
    assert confusion.iou[2] == 0.0
    assert confusion.miou == pytest.approx(3 / 4)


def test_no_points_give_nan_not_zero_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    confusion = counted([], [])
    assert np.isnan(confusion.miou)
    assert np.isnan(confusion.accuracy)
    assert not recwarn.list


def test_grouping_by_hand() -> None:
    # 0 and 1 are one group, 2 has none: points truly 2 leave, points predicted 2 have no label
    confusion = counted(pred=[0, 1, 0, 2, 2, 0, -1], truth=[0, 0, 1, 1, 2, 2, 1])
    merged = confusion.grouped(np.array([0, 0, -1]), 1)
    assert merged.matrix.tolist() == [[3]]
    assert merged.unpredicted.tolist() == [2]
    assert merged.accuracy == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("pred", "truth"), [([0, 1], [0]), ([3], [0]), ([0], [3]), ([[0, 1]], [0, 1])]
)
def test_what_does_not_fit_is_refused(pred: list[int], truth: list[int]) -> None:
    with pytest.raises(InputError):
        counted(pred, truth)


def test_a_refused_update_changes_nothing() -> None:
    confusion = counted([0], [0])
    with pytest.raises(InputError):
        confusion.update(np.array([0, 7]), np.array([0, 0]))
    assert confusion.points == 1


labels = st.integers(0, 60).flatmap(
    lambda n: st.tuples(*[arrays(np.int32, n, elements=st.integers(-2, 4)) for _ in range(2)])
)


@given(labels, st.lists(st.integers(-1, 2), min_size=5, max_size=5))
def test_grouping_the_matrix_is_grouping_the_labels(
    pair: tuple[np.ndarray, np.ndarray], groups: list[int]
) -> None:
    pred, truth = pair
    table = np.array([*groups, -1])
    fine, coarse = Confusion(5), Confusion(3)
    fine.update(pred, truth)
    coarse.update(table[np.maximum(pred, -1)], table[np.maximum(truth, -1)])
    merged = fine.grouped(np.array(groups), 3)
    assert np.array_equal(merged.matrix, coarse.matrix)
    assert np.array_equal(merged.unpredicted, coarse.unpredicted)


@given(labels)
def test_iou_is_intersection_over_union_of_sets(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, truth = pair
    confusion = Confusion(5)
    confusion.update(pred, truth)
    known = truth >= 0
    for class_id, iou in enumerate(confusion.iou):
        true, predicted = known & (truth == class_id), known & (pred == class_id)
        union = (true | predicted).sum()
        expected = (true & predicted).sum() / union if union else np.nan
        assert iou == pytest.approx(expected, nan_ok=True)


@given(labels, st.integers(0, 60))
def test_parts_add_up_to_the_whole(pair: tuple[np.ndarray, np.ndarray], cut: int) -> None:
    pred, truth = pair
    whole, first, second = Confusion(5), Confusion(5), Confusion(5)
    whole.update(pred, truth)
    first.update(pred[:cut], truth[:cut])
    second.update(pred[cut:], truth[cut:])
    total = first + second
    assert np.array_equal(total.matrix, whole.matrix)
    assert np.array_equal(total.unpredicted, whole.unpredicted)


def test_calibration_error_by_hand() -> None:
    calibration = Calibration(bins=10)
    # bin 0.9..1: two points, confidence 0.95, half right; bin 0.2..0.3: two points, all wrong
    confidence = np.array([0.95, 0.95, 0.25, 0.25])
    calibration.update(confidence, np.array([True, False, False, False]))
    assert calibration.error == pytest.approx((2 * 0.45 + 2 * 0.25) / 4)


def test_calibration_takes_the_ends_and_no_points() -> None:
    calibration = Calibration()
    assert np.isnan(calibration.error)
    calibration.update(np.array([0.0, 1.0]), np.array([False, True]))
    assert calibration.error == 0.0
