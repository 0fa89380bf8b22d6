# SPDX-License-Identifier: Apache-2.0
"""What zero-shot learning takes from recordings: truth, what images say, patches; cached."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.data import Recording, Sample
from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.patches import PatchView, camera_patches
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig, camera_evidence
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.evaluation.evaluator import truth_of
from pcseg_core.files import atomic_path, slug
from pcseg_core.geometry import deskew
from pcseg_core.labels import IGNORE
from pcseg_core.vision.pixel_classes import PixelClasses

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]
_FORMAT = 1


@dataclass
class Observed:
    """One sweep with its truth and what the cameras said of it.

    Attributes:
        name: unique in the run.
        scene: place of the recording.
        xyz: (N, 3) float32 finite points as measured, LiDAR frame [m].
        still: (N, 3) float32 the same with the motion during the sweep undone.
        intensity: (N,) float32 in 0..1.
        pose: (4, 4) T_world_lidar, NaN without poses.
        truth: (N,) int16 true classes, IGNORE for none.
        evidence: votes of the images over all classes of the split's space.
        view: image features of points and patches; those of points lie on disk.
    """

    name: str
    scene: str
    xyz: Array
    still: Array
    intensity: Array
    pose: Array
    truth: Array
    evidence: Evidence
    view: PatchView

    def save(self, path: Path) -> None:
        """Write two files that appear whole or not at all; the one at `path` comes last."""
        with atomic_path(_features_file(path)) as temporary, temporary.open("wb") as file:
            np.save(file, self.view.features)
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        evidence, view = vars(arrays.pop("evidence")), dict(vars(arrays.pop("view")))
        del view["features"]
        arrays |= {f"evidence_{k}": v for k, v in evidence.items()}
        arrays |= {f"view_{k}": v for k, v in view.items()}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Observed:
        """Read what `save` wrote; features stay on disk until they are used."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        evidence = Evidence(*(arrays.pop(f"evidence_{k}") for k in ("index", "weights", "sums")))
        rest = (arrays.pop(f"view_{k}") for k in ("index", "patch", "patch_features"))
        view = PatchView(np.load(_features_file(path), mmap_mode="r"), *rest)
        name, scene = str(arrays.pop("name")), str(arrays.pop("scene"))
        return cls(name, scene, **arrays, evidence=evidence, view=view)


def _features_file(path: Path) -> Path:
    return path.with_suffix(".features.npy")


class Observer:
    """Teacher, projection and cache together.

    Args:
        teacher: pixel classes in the split's label space.
        features_of: image features that the student is aligned with.
        config: how pixels become evidence.
        patch_px: edge of the patches on the map of features.
        cache: folder of the cached sweeps.
        identity: everything that teacher and features depend on, as JSON can write it.
    """

    def __init__(
        self,
        teacher: PixelClasses,
        features_of: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
        config: PseudoLabelConfig,
        patch_px: int,
        cache: Path,
        identity: Mapping[str, Any],
    ) -> None:
        self.teacher, self.features_of, self.config = teacher, features_of, config
        self.patch_px, self.cache = patch_px, cache
        self.space = teacher.label_space
        parts = {
            "identity": dict(identity),
            "space": self.space.to_dict(),
            "patch_px": patch_px,
            "labels": config.model_dump(include={"splat_radius_px", "border_px"}),
            "format": _FORMAT,
        }
        self.key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        self.skipped: Counter[str] = Counter()

    def observe(
        self, recordings: Mapping[str, Recording], every: int, progress: Progress
    ) -> list[Observed]:
        """Every k-th usable sweep of the drives.

        Args:
            recordings: by the source they were opened from, which identifies them in the cache.
            every: k; 1 takes all.
            progress: called with (stage, done, total).

        Raises:
            InputError: not one sweep could be used; the message counts the reasons.
        """
        chosen = [(s, d, i) for s, d in recordings.items() for i in range(0, len(d), every)]
        found = []
        for done, (source, recording, index) in enumerate(chosen, start=1):
            try:
                found.append(self._observed(source, recording, index))
            except PcsegError as error:
                self.skipped[str(error)] += 1
            progress("looking", done, len(chosen))
        if not found:
            reasons = "; ".join(f"{n} x {why}" for why, n in self.skipped.most_common(3))
            raise InputError(f"none of the {len(chosen)} sweeps can be learned from: {reasons}")
        return found

    def _observed(self, source: str, recording: Recording, index: int) -> Observed:
        key = hashlib.sha256(f"{source}\n{self.key}".encode()).hexdigest()[:16]
        path = self.cache / f"{slug(recording.name)}-{index:06d}-{key}.npz"
        if not path.is_file():
            name, scene = (
                f"{recording.name}-{index:06d}",
                f"{recording.name}/{recording.scenes[index]}",
            )
            self._look(recording[index], name, scene).save(path)
        return Observed.load(path)

    def _look(self, sample: Sample, name: str, scene: str) -> Observed:
        cloud = sample.cloud
        finite = cloud.finite
        if not finite.any():
            raise InputError(f"{name}: no finite points")
        groups = np.arange(len(self.space))
        evidence = camera_evidence(sample, self.teacher, groups, len(self.space), self.config)
        view = camera_patches(sample, self.features_of, self.config, self.patch_px)
        position = np.full(len(cloud), IGNORE, np.int32)
        position[finite] = np.arange(finite.sum(), dtype=np.int32)
        evidence.index, view.index = position[evidence.index], position[view.index]
        pose = sample.T_world_lidar
        strength = cloud.intensity if cloud.intensity is not None else np.zeros(len(cloud))
        return Observed(
            name,
            scene,
            cloud.xyz[finite],
            _still(sample)[finite],
            np.nan_to_num(strength[finite]).astype(np.float32),
            np.full((4, 4), np.nan) if pose is None else pose,
            self._truth(sample)[finite],
            evidence,
            view,
        )

    def _truth(self, sample: Sample) -> Array:
        if sample.labels is None:
            return np.full(len(sample.cloud), IGNORE, np.int16)
        return truth_of(sample, self.space).astype(np.int16)


def _still(sample: Sample) -> Array:
    cloud, trajectory = sample.cloud, sample.trajectory
    if trajectory is None or cloud.time is None:
        return cloud.xyz
    return deskew(cloud.xyz, cloud.time, trajectory, cloud.stamp_ns).astype(np.float32)
