# SPDX-License-Identifier: Apache-2.0
"""`pcseg demo`: end-to-end demo on simulated data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pcseg_core.cli.options import Seed


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo"),
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    ros: Annotated[
        bool, typer.Option("--ros/--no-ros", help="Replay over DDS through the ROS 2 node.")
    ] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; deletes an earlier demo in OUT.")
    ] = False,
) -> None:
    """Record simulated drives, distill a LiDAR segmenter from their images, run and measure it.

    Writes report.json, picture.png and drive.rrd (for the Rerun viewer). Interrupted runs resume:
    run the same command again.
    """
    from pcseg_core.demo.run import DemoSettings, run_demo

    given: dict[str, Any] = {"seed": seed, "use_ros": ros}
    if steps is not None:
        given["steps"] = steps
    _print(run_demo(DemoSettings(**given), out, fresh=fresh), out)


def _print(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    share = 100 * report["seen_share"]
    table = Table(title="mIoU over 8 classes, on a drive that is not in the training data")
    table.add_column("")
    table.add_column(f"points in view of\na camera ({share:.0f} %)", justify="right")
    table.add_column("points out of\nview", justify="right")
    table.add_column("all points", justify="right")
    table.add_row("teacher: camera labels, projected", _percent(report["teacher_miou"]), "-", "-")
    for name, title in (("student", "student: LiDAR alone"), ("bundled", "bundled checkpoint")):
        keys = (f"{name}_miou", f"{name}_miou_unseen", f"{name}_miou_all")
        table.add_row(title, *(_percent(report[key]) for key in keys))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    stages = report["stages_ms"].items()
    times = ", ".join(f"{name} {t['p50']:.0f} ms (p95 {t['p95']:.0f})" for name, t in stages)
    console.print(f"latency per sweep, {report['transport']}: {times}")
    reasons = ", ".join(f"{reason}: {count}" for reason, count in report["drops"].items())
    answered = f"{report['sweeps_answered']} of {report['sweeps_sent']} sweeps labeled"
    console.print(f"{answered}; dropped: {reasons or 'none'}")
    console.print(f"took {sum(report['seconds'].values()):.0f} s: {report['seconds']}")
    console.print(f"see {out / 'picture.png'}, or: rerun {out / 'drive.rrd'}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
