# SPDX-License-Identifier: Apache-2.0
"""`pcseg bag`: convert, inspect and simulate bags."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcseg_core.cli.options import Json, Picture, TimeField
from pcseg_core.cli.outputs import check_file, text_console
from pcseg_core.cli.simulate import simulate
from pcseg_core.errors import InputError
from pcseg_core.progress import note

if TYPE_CHECKING:
    from rich.console import Console

    from pcseg_core.data.bag_info import BagReport
    from pcseg_core.data.diversity import Diversity

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Bags: convert, inspect, simulate, play."
)
app.command()(simulate)


@app.command("from-kitti")
def from_kitti(
    drive_dir: Annotated[
        Path, typer.Argument(help="Folder of a KITTI raw drive (..._sync), next to calib_*.txt.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new bag.")],
    format_: Annotated[str, typer.Option("--format", help="mcap or sqlite3.")] = "mcap",
    raw_images: Annotated[
        bool, typer.Option(help="Write sensor_msgs/Image instead of the PNG files.")
    ] = False,
    compress: Annotated[bool, typer.Option(help="Compress with zstd.")] = False,
    force: Annotated[bool, typer.Option(help="Replace a bag at --out.")] = False,
) -> None:
    """Write a KITTI raw drive as a rosbag2, with TF, CameraInfo and Odometry."""
    from pcseg_core.data.kitti import KittiRawRecording
    from pcseg_core.data.kitti_to_bag import write_kitti_bag

    if format_ not in ("mcap", "sqlite3"):
        raise InputError(f"--format {format_}: expected mcap or sqlite3")
    recording = KittiRawRecording(drive_dir)
    written = write_kitti_bag(
        recording,
        out,
        format="mcap" if format_ == "mcap" else "sqlite3",
        raw_images=raw_images,
        compress=compress,
        force=force,
    )
    for line in recording.account.lines():
        note(line)
    for topic, count in written.counts.items():
        typer.echo(f"{count:6d}  {topic}")
    typer.echo(f"wrote {out}; poses from {recording.pose_source}")


@app.command("info")
def info(
    bag: Annotated[Path, typer.Argument(help="Bag folder, .mcap or .db3 file.")],
    json_: Json = None,
    picture: Picture = None,
    cloud_topic: Annotated[
        str | None,
        typer.Option(
            help="PointCloud2 topic, if the bag has several; or several, comma-separated, united."
        ),
    ] = None,
    camera_topics: Annotated[
        str | None, typer.Option(help="Image topics, comma-separated; default: all cameras.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration file (YAML), for bags without calibration.")
    ] = None,
    poses: Annotated[
        str, typer.Option(help="recorded, auto, tf, odometry, kiss-icp, none, or a TUM file.")
    ] = "recorded",
    time_field: TimeField = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Recipe (name or file), or {name: KIND, ...}, whose teacher tells the share of "
            "each class from a few images."
        ),
    ] = None,
    check_calibration: Annotated[
        bool, typer.Option(help="Compare edges of a few images with depth edges of the LiDAR.")
    ] = True,
) -> None:
    """Check whether a bag can train a segmenter, for which places, and list what is missing.

    The exit code is 1 if it cannot. --picture draws the points of a sweep over its images.
    """
    check_file(json_)
    check_file(picture, (".png",))
    from pcseg_core.data.bag_info import inspect_bag
    from pcseg_core.files import write_atomic

    options: dict[str, Any] = {
        "cloud_topic": cloud_topic,
        "camera_topics": camera_topics,
        "calibration": calibration,
        "poses": poses,
        "time_field": time_field or "auto",
    }
    report, recording = inspect_bag(bag, **options)
    if teacher is not None:
        report = _with_classes(report, recording, teacher)
    if check_calibration and recording is not None and report.cameras:
        report = report.with_findings(_about_calibration(recording))
    _print(report, text_console(json_))
    if json_ is not None:
        write_atomic(json_, report.model_dump_json(indent=2) + "\n")
    if picture is not None:
        _draw(recording, picture)
    if not report.trainable:
        raise typer.Exit(1)


def _with_classes(report: BagReport, recording: Any, teacher: str) -> BagReport:
    """The report with the classes that a teacher finds in a few images."""
    from pcseg_core.distill.seen_classes import seen_classes
    from pcseg_core.vision.pixel_classes import load_teacher, read_teacher

    config = read_teacher(teacher)
    if recording is None or not recording.cameras:
        note(f"{config.title} was not asked: no camera can be used")
        return report
    return report.with_classes(seen_classes(recording, load_teacher(config)))


def _about_calibration(recording: Any) -> list[Any]:
    """Findings of a quick check of the calibration."""
    from pcseg_core.calibration.calibrate import QUICK_SWEEPS, check_calibration

    try:
        return check_calibration(recording, QUICK_SWEEPS, whole=False).report.findings()
    except InputError as error:
        note(f"the calibration was not checked: {error}")
        return []


def _draw(recording: Any, picture: Path) -> None:
    """Draw the sweep with the most images; of several the one nearest to the middle."""
    from pcseg_core.data.bag_picture import draw_overlay

    if recording is None or not recording.cameras:
        note(f"{picture} was not drawn: no camera can be used")
        return
    draw_overlay(recording[recording.best_paired()], picture)
    note(f"drew {picture}")


def _print(report: BagReport, console: Console) -> None:
    from rich.table import Table

    headings = ("topic", "type", "messages", "Hz", "missing", "backward", "delay ms")
    topics = Table(*headings, box=None)
    topics.columns[0].overflow = topics.columns[1].overflow = "fold"
    for row in report.topics:
        rate, delay = _number(row.rate_hz), _number(row.delay_ms)
        cells = (str(row.messages), rate, str(row.missing), str(row.backward), delay)
        topics.add_row(row.topic, row.type.rpartition("/")[2], *cells)
    console.print(topics)
    if report.lidars:
        lidars = Table("LiDAR", "overlap", "paired", "offset ms", "clock ms", "united", box=None)
        lidars.columns[0].overflow = "fold"
        for lidar in report.lidars:
            lidars.add_row(
                lidar.topic,
                "-" if lidar.overlap is None else f"{lidar.overlap:.0%}",
                f"{lidar.paired:.0%}",
                _number(lidar.offset_ms),
                _number(lidar.clock_ms),
                "no" if lidar.problem else "possible",
            )
        console.print(lidars)
    if report.cameras:
        cameras = Table("camera", "size", "model", "sees", "paired", "offset ms", "± ms", box=None)
        for camera in report.cameras:
            size = f"{camera.width}x{camera.height}"
            seen = "-" if camera.visible is None else f"{camera.visible:.1%}"
            spread = None if camera.offset_spread_ms is None else camera.offset_spread_ms / 2
            cameras.add_row(
                camera.name,
                size,
                camera.distortion_model,
                seen,
                f"{camera.paired:.0%}",
                _number(camera.offset_ms),
                _number(spread),
            )
        console.print(cameras)
    for line in _verdict(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _verdict(report: BagReport) -> Iterator[str]:
    """Lines of text about the whole bag."""
    distance = "" if report.distance_m is None else f" over {report.distance_m:.0f} m"
    seen = "" if report.visible is None else f"; cameras see {report.visible:.1%} of the points"
    driven = f"{report.sweeps} sweeps in {report.duration_s:.1f} s{distance}"
    yield f"{driven}, poses: {report.poses}{seen}"
    if report.diversity is not None:
        yield from _about_places(report.diversity)
    if report.intensity_scale is not None:
        yield f"intensity scale: {report.intensity_scale:.6g} ({report.intensity_source})"
    for topic, entry in report.account.items():
        yield entry.line(topic)
    for reason, count in report.skipped.items():
        yield f"skipped: {reason} ({count})"
    for finding in report.findings:
        what_to_do = f" -> {finding.do}" if finding.do else ""
        yield f"{finding.level}: {finding.what}{what_to_do}"
    verdict = "can" if report.trainable else "cannot"
    yield f"This bag {verdict} train a segmenter."
    if report.trainable and report.diversity is not None:
        yield report.diversity.summary()


def _about_places(found: Diversity) -> Iterator[str]:
    """Lines of text about the path and what cameras see of it."""
    if found.posed:
        turns = f"{found.turns} turn{'' if found.turns == 1 else 's'}"
        standing = found.standing
        yield turns if standing is None else f"{turns}; standing still {standing:.0%} of the time"
    if found.ground_in_sweep is not None:
        seen = f"{found.ground_in_sweep:.0%} in the images of its sweep"
        ever = found.ground_in_drive
        more = "" if ever is None else f", {ever:.0%} from anywhere on the path"
        yield f"ground within 8 m that cameras see: {seen}{more}"
    if found.classes:
        shares = (f"{name} {share:.1%}" for name, share in found.classes.items())
        yield f"of the points that cameras see: {', '.join(shares)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
