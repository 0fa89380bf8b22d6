# SPDX-License-Identifier: Apache-2.0
"""Parts of labeling and training whose costs are measured, each in a process of its own."""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import memory_mb, wall_and_cpu
from benchmarks.studies import costs_networks as networks
from benchmarks.studies.costs_inputs import LOSSES, Inputs, sectors
from benchmarks.studies.study import Row
from pcseg_core.distill.ground import GroundMethod, find_ground
from pcseg_core.distill.temporal import (
    TemporalConfig,
    ground_mask,
    hdbscan_labels,
    temporal_segments,
)
from pcseg_core.geometry import invert, transform
from pcseg_core.labels import NO_CLASSES
from pcseg_core.learning.dataset import collate
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.objectives.contrast import PixelContrast, TemporalContrast
from pcseg_core.learning.objectives.regression import Regression
from pcseg_core.learning.recipe import LossConfig
from pcseg_core.models.student import Student
from pcseg_core.projection import project_cloud

Action = Callable[[], object]
Make = Callable[[Inputs, Path], Action]

NONE, REAL, RANDOM = "", "real", "random"
_LONGEST_S = 1200


@dataclass(frozen=True)
class Part:
    """Something that costs time.

    Attributes:
        per: "image", "sweep", "two sweeps" or "step".
        make: (inputs, folder for files) -> the action that is measured.
        weights: NONE, REAL or RANDOM.
        slow: it is measured once, without warm-up.
        gpu: it runs on a GPU where there is one.
    """

    per: str
    make: Make
    weights: str = NONE
    slow: bool = False
    gpu: bool = False


def _on_image(make: networks.Make) -> Make:
    return lambda inputs, folder: partial(make(folder, inputs.device), inputs.image)


def _network(make: networks.Make, weights: str = RANDOM, slow: bool = False) -> Part:
    return Part("image", _on_image(make), weights, slow, gpu=True)


def _project(inputs: Inputs, _: Path) -> Action:
    return partial(project_cloud, inputs.clouds[0], inputs.T_cam_lidar, inputs.camera)


def _ground(method: GroundMethod) -> Make:
    return lambda inputs, _: partial(find_ground, inputs.clouds[0], method)


def _clusters(config: TemporalConfig) -> Make:
    """HDBSCAN on the voxels above the ground of two sweeps."""

    def make(inputs: Inputs, _: Path) -> Action:
        to_first = [invert(inputs.poses[0]) @ pose for pose in inputs.poses]
        parts = []
        for xyz, T in zip(inputs.clouds, to_first):
            near = xyz[np.linalg.norm(xyz, axis=1) <= config.max_range_m]
            parts.append(transform(T, near[~ground_mask(near, config)]))
        cells = np.unique(np.floor(np.concatenate(parts) / config.voxel_m), axis=0)
        return partial(hdbscan_labels, cells * config.voxel_m, config)

    return make


def _segments(inputs: Inputs, _: Path) -> Action:
    return partial(temporal_segments, inputs.clouds, inputs.poses, TemporalConfig())


def _draw(inputs: Inputs, _: Path) -> Action:
    drawn = sectors(inputs.source, inputs.folder)
    return lambda: collate(drawn.draw(0))


def _student(inputs: Inputs, _: Path) -> Action:
    """Forward and backward of the student."""
    drawn = sectors(inputs.source, inputs.folder)
    student = Student(drawn.recipe.student, len(NO_CLASSES)).train().to(inputs.device)
    batch = collate(drawn.draw(0)).to(torch.device(inputs.device))
    return lambda: student(batch.points).features.square().mean().backward()


def _objective(name: str) -> Make:
    """Forward and backward of one objective, from the features of the student and to them."""

    def make(inputs: Inputs, _: Path) -> Action:
        drawn = sectors(inputs.source, inputs.folder)
        student = Student(drawn.recipe.student, len(NO_CLASSES)).to(inputs.device)
        batch = collate(drawn.draw(0)).to(torch.device(inputs.device))
        with torch.no_grad():
            output = student(batch.points)
        output = replace(output, features=output.features.clone().requires_grad_())
        alone = dict.fromkeys(LOSSES, 0.0) | {name: 1.0}
        loss = drawn.recipe.loss.model_copy(update=alone)
        channels = drawn.observations[0].load().images[0].features.shape[0]
        term = _new_objective(loss, student, channels, drawn.recipe.views.min_points)
        term = term.to(inputs.device)

        def run() -> None:
            torch.stack(list(term.losses(output, batch).values())).sum().backward()

        return run

    return make


