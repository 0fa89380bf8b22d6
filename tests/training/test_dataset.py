# SPDX-License-Identifier: Apache-2.0
"""Training batches are functions of seed and step, and keep points and labels together."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pcseg_core.distill.losses import LabelLossConfig, class_weights
from pcseg_core.distill.pixels import PointPixels
from pcseg_core.labels import IGNORE
from pcseg_core.learning.augment import augment_points
from pcseg_core.learning.dataset import Batch, StepDataset, TrainingSweep, sector_points, vote
from pcseg_core.learning.objectives.segmentation import Segmentation, label_counts
from pcseg_core.learning.recipe import AugmentConfig, OptimizerConfig, Recipe
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.models.student import StudentOutput
from pcseg_core.sparse.voxels import voxelize
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config


def recipe(**sections: object) -> Recipe:
    return Recipe(teacher=ESPNetv2Config(weights=Path("none")), **sections)


def batches(settings: Recipe, first: int, count: int) -> StepDataset:
    return StepDataset(LabeledSectors([ring()], settings), first, count)


def ring(points: int = 3600) -> TrainingSweep:
    """A circle of points whose intensity tells the azimuth and whose label tells the quadrant."""
    azimuth = np.linspace(-np.pi, np.pi, points, endpoint=False)
    xyz = np.stack([10 * np.cos(azimuth), 10 * np.sin(azimuth), 0 * azimuth], 1)
    share = (azimuth + np.pi) / (2 * np.pi)
    return TrainingSweep(
        xyz.astype(np.float32),
        share.astype(np.float32),
        (share * 4).astype(np.int16),
        np.ones(points, np.float32),
        "circle",
        PointPixels(np.arange(0, points, 2), image=share[::2, None].astype(np.float16)),
    )


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    settings = recipe(optimizer=OptimizerConfig(batch_size=2))
    early, late = batches(settings, 0, 10), batches(settings, 5, 5)
    assert torch.equal(early[7].points.xyz, late[2].points.xyz)
    assert not torch.equal(early[7].points.xyz[:50], early[8].points.xyz[:50])
    other = batches(settings.model_copy(update={"seed": 1}), 0, 10)
    assert not torch.equal(early[7].points.xyz[:50], other[7].points.xyz[:50])


def test_sectors_keep_labels_and_features_with_their_points() -> None:
    still = AugmentConfig(intensity_gain=0)
    settings = recipe(augment=still, optimizer=OptimizerConfig(batch_size=3, sector_deg=90))
    batch = batches(settings, 0, 4)[3]
    assert batch.labels is not None and batch.pixels is not None and batch.pixels.text is None
    share = batch.points.intensity
    assert torch.equal((share * 4).long().clamp_max(3), batch.labels)
    assert batch.pixels.image is not None
    assert torch.allclose(share[batch.pixels.point], batch.pixels.image[:, 0], atol=1e-3)
    for sweep in range(3):
        spread = share[batch.points.batch == sweep] * 360
        covered = torch.unique((spread / 10).floor())
        assert 8 <= len(covered) <= 10  # a quarter of the circle


def test_augmentation_is_rigid_up_to_scale() -> None:
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(50, 3)).astype(np.float32) * 20
    config = AugmentConfig(jitter_m=0, scale=0.1)
    moved = augment_points(xyz, config, rng)
    before = np.linalg.norm(xyz[1:] - xyz[:-1], axis=1)
    after = np.linalg.norm(moved[1:] - moved[:-1], axis=1)
    ratio = after / before
    assert np.ptp(ratio) < 1e-4 and 0.9 <= ratio[0] <= 1.1


def test_voxels_take_the_vote_of_their_points() -> None:
    labels = torch.tensor([0, 1, 1, IGNORE, IGNORE, 2])
    confidence = torch.tensor([0.9, 0.5, 0.6, 1.0, 1.0, 0.8])
    inverse = torch.tensor([0, 0, 0, 0, 1, 2])
    winner, trust = vote(labels, confidence, inverse, 3, 3)
    assert winner.tolist() == [1, IGNORE, 2]
    assert trust.tolist() == pytest.approx([0.55 * 1.1 / 2.0, 0.0, 0.8])


def test_class_weights_average_to_one_over_the_labels() -> None:
    sweep = ring()
    sweep.label = np.where(np.arange(3600) < 3240, 0, 1).astype(np.int16)
    weights = class_weights(label_counts([sweep], 3, 0.6).sum(1), 0.5)
    assert float(0.9 * weights[0] + 0.1 * weights[1]) == pytest.approx(1)
    assert float(weights[1] / weights[0]) == pytest.approx(3)  # square root of 9


def test_sectors_and_counts_share_the_thresholds() -> None:
    sweep = ring()
    sweep.confidence = np.where(sweep.label == 2, 0.4, 0.9).astype(np.float32)
    loss = {"class_quota": 0.3, "least_confidence": 0.3}
    settings = recipe(loss=loss, optimizer=OptimizerConfig(batch_size=1, sector_deg=360))
    sectors = LabeledSectors([sweep], settings)
    (batch,) = sectors.draw(0)
    assert set(batch.labels.tolist()) == {0, 1, 2, 3}
    assert label_counts([sweep], 4, sectors.required).sum(1).tolist() == [900] * 4
    (batch,) = LabeledSectors([sweep], recipe(optimizer=settings.optimizer)).draw(0)
    assert set(batch.labels.tolist()) == {0, 1, 3, IGNORE}


def test_balanced_ranges_weigh_the_voxels_of_the_cross_entropy() -> None:
    """Three labels at 5 m and one at 20 m: with balance, near and far weigh the same in sum."""
    xyz = np.array([[5, 0, 0], [0, 5, 0], [-5, 0, 0], [0, 20, 0]], np.float32)
    counts = label_counts(
        [TrainingSweep(xyz, xyz[:, 0], np.zeros(4, np.int16), np.ones(4), "a")], 2, 0
    )
    assert counts.tolist() == [[3, 0, 1, 0], [0, 0, 0, 0]]
    batch = Batch(sector_points(xyz, xyz[:, 0]), torch.zeros(4, dtype=torch.int64), torch.ones(4))
    voxels = voxelize(batch.points.xyz, 0.1, batch.points.batch)
    batch.targets = batch.voted(voxels, 2)
    far = voxels.inverse[3]
    logits = torch.zeros(4, 2)
    logits[far, 0] = -math.log(3)  # probability 1/4 of the label; 1/2 elsewhere
    output = StudentOutput(logits, logits, None, voxels)

    def loss(balance: float) -> float:
        config = LabelLossConfig(lovasz=0, range_balance=balance)
        return float(Segmentation(config, counts).losses(output, batch)["cross_entropy"])

    assert loss(0) == pytest.approx((3 * math.log(2) + math.log(4)) / 4)
    assert loss(1) == pytest.approx((math.log(2) + math.log(4)) / 2)
