# SPDX-License-Identifier: Apache-2.0
"""`pcseg quantize`: a copy of a checkpoint that also runs in 8-bit integers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import Json
from pcseg_core.cli.outputs import check_file, text_console, write_json
from pcseg_core.progress import bar, note

if TYPE_CHECKING:
    from rich.console import Console

    from pcseg_core.checkpoint import IntegerScales


def quantize(
    run: Annotated[
        Path, typer.Argument(help="Run directory of `pcseg distill`, or a checkpoint file.")
    ],
    source: Annotated[str, typer.Argument(help="A bag, or reader:path (kitti-raw:PATH, ...).")],
    out: Annotated[Path, typer.Option(help="Checkpoint file to write (.safetensors).")],
    sweeps: Annotated[
        int, typer.Option(min=1, help="Most sweeps of each half of the recording.")
    ] = 16,
    json_: Json = None,
) -> None:
    """Calibrate a checkpoint for inference in 8-bit integers on a CPU.

    Sweeps of the first half of the recording set the scales; they need no labels. Sweeps of the
    second half are labeled in float32 and in integers and compared, also by mIoU if they have
    labels. The copy of the checkpoint stores scales and figures. `precision: int8` uses them;
    `precision: auto` does if the loss is small and integers are at least 1.1 times as fast on this
    CPU as the precision that it would take otherwise.
    """
    from pcseg_core.data import open_recording
    from pcseg_core.data.account import grouped
    from pcseg_core.evaluation.quantization import quantize as calibrate

    check_file(out, (".safetensors",))
    check_file(json_)
    recording = open_recording(source)
    with bar("calibrating and comparing") as progress:
        scales = calibrate(run, recording, out, sweeps, progress)
    for reason, times in grouped(recording.skipped):
        note(f"skipped: {reason} ({times})")
    _summarize(out, scales, text_console(json_))
    write_json(json_, {**scales.model_dump(), "exact_enough": scales.exact_enough})


def _summarize(out: Path, scales: IntegerScales, console: Console) -> None:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    say(
        f"{out}: {len(scales.tops)} layers calibrated on {scales.sweeps} sweeps; on "
        f"{scales.compared} others {scales.agreement:.2%} of the labels are those of float32"
    )
    if scales.miou_fp32 is not None and scales.miou_int8 is not None:
        say(f"mIoU {scales.miou_fp32:.2%} in float32, {scales.miou_int8:.2%} in integers")
    may = "may take" if scales.exact_enough else "does not take"
    say(f"precision 'auto' {may} int8")
