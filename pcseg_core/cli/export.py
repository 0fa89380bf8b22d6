# SPDX-License-Identifier: Apache-2.0
"""`pcseg export`: write a student for programs without Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.progress import bar, console

if TYPE_CHECKING:
    from pcseg_core.cloud import PointCloud


def export(
    run: Annotated[Path, typer.Argument(help="Run directory of `pcseg distill`, or a checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write; appears when it is complete.")],
    format_: Annotated[str, typer.Option("--format", help="Format of the network: onnx.")] = "onnx",
    precision: Annotated[
        str,
        typer.Option(help="fp32, fp16 (GPUs) or int8 (CPUs with VNNI, GPUs; needs --calibration)."),
    ] = "fp32",
    words: Annotated[
        list[str] | None,
        typer.Option(
            help="Classes in words, for a run with a text head: a word, a group "
            "'name: word, word', or '*' for everything else; give it once per class. "
            "Default: the classes of the checkpoint."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Recording of the sensor, without labels: a bag, or reader:path. Every second "
            "sweep calibrates int8; the others are compared with fp32."
        ),
    ] = None,
    sweeps: Annotated[
        int, typer.Option(min=1, help="Number of sweeps of the recording, evenly spaced.")
    ] = 16,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a network as ONNX, and student.json with all that a program needs to use it.

    Inputs of a MinkUNet are the features of voxels and tables of their neighbors, which the native
    library makes (pcseg_core/native/pcseg.h). Every ONNX runtime runs the network without plug-ins;
    on CPUs the engine of pcseg is several times faster. docs/deploy.md describes files and inputs,
    docs/networks.md those of a WaffleIron.
    """
    from pcseg_core.export.graph import Precision
    from pcseg_core.export.writer import check_export, export_onnx

    expected = sweeps if calibration else 0
    check_export(out, precision, format_=format_, sweeps=expected, force=force)
    clouds = _clouds(calibration, sweeps) if calibration else []
    chosen: Precision = precision  # type: ignore[assignment]  # checked above
    exported = export_onnx(
        run, out, precision=chosen, prompts=words or (), sweeps=clouds, force=force
    )
    megabytes = exported.model.stat().st_size / 1e6
    classes = ", ".join(exported.label_space.names)
    console().print(f"wrote {exported.model} ({megabytes:.1f} MB): {classes}", highlight=False)
    if exported.agreement:
        share, count = exported.agreement["labels_changed"], exported.agreement["sweeps"]
        console().print(
            f"{precision} changes {100 * share:.2f} % of the voxels' labels in {count} sweeps",
            highlight=False,
        )


def _clouds(source: str, count: int) -> list[PointCloud]:
    """Evenly spaced sweeps of a recording."""
    from pcseg_core.data import evenly_spaced, open_recording

    recording = open_recording(source)
    chosen = evenly_spaced(len(recording), count)
    clouds = []
    with bar("reading sweeps") as progress:
        for done, index in enumerate(chosen, start=1):
            clouds.append(recording[index].cloud)
            progress(done, len(chosen))
    return clouds
