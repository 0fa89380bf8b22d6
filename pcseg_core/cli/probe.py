# SPDX-License-Identifier: Apache-2.0
"""`pcseg probe`: measure a frozen network by a linear classifier on its features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcseg_core.cli.options import Device, Json, Picture
from pcseg_core.cli.outputs import PICTURES, check_file, text_console, write_json
from pcseg_core.errors import InputError
from pcseg_core.progress import bar, note

if TYPE_CHECKING:
    from rich.console import Console

    from pcseg_core.data import Recording
    from pcseg_core.labels import LabelSpace
    from pcseg_core.learning.probe import Scan


def probe(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories or checkpoints; several count as seeds of one recipe."
        ),
    ],
    fit: Annotated[
        str,
        typer.Option(
            help="Labeled recording to fit to: a SemanticKITTI folder, a bag, or reader:path."
        ),
    ],
    test: Annotated[str, typer.Option(help="Labeled recording of another place, to measure on.")],
    json_: Json = None,
    picture: Picture = None,
    label_space: Annotated[str, typer.Option(help="Label space to measure in.")] = "street",
    max_points: Annotated[
        int, typer.Option(min=100, help="Points to fit to; of more, an even share is drawn.")
    ] = 400_000,
    device: Device = "auto",
) -> None:
    """Fit a linear classifier on the features of a frozen network and measure it elsewhere.

    The same is done with an untrained network of that architecture (batch norms calibrated) and
    with the raw inputs (height, intensity, range): a network must beat both. Fractions in the JSON
    are 0 to 1. --picture draws IoU, confusion and the curves of the fits.
    """
    check_file(json_)
    check_file(picture, PICTURES)
    from pcseg_core.bundled import checkpoint_file
    from pcseg_core.data import find_source

    for run in runs:
        checkpoint_file(run)
    for source in (fit, test):
        find_source(source)
    from pcseg_core.labels import LabelSpace

    space = LabelSpace.load(label_space)
    content = _measure(runs, fit, test, space, max_points, device)
    show(content, text_console(json_))
    write_json(json_, content)
    if picture:
        draw(content, space, picture)


def _measure(
    runs: list[Path], fit: str, test: str, space: LabelSpace, max_points: int, device: str
) -> dict[str, Any]:
    from pcseg_core.checkpoint import load_checkpoint
    from pcseg_core.learning.probe import probe as run_probe
    from pcseg_core.learning.probe import summary
    from pcseg_core.learning.runs import torch_device

    reach = min(load_checkpoint(run)[1].student.get("max_range_m", 80.0) for run in runs)
    fitted, tested = read(fit, space, reach), read(test, space, reach)
    with bar("probing") as progress:
        results = run_probe(runs, fitted, tested, space, torch_device(device), max_points, progress)
    return {
        "runs": [str(run) for run in runs],
        "fit": fit,
        "test": test,
        "label_space": space.name,
        "classes": list(space.names),
        "fit_scans": len(fitted),
        "test_scans": len(tested),
        **summary(results, space),
    }


def read(source: str, space: LabelSpace, reach: float) -> list[Scan]:
    """The labeled scans of a source, see `open_labeled`.

    Args:
        source: a recording.
        space: label space of the result.
        reach: points beyond are left out [m].

    Raises:
        InputError: no labeled sweep.
    """
    from pcseg_core.learning.probe import read_scans

    recording = open_labeled(source)
    scans = list(read_scans(recording, space, reach))
    for reason, count in recording.skipped.items():
        note(f"skipped: {reason} ({count})")
    if not scans:
        raise InputError(f"{source}: none of its {len(recording)} sweeps has labels")
    return scans


def open_labeled(source: str) -> Recording:
    """Open a recording; a folder with velodyne/ and calib/ is read as SemanticKITTI's layout."""
    from pcseg_core.data import detect, open_recording

    if Path(source).is_dir() and detect(Path(source)) == "kitti-object":
        source = f"semantic-kitti:{source}"  # the reader of KITTI objects knows no labels
    return open_recording(source)


def show(content: dict[str, Any], console: Console) -> None:
    """Table of a probe's figures."""
    from rich.table import Table

    from pcseg_core.evaluation.report import percent

    title = f"linear probe: fitted to {content['fit_scans']} scans, {content['test_scans']} to test"
    table = Table(title=title)
    for column in ("features", "mIoU %", "deviation", "accuracy %", "mIoU %, one ground"):
        table.add_column(column, justify="left" if column == "features" else "right")
    for name, figures in content["methods"].items():
        keys = ("miou", "miou_deviation", "accuracy", "miou_merged_ground")
        table.add_row(name, *(percent(figures[key]) for key in keys))
    console.print(table)


def draw(content: Mapping[str, Any], space: LabelSpace, path: Path) -> None:
    """Draw the IoU of each class, the confusion of the network and the curves of the fits."""
    import numpy as np

    from pcseg_core.evaluation import pictures

    colors = {"pretrained": pictures.ACCENT, "untrained": "#8b949e", "raw": "#f0a202"}
    methods = content["methods"]
    figure = pictures.new_figure(1600, 900)
    shown = [n for n, row in zip(space.names, methods["raw"]["confusion"]) if any(row)]
    series = {
        name: [_number(m["miou"]), *(_number(m["iou"][c]) for c in shown)]
        for name, m in methods.items()
    }
    axes = figure.add_axes((0.07, 0.56, 0.40, 0.36))
    pictures.bars(axes, ["mean", *shown], series, title="Linear probe, IoU in percent")
    axes = figure.add_axes((0.58, 0.14, 0.39, 0.78))
    matrix = np.array(methods["pretrained"]["confusion"])
    title = "Where the points of each true class go, percent"
    pictures.confusion(axes, matrix, space.names, title=title)
    axes = figure.add_axes((0.07, 0.10, 0.40, 0.34))
    for name, method in methods.items():
        for number, seed in enumerate(method["seeds"]):
            x = [point["iteration"] for point in seed["curve"]]
            y = [100 * point["held_out_miou"] for point in seed["curve"]]
            axes.plot(x, y, color=colors[name], label=name if number == 0 else None)
    axes.set_xlabel("iteration of the fit")
    axes.set_title("mIoU on held-out points of the fitting scans, percent", loc="left", fontsize=11)
    axes.legend(frameon=False)
    pictures.save(figure, path)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
