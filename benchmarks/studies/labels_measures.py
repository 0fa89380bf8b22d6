# SPDX-License-Identifier: Apache-2.0
"""Figures of a student without ground truth: agreement with camera labels and between views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.studies.study import Row
from pcseg_core.cloud import PointCloud
from pcseg_core.distill.labeling import Labels, fit_label_model, label_scene
from pcseg_core.distill.observation import (
    ClassEvidence,
    Observation,
    Observer,
    StoredObservation,
    scenes,
)
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler, transform
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.run_folder import identity
from pcseg_core.learning.runs import observe, open_recordings, torch_device
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.metrics.flicker import Flicker, Pairing
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.vision.pixel_classes import load_teacher

Array = npt.NDArray[Any]
Bool = npt.NDArray[np.bool_]

RANGES = ("0-8 m", "8-15 m", "15-30 m", "30+ m")
_EDGES_M = (8.0, 15.0, 30.0)
_TURNS_DEG = (30.0, 90.0, 180.0)


@dataclass
class HeldOutSweep:
    """A sweep that nothing is trained on, with labels by cameras.

    Attributes:
        scene: sweeps of one scene share the frame of `world`.
        xyz: (N, 3) float32 points as measured, LiDAR frame [m].
        intensity: (N,) float32 in 0..1.
        world: (N, 3) points in the frame of the scene [m]; None without poses.
        label: (N,) int16 class, IGNORE for none.
        own: (N,) bool, points that a camera of the sweep itself sees; others are carried.
    """

    scene: str
    xyz: Array
    intensity: Array
    world: Array | None
    label: Array
    own: Bool


def held_out_sweeps(
    sources: Sequence[str], recipe: Recipe, plain: Recipe, cache: Path, device: str
) -> list[HeldOutSweep]:
    """Sweeps with the labels that two recipes agree on, so that neither is measured by its own.

    A label is used if both give the same class with at least `loss.min_confidence`, within the
    range of the student.

    Args:
        sources: recordings with cameras.
        recipe: with all parts.
        plain: without the parts that change classes.
        cache: folder of observations.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: no sweep can be used, or no label is left.
    """
    stored = _observed(sources, recipe, cache, device)
    labels = _camera_labels(stored, recipe.labels)
    if plain.teacher == recipe.teacher:
        others = _camera_labels(stored, plain.labels)
    else:
        others = _camera_labels(_observed(sources, plain, cache, device), plain.labels)
    found = []
    for seen in (entry.load() for entry in stored):
        key = (seen.scene, seen.index)
        if key in others:
            label = _agreed(labels[key], others[key], recipe.loss.min_confidence)
            label[np.linalg.norm(seen.xyz, axis=1) > recipe.student.max_range_m] = IGNORE
            found.append(_held_out(seen, label))
    if not any((sweep.label != IGNORE).any() for sweep in found):
        raise InputError(
            "no point of the held-out recordings has a confident label of the camera teacher; "
            "give others, or a lower loss.min_confidence"
        )
    return found


def _observed(
    sources: Sequence[str], recipe: Recipe, cache: Path, device: str
) -> list[StoredObservation]:
    config = recipe.required_teacher()
    teacher = load_teacher(config, torch_device(device))
    observer = Observer(cache, evidence=ClassEvidence(teacher, recipe.labels, config.identity))
    recordings = open_recordings(sources, [identity(source, (cache,)) for source in sources])
    return observe(observer, recordings, "labeling held-out sweeps")


def _camera_labels(
    stored: Sequence[StoredObservation], config: PseudoLabelConfig
) -> dict[tuple[str, int], Labels]:
    """Labels of held-out sweeps by their scene and index."""

    def loaded() -> Iterator[list[Observation]]:
        return ([entry.load() for entry in members] for _, members in scenes(stored))

    model = fit_label_model(loaded(), config)
    found = {}
    for sweeps in loaded():
        for sweep, labels in zip(sweeps, label_scene(sweeps, config, model)):
            found[sweep.scene, sweep.index] = labels
    return found


def _agreed(first: Labels, second: Labels, min_confidence: float) -> Array:
    sure = np.minimum(first[1], second[1]) >= min_confidence
    return np.where(sure & (first[0] == second[0]), first[0], IGNORE)


def _held_out(seen: Observation, label: Array) -> HeldOutSweep:
    own = np.zeros(len(seen.xyz), bool)
    if seen.evidence is not None:
        own[seen.evidence.index] = True
    world = transform(seen.pose, seen.deskewed.astype(np.float64)) if seen.posed else None
    return HeldOutSweep(seen.scene, seen.xyz, seen.intensity, world, label, own)


def measure(segmenter: Segmenter, sweeps: Sequence[HeldOutSweep]) -> Row:
    """Figures of a network on held-out sweeps; None where a figure has no points.

    Returns:
        "agreement": by "all", "own" and "carried" points, the figures against the labels by
        cameras; "turned": share of points that keep their label when the sweep is turned;
        "places": share of points with the label that the place had in the sweep before.
    """
    space = segmenter.label_space
    predicted = [_segment(segmenter, sweep.xyz, sweep.intensity) for sweep in sweeps]
    sets: dict[str, Callable[[HeldOutSweep], Bool]] = {
        "all": lambda sweep: np.ones(len(sweep.own), bool),
        "own": lambda sweep: sweep.own,
        "carried": lambda sweep: ~sweep.own,
    }
    return {
        "agreement": {n: agreement(predicted, sweeps, space, of) for n, of in sets.items()},
        "turned": _turned(segmenter, predicted, sweeps),
        "places": at_same_places(predicted, sweeps),
    }


def agreement(
    predicted: Sequence[Array],
    sweeps: Sequence[HeldOutSweep],
    space: LabelSpace,
    chosen: Callable[[HeldOutSweep], Bool],
) -> Row:
    """Figures against the labels by cameras, and the accuracy by range.

    Args:
        predicted: (N,) class ids of each sweep, IGNORE for none.
        sweeps: with labels.
        space: the classes.
        chosen: (N,) bool, the points of a sweep that count.
    """
    by_range = [Confusion(len(space)) for _ in RANGES]
    for found, sweep in zip(predicted, sweeps):
        bins = np.digitize(np.linalg.norm(sweep.xyz, axis=1), _EDGES_M)
        for number, confusion in enumerate(by_range):
            at = (bins == number) & chosen(sweep)
            confusion.update(found[at], sweep.label[at])
    total = sum(by_range, Confusion(len(space)))
    near_to_far = [c.accuracy if c.points else None for c in by_range]
    return {
        "points": total.points,
        **Figures.of(total, space.names, merge_of(space)).model_dump(exclude_none=True),
        "accuracy_by_range": dict(zip(RANGES, near_to_far)),
    }


def _turned(
    segmenter: Segmenter, predicted: Sequence[Array], sweeps: Sequence[HeldOutSweep]
) -> float | None:
    same = count = 0
    for before, sweep in zip(predicted, sweeps):
        for angle in _TURNS_DEG:
            rotation = from_euler(0.0, 0.0, np.radians(angle))[:3, :3].astype(np.float32)
            after = _segment(segmenter, sweep.xyz @ rotation.T, sweep.intensity)
            same += int((after == before)[before != IGNORE].sum())
            count += int((before != IGNORE).sum())
    return same / count if count else None


def at_same_places(predicted: Sequence[Array], sweeps: Sequence[HeldOutSweep]) -> float | None:
    """Share of points whose label is that of the same place in the sweep before, see `Flicker`.

    None if no sweep with a pose follows another one of its scene.
    """
    flicker = Flicker()
    pairs = zip(predicted, sweeps)
    for _, members in groupby(pairs, lambda pair: pair[1].scene):
        pairing = Pairing()
        for labels, sweep in members:
            if sweep.world is not None:
                flicker.add(labels, pairing.add(sweep.world))
    return None if flicker.share is None else 1 - flicker.share


def _segment(segmenter: Segmenter, xyz: Array, intensity: Array) -> Array:
    return segmenter.segment(PointCloud(np.ascontiguousarray(xyz), intensity)).labels
