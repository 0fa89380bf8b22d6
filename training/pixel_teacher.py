# SPDX-License-Identifier: Apache-2.0
"""Train the image teacher of simulated drives: `python training/pixel_teacher.py`.

It is trained on rendered images of many towns only, and measured in towns of other seeds. The
result is pcseg_core/checkpoints/simulation_teacher.safetensors (float16).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from pydantic import Field
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pcseg_core.config import Section
from pcseg_core.files import atomic_path
from pcseg_core.labels import LabelSpace, grouping
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.vision.espnetv2 import ESPNetv2
from pcseg_core.vision.teachers.espnetv2 import normalize

SPACE = "simulation"
REPOSITORY = Path(__file__).resolve().parents[1]
_console = Console(stderr=True)


class TeacherRecipe(Section):
    """Everything that decides the result."""

    first_seed: int = Field(1000, ge=0, description="Seed of the first training town")
    towns: int = Field(14, ge=1, description="Training towns, with one seed each")
    held_out_seed: int = Field(3000, ge=0, description="Seed of the first test town")
    held_out: int = Field(5, ge=1, description="Test towns")
    moments: int = Field(4, ge=1, description="Times of a drive at which its two cameras record")
    stride: int = Field(25, ge=1, description="Sweeps (0.1 s) from one moment to the next")
    width: int = Field(320, ge=64, description="Image width [px]")
    height: int = Field(192, ge=64, description="Image height [px]")
    scale: float = Field(0.5, gt=0, description="Width of the network, see ESPNetv2")
    steps: tuple[int, ...] = Field(
        (180, 300, 300), min_length=1, description="Optimizer steps of each cycle of the rate"
    )
    batch_size: int = Field(4, ge=1, description="Images per step")
    learning_rate: float = Field(8e-3, gt=0, description="Highest learning rate (one cycle)")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay")
    class_balance: float = Field(0.5, ge=0, le=1, description="Exponent of inverse frequencies")
    average: float = Field(0.97, ge=0, lt=1, description="Decay of the averaged weights")
    seed: int = Field(0, ge=0, description="Seed of everything random")


def render(seed: int, recipe: TeacherRecipe, cache: Path) -> Path:
    """File with images (N, H, W, 3) uint8 and labels (N, H, W) int16 of a drive, cached."""
    name = f"{seed}-{recipe.moments}x{recipe.stride}-{recipe.width}x{recipe.height}.npz"
    path = cache / name
    if not path.is_file():
        drive = SimulatedDrive(
            seed,
            sweeps=recipe.moments,
            stride=recipe.stride,
            width=recipe.width,
            height=recipe.height,
        )
        frames = []
        for moment in range(recipe.moments):
            start = drive.stamp_ns(moment * recipe.stride)
            frames += drive.images_between(start, start + 100_000_000)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            images, labels = [f.image for f in frames], [f.labels for f in frames]
            np.savez(file, images=np.array(images), labels=np.array(labels))
    return path


def load(seeds: range, recipe: TeacherRecipe, cache: Path, workers: int) -> tuple[Any, Any]:
    """Images and labels of drives, rendered where the cache lacks them."""
    cache.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(render, seed, recipe, cache) for seed in seeds]
        paths = [job.result() for job in track(jobs, "rendering towns", console=_console)]
    stored = [np.load(path) for path in paths]
    images, labels = (np.concatenate([s[key] for s in stored]) for key in ("images", "labels"))
    return images, labels


def batches(
    images: Any, labels: Any, recipe: TeacherRecipe, cycle: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (B, 3, H, W) and labels (B, H/2, W/2), the resolution of the network's output."""
    rng = np.random.default_rng([recipe.seed, cycle])
    for _ in range(recipe.steps[cycle]):
        chosen = rng.choice(len(images), recipe.batch_size, replace=False)
        views = [augment(images[i], labels[i], rng) for i in chosen]
        yield torch.cat([v[0] for v in views]), torch.stack([v[1] for v in views])


