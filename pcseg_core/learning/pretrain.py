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
from pcseg_core.labels import NO_CLASSES
from pcseg_core.learning.distributed import first_process_first, join
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.objectives.contrast import PixelContrast, TemporalContrast
from pcseg_core.learning.objectives.regression import Regression
from pcseg_core.learning.pairs import PairedSectors
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.run_folder import claim, identity, is_first_process, resumed
from pcseg_core.learning.runs import (
    all_skipped,
    check_cameras,
    finish,
    input_statistics,
    observe,
    on_gpu,
    open_recordings,
    some,
    torch_device,
)
from pcseg_core.learning.trainer import train
from pcseg_core.models.student import Student
from pcseg_core.progress import bar
from pcseg_core.vision.encoder_kinds import load_encoder
from pcseg_core.vision.pixel_features import PixelFeatures


def pretrain(
    sources: Sequence[str] | Mapping[str, Recording],
    recipe: Recipe,
    out: Path,
    cache: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    fresh: bool = False,
    log: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a student to agree with a frozen image network, without labels.

    Interrupted runs resume: make the same call again. A finished run returns its figures, which
    metrics.json also holds. Under torchrun the processes share the steps; losses and gradients are
    those of one process on the whole batch.

    Args:
        sources: bags, or reader:path; or recordings by the names that identify them in the cache.
        recipe: of the run, with an encoder.
        out: run directory; gets recipe.yaml, cache/, logs/, last.ckpt and the checkpoint.
        cache: folder of observations, superpixels and segments that several runs may share.
        device: "auto", "cpu", "cuda" or "cuda:N".
        workers: processes that prepare batches in parallel to the training; 0 for none.
        fresh: delete an earlier run in `out`, once everything is known to be usable.
        log: trackers of the losses besides logs/metrics.csv, see `trackers.Trackers`.

    Raises:
        InputError: unusable sources, weights or recipe, or a run directory of another recipe.
        KeyboardInterrupt: a signal ended the training.
    """
    if recipe.encoder is None:
        raise InputError("pretraining needs a recipe with 'encoder'")
    fresh = fresh and is_first_process()  # the others find what the first made
    given = isinstance(sources, Mapping)
    names = list(sources) if given else [identity(s, (out, cache or out)) for s in sources]
    # Observe every sweep once: features and superpixels of its images, segments across sweeps.
    join(on_gpu(device))
    with first_process_first():
        if (figures := resumed(out, recipe, names, fresh)) is not None:
            return figures
        named = dict(sources) if isinstance(sources, Mapping) else open_recordings(sources, names)
        started = time.monotonic()
        check_cameras(named.values())
        encoder = load_encoder(recipe.encoder, torch_device(device))
        claim(out, recipe, names, fresh)
    observer = new_observer(recipe, encoder, cache or out / "cache", device)
    observations, segments = prepare(observer, named, recipe)
    preparing_s = time.monotonic() - started
    # Train a student to tell apart what the image network tells apart.
    torch.manual_seed(recipe.seed)
    student = Student(recipe.student, len(NO_CLASSES))
    channels = observations[0].load().images[0].features.shape[0]
    module = new_module(student, channels, observations, segments, recipe, workers)
    training = train(module, out, device, log)
    metrics = {
        "sweeps": len(observations),
        "skipped": all_skipped(named, observer),
        "preparing_s": round(preparing_s, 1),
        **module.clock.throughput(),
        **training,
    }
    if module.global_rank == 0:
        inputs = input_statistics([o.load() for o in some(observations)], named.values())
        finish(student, NO_CLASSES, recipe, metrics, out, inputs=inputs)
    return metrics


def new_observer(recipe: Recipe, encoder: PixelFeatures, folder: Path, device: str) -> Observer:
    """Makes the image views of sweeps."""
    superpixels = superpixel_cache(recipe.superpixels, folder, torch_device(device))
    viewer = ImageViewer(encoder, superpixels, recipe.views, recipe.pairs.mirror > 0)
    return Observer(folder, images=viewer)


def prepare(
    observer: Observer, recordings: Mapping[str, Recording], recipe: Recipe
) -> tuple[list[StoredObservation], dict[int, Path]]:
    """Observations, and temporal segments if the recipe needs them."""
    observations = observe(observer, recordings, "preparing views")
    segments: dict[int, Path] = {}
    if recipe.across_sweeps:
        folder = observer.folder / "segments"
        with first_process_first(), bar("preparing segments") as progress:
            segments = segment_files(observations, recipe.temporal, folder, progress)
    return observations, segments


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
        student: its classifier is not trained.
        channels: size of the image features.
        observations: stored sweeps with image views.
        segments: by position, the file of temporal segments; may be empty.
        recipe: everything else.
        workers: processes that prepare batches.
    """
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