def _new_objective(loss: LossConfig, student: Student, channels: int, min_points: int) -> Objective:
    width = student.network.feature_channels
    if loss.regression:
        return Regression(loss.regression, width, channels)
    if loss.superpixel or loss.point_pixel:
        return PixelContrast(loss, width, channels, min_points)
    return TemporalContrast(loss, width)


def _cluster_config(name: str) -> TemporalConfig:
    return TemporalConfig.model_validate({"clusterer": name})


PARTS: dict[str, Part] = {
    "superpixels: SLIC": Part("image", _on_image(networks.slic)),
    "superpixels: semantic": _network(networks.semantic, REAL),
    "superpixels: SAM ViT-B": _network(networks.sam, slow=True),
    "teacher: bundled": _network(networks.bundled, REAL),
    "teacher: ESPNetv2, 4 views": _network(networks.espnetv2),
    "teacher: MaskCLIP ViT-B/16": _network(networks.maskclip),
    "teacher: SegFormer-B0": _network(networks.segformer_b0),
    "teacher: SegFormer-B5": _network(networks.segformer_b5),
    "teacher: Mask2Former Swin-T": _network(networks.mask2former),
    "encoder: EfficientNet-Lite0": _network(networks.lite0),
    "encoder: ResNet-50, stride 8": _network(networks.resnet50),
    "encoder: DINOv2 ViT-S/14": _network(networks.dinov2),
    "projection, occlusion test": Part("image", _project),
    "ground: RANSAC": Part("sweep", _ground("ransac")),
    "ground: Patchwork++": Part("sweep", _ground("patchwork")),
    "HDBSCAN: hdbscan": Part("two sweeps", _clusters(_cluster_config("hdbscan"))),
    "HDBSCAN: scikit-learn": Part("two sweeps", _clusters(_cluster_config("sklearn"))),
    "temporal segments": Part("two sweeps", _segments),
    "step: draw 4 sectors": Part("step", _draw),
    "step: student": Part("step", _student, RANDOM, gpu=True),
    "step: superpixel contrast": Part("step", _objective("superpixel"), gpu=True),
    "step: point-pixel contrast": Part("step", _objective("point_pixel"), gpu=True),
    "step: temporal consistency": Part("step", _objective("temporal"), gpu=True),
    "step: point-to-segment": Part("step", _objective("point_to_segment"), gpu=True),
    "step: regression": Part("step", _objective("regression"), gpu=True),
}


def costs_of(name: str, folder: Path, rounds: int, threads: int, device: str) -> Row:
    """Costs of a part, measured in a process of its own.

    Args:
        name: of `PARTS`.
        folder: of the inputs, see `costs_inputs.store`.
        rounds: runs after one that is not counted.
        threads: of torch.
        device: "cpu" or "cuda".

    Returns:
        Medians "ms" (wall time) and "cpu_ms" (of all threads), and "memory_mb": the peak of the
        process while it runs, above that with the inputs alone; on a GPU, the peak of its memory.
        Or "error", why it cannot run.
    """
    context = get_context("forkserver")  # whose server has imported everything
    context.set_forkserver_preload([__name__])
    answer, end = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(end, name, folder, rounds, threads, device))
    process.start()
    end.close()
    try:
        found: Row = answer.recv() if answer.poll(_LONGEST_S) else {"error": "takes too long"}
    except EOFError:
        found = {"error": "its process died"}
    process.kill()
    process.join()
    return found


def _answer(
    end: Connection, name: str, folder: Path, rounds: int, threads: int, device: str
) -> None:
    """Measure a part in this process, and send what `costs_of` returns."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        end.send(measure(PARTS[name], Inputs.load(folder, device), rounds))
    except Exception as error:  # of the libraries of networks, too
        end.send({"error": f"{type(error).__name__}: {error}".replace("\n", " ")[:300]})


def measure(part: Part, inputs: Inputs, rounds: int) -> Row:
    """Costs of a part in this process, see `costs_of`."""
    before = memory_mb("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        action = part.make(inputs, Path(folder))
    gc.collect()
    with suppress(OSError):  # forget the peak of the preparation
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    on_gpu = inputs.device != "cpu"
    run = partial(_to_the_end, action) if on_gpu else action
    wall, cpu = wall_and_cpu({"": run}, 1 if part.slow else rounds, warmup=int(not part.slow))
    memory = max(0.0, memory_mb("VmHWM") - before)
    if on_gpu:
        memory = torch.cuda.max_memory_allocated() / 2**20
    return {"ms": wall[""], "cpu_ms": cpu[""], "memory_mb": memory}


def _to_the_end(action: Action) -> None:
    action()
    torch.cuda.synchronize()
