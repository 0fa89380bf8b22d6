# SPDX-License-Identifier: Apache-2.0
"""`pcseg evaluate`: figures of a checkpoint as JSON, table and picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.outputs import PICTURES, check_file
from pcseg_core.cli.progress import note, progress_bar
from pcseg_core.errors import InputError

REPLAY = "Replay of a recording"

if TYPE_CHECKING:
    from pcseg_core.data import Recording
    from pcseg_core.evaluation import Report
    from pcseg_core.evaluation.evaluator import Baseline
    from pcseg_core.evaluation.report import BoxReport
    from pcseg_core.online.segmenter import Segmenter


def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RECORDING",
            help="Run directory of `pcseg distill`, or a checkpoint; with --checkpoint a "
            "recording to replay: a bag, or reader:path.",
        ),
    ],
    semantic_kitti: Annotated[
        Path | None,
        typer.Option(
            help="Folder in SemanticKITTI layout: a sequence, a folder of sequences, or any "
            "folder with velodyne/ and labels/."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Any other labeled source: a bag, or reader:path.")
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(help="A source with 3D boxes, for recall of vehicle and person points."),
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Write all figures there as JSON.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw figures and one scan into this PNG.")
    ] = None,
    label_space: Annotated[str, typer.Option(help="Label space to measure in.")] = "street",
    baselines: Annotated[
        bool, typer.Option(help="Fit and measure baselines (majority, linear) beside it.")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    backend: Annotated[
        str, typer.Option(envvar="PCSEG_BACKEND", help="Backend of the sparse convolutions.")
    ] = "auto",
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Replay the recording to this checkpoint.", rich_help_panel=REPLAY),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(help="A second checkpoint, on the same sweeps.", rich_help_panel=REPLAY),
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Play the bag over DDS, as fast as it was recorded, to a node of its own.",
            rich_help_panel=REPLAY,
        ),
    ] = False,
    params: Annotated[
        Path | None,
        typer.Option(
            help="ROS parameter file (YAML) of the node that --live plays to, as on the robot.",
            rich_help_panel=REPLAY,
        ),
    ] = None,
    temporal: Annotated[
        bool,
        typer.Option("--temporal", help="Smooth over time; needs poses.", rich_help_panel=REPLAY),
    ] = False,
    cameras: Annotated[
        bool,
        typer.Option(
            "--cameras", help="Add the teacher's pixels of each sweep.", rich_help_panel=REPLAY
        ),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of .label files (SemanticKITTI) of the sweeps, where the recording "
            "itself has no labels.",
            rich_help_panel=REPLAY,
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Recipe (name or file) whose teacher labels images, for the agreement with the "
            "cameras.",
            rich_help_panel=REPLAY,
        ),
    ] = None,
) -> None:
    """Measure a checkpoint on labeled sweeps, or by the replay of a recorded drive.

    `pcseg evaluate RUN --semantic-kitti DIR` measures on labeled sweeps. `pcseg evaluate
    RECORDING --checkpoint RUN` replays a drive, which need not have labels: mIoU where it has,
    flicker from sweep to sweep, agreement with the cameras, latency, drops and memory.

    Fractions in the JSON are 0 to 1. `miou` and `accuracy` are taken in the label space "street"
    (road, sidewalk, structure, vegetation, terrain, vehicle, person, pole), `miou_merged_ground`
    with road, sidewalk and terrain as one.
    """
    if checkpoint is not None:
        if semantic_kitti or source or boxes:
            raise InputError(
                "--checkpoint replays the recording that comes first; leave out "
                "--semantic-kitti, --source and --boxes"
            )
        check_file(json_)
        check_file(picture, PICTURES)
        from pcseg_core.cli.evaluate_replay import ReplayOptions, evaluate_recording

        options = ReplayOptions(
            checkpoint,
            compare,
            live,
            params,
            temporal,
            cameras,
            labels,
            teacher,
            label_space,
            device,
            backend,
        )
        evaluate_recording(run, options, json_, picture)
        return
    if compare or live or params or temporal or cameras or labels or teacher:
        raise InputError(
            "--compare, --live, --params, --temporal, --cameras, --labels and --teacher are for a "
            "replay: pcseg evaluate RECORDING --checkpoint RUN"
        )
    _on_labels(
        Path(run),
        semantic_kitti,
        source,
        boxes,
        json_,
        picture,
        label_space,
        baselines,
        device,
        backend,
    )


def _on_labels(
    run: Path,
    semantic_kitti: Path | None,
    source: str | None,
    boxes: str | None,
    json_: Path | None,
    picture: Path | None,
    label_space: str,
    baselines: bool,
    device: str,
    backend: str,
) -> None:
    """Measure on labeled sweeps and on boxes."""
    _check(semantic_kitti, source, boxes, json_, picture)
    from pcseg_core.online.segmenter import Segmenter

    report: Report | None = None
    box_report: BoxReport | None = None
    segmenter = Segmenter.load(run, device=device, backend=backend)
    if semantic_kitti or source:
        recording = _open(semantic_kitti, source)
        report = _against_labels(run, segmenter, recording, label_space, baselines)
    if boxes:
        box_report = _against_boxes(segmenter, boxes)
    _write(run, report, box_report, json_, picture)


def _check(
    semantic_kitti: Path | None,
    source: str | None,
    boxes: str | None,
    json_: Path | None,
    picture: Path | None,
) -> None:
    if semantic_kitti and source:
        raise InputError("give either --semantic-kitti or --source, not both")
    if not (semantic_kitti or source or boxes):
        raise InputError("nothing to measure on; give --semantic-kitti DIR, --source or --boxes")
    if semantic_kitti and not semantic_kitti.is_dir():
        raise InputError(f"--semantic-kitti {semantic_kitti}: no such folder")
    if picture and not (semantic_kitti or source):
        raise InputError("--picture needs labeled sweeps: give --semantic-kitti or --source too")
    check_file(json_)
    check_file(picture, PICTURES)


def _open(semantic_kitti: Path | None, source: str | None) -> Recording:
    from pcseg_core.data import open_recording
    from pcseg_core.data.semantic_kitti import SemanticKittiRecording

    if semantic_kitti:
        return SemanticKittiRecording(semantic_kitti, lidar_only=True)
    assert source is not None
    return open_recording(source)


def _against_labels(
    run: Path, segmenter: Segmenter, recording: Recording, label_space: str, with_baselines: bool
) -> Report:
    from pcseg_core.evaluation.evaluator import evaluate as measure
    from pcseg_core.labels import LabelSpace, grouping

    grouping(segmenter.label_space, LabelSpace.load(label_space))  # fail before the long part
    fitted, remark = _fit_baselines(run, segmenter) if with_baselines else ({}, "not asked for")
    with progress_bar("measuring sweeps") as progress:
        report = measure(
            segmenter,
            recording,
            space=label_space,
            baselines=fitted,
            checkpoint=str(run),
            progress=progress,
        )
    for reason, count in report.skipped.items():
        note(f"skipped: {reason} ({count})")
    if remark and with_baselines:
        note(f"baselines left out: {remark}")
    return report.model_copy(update={"baselines_note": remark})


def _fit_baselines(run: Path, segmenter: Segmenter) -> tuple[dict[str, Baseline], str | None]:
    """The baselines, or the reason why there are none."""
    from pcseg_core.evaluation.baselines import fit_baselines, run_directory

    folder = run_directory(run)
    if not (folder / "pseudo_labels").is_dir():
        return {}, f"{folder}/pseudo_labels, to which they are fitted, is missing"
    with progress_bar("fitting baselines") as progress:
        return fit_baselines(folder, device=str(segmenter.device), progress=progress), None


def _against_boxes(segmenter: Segmenter, source: str) -> BoxReport:
    from pcseg_core.data import open_recording
    from pcseg_core.evaluation import evaluate_boxes

    with progress_bar("measuring against boxes") as progress:
        return evaluate_boxes(segmenter, open_recording(source), progress=progress)


def _write(
    run: Path,
    report: Report | None,
    boxes: BoxReport | None,
    json_: Path | None,
    picture: Path | None,
) -> None:
    from rich.console import Console

    from pcseg_core.evaluation import render
    from pcseg_core.evaluation.report import box_table
    from pcseg_core.files import write_atomic

    console = Console()
    if report:
        report = report.model_copy(update={"boxes": boxes})
        console.print(report.table())
    if boxes:
        console.print(box_table(boxes))
    if json_ and report:
        report.write_json(json_)
    elif json_ and boxes:
        content = {"checkpoint": str(run), "boxes": boxes.model_dump(mode="json")}
        write_atomic(json_, json.dumps(content, indent=2) + "\n")
    if picture and report:
        render(report, picture)
