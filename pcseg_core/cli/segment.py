# SPDX-License-Identifier: Apache-2.0
"""`pcseg segment`: label the clouds of a recording with a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import Backend, Device, MaxEntropy, TimeField
from pcseg_core.errors import InputError
from pcseg_core.progress import Bar, bar, note

if TYPE_CHECKING:
    from pcseg_core.online.label_store import LabelStore
    from pcseg_core.online.pipeline import Pipeline
    from pcseg_core.online.replay import Replay


def segment(
    source: Annotated[str, typer.Argument(help="A bag, or reader:path (kitti-raw:PATH, ...).")],
    checkpoint: Annotated[
        Path, typer.Option(help="Run directory of `pcseg distill`, or a checkpoint file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; appears when it is complete.")],
    cloud_topic: Annotated[
        str | None,
        typer.Option(
            help="PointCloud2 topic to label, for a bag with several; or several, comma-separated, "
            "to label them united."
        ),
    ] = None,
    bag: Annotated[
        bool, typer.Option("--bag", help="Write a bag even if the source is not a bag.")
    ] = False,
    rgb: Annotated[
        bool, typer.Option("--rgb", help="Add the field rgb with the colors of the classes.")
    ] = False,
    moving: Annotated[
        bool,
        typer.Option(
            "--moving",
            help="Also tell what moves, by poses: moving/NAME.label, or a field of --bag.",
        ),
    ] = False,
    compress: Annotated[bool, typer.Option("--compress", help="Compress the bag.")] = False,
    time_field: TimeField = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier result.")] = False,
    max_entropy: MaxEntropy = 1.0,
    device: Device = "auto",
    backend: Backend = "auto",
) -> None:
    """Label the clouds of a bag or of any other recording.

    The labels of a bag go to a new bag: clouds get the fields label (uint32, 65535 for none) and
    confidence (float32), all other topics are copied. Those of any other source go to
    labels/NAME.label, or SCENE/labels/NAME.label if it has several scenes, one uint32 per point
    as in SemanticKITTI. labels.yaml in the folder gives the classes. moving/NAME.label has 9 for
    static points, 251 for moving ones and 0 for unknown ones. Interrupted runs resume: run the
    same command again.
    """
    from pcseg_core.bundled import checkpoint_file
    from pcseg_core.data import find_source
    from pcseg_core.online import replay

    reader, place = find_source(source)
    if reader != "bag" and (cloud_topic or compress or time_field):
        raise InputError("--cloud-topic, --compress and --time-field are for bags")
    if reader == "bag" and moving:
        raise InputError(
            "--moving is for other recordings than bags; play a bag to the node with "
            "moving.enabled (replay.launch.py), which adds the field moving"
        )
    file = checkpoint_file(checkpoint)
    replay.check_output(out, bag=bag or reader == "bag", force=force)
    request = _Request(
        reader, place, out, bag, rgb, moving, compress, force, cloud_topic, time_field
    )
    _summarize(_label(request, file, device, backend, max_entropy))


@dataclass(frozen=True)
class _Request:
    """What is to be labeled, and how the result is written."""

    reader: str
    place: str
    out: Path
    bag: bool
    rgb: bool
    moving: bool
    compress: bool
    force: bool
    cloud_topic: str | None
    time_field: str | None


def _label(
    request: _Request, checkpoint: Path, device: str, backend: str, max_entropy: float
) -> Replay:
    from pcseg_core import __version__
    from pcseg_core.data import fingerprint, split_query
    from pcseg_core.online.label_store import LabelStore, partial_file
    from pcseg_core.online.pipeline import Pipeline
    from pcseg_core.online.segmenter import Segmenter

    segmenter = Segmenter.load(checkpoint, device, backend=backend, max_entropy=max_entropy)
    out = request.out
    identity = {
        "source": (request.reader, request.place),
        "content": fingerprint(split_query(request.place)[0], (out, partial_file(out))),
        "cloud_topic": request.cloud_topic,
        "checkpoint": fingerprint(checkpoint),
        "engine": segmenter.engine,
        "max_entropy": max_entropy,
        "version": __version__,
    }
    with LabelStore(out, identity) as store, bar("labeling") as progress:
        return _write(request, Pipeline(segmenter), store, progress)


def _write(request: _Request, pipeline: Pipeline, store: LabelStore, progress: Bar) -> Replay:
    from pcseg_core.data import open_recording
    from pcseg_core.online import replay

    out, force = request.out, request.force
    if request.reader == "bag":
        return replay.segment_bag(
            pipeline,
            request.place,
            out,
            cloud_topic=request.cloud_topic,
            time_field=request.time_field or "none",
            rgb=request.rgb,
            compress=request.compress,
            force=force,
            store=store,
            progress=progress,
        )
    recording = open_recording(f"{request.reader}:{request.place}")
    if request.bag:
        return replay.segment_recording_to_bag(
            pipeline,
            recording,
            out,
            rgb=request.rgb,
            moving=request.moving,
            force=force,
            store=store,
            progress=progress,
        )
    return replay.segment_recording(
        pipeline, recording, out, moving=request.moving, force=force, store=store, progress=progress
    )


def _summarize(result: Replay) -> None:
    import numpy as np
    from rich.console import Console

    from pcseg_core.data.account import grouped

    for reason, count in grouped(result.skipped):
        note(f"skipped: {reason} ({count})")
    for problem, count in result.problems.items():
        note(f"{problem} ({count} sweeps)")
    if result.intensity_scale:
        note(result.intensity_scale)
    for line in result.account.lines():
        note(line)
    console = Console(highlight=False, soft_wrap=True)
    median = np.median(result.milliseconds)
    console.print(f"{result.out}: {result.sweeps} sweeps labeled, {median:.0f} ms each (median)")
    total = max(int(result.counts.sum()) + result.unlabeled, 1)
    shares = [
        f"{name} {100 * count / total:.1f} %"
        for name, count in zip(result.label_space.names, result.counts)
        if count
    ]
    far = f", {100 * result.out_of_range / total:.1f} % out of range" if result.out_of_range else ""
    shares.append(f"unlabeled {100 * result.unlabeled / total:.1f} %{far}")
    console.print(", ".join(shares))
