# SPDX-License-Identifier: Apache-2.0
"""Training batches: sectors of pseudo-labeled sweeps, augmented, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pcseg_core.labels import IGNORE
from pcseg_core.learning.recipe import AugmentConfig, Recipe
from pcseg_core.models.student import Points


@dataclass
class TrainingSweep:
    """One training sweep, as stored in a run's pseudo_labels folder.

    Attributes:
        xyz: (N, 3) float32 finite points within range [m].
        intensity: (N,) float32 in 0..1.
        label: (N,) int16, IGNORE where unknown.
        confidence: (N,) float32 in 0..1.
        scene: sweeps of one scene were recorded at one place.
        features: (S, D) float16 teacher features of the points at `feature_index`, or None.
    """

    xyz: np.ndarray
    intensity: np.ndarray
    label: np.ndarray
    confidence: np.ndarray
    scene: str
    features: np.ndarray | None = None
    feature_index: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write as an uncompressed npz."""
        arrays = {k: v for k, v in vars(self).items() if v is not None}
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @staticmethod
    def load(path: Path) -> TrainingSweep:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        arrays["scene"] = str(arrays["scene"])
        return TrainingSweep(**arrays)

    def select(self, labels: np.ndarray, keep: np.ndarray) -> TrainingSweep:
        """The points at positions `keep` (K,) in ascending order, with other labels (N,)."""
        features, feature_index = None, None
        if self.features is not None:
            kept = self.kept_pairs(keep)
            features, feature_index = self.features[kept >= 0], kept[kept >= 0]
        return TrainingSweep(
            self.xyz[keep],
            self.intensity[keep],
            labels[keep],
            self.confidence[keep],
            self.scene,
            features,
            feature_index,
        )

    def kept_pairs(self, keep: np.ndarray) -> np.ndarray:
        """(S,) int64 position of each point with features among `keep`, -1 for those left out."""
        assert self.feature_index is not None
        position = np.full(len(self.xyz), -1, np.int64)
        position[keep] = np.arange(len(keep))
        return position[self.feature_index]

    def confident(self, minimum: float) -> np.ndarray:
        """(N,) int64 labels, IGNORE where the confidence is below the minimum."""
        return np.where(self.confidence >= minimum, self.label, IGNORE).astype(np.int64)


@dataclass
class Batch:
    """Input and targets of one optimizer step.

    Attributes:
        points: sectors of several sweeps.
        labels: (N,) int64, IGNORE where not trained on.
        confidence: (N,) float32.
        features: (S, D) float32 teacher features of the points `feature_index`; S may be 0.
        feature_index: (S,) int64.
    """

    points: Points
    labels: Tensor
    confidence: Tensor
    features: Tensor
    feature_index: Tensor

    def to(self, device: torch.device) -> Batch:
        moved = {k: v.to(device) for k, v in vars(self).items()}
        return type(self)(**moved)


class StepDataset(Dataset[Batch]):
    """The batches of the optimizer steps first..first+count-1, each a function of (seed, step)."""

    def __init__(self, sweeps: list[TrainingSweep], recipe: Recipe, first: int, count: int) -> None:
        self.sweeps = sweeps
        self.recipe = recipe
        self.first = first
        self.count = count
        self.scenes: dict[str, list[int]] = {}
        for i, sweep in enumerate(sweeps):
            self.scenes.setdefault(sweep.scene, []).append(i)
        # The square root lets many assorted scenes outweigh one long drive: diversity of places
        # decides how well the student transfers.
        sizes = np.sqrt([len(members) for members in self.scenes.values()])
        self.scene_probability = sizes / sizes.sum()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((self.recipe.seed, self.first + index))
        parts = [self._sector(rng) for _ in range(self.recipe.optimizer.batch_size)]
        return self.collate(parts)

    def collate(self, parts: list[TrainingSweep]) -> Batch:
        """Sectors of sweeps as one batch."""
        return collate(parts)

    def _sector(self, rng: np.random.Generator) -> TrainingSweep:
        members = list(self.scenes.values())[rng.choice(len(self.scenes), p=self.scene_probability)]
        sweep = self.sweeps[members[rng.integers(len(members))]]
        labels = sweep.confident(self.recipe.loss.min_confidence)
        keep = _choose_sector(sweep.xyz, labels, self.recipe.optimizer.sector_deg, rng)
        keep &= rng.random(len(keep)) >= rng.uniform(0, self.recipe.augment.drop)
        keep &= keep_beams(sweep.xyz, self.recipe.augment, rng)
        cut = sweep.select(labels, np.flatnonzero(keep))
        cut.xyz = augment_points(cut.xyz, self.recipe.augment, rng)
        gain = rng.uniform(-1, 1) * self.recipe.augment.intensity_gain
        cut.intensity = np.clip(cut.intensity * np.float32(1 + gain), 0, 1)
        return cut