def augment(image: Any, labels: Any, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirror, zoom in by up to a third, change brightness, contrast and color balance."""
    height, width = labels.shape
    zoom = rng.uniform(0.75, 1.0)
    h, w = round(height * zoom), round(width * zoom)
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    image, labels = image[top : top + h, left : left + w], labels[top : top + h, left : left + w]
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    gain = rng.uniform(0.8, 1.25) * rng.uniform(0.93, 1.07, 3)
    toned = np.clip((image / 255.0) ** rng.uniform(0.8, 1.25) * gain, 0, 1)
    pixels = normalize((255 * toned).astype(np.uint8))
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)
    truth = torch.from_numpy(labels.astype(np.float32))[None, None]
    truth = F.interpolate(truth, (height // 2, width // 2), mode="nearest")
    return pixels, truth[0, 0].long()


def train(images: Any, labels: Any, recipe: TeacherRecipe) -> ESPNetv2:
    """Train in cycles; each starts from the averaged weights of the last one."""
    torch.manual_seed(recipe.seed)
    space = LabelSpace.load(SPACE)
    network = ESPNetv2(len(space), recipe.scale).to(memory_format=torch.channels_last)
    weights = class_weights(labels, len(space), recipe.class_balance)
    for cycle in range(len(recipe.steps)):
        train_cycle(network, batches(images, labels, recipe, cycle), weights, recipe, cycle)
    return network.eval()


def class_weights(labels: Any, classes: int, exponent: float) -> Tensor:
    """(C,) inverse frequencies to a power, of mean 1 over the pixels."""
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    share = torch.tensor(np.maximum(counts / counts.sum(), 1e-4), dtype=torch.float32)
    weights = share**-exponent
    return weights / (weights * share).sum()


def train_cycle(
    network: ESPNetv2,
    data: Iterator[tuple[Tensor, Tensor]],
    weights: Tensor,
    recipe: TeacherRecipe,
    cycle: int,
) -> None:
    """Cross-entropy, AdamW with one cycle; leaves the averaged weights in the network."""
    steps = recipe.steps[cycle]
    averaged = AveragedModel(
        network, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True
    )
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    shown = track(data, f"training, cycle {cycle + 1}", steps, console=_console)
    for step, (pixels, truth) in enumerate(shown):
        logits = network.train()(pixels.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, truth, weights, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        averaged.update_parameters(network)
        if step % 20 == 0:
            _console.print(f"step {step}: loss {loss.item():.3f}")
    network.load_state_dict(averaged.module.state_dict())


@torch.inference_mode()
def measure(network: ESPNetv2, images: Any, labels: Any) -> dict[str, Any]:
    """Accuracy and mIoU of the pixels, over all classes and over the coarse ones."""
    space, street = LabelSpace.load(SPACE), LabelSpace.load("street")
    confusion = Confusion(len(space))
    for image, truth in zip(images, labels):
        logits = F.interpolate(network(normalize(image)), truth.shape, mode="bilinear")
        confusion.update(logits[0].argmax(0).numpy(), truth)
    coarse = confusion.grouped(grouping(space, street), len(street))
    return {
        "accuracy": round(confusion.accuracy, 4),
        "miou": round(confusion.miou, 4),
        "street_accuracy": round(coarse.accuracy, 4),
        "street_miou": round(coarse.miou, 4),
        "street_iou": dict(zip(street.names, coarse.iou.round(3).tolist())),
    }


def save(network: ESPNetv2, recipe: TeacherRecipe, metrics: dict[str, Any], path: Path) -> None:
    """Write the weights in float16, with recipe and metrics in the header."""
    last = recipe.first_seed + recipe.towns - 1
    about = {
        "network": f"ESPNetv2 s{recipe.scale}",
        "label_space": SPACE,
        "sources": f"simulated drives, seeds {recipe.first_seed} to {last}",
        "recipe": recipe.model_dump(),
        "metrics": metrics,
    }
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(state, str(temporary), metadata={"pcseg_teacher": json.dumps(about)})


def main(
    out: Annotated[Path, typer.Option(help="File to write.")] = (
        REPOSITORY / "pcseg_core/checkpoints/simulation_teacher.safetensors"
    ),
    cache: Annotated[Path, typer.Option(help="Folder of rendered images.")] = Path(
        "runs/teacher_images"
    ),
    workers: Annotated[int, typer.Option(help="Processes that render.")] = 2,
) -> None:
    """Render, train, measure in other towns and write."""
    recipe = TeacherRecipe()
    seeds = range(recipe.first_seed, recipe.first_seed + recipe.towns)
    images, labels = load(seeds, recipe, cache, workers)
    started = time.process_time()
    network = train(images, labels, recipe)
    held_out = range(recipe.held_out_seed, recipe.held_out_seed + recipe.held_out)
    metrics = measure(network, *load(held_out, recipe, cache, workers))
    metrics["training_cpu_s"] = round(time.process_time() - started)
    save(network, recipe, metrics, out)
    print(json.dumps({"images": len(images), **metrics}, indent=1))


if __name__ == "__main__":
    typer.run(main)
