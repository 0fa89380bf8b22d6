# SPDX-License-Identifier: Apache-2.0
"""Classes from pictures: the regression against scikit-learn's, and on a segmenter."""

import numpy as np
import pytest
import torch

from pcseg_core.checkpoint import CheckpointMeta
from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.online.prototypes import Picture, Prototypes, fit_prototypes, logistic_regression
from pcseg_core.online.segmenter import Segmenter

STREET = LabelSpace.load("street")


class Colors:
    """Features that are the colors, at half the resolution."""

    def features(self, image: np.ndarray) -> np.ndarray:
        values = image.astype(np.float32).transpose(2, 0, 1)
        return (values[:, ::2, ::2] + values[:, 1::2, 1::2]) / 2 + 1


def plain(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((8, 10, 3), (red, green, blue), np.uint8)


def test_regression_equals_scikit_learns() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 400, p=[0.7, 0.25, 0.05])
    features = rng.standard_normal((400, 6)) + 1.5 * np.eye(3, 6)[labels]
    weight, bias = logistic_regression(features, labels)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    peer = linear.LogisticRegression(class_weight="balanced", C=1.0, tol=1e-8, max_iter=5000)
    peer.fit(unit, labels)
    assert np.allclose(weight, peer.coef_, atol=2e-3)
    assert np.allclose(bias - bias.mean(), peer.intercept_ - peer.intercept_.mean(), atol=2e-3)


def test_pictures_and_masks_teach_classes() -> None:
    half = np.concatenate([plain(200, 0, 0)[:, :4], plain(0, 0, 200)[:, 4:]], 1)
    mask = np.zeros((8, 10), bool)
    mask[:, :4] = True
    found = fit_prototypes(
        Colors(),
        {"red": [Picture(half, mask), Picture(plain(220, 10, 10))], "blue": [Picture(half, ~mask)]},
    )
    assert found.names == ("red", "blue")
    colors = np.array([[255, 1, 1], [1, 1, 255]]) / 255
    assert (colors @ found.weight.T + found.bias).argmax(1).tolist() == [0, 1]


def test_thin_masks_count() -> None:
    thin = np.zeros((8, 10), bool)
    thin[3, :] = True
    found = fit_prototypes(
        Colors(), {"a": [Picture(plain(9, 200, 9), thin)], "b": [Picture(plain(200, 9, 9))]}
    )
    assert np.isfinite(found.weight).all()


BLACK = plain(1, 1, 1)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ({"a": [Picture(plain(1, 2, 3))]}, "at least two"),
        ({"a": [Picture(plain(1, 2, 3))], "b": []}, "'b' has no picture"),
        (
            {
                "a": [Picture(plain(1, 2, 3), np.zeros((8, 10), bool))],
                "b": [Picture(plain(1, 1, 1))],
            },
            "0 pixels set",
        ),
        (
            {"a": [Picture(plain(1, 2, 3), np.ones((3, 3), bool))], "b": [Picture(BLACK)]},
            "expected \\(8, 10\\)",
        ),
    ],
)
def test_refused_pictures(pictures: dict[str, list[Picture]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_prototypes(Colors(), pictures)


def test_a_segmenter_answers_prototypes() -> None:
    torch.manual_seed(0)
    config = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5, feature_channels=3)
    meta = CheckpointMeta(student=config.model_dump(mode="json"), label_space=STREET.to_dict())
    segmenter = Segmenter(Student(config, len(STREET)), STREET, meta, "cpu", "fp32")
    rng = np.random.default_rng(0)
    sweep = PointCloud(rng.uniform(-20, 20, (500, 3)).astype(np.float32))
    weight = rng.standard_normal((3, 3)).astype(np.float32)
    prototypes = Prototypes(("vehicle", "x", "y"), weight, np.zeros(3, np.float32))
    space = segmenter.set_prototypes(prototypes)
    assert space.classes[0].color == STREET.classes[STREET.index("vehicle")].color
    result = segmenter.segment(sweep, probabilities=True)
    assert result.label_space is space and result.labels.max() < 3
    assert result.probabilities is not None and np.allclose(result.probabilities.sum(1), 1)
    wide = Prototypes(("a", "b"), np.zeros((2, 7), np.float32), np.zeros(2, np.float32))
    with pytest.raises(InputError, match="regresses 3 image features and the prototypes have 7"):
        segmenter.set_prototypes(wide)
    assert segmenter.label_space is space
    assert segmenter.set_prompts(None) == STREET