def _choose_sector(
    xyz: np.ndarray, labels: np.ndarray, width_deg: float, rng: np.random.Generator
) -> np.ndarray:
    """(N,) bool: a sector around a labeled point whose class is drawn evenly."""
    if width_deg >= 360:
        return np.ones(len(xyz), bool)
    azimuth = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0]))
    present = np.unique(labels[labels != IGNORE])
    if len(present):
        members = np.flatnonzero(labels == rng.choice(present))
        center = azimuth[rng.choice(members)] + rng.uniform(-0.4, 0.4) * width_deg
    else:
        center = rng.uniform(-180, 180)
    away = np.abs((azimuth - center + 180) % 360 - 180)
    return away <= width_deg / 2


def keep_beams(xyz: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool: points outside randomly dropped elevation bands, in half of the calls."""
    if rng.random() < 0.5:
        return np.ones(len(xyz), bool)
    elevation = np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))
    band = ((elevation + 90) / config.beam_deg).astype(np.intp)
    kept = rng.random(int(180 / config.beam_deg) + 2) >= rng.uniform(0, config.beam_drop)
    return kept[band]


def augment_points(xyz: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Rotate, mirror, tilt, scale, shift and jitter (N, 3) float32 points of one sweep."""
    yaw = rng.uniform(-np.pi, np.pi) if config.rotate else 0.0
    roll, pitch = np.radians(rng.uniform(-1, 1, 2) * config.tilt_deg)
    matrix = _rotation(yaw, pitch, roll) * (1 + rng.uniform(-1, 1) * config.scale)
    if config.flip and rng.random() < 0.5:
        matrix = matrix @ np.diag([1.0, -1.0, 1.0])
    moved = xyz @ matrix.T.astype(np.float32)
    moved[:, 2] += np.float32(rng.uniform(-1, 1) * config.shift_z_m)
    if config.jitter_m:
        moved += rng.standard_normal(moved.shape, dtype=np.float32) * np.float32(config.jitter_m)
    return moved


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) Rz(yaw) Ry(pitch) Rx(roll)."""
    cy, sy = np.cos(yaw), np.sin(yaw)
    cp, sp = np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    rz = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    ry = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    rx = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return rz @ ry @ rx


def collate(parts: list[TrainingSweep]) -> Batch:
    """Points, labels and features of sectors, one after the other."""
    sizes = [len(p.xyz) for p in parts]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    batch = np.repeat(np.arange(len(parts)), sizes)
    points = Points(
        torch.from_numpy(np.concatenate([p.xyz for p in parts])),
        torch.from_numpy(np.concatenate([p.intensity for p in parts])),
        torch.from_numpy(batch),
    )
    seen = [(p, s) for p, s in zip(parts, starts) if p.features is not None]
    features = (
        np.concatenate([p.features for p, _ in seen]) if seen else np.zeros((0, 0), np.float16)
    )
    index = [p.feature_index + s for p, s in seen if p.feature_index is not None]
    return Batch(
        points,
        torch.from_numpy(np.concatenate([p.label for p in parts]).astype(np.int64)),
        torch.from_numpy(np.concatenate([p.confidence for p in parts])),
        torch.from_numpy(features.astype(np.float32)),
        torch.from_numpy(np.concatenate(index) if index else np.zeros(0, np.int64)),
    )
