# SPDX-License-Identifier: Apache-2.0
"""Pretraining, whole: recordings and frozen image networks in, a network for any classes out."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcseg_core.data import Recording, open_recording
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelClass, LabelSpace
from pcseg_core.learning.distributed import first_process_first
from pcseg_core.learning.pretrain_module import PretrainModule
from pcseg_core.learning.pretrain_recipe import PretrainRecipe, SuperpixelConfig
from pcseg_core.learning.runs import bar, claim, console, finish, identity, on_gpu, train
from pcseg_core.learning.views import Entry, ViewMaker, make_segments
from pcseg_core.models.student import Student
from pcseg_core.vision.encoders import load_encoder
from pcseg_core.vision.image_cache import SuperpixelCache
from pcseg_core.vision.semantic import load_semantic
from pcseg_core.vision.slic import Slic
from pcseg_core.vision.superpixels import SuperpixelGenerator

# A pretrained network knows no classes: as a segmenter it calls every point the same.
NO_CLASSES = LabelSpace("pretrained", (LabelClass(0, "unlabeled", (160, 160, 160)),))


def pretrain(
    sources: Sequence[str] | Mapping[str, Recording],
    recipe: PretrainRecipe,
    out: Path,
    cache: Path | None = None,
    device: str = "auto",
    workers: int = 0,
) -> dict[str, Any]:
    """Train a student to agree with frozen image networks, without labels.

    The same call goes on where an interrupted one stopped. Under torchrun the processes share
    the steps, and losses and gradients are those of one process on the whole batch.

    Args:
        sources: bags, or reader:path; or drives by the names that identify them in the cache.
        recipe: everything that decides the result.
        out: run directory; gets recipe.yaml, cache/, logs/, last.ckpt and the checkpoint.
        cache: folder of views, superpixels and segments that several runs may share.
        device: "auto", "cpu" or "cuda".
        workers: processes that prepare batches beside the training; 0 for none.

    Returns:
        Figures of the run, also written to metrics.json.

    Raises:
        InputError: unusable sources, weights or recipe, or a run directory of another recipe.
    """
    named = dict(sources) if isinstance(sources, Mapping) else _opened(sources)
    started = time.monotonic()
    with first_process_first(on_gpu(device)):
        claim(out, recipe, list(named))
        views, segments, skipped = prepare(named, recipe, cache or out / "cache", device)
    preparing_s = time.monotonic() - started
    torch.manual_seed(recipe.seed)
    student = Student(recipe.student, len(NO_CLASSES))
    channels = stored_channels(views[0])
    module = PretrainModule(student, channels, views, segments, recipe, workers)
    config = recipe.optimizer
    training = train(module, config.steps, config.gradient_clip, out, device)
    metrics = {
        "sweeps": len(views),
        "skipped": dict(skipped),
        "preparing_s": round(preparing_s, 1),
        **module.throughput(),
        **training,
    }
    if module.global_rank == 0:
        finish(student, NO_CLASSES, recipe, metrics, out)
    return metrics


def _opened(sources: Sequence[str]) -> dict[str, Recording]:
    return {identity(source): open_recording(source) for source in sources}


def prepare(
    recordings: Mapping[str, Recording], recipe: PretrainRecipe, cache: Path, device: str
) -> tuple[list[Entry], dict[int, Path], Counter[str]]:
    """Views, segments across sweeps where the recipe needs them, and what was skipped."""
    on = "cuda" if on_gpu(device) else "cpu"
    encoder = load_encoder(recipe.encoder, on)
    superpixels = superpixel_cache(recipe.superpixels, cache, on)
    maker = ViewMaker(encoder, superpixels, recipe.views, recipe.pairs.mirror > 0, cache)
    with bar() as progress:
        task = progress.add_task("", total=None)

        def tell(stage: str, done: int, total: int) -> None:
            progress.update(task, description=f"preparing {stage}", completed=done, total=total)

        views = maker.make(recordings, tell)
        segments = make_segments(views, recipe.temporal, cache, tell) if recipe.across_time else {}
    for reason, count in maker.skipped.most_common():
        console.print(f"[yellow]skipped {count}:[/] {reason}", highlight=False)
    skipped = sum((recording.skipped for recording in recordings.values()), maker.skipped)
    return views, segments, skipped


def superpixel_cache(config: SuperpixelConfig, cache: Path, device: str) -> SuperpixelCache:
    """The superpixels that a recipe names, each making in a folder of its own."""
    if config.name == "folder":
        assert config.folder is not None
        return SuperpixelCache(config.folder)
    slic = Slic(config.segments, config.compactness)
    generator: SuperpixelGenerator = slic
    if config.name == "semantic":
        assert config.teacher is not None
        generator = load_semantic(config.teacher, slic, config.min_area, device)
    text = json.dumps(generator.parameters, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return SuperpixelCache(cache / f"superpixels-{config.name}-{digest}", generator)


def stored_channels(entry: Entry) -> int:
    """Number of features per pixel in a stored view.

    Raises:
        InputError: the file was not written by `ViewMaker`.
    """
    with np.load(entry.path, allow_pickle=False) as stored:
        if "0_features" not in stored.files:
            raise InputError(f"{entry.path}: no view; remove it and run again")
        return int(stored["0_features"].shape[0])
