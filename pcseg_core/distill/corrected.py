# SPDX-License-Identifier: Apache-2.0
"""Corrected labels over those of teachers: in their sweep, and carried by pose to those around.

A corrected label is what the point gets in its own sweep. World voxels carry it to other sweeps of
the scene, where it counts as `weight` labels of the teacher with full confidence. What moves is
not carried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pcseg_core.data.corrections import read_corrections
from pcseg_core.distill.consolidation import moving_points
from pcseg_core.distill.evidence import places_of, world_keys
from pcseg_core.distill.labeling import Labels
from pcseg_core.distill.lidar_teacher import LidarTargets
from pcseg_core.distill.observation import Observation
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.geometry import invert
from pcseg_core.labels import IGNORE, LabelSpace

if TYPE_CHECKING:
    from pcseg_core.data import Recording

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Given = Sequence["Int64 | None"]

_SHOWN = 5  # pairs of classes in a report


@dataclass
class Conflicts:
    """What corrections changed.

    Attributes:
        sweeps: number of corrected sweeps.
        points: number of their points with a corrected class.
        labeled: those of them that the teacher had labeled.
        pairs: (class of the teacher, corrected class) -> points, where the two differ.
        carried: points of other sweeps that got a class or another one.
        shared: voxels that several corrected sweeps see.
        contradictory: those of them that the sweeps give different classes.
    """

    sweeps: int = 0
    points: int = 0
    labeled: int = 0
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    carried: int = 0
    shared: int = 0
    contradictory: int = 0

    def lines(self, space: LabelSpace) -> list[str]:
        """The figures as text, for the user."""
        wrong = self.pairs.total()
        share = 100 * wrong / max(self.labeled, 1)
        told = [
            f"{self.sweeps} corrected sweeps, {self.points} points; the teacher had labeled "
            f"{self.labeled} of them, and {wrong} otherwise ({share:.1f} %)"
        ]
        common = self.pairs.most_common(_SHOWN)
        if common:
            names = space.names
            told.append(
                "corrected: " + ", ".join(f"{names[a]} is {names[b]} ({n})" for (a, b), n in common)
            )
        told.append(
            f"carried by pose: {self.carried} points of other sweeps got a class or changed it"
        )
        if self.contradictory:
            told.append(
                f"corrected sweeps contradict each other in {self.contradictory} of the "
                f"{self.shared} voxels that several of them see"
            )
        return told

    def counts(self) -> Counter[str]:
        """The figures by name, and pairs as "a b", as `of_counts` takes them."""
        own = {name: count for name, count in vars(self).items() if name != "pairs"}
        return Counter({**own, **{f"{a} {b}": n for (a, b), n in self.pairs.items()}})

    @classmethod
    def of_counts(cls, counts: Mapping[str, int]) -> Conflicts:
        """The conflicts with these figures."""
        own = {name: count for name, count in counts.items() if " " not in name}
        pairs = {
            (int(a), int(b)): n for k, n in counts.items() for a, _, b in [k.partition(" ")] if b
        }
        return cls(**own, pairs=Counter(pairs))

    def figures(self, space: LabelSpace) -> dict[str, object]:
        """The figures as JSON can write them."""
        pairs = {f"{space.names[a]} > {space.names[b]}": n for (a, b), n in self.pairs.items()}
        return {**vars(self), "pairs": pairs}


@dataclass
class CorrectedSweeps:
    """Corrected labels of observations.

    Attributes:
        labels: (scene, index) of an observation -> (N,) class ids of its points, IGNORE for none.
        weight: see the module.
        conflicts: counted by `override`.
    """

    labels: Mapping[tuple[str, int], Int64]
    weight: float
    conflicts: Conflicts = field(default_factory=Conflicts)

    @classmethod
    def read(
        cls, folder: Path, recordings: Mapping[str, Recording], space: LabelSpace, weight: float
    ) -> CorrectedSweeps:
        """Read the corrections of recordings, by the source they were opened from.

        Raises:
            InputError: see `read_corrections`.
        """
        found = read_corrections(folder, recordings, space)
        scenes = {key: recording.scenes for key, recording in recordings.items()}
        return cls(
            {
                (f"{one.recording}/{scenes[one.recording][one.index]}", one.index): (
                    one.labels[one.finite]
                )
                for one in found
            },
            weight,
        )

    def override(
        self, sweeps: Sequence[Observation], labels: Sequence[Labels], config: PseudoLabelConfig
    ) -> list[Labels]:
        """Labels of the sweeps of a scene with the corrections in them; conflicts are counted.

        Args:
            sweeps: in the order of time.
            labels: of the teachers, for each sweep.
            config: edge of the voxels that carry labels, and how moving points are found.
        """
        given = [self.labels.get((sweep.scene, sweep.index)) for sweep in sweeps]
        if all(own is None for own in given):
            return list(labels)
        carried = self._carried(sweeps, given, config)
        return [self._joined(*parts) for parts in zip(labels, given, carried)]

    def without_targets(self, sweep: Observation, targets: LidarTargets) -> LidarTargets:
        """Targets of a 3D teacher for a sweep, without those of its corrected points."""
        given = self.labels.get((sweep.scene, sweep.index))
        if given is None:
            return targets
        return replace(targets, voxel=np.where(given != IGNORE, IGNORE, targets.voxel))

    def _joined(self, labels: Labels, given: Int64 | None, carried: Float64 | None) -> Labels:
        """Labels of one sweep, with its own corrections and shares (N, C) of those around."""
        label, confidence = labels
        if carried is not None:
            votes = carried * self.weight
            at = np.flatnonzero(votes.any(axis=1))
            labeled = at[label[at] != IGNORE]
            votes[labeled, label[labeled]] += confidence[labeled]
            best = votes[at].argmax(axis=1)
            changed, label = label, label.copy()
            label[at] = best
            confidence = confidence.copy()
            confidence[at] = votes[at, best] / (self.weight + 1)
            if given is None:
                self.conflicts.carried += int((changed != label).sum())
        if given is not None:
            self._count(labels[0], given)
            label = np.where(given != IGNORE, given, label).astype(np.int16)
            confidence = np.where(given != IGNORE, np.float32(1), confidence)
        return label, confidence

    def _count(self, label: npt.NDArray[np.int16], given: Int64) -> None:
        conflicts, fixed = self.conflicts, given != IGNORE
        both = fixed & (label != IGNORE)
        conflicts.sweeps += 1
        conflicts.points += int(fixed.sum())
        conflicts.labeled += int(both.sum())
        wrong = both & (label != given)
        conflicts.pairs.update(zip(label[wrong].tolist(), given[wrong].tolist()))

    def _carried(
        self, sweeps: Sequence[Observation], given: Given, config: PseudoLabelConfig
    ) -> Sequence[Float64 | None]:
        """Per sweep (N, C) shares of the corrected classes at its places; 0 without any."""
        voxel_m = config.consolidation.voxel_m or config.propagate_voxel_m
        if not (self.weight and voxel_m and len(sweeps) > 1 and all(s.posed for s in sweeps)):
            return [None] * len(sweeps)
        clouds, start = [s.deskewed for s in sweeps], invert(sweeps[0].pose)
        poses = [start @ s.pose for s in sweeps]
        moving = moving_points(clouds, poses, config.consolidation)
        keys = [
            np.where(moves, -1, world_keys(xyz, pose, voxel_m))
            for xyz, pose, moves in zip(clouds, poses, moving)
        ]
        voxels, shares = self._voxels(keys, given, len(LabelSpace.load(config.label_space)))
        if len(voxels) == 0:
            return [None] * len(sweeps)
        found: list[Float64 | None] = []
        for own in keys:
            at, there = places_of(own, voxels)
            found.append(np.where(there[:, None], shares[at], 0.0))
        return found

    def _voxels(self, keys: Sequence[Int64], given: Given, classes: int) -> tuple[Int64, Float64]:
        """(V,) voxels with corrected points, and (V, C) shares of their classes."""
        parts = [
            (key[used], labels[used], np.full(int(used.sum()), number))
            for number, (key, labels) in enumerate(zip(keys, given))
            if labels is not None
            for used in [(key >= 0) & (labels != IGNORE)]
        ]
        key, label, sweep = (np.concatenate(columns) for columns in zip(*parts))
        voxels, place = np.unique(key, return_inverse=True)
        counts = np.zeros((len(voxels), classes))
        np.add.at(counts, (place, label), 1)
        self._compare(place, label, sweep, classes)
        return voxels, counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def _compare(self, place: Int64, label: Int64, sweep: Int64, classes: int) -> None:
        """Count the voxels that several sweeps see, and those that they label differently."""
        looks, look = np.unique(np.stack([place, sweep], axis=1), axis=0, return_inverse=True)
        counts = np.zeros((len(looks), classes))
        np.add.at(counts, (look.ravel(), label), 1)
        seen = looks[:, 0]
        kinds = np.unique(np.stack([seen, counts.argmax(axis=1)], axis=1), axis=0)[:, 0]
        self.conflicts.shared += int((np.bincount(seen) > 1).sum()) if len(seen) else 0
        self.conflicts.contradictory += int((np.bincount(kinds) > 1).sum()) if len(kinds) else 0
