# SPDX-License-Identifier: Apache-2.0
"""`pcseg calibrate`: check and correct the extrinsics and time offsets of cameras."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import Json, Picture
from pcseg_core.cli.outputs import check_file, text_console
from pcseg_core.progress import note

if TYPE_CHECKING:
    from pcseg_core.calibration.calibrate import CalibrationReport, Checked
    from pcseg_core.calibration.verdict import CameraVerdict


def calibrate(
    source: Annotated[
        str, typer.Argument(help="Recording: a bag, or reader:path (kitti-raw:PATH, ...).")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write a calibration file (YAML) of all cameras, corrected where they are off."
        ),
    ] = None,
    picture: Picture = None,
    json_: Json = None,
    sweeps: Annotated[
        int, typer.Option(min=5, max=500, help="Sweeps to compare, evenly over the drive.")
    ] = 24,
) -> None:
    """Check the calibration of the cameras against an ordinary drive, without targets.

    Compares edges of the images with depth edges of the LiDAR, and searches the rotation,
    translation and time offset at which they meet. Each is "consistent", "off" or "cannot tell".
    --out writes a calibration for SOURCE?calibration=FILE and for the node, --picture draws depth
    edges over images, before and after.
    docs/calibration.md says what a drive must show.
    """
    check_file(out, (".yaml", ".yml"))
    check_file(picture, (".png",))
    check_file(json_)
    from pcseg_core.calibration.calibrate import check_calibration
    from pcseg_core.calibration.picture import draw_checked
    from pcseg_core.data import open_recording
    from pcseg_core.files import write_atomic

    recording = open_recording(source)
    checked = check_calibration(recording, sweeps)
    _print(checked.report, json_)
    if json_ is not None:
        write_atomic(json_, checked.report.model_dump_json(indent=2) + "\n")
    if picture is not None:
        draw_checked(checked, picture)
    if out is not None:
        _save(out, checked, getattr(recording, "T_body_lidar", None))


def _save(out: Path, checked: Checked, T_body_lidar: object) -> None:
    import numpy as np

    from pcseg_core.data.calibration import save_calibration

    body = None if T_body_lidar is None else np.asarray(T_body_lidar, dtype=np.float64)
    save_calibration(out, checked.frames(), checked.time_offsets(), body)
    changed = [camera.camera for camera in checked.report.cameras if camera.correction]
    what = f"corrected: {', '.join(changed)}" if changed else "as given: nothing to correct"
    note(f"wrote {out}, {what}")


def _print(report: CalibrationReport, json_: Path | None) -> None:
    from rich.table import Table

    console = text_console(json_)
    headings = ("camera", "verdict", "rotation deg", "translation m", "time ms", "score")
    table = Table(*headings, box=None)
    for camera in report.cameras:
        table.add_row(camera.camera, camera.verdict, *_cells(camera))
    console.print(table)
    for line in report.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _cells(camera: CameraVerdict) -> tuple[str, ...]:
    cells = []
    for error, scale, digits in (
        (camera.rotation, 1, 2),
        (camera.translation, 1, 2),
        (camera.time, 1000, 0),
    ):
        if error is None or error.interval is None:
            cells.append("-")
        else:
            size, interval = scale * error.size, scale * error.interval
            cells.append(f"{size:.{digits}f} ± {interval:.{digits}f} {error.verdict}")
    score = "-" if camera.score is None else f"{camera.score:.2f} -> {camera.score_corrected:.2f}"
    return (*cells, score)
