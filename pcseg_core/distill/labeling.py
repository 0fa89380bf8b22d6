# SPDX-License-Identifier: Apache-2.0
"""Label the sweeps of recordings with a teacher; cached sweep by sweep, so interruptible."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcseg_core.data import Recording, Sample
from pcseg_core.distill.consolidation import consolidate, likeliest
from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.pseudo_labels import (
    FeatureSource,
    PseudoLabelConfig,
    apply_priors,
    camera_evidence,
    camera_features,
    carry_labels,
    label_points,
)
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.files import atomic_path, slug
from pcseg_core.labels import IGNORE, LabelSpace, grouping
from pcseg_core.vision.pixel_classes import PixelClasses, TeacherConfig
from pcseg_core.vision.pixel_features import PixelFeatures

Progress = Callable[[str, int, int], None]


@dataclass
class SeenSweep:
    """A sweep with what the cameras said of it; the unit of the cache.

    Attributes:
        xyz: (N, 3) float32 finite points, LiDAR frame [m].
        intensity: (N,) float32 in 0..1, 0 where the source has none.
        pose: (4, 4) T_world_lidar, NaN where the source has no poses.
        evidence: class votes of the points a camera saw.
        features: (S, D) float16 teacher features of the points at `feature_index`; S may be 0.
        feature_index: (S,) int32.
    """

    xyz: np.ndarray
    intensity: np.ndarray
    pose: np.ndarray
    evidence: Evidence
    features: np.ndarray
    feature_index: np.ndarray

    def save(self, path: Path) -> None:
        arrays = {k: v for k, v in vars(self).items() if k != "evidence"}
        arrays |= {f"evidence_{k}": v for k, v in vars(self.evidence).items()}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @staticmethod
    def load(path: Path) -> SeenSweep:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        evidence = Evidence(*(arrays.pop(f"evidence_{k}") for k in ("index", "weights", "sums")))
        return SeenSweep(evidence=evidence, **arrays)


@dataclass
class Labeled:
    """A sweep with its pseudo labels.

    Attributes:
        seen: the sweep.
        labels: (N,) int16, IGNORE where unknown.
        confidence: (N,) float32 in 0..1.
        name: unique in the run.
        scene: place of the recording, unique in the run.
    """

    seen: SeenSweep
    labels: np.ndarray
    confidence: np.ndarray
    name: str
    scene: str


class Labeler:
    """Teacher, projection and cache together.

    Args:
        teacher: pixel classes.
        teacher_config: identifies the teacher in the cache.
        config: how pixels become labels.
        cache: folder of the cached sweeps.
        with_features: also keep the teacher's features of the seen points.
        text: source of further features of the seen points, for the text head; they come behind
            the teacher's.
    """

    def __init__(
        self,
        teacher: PixelClasses,
        teacher_config: TeacherConfig,
        config: PseudoLabelConfig,
        cache: Path,
        with_features: bool = False,
        text: PixelFeatures | None = None,
    ) -> None:
        self.teacher = teacher
        self.config = config
        self.cache = cache
        self.sources: list[FeatureSource] = [teacher] if with_features else []
        if text is not None:
            self.sources.append(text)
        self.space = LabelSpace.load(config.label_space)
        self.groups = grouping(teacher.label_space, self.space)
        self.priors = np.ones(len(self.space), np.float32)
        for name, factor in config.priors.items():
            self.priors[self.space.index(name)] = factor
        self.key = _cache_key(teacher_config, config, with_features, text)
        self.skipped: Counter[str] = Counter()

    def label(self, recordings: Mapping[str, Recording], progress: Progress) -> list[Labeled]:
        """Pseudo labels of every usable sweep of the drives.

        Args:
            recordings: by the source they were opened from, which identifies them in the cache.
            progress: called with (stage, done, total).

        Raises:
            InputError: not one sweep could be labeled; the message counts the reasons.
        """
        total, done = sum(len(d) for d in recordings.values()), 0
        labeled: list[Labeled] = []
        for source, recording in recordings.items():
            seen: dict[str, list[tuple[str, SeenSweep]]] = {}
            for index in range(len(recording)):
                done += 1
                progress("labeling", done, total)
                sweep = self._usable(source, recording, index)
                if sweep is not None:
                    scene = f"{recording.name}/{recording.scenes[index]}"
                    seen.setdefault(scene, []).append((f"{recording.name}-{index:06d}", sweep))
            for scene, members in seen.items():
                labeled.extend(self._label_scene(scene, members))
        if not labeled:
            reasons = "; ".join(f"{n}x {r}" for r, n in self.skipped.most_common(5))
            raise InputError(f"none of the {total} sweeps could be labeled: {reasons}")
        return labeled

    def _usable(self, source: str, recording: Recording, index: int) -> SeenSweep | None:
        try:
            sweep = self._seen(source, recording, index)
        except PcsegError as error:
            self.skipped[str(error)] += 1
            return None
        if len(sweep.evidence.index) == 0:
            self.skipped[f"{recording.name}: no camera sees any point of the sweep"] += 1
            return None
        sweep.evidence = apply_priors(sweep.evidence, self.priors)
        return sweep

    def _seen(self, source: str, recording: Recording, index: int) -> SeenSweep:
        key = hashlib.sha256(f"{source}\n{self.key}".encode()).hexdigest()[:16]
        path = self.cache / f"{slug(recording.name)}-{index:06d}-{key}.npz"
        if path.is_file():
            return SeenSweep.load(path)
        sweep = self._look(recording[index])
        sweep.save(path)
        return sweep

    def _look(self, sample: Sample) -> SeenSweep:
        cloud = sample.cloud
        finite = cloud.finite
        if not finite.any():
            raise InputError(f"sweep {sample.name}: no finite points")
        evidence = camera_evidence(sample, self.teacher, self.groups, len(self.space), self.config)
        position = np.full(len(cloud), -1, np.int32)
        position[finite] = np.arange(finite.sum(), dtype=np.int32)
        evidence.index = position[evidence.index]
        features, index = np.zeros((0, 0), np.float16), np.zeros(0, np.int32)
        if self.sources:
            found = [camera_features(sample, source, self.config) for source in self.sources]
            features, index = np.concatenate([f for f, _ in found], 1), position[found[0][1]]
        intensity = cloud.intensity if cloud.intensity is not None else np.zeros(len(cloud))
        pose = sample.T_world_lidar
        return SeenSweep(
            cloud.xyz[finite],
            intensity[finite].astype(np.float32),
            np.full((4, 4), np.nan) if pose is None else pose,
            evidence,
            features,
            index,
        )

    def _label_scene(self, scene: str, members: list[tuple[str, SeenSweep]]) -> list[Labeled]:
        sweeps = [sweep for _, sweep in members]
        clouds, poses = [s.xyz for s in sweeps], [s.pose for s in sweeps]
        evidence, fusion = [s.evidence for s in sweeps], self.config.consolidation
        posed = len(sweeps) > 1 and all(np.isfinite(pose).all() for pose in poses)
        if posed and fusion.voxel_m > 0:
            labels = [likeliest(p) for p in consolidate(clouds, poses, evidence, fusion)]
        elif posed and self.config.carry_voxel_m > 0:
            labels = carry_labels(clouds, poses, evidence, self.config)
        else:
            labels = [label_points(s.evidence, len(s.xyz)) for s in sweeps]
        return [Labeled(s, *lc, name, scene) for (name, s), lc in zip(members, labels)]


def _cache_key(
    teacher: TeacherConfig,
    config: PseudoLabelConfig,
    with_features: bool,
    text: PixelFeatures | None,
) -> str:
    """Changes with everything that changes what a cached sweep holds."""
    parts = {
        "weights": hashlib.sha256(teacher.weights_file.read_bytes()).hexdigest(),
        "teacher": teacher.model_dump(mode="json", exclude={"weights"}, exclude_none=True),
        "labels": config.model_dump(include={"label_space", "splat_radius_px", "border_px"}),
        "features": with_features,
        "format": 1,
        **({"text": {"name": text.name, **text.parameters}} if text else {}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def class_shares(labeled: Sequence[Labeled], space: LabelSpace) -> dict[str, float]:
    """Share of each class among all labeled points, for the report of a run."""
    counts = np.zeros(len(space))
    for sweep in labeled:
        counts += np.bincount(sweep.labels[sweep.labels != IGNORE], minlength=len(space))
    return dict(zip(space.names, (counts / max(1.0, counts.sum())).round(5).tolist()))
