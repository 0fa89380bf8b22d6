# SPDX-License-Identifier: Apache-2.0
"""`pcseg distill`: recordings with cameras in, a LiDAR-only segmenter out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from pcseg_core.errors import InputError


def distill(
    sources: Annotated[
        list[str], typer.Argument(help="Recordings: bags, or reader:path (kitti-raw:PATH, ...).")
    ],
    recipe: Annotated[Path, typer.Option(help="Recipe (YAML), see training/recipes.")],
    out: Annotated[Path, typer.Option(help="Run directory to make, or to go on with.")],
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed, instead of the recipe's own.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with a stopped run, or start it over.")
    ] = True,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of labeled sweeps that several runs share.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Train the student of this run on, for example to give it words."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a LiDAR segmenter from recordings with cameras, without labels.

    The recipe's teacher labels the images, its labels are carried to the points, and a network
    learns to give them from the points alone. Interrupt it at any time: the same command goes on.
    """
    from pcseg_core.learning.distill import distill as run
    from pcseg_core.learning.recipe import load_recipe

    chosen = load_recipe(recipe)
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    if not resume:
        _remove_run(out)
    metrics = run(sources, chosen, out, cache=cache, device=device, start=start)
    _summarize(metrics, out)


def _remove_run(out: Path) -> None:
    """Delete a run directory, and nothing else."""
    if not out.exists():
        return
    if not (out / "recipe.yaml").is_file():
        raise InputError(f"--fresh: {out} is no run directory (no recipe.yaml); remove it yourself")
    shutil.rmtree(out)


def _summarize(metrics: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    spent = f"labels {metrics['labeling_s']:.0f} s, training {metrics['training_s']:.0f} s"
    console.print(f"{out}: {metrics['sweeps']} sweeps, {metrics['steps']} steps; {spent}")
    shares = metrics["class_shares"].items()
    console.print("pseudo labels: " + ", ".join(f"{name} {100 * s:.1f} %" for name, s in shares))
    console.print(f"next: pcseg evaluate {out} --semantic-kitti DIR, or pcseg view {out}")
