# SPDX-License-Identifier: Apache-2.0
"""Pseudo labels by projection under faults, and their accuracy against the exact truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from benchmarks.studies.projection_faults import Condition
from benchmarks.studies.projection_views import FACTORS, Array, View, deskewed
from benchmarks.studies.study import Row
from pcseg_core.distill.consolidation import ConsolidationConfig
from pcseg_core.distill.evidence import Evidence, PixelEvidence
from pcseg_core.distill.labeling import Labels, class_probabilities, label_scene
from pcseg_core.distill.observation import Observation
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig, gather_evidence, sample_map
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.zero_shot_labels import zero_shot_labels
from pcseg_core.learning.zero_shot_split import Split
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.projection import project_cloud

OWN, VOTES, FUSED = "own pixels", "votes", "consolidation"
NO_TEST = "no occlusion test"

_VOXEL_M = 0.3  # of consolidation
_NEVER_M = 1e6  # tolerance of an occlusion test that drops nothing


@dataclass(frozen=True)
class Method:
    """How pixels become labels of points.

    Attributes:
        fusion: OWN takes the pixels of the sweep's own images, VOTES adds the mean of a voxel over
            the scene, FUSED updates voxels by Bayes' rule.
        occlusion: whether points behind others get no pixels.
    """

    fusion: str
    occlusion: bool

    @property
    def name(self) -> str:
        """For tables."""
        return self.fusion if self.occlusion else f"{self.fusion}, {NO_TEST}"

    def config(self, base: PseudoLabelConfig) -> PseudoLabelConfig:
        """A configuration of labels with this fusion and no other extras."""
        voxel = {OWN: 0.0, VOTES: base.propagate_voxel_m or 0.2, FUSED: 0.0}[self.fusion]
        consolidation = ConsolidationConfig(voxel_m=_VOXEL_M if self.fusion == FUSED else 0.0)
        return PseudoLabelConfig(
            label_space=base.label_space,
            splat_radius_px=base.splat_radius_px,
            border_px=base.border_px,
            propagate_voxel_m=voxel,
            consolidation=consolidation,
        )


METHODS = tuple(Method(fusion, test) for test in (True, False) for fusion in (OWN, VOTES, FUSED))


def labeled_scenes(
    views: Sequence[View], condition: Condition, seed: int, method: Method, base: PseudoLabelConfig
) -> Iterator[tuple[View, Observation, Labels]]:
    """Every view with its observation and its labels under a condition.

    Args:
        views: in the order of time, scene by scene.
        condition: faults.
        seed: of their directions, beside those of the drives.
        method: how pixels become labels.
        base: configuration of labels.
    """
    config = method.config(base)
    for _, members in groupby(views, lambda view: view.sample.scene):
        scene = list(members)
        sweeps = [observed(view, condition, seed, method.occlusion, config) for view in scene]
        yield from zip(scene, sweeps, label_scene(sweeps, config))


def observed(
    view: View, condition: Condition, seed: int, occlusion: bool, config: PseudoLabelConfig
) -> Observation:
    """A view as it is labeled under a condition; arguments as for `labeled_scenes`."""
    sample = condition.reported(view.sample, view.seed + 1000 * seed)
    pose = view.sample.T_world_lidar
    assert pose is not None
    xyz = deskewed(sample)
    images = [
        PixelEvidence(classes, frame.camera, sample.T_cam_lidar(k))
        for k, (frame, classes) in enumerate(zip(sample.cameras, view.seen(condition.last_camera)))
    ]
    gather = gather_evidence if occlusion else all_pixels
    evidence = gather(xyz, images, len(view.classes[0]), config)
    intensity = sample.cloud.intensity
    assert intensity is not None
    return Observation(
        sample.name, sample.scene, 0, sample.cloud.xyz, xyz, intensity, pose, evidence=evidence
    )


def all_pixels(
    xyz: Array, images: Iterable[PixelEvidence], classes: int, config: PseudoLabelConfig
) -> Evidence:
    """As `gather_evidence`, but points behind others and at depth edges count like all others."""
    sums, weights = np.zeros((len(xyz), classes), np.float32), np.zeros(len(xyz), np.float32)
    for image in images:
        found = project_cloud(
            xyz,
            image.T_cam_lidar,
            image.camera,
            border_px=config.border_px,
            tolerance_m=_NEVER_M,
            edge_px=0,
        )
        seen = np.flatnonzero(found.weight > 0)
        size = (image.camera.width, image.camera.height)
        pixels = sample_map(image.probabilities, found.uv[seen], size)
        sums[seen] += found.weight[seen, None] * pixels
        weights[seen] += found.weight[seen]
    index = np.flatnonzero(weights > 0).astype(np.int32)
    return Evidence(index, weights[index], sums[index])


class Tally:
    """Counts of points, of labeled ones and of right ones.

    Args:
        space: classes.
    """

    def __init__(self, space: LabelSpace) -> None:
        self.space = space
        self.confusion = Confusion(len(space))
        self.counts = {factor: np.zeros((3, len(names)), int) for factor, names in FACTORS.items()}

    def add(self, view: View, labels: Array) -> None:
        """Add the labels (N,) of a view, IGNORE for none."""
        known = view.truth != IGNORE
        given = known & (labels != IGNORE)
        right = given & (labels == view.truth)
        self.confusion.update(labels, view.truth)
        for factor, counts in self.counts.items():
            group = view.groups[factor]
            for row, chosen in zip(counts, (known, given, right)):
                row += np.bincount(group[chosen & (group != IGNORE)], minlength=len(row))

    def figures(self) -> Row:
        """Shares of all points: "labeled"; of the labeled ones: "accuracy" and "miou".

        "class" gives for each class its "points", the share "labeled", "accuracy" (share of the
        labeled ones that are right) and "precision" (share of the labels of the class that are
        right); "by" the first three for each group of each factor. None without points.
        """
        labeled = Confusion(len(self.space))
        labeled.matrix = self.confusion.matrix
        given, points = labeled.points, self.confusion.points
        return {
            "points": points,
            "labeled": given / points if points else None,
            "accuracy": labeled.accuracy if given else None,
            "miou": labeled.miou if given else None,
            "class": dict(zip(self.space.names, self._by_class(labeled))),
            "by": {
                factor: dict(zip(FACTORS[factor], map(_shares, *counts)))
                for factor, counts in self.counts.items()
            },
        }

    def _by_class(self, labeled: Confusion) -> Iterator[Row]:
        right = np.diag(labeled.matrix)
        for k, claimed in enumerate(labeled.matrix.sum(axis=0)):
            counts = self.confusion.truth_counts[k], labeled.truth_counts[k], right[k]
            yield {**_shares(*counts), "precision": _share(right[k], claimed)}


def _shares(points: int, labeled: int, right: int) -> Row:
    shares = {"labeled": _share(labeled, points), "accuracy": _share(right, labeled)}
    return {"points": int(points), **shares}


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def label_figures(
    views: Sequence[View],
    condition: Condition,
    seed: int,
    base: PseudoLabelConfig,
    min_confidence: float,
) -> Mapping[str, Row]:
    """Figures of the labels of every method, see `Tally.figures`; arguments as above.

    Args:
        min_confidence: least confidence of a label.
    """
    space = LabelSpace.load(base.label_space)
    found = {}
    for method in METHODS:
        tally = Tally(space)
        for view, _, (label, sure) in labeled_scenes(views, condition, seed, method, base):
            tally.add(view, np.where(sure >= min_confidence, label, IGNORE))
        found[method.name] = tally.figures()
    return found


def unseen_figures(
    views: Sequence[View],
    condition: Condition,
    seed: int,
    base: PseudoLabelConfig,
    split: Split,
    min_confidence: float,
) -> Mapping[str, Row]:
    """Labels of unseen classes by zero-shot learning, which knows the truth of the seen ones.

    Args:
        split: seen and unseen classes of the label space.
        min_confidence: least confidence of a label.

    Returns:
        By method without and with consolidation: of the points of unseen classes, the share
        "labeled", and the "accuracy" of these labels.
    """
    found = {}
    for method in METHODS:
        if method.fusion == VOTES:  # zero-shot learning has none
            continue
        config, counts = method.config(base), np.zeros(3, int)
        for _, members in groupby(views, lambda view: view.sample.scene):
            scene = list(members)
            sweeps = [observed(view, condition, seed, method.occlusion, config) for view in scene]
            for view, likely in zip(scene, class_probabilities(sweeps, config.consolidation)):
                label, sure = zero_shot_labels(view.truth, likely, split.mask, "zero-shot")
                hidden = (view.truth != IGNORE) & split.mask[view.truth]
                given = hidden & (sure >= min_confidence) & (label != IGNORE)
                right = given & (label == view.truth)
                counts += [np.count_nonzero(part) for part in (hidden, given, right)]
        found[method.name] = _shares(*counts)
    return found


def training_sweeps(
    views: Sequence[View], condition: Condition, seed: int, base: PseudoLabelConfig
) -> list[TrainingSweep]:
    """Sweeps labeled with votes and the occlusion test, to train a student on."""
    method = Method(VOTES, occlusion=True)
    return [
        TrainingSweep(seen.xyz, seen.intensity, label, sure, seen.scene)
        for _, seen, (label, sure) in labeled_scenes(views, condition, seed, method, base)
    ]
