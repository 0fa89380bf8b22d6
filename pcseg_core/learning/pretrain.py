# SPDX-License-Identifier: Apache-2.0
"""Pretraining: recordings and a frozen image network in, a network for any classes out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pcseg_core.data import Recording
from pcseg_core.distill.image_views import ImageViewer, superpixel_cache
from pcseg_core.distill.observation import Observer, StoredObservation
from pcseg_core.distill.temporal import segment_files
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelClass, LabelSpace
from pcseg_core.learning.distributed import first_process_first, synchronize
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.objectives.contrast import PixelContrast, TemporalContrast
from pcseg_core.learning.objectives.regression import Regression
from pcseg_core.learning.pairs import PairedSectors
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.runs import (
    all_skipped,
    claim,
    finish,
    observe,
    on_gpu,
    open_recordings,
    torch_device,
    train,
)
from pcseg_core.models.student import Student
from pcseg_core.progress import bar
from pcseg_core.vision.encoder_kinds import load_encoder

NO_CLASSES = LabelSpace("pretrained", (LabelClass(0, "unlabeled", (160, 160, 160)),))
"""Label space of a pretrained network, which has no classes: it labels all points the same."""


def pretrain(
    sources: Sequence[str] | Mapping[str, Recording],
    recipe: Recipe,
    out: Path,
    cache: Path | None = None,
    device: str = "auto",
    workers: int = 0,
) -> dict[str, Any]:
    """Train a student to agree with a frozen image network, without labels.

    Interrupted runs resume: make the same call again. Under torchrun the processes share the
    steps; losses and gradients are those of one process on the whole batch.

    Args:
        sources: bags, or reader:path; or recordings by the names that identify them in the cache.
        recipe: of the run, with an encoder.
        out: run directory; gets recipe.yaml, cache/, logs/, last.ckpt and the checkpoint.
        cache: folder of observations, superpixels and segments that several runs may share.
        device: "auto", "cpu" or "cuda".
        workers: processes that prepare batches in parallel to the training; 0 for none.

    Returns:
        Figures of the run, also written to metrics.json.

    Raises:
        InputError: unusable sources, weights or recipe, or a run directory of another recipe.
    """
    if recipe.encoder is None:
        raise InputError("pretraining needs a recipe with 'encoder'")
    named = dict(sources) if isinstance(sources, Mapping) else open_recordings(sources)
    started = time.monotonic()
    # Observe every sweep once: features and superpixels of its images, segments across sweeps.
    with first_process_first(on_gpu(device)):
        claim(out, recipe, list(named))
        observations, segments, skipped = prepare(named, recipe, cache or out / "cache", device)
    preparing_s = time.monotonic() - started
    # Train a student to tell apart what the image network tells apart.
    torch.manual_seed(recipe.seed)
    student = Student(recipe.student, len(NO_CLASSES))
    channels = observations[0].load().images[0].features.shape[0]
    module = new_module(student, channels, observations, segments, recipe, workers)
    training = train(module, out, device)
    metrics = {
        "sweeps": len(observations),
        "skipped": skipped,
        "preparing_s": round(preparing_s, 1),
        **module.clock.throughput(),
        **training,
    }
    if module.global_rank == 0:
        finish(student, NO_CLASSES, recipe, metrics, out)
    return metrics


def prepare(
    recordings: Mapping[str, Recording], recipe: Recipe, folder: Path, device: str
) -> tuple[list[StoredObservation], dict[int, Path], dict[str, int]]:
    """Observations, temporal segments if the recipe needs them, and what was skipped."""
    assert recipe.encoder is not None
    on = torch_device(device)
    superpixels = superpixel_cache(recipe.superpixels, folder, on)
    mirror = recipe.pairs.mirror > 0
    viewer = ImageViewer(load_encoder(recipe.encoder, on), superpixels, recipe.views, mirror)
    observer = Observer(folder, images=viewer)
    observations = observe(observer, recordings, "preparing views")
    segments: dict[int, Path] = {}
    if recipe.across_sweeps:
        with bar("preparing segments") as progress:
            segments = segment_files(observations, recipe.temporal, folder / "segments", progress)
    return observations, segments, all_skipped(recordings, observer)


def new_module(
    student: Student,
    channels: int,
    observations: Sequence[StoredObservation],
    segments: Mapping[int, Path],
    recipe: Recipe,
    workers: int = 0,
) -> TrainingModule:
    """The objectives of a recipe with an encoder, for a student, on observations.

    Args:
        student: its classifier is not trained; its batch norms are synchronized over processes.
        channels: size of the image features.
        observations: stored sweeps with image views.
        segments: by position, the file of temporal segments; may be empty.
        recipe: everything else.
        workers: processes that prepare batches.
    """
    synchronize(student)
    student.network.classifier.requires_grad_(False)
    width, loss = student.network.feature_channels, recipe.loss
    objectives: list[Objective] = []
    if loss.superpixel + loss.point_pixel > 0:
        objectives.append(PixelContrast(loss, width, channels, recipe.views.min_points))
    if recipe.across_sweeps:
        objectives.append(TemporalContrast(loss, width))
    if loss.regression > 0:
        objectives.append(Regression(loss.regression, width, channels))
    sectors = PairedSectors(observations, segments, recipe)
    return TrainingModule(student, objectives, sectors, recipe.optimizer, workers=workers)
