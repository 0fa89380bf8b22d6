# SPDX-License-Identifier: Apache-2.0
"""`pcseg segment`: label the clouds of a recording with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.errors import InputError
from pcseg_core.progress import bar, note

if TYPE_CHECKING:
    from pcseg_core.online.pipeline import Pipeline
    from pcseg_core.online.replay import Replay


def segment(
    source: Annotated[str, typer.Argument(help="A bag, or reader:path (kitti-raw:PATH, ...).")],
    checkpoint: Annotated[
        Path, typer.Option(help="Run directory of `pcseg distill`, or a checkpoint file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; appears when it is complete.")],
    cloud_topic: Annotated[
        str | None, typer.Option(help="PointCloud2 topic to label, for a bag with several.")
    ] = None,
    bag: Annotated[
        bool, typer.Option("--bag", help="Write a bag even if the source is not a bag.")
    ] = False,
    rgb: Annotated[
        bool, typer.Option("--rgb", help="Add the field rgb with the colors of the classes.")
    ] = False,
    compress: Annotated[bool, typer.Option("--compress", help="Compress the bag.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier result.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    backend: Annotated[
        str, typer.Option(envvar="PCSEG_BACKEND", help="Backend of the sparse convolutions.")
    ] = "auto",
) -> None:
    """Label the clouds of a bag or of any other recording.

    The labels of a bag go to a new bag: clouds get the fields label (uint32, 65535 for none) and
    confidence (float32), all other topics are copied. Those of any other source go to
    labels/NAME.label, one uint32 per point as in SemanticKITTI. labels.yaml in the folder gives
    the classes.
    """
    from pcseg_core.online import replay
    from pcseg_core.online.pipeline import Pipeline
    from pcseg_core.online.segmenter import Segmenter

    reader, place = _kind(source)
    if reader != "bag" and (cloud_topic or compress):
        raise InputError("--cloud-topic and --compress are for bags")
    replay.check_output(out, bag=bag or reader == "bag", force=force)
    pipeline = Pipeline(Segmenter.load(checkpoint, device=device, backend=backend))
    with bar("labeling") as progress:
        if reader == "bag":
            result = replay.segment_bag(
                pipeline,
                Path(place),
                out,
                cloud_topic=cloud_topic,
                rgb=rgb,
                compress=compress,
                force=force,
                progress=progress,
            )
        else:
            result = _segment_recording(pipeline, source, out, bag, rgb, force, progress)
    _summarize(result)


def _segment_recording(
    pipeline: Pipeline,
    source: str,
    out: Path,
    bag: bool,
    rgb: bool,
    force: bool,
    progress: Callable[[int, int], None],
) -> Replay:
    """Label a recording other than a bag."""
    from pcseg_core.data import open_recording
    from pcseg_core.online import replay

    recording = open_recording(source)
    if bag:
        return replay.segment_recording_to_bag(
            pipeline, recording, out, rgb=rgb, force=force, progress=progress
        )
    return replay.segment_recording(pipeline, recording, out, force=force, progress=progress)


def _kind(source: str) -> tuple[str, str]:
    """Reader and path of a source, as `open_recording` understands it."""
    from pcseg_core.data import READERS, detect

    reader, colon, place = source.partition(":")
    if colon and reader in READERS:
        return reader, place
    if not Path(source).exists():
        raise InputError(f"{source}: no such recording; give a bag, or reader:path")
    return detect(Path(source)), source


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
