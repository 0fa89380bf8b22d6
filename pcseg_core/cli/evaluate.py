# SPDX-License-Identifier: Apache-2.0
"""`pcseg evaluate`: figures of a checkpoint as JSON, table and picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pcseg_core.cli.options import (
    Backend,
    Device,
    Json,
    MaxEntropy,
    Picture,
    Ray,
    WorkerCpus,
    Workers,
    expanded,
    ray_options,
)
from pcseg_core.cli.outputs import PICTURES, check_file, text_console
from pcseg_core.errors import InputError
from pcseg_core.progress import bar, note

if TYPE_CHECKING:
    from pcseg_core.cluster.run import RayOptions
    from pcseg_core.data import Recording
    from pcseg_core.evaluation import Report
    from pcseg_core.evaluation.evaluator import Baseline
    from pcseg_core.evaluation.report import BoxReport
    from pcseg_core.online.segmenter import Precision, Segmenter

_REPLAY = "Replay of a recording"

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN|RECORDING",
        help="Run directory of `pcseg distill`, or a checkpoint; with --checkpoint or --params a "
        "recording to replay: a bag, or reader:path.",
    ),
]
SemanticKitti = Annotated[
    Path | None,
    typer.Option(
        help="Folder in SemanticKITTI layout: a sequence, a folder of sequences, or any folder "
        "with velodyne/ and labels/."
    ),
]
Source = Annotated[
    list[str] | None,
    typer.Option(
        help="Any other labeled source: a bag, or reader:path; several, 'drives/2026-*' or @FILE "
        "give figures of each and of all.",
        callback=expanded,
    ),
]
Boxes = Annotated[
    str | None,
    typer.Option(help="A source with 3D boxes, for recall of vehicle and person points."),
]
Space = Annotated[str, typer.Option(help="Label space to measure in.")]
Baselines = Annotated[bool, typer.Option(help="Also fit and measure baselines (majority, linear).")]
PrecisionName = Annotated[
    Literal["auto", "fp32", "fp16", "bf16", "int8"],
    typer.Option(help="Arithmetic of the network; int8 needs a checkpoint of `pcseg quantize`."),
]
Checkpoint = Annotated[
    str | None, typer.Option(help="Checkpoint to replay the recording to.", rich_help_panel=_REPLAY)
]
Compare = Annotated[
    str | None,
    typer.Option(help="A second checkpoint, on the same sweeps.", rich_help_panel=_REPLAY),
]
Live = Annotated[
    bool,
    typer.Option(
        "--live",
        help="Play the bag over DDS, at the speed of the recording, to a new node.",
        rich_help_panel=_REPLAY,
    ),
]
Params = Annotated[
    Path | None,
    typer.Option(
        help="ROS parameter file (YAML) of the node. Without --live the recording is evaluated "
        "offline by the pipeline that the node runs with these parameters.",
        rich_help_panel=_REPLAY,
    ),
]
Temporal = Annotated[
    bool,
    typer.Option(
        "--temporal",
        help="Smooth over time, as the node with temporal.enabled: true; needs poses.",
        rich_help_panel=_REPLAY,
    ),
]
Deskew = Annotated[
    bool,
    typer.Option(
        "--deskew",
        help="Correct the points for the motion within the sweep, as the node with "
        "motion.deskew: true; needs poses.",
        rich_help_panel=_REPLAY,
    ),
]
Cameras = Annotated[
    bool,
    typer.Option(
        "--cameras",
        help="Fuse the pixel classes of --teacher, as the node with teacher.fuse: true.",
        rich_help_panel=_REPLAY,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="Folder with .label files (SemanticKITTI) of the sweeps, for a recording without "
        "labels.",
        rich_help_panel=_REPLAY,
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        help="Recipe (name or file) whose teacher labels images, for the agreement with the "
        "cameras.",
        rich_help_panel=_REPLAY,
    ),
]


def evaluate(
    run: Run,
    semantic_kitti: SemanticKitti = None,
    source: Source = None,
    boxes: Boxes = None,
    json_: Json = None,
    picture: Picture = None,
    label_space: Space = "street",
    baselines: Baselines = True,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: PrecisionName = "auto",
    max_entropy: MaxEntropy = 1.0,
    checkpoint: Checkpoint = None,
    compare: Compare = None,
    live: Live = False,
    params: Params = None,
    temporal: Temporal = False,
    deskew: Deskew = False,
    cameras: Cameras = False,
    labels: Labels = None,
    teacher: Teacher = None,
    ray: Ray = None,
    workers: Workers = None,
    worker_cpus: WorkerCpus = 1,
) -> None:
    """Measure a checkpoint on labeled sweeps, or by the replay of a recording.

    `pcseg evaluate RUN --semantic-kitti DIR` measures on labeled sweeps. `pcseg evaluate
    RECORDING --checkpoint RUN` replays a recording, with or without labels: mIoU if it has
    labels, flicker from sweep to sweep, agreement with the cameras, latency, drops and memory.
    The figures are those of the pipeline of a node with default parameters, with the options
    --temporal, --deskew and --cameras, or with the parameter file --params.

    Fractions in the JSON are 0 to 1. `miou` and `accuracy` are taken in the label space "street"
    (road, sidewalk, structure, vegetation, terrain, vehicle, person, pole), `miou_merged_ground`
    with road, sidewalk and terrain as one.
    """
    check_file(json_)
    check_file(picture, PICTURES)
    cluster = ray_options(ray, workers, worker_cpus, device)
    if cluster is not None and (checkpoint or params or not source):
        raise InputError("--ray measures on labeled recordings: pcseg evaluate RUN --source ...")
    if checkpoint is None and params is None:
        if compare or live or temporal or deskew or cameras or labels or teacher:
            raise InputError(
                "--compare, --live, --temporal, --deskew, --cameras, --labels and --teacher are "
                "for a replay: pcseg evaluate RECORDING --checkpoint RUN"
            )
        engine = (device, precision, backend, max_entropy)
        sources = source or []
        one = sources[0] if sources else None
        request = _Request(Path(run), semantic_kitti, one, boxes, json_, picture)
        if cluster is not None or len(sources) > 1:
            _evaluate_many(request, sources, label_space, engine, cluster)
        else:
            _evaluate_run(request, label_space, baselines, engine)
        return
    if semantic_kitti or source or boxes or max_entropy < 1:
        raise InputError(
            "--checkpoint and --params replay the recording that comes first; leave out "
            "--semantic-kitti, --source, --boxes and --max-entropy"
        )
    from pcseg_core.cli.evaluate_replay import ReplayOptions, evaluate_recording

    how = (live, params, temporal, deskew, cameras)
    options = ReplayOptions(
        checkpoint, compare, *how, labels, teacher, label_space, device, backend, precision
    )
    evaluate_recording(run, options, json_, picture)


@dataclass(frozen=True)
class _Request:
    """The sources and outputs of an evaluation on labeled sweeps."""

    run: Path
    semantic_kitti: Path | None
    source: str | None
    boxes: str | None
    json: Path | None
    picture: Path | None

    def check(self) -> None:
        """Refuse options that exclude each other, before the long work."""
        if self.semantic_kitti and self.source:
            raise InputError("give either --semantic-kitti or --source, not both")
        if not (self.semantic_kitti or self.source or self.boxes):
            raise InputError(
                "nothing to measure on; give --semantic-kitti DIR, --source or --boxes"
            )
        if self.semantic_kitti and not self.semantic_kitti.is_dir():
            raise InputError(f"--semantic-kitti {self.semantic_kitti}: no such folder")
        if self.picture and not (self.semantic_kitti or self.source):
            raise InputError(
                "--picture needs labeled sweeps: give --semantic-kitti or --source too"
            )
        from pcseg_core.bundled import checkpoint_file
        from pcseg_core.data import find_source

        checkpoint_file(self.run)
        for source in filter(None, (self.source, self.boxes)):
            find_source(source)


def _evaluate_many(
    request: _Request,
    sources: list[str],
    label_space: str,
    engine: tuple[str, Precision, str, float],
    cluster: RayOptions | None,
) -> None:
    """Measure on several labeled recordings."""
    request.check()
    if request.boxes or request.picture:
        raise InputError("--boxes and --picture are for one recording; give one --source")
    from pcseg_core.cli.evaluate_many import evaluate_many
    from pcseg_core.data import find_source

    for source in sources:
        find_source(source)
    evaluate_many(str(request.run), sources, request.json, label_space, engine, cluster)


def _evaluate_run(
    request: _Request,
    label_space: str,
    with_baselines: bool,
    engine: tuple[str, Precision, str, float],
) -> None:
    """Measure on labeled sweeps and on boxes."""
    request.check()
    from pcseg_core.online.segmenter import Segmenter

    segmenter = Segmenter.load(request.run, *engine)
    report: Report | None = None
    if request.semantic_kitti or request.source:
        recording = _open(request, segmenter)
        report = _against_labels(request.run, segmenter, recording, label_space, with_baselines)
    box_report = _against_boxes(segmenter, request.boxes) if request.boxes else None
    _write(request, report, box_report)


def _open(request: _Request, segmenter: Segmenter) -> Recording:
    from pcseg_core.data import open_recording
    from pcseg_core.data.semantic_kitti import SemanticKittiRecording

    if request.semantic_kitti:
        return SemanticKittiRecording(request.semantic_kitti, lidar_only=True)
    assert request.source is not None
    return open_recording(request.source, trained=segmenter.trained_on)


def _against_labels(
    run: Path, segmenter: Segmenter, recording: Recording, label_space: str, with_baselines: bool
) -> Report:
    from pcseg_core.evaluation.evaluator import evaluate as measure
    from pcseg_core.labels import LabelSpace, grouping
    from pcseg_core.online.pipeline import Pipeline

    grouping(segmenter.label_space, LabelSpace.load(label_space))  # fails before the long part
    if recording.label_space is None:
        raise InputError(
            f"{recording.name} has no labels to measure against; evaluate it by a replay: pcseg "
            f"evaluate RECORDING --checkpoint {run}"
        )
    segmenter.keep_uncalibrated = True
    fitted, remark = _fit_baselines(run, segmenter) if with_baselines else ({}, "not asked for")
    with bar("measuring sweeps") as progress:
        report = measure(
            Pipeline(segmenter),
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
    """The baselines, or the reason for leaving them out."""
    from pcseg_core.evaluation.baselines import fit_baselines, run_directory

    folder = run_directory(run)
    if not (folder / "pseudo_labels").is_dir():
        return {}, f"{folder}/pseudo_labels, to which they are fitted, is missing"
    with bar("fitting baselines") as progress:
        return fit_baselines(folder, device=str(segmenter.device), progress=progress), None


def _against_boxes(segmenter: Segmenter, source: str) -> BoxReport:
    from pcseg_core.data import open_recording
    from pcseg_core.evaluation import evaluate_boxes
    from pcseg_core.online.pipeline import Pipeline

    with bar("measuring against boxes") as progress:
        recording = open_recording(source, trained=segmenter.trained_on)
        return evaluate_boxes(Pipeline(segmenter), recording, progress=progress)


def _write(request: _Request, report: Report | None, boxes: BoxReport | None) -> None:
    from pcseg_core.evaluation import render
    from pcseg_core.evaluation.report import box_table, panoptic_table
    from pcseg_core.files import write_atomic

    console = text_console(request.json)
    if report:
        report = report.model_copy(update={"boxes": boxes})
        console.print(report.table())
        if report.panoptic:
            console.print(panoptic_table(report.panoptic))
    if boxes:
        console.print(box_table(boxes))
    if request.json and report:
        report.write_json(request.json)
    elif request.json and boxes:
        content = {"checkpoint": str(request.run), "boxes": boxes.model_dump(mode="json")}
        write_atomic(request.json, json.dumps(content, indent=2) + "\n")
    if request.picture and report:
        render(report, request.picture)
