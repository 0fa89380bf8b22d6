# SPDX-License-Identifier: Apache-2.0
"""`pcseg superpixels`: segment the images of recordings into files."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import Device, Ray, Sources, WorkerCpus, Workers, ray_options
from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pcseg_core.cluster.run import RayOptions
    from pcseg_core.data import Recording
    from pcseg_core.vision.imported import ImportedMasks
    from pcseg_core.vision.superpixels import SuperpixelGenerator

    Maker = Callable[[], SuperpixelGenerator | ImportedMasks]


def superpixels(
    sources: Sources,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the maps; an existing one is completed.")
    ] = None,
    generator: Annotated[
        str,
        typer.Option(
            help="slic, sam, semantic, import for masks of other programs, or a generator that "
            "another package adds."
        ),
    ] = "slic",
    weights: Annotated[
        Path | None, typer.Option(help="SAM checkpoint, or ESPNetv2 weights for semantic.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks to import, see docs/superpixels.md.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Write the images here, for other programs.")
    ] = None,
    segments: Annotated[
        int, typer.Option(min=1, help="SLIC segments per image (slic, semantic).")
    ] = 150,
    compactness: Annotated[
        float, typer.Option(min=0.01, help="SLIC: weight of position against color.")
    ] = 10.0,
    min_area: Annotated[int, typer.Option(min=1, help="Smallest segment [px] (not slic).")] = 100,
    label_space: Annotated[
        str, typer.Option(help="Label space of the semantic weights.")
    ] = "cityscapes",
    device: Device = "auto",
    ray: Ray = None,
    workers: Workers = None,
    worker_cpus: WorkerCpus = 1,
) -> None:
    """Segment the images of recordings for contrastive pretraining.

    Interrupted runs resume: run the same command again.
    """
    if (out is None) == (images is None):
        raise InputError("give --out for the maps, or --images to write only the images")
    cluster = ray_options(ray, workers, worker_cpus, "cpu" if generator == "slic" else device)
    if images is not None:
        if cluster is not None or len(sources) > 1:
            raise InputError("--images takes one recording, without --ray")
        _write_images(sources[0], images)
        return
    assert out is not None
    options = (generator, weights, masks, segments, compactness, min_area, label_space, device)
    maker = partial(_maker, *options)
    if cluster is None and len(sources) == 1:
        _segment_one(sources[0], out, maker)
    else:
        _segment(sources, out, maker, cluster)


def _write_images(source: str, folder: Path) -> None:
    from pcseg_core.data import open_recording

    report(_export(open_recording(source), folder), folder)


def _segment_one(source: str, out: Path, maker: Maker) -> None:
    from pcseg_core.data import open_recording
    from pcseg_core.progress import bar
    from pcseg_core.vision.image_cache import SuperpixelCache

    recording = open_recording(source)
    cache = SuperpixelCache(out, maker())
    with bar(f"superpixels of {recording.name}") as progress:
        counts = cache.fill(recording, progress)
    report(counts, out)


def _segment(sources: list[str], out: Path, maker: Maker, cluster: RayOptions | None) -> None:
    from pcseg_core.cluster.job import check_place
    from pcseg_core.cluster.run import report as report_job
    from pcseg_core.cluster.run import run_here, run_on_ray
    from pcseg_core.cluster.superpixels import KEPT, MADE, SuperpixelJob
    from pcseg_core.data import find_source

    check_place(out)
    for source in sources:
        find_source(source)
    job = SuperpixelJob(out, maker)
    outcome = run_on_ray(job, sources, cluster) if cluster else run_here(job, sources)
    made, kept = outcome.counts[MADE], outcome.counts[KEPT]
    before = f", {outcome.earlier} of them by an earlier run" if outcome.earlier else ""
    done = f"{out}: {made} images done, {kept} kept, of {outcome.recordings} recordings{before}"
    typer.echo(done)
    report_job(outcome, len(sources))
    if not made and not kept:
        raise InputError(f"{out}: no image could be used")


def _maker(
    kind: str,
    weights: Path | None,
    masks: Path | None,
    segments: int,
    compactness: float,
    min_area: int,
    label_space: str,
    device: str,
) -> SuperpixelGenerator | ImportedMasks:
    from pcseg_core.vision.imported import ImportedMasks
    from pcseg_core.vision.slic import Slic

    if kind == "import":
        if masks is None:
            raise InputError("--generator import needs --masks, the folder of the masks")
        return ImportedMasks(masks, min_area)
    slic = Slic(segments, compactness)
    if kind == "slic":
        return slic
    if device == "auto":
        from torch.cuda import is_available

        device = "cuda" if is_available() else "cpu"
    if kind not in ("sam", "semantic"):
        from pcseg_core.vision.superpixel_kinds import SUPERPIXELS

        return SUPERPIXELS.load(SUPERPIXELS.parse({"name": kind}, "--generator"), device)
    if kind == "sam":
        from pcseg_core.vision.sam import SamSuperpixels

        return SamSuperpixels(weights, min_area=min_area, device=device)
    from pcseg_core.config import parse_section
    from pcseg_core.vision.semantic import load_semantic
    from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

    if weights is None:
        raise InputError(
            "--generator semantic needs --weights, those of an ESPNetv2: a name that `pcseg "
            "weights list` shows, or a file"
        )
    values = {"weights": weights, "label_space": label_space}
    config = parse_section(values, ESPNetv2Config, "--weights and --label-space")
    return load_semantic(config, slic, min_area, device)


def _export(recording: Recording, folder: Path) -> Counter[str]:
    """Write the images of a recording as PNG; masks to import need the same names."""
    from PIL import Image

    from pcseg_core.data import readable
    from pcseg_core.files import atomic_path
    from pcseg_core.vision.image_cache import image_key, image_stem

    counts: Counter[str] = Counter()
    for _, sample in readable(recording):
        for k, frame in enumerate(sample.cameras):
            path = folder / f"{image_stem(recording.name, image_key(sample, k))}.png"
            if path.is_file():
                counts["kept"] += 1
                continue
            try:
                pixels = frame.image
            except InputError as error:
                counts[f"skipped: {error}"] += 1
                continue
            with atomic_path(path) as temporary:
                Image.fromarray(pixels).save(temporary)
            counts["made"] += 1
    return counts


def report(counts: Counter[str], folder: Path) -> None:
    """Print how many images were made, kept and skipped.

    Raises:
        InputError: none could be used.
    """
    from pcseg_core.progress import note

    typer.echo(f"{folder}: {counts['made']} images done, {counts['kept']} kept")
    skipped = {reason: n for reason, n in counts.items() if reason not in ("made", "kept")}
    for reason, n in sorted(skipped.items(), key=lambda item: -item[1])[:10]:
        note(f"{n} image{'s' if n > 1 else ''} {reason}")
    if not counts["made"] and not counts["kept"]:
        raise InputError(f"{folder}: no image could be used" if skipped else "no images in it")
