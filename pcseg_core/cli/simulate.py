# SPDX-License-Identifier: Apache-2.0
"""`pcseg bag simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcseg_core.cli.options import Seed
from pcseg_core.errors import InputError


def simulate(
    out: Annotated[Path, typer.Option(help="Folder of the new bag.")],
    seed: Seed = 0,
    sweeps: Annotated[int, typer.Option(help="Number of LiDAR sweeps.")] = 100,
    town: Annotated[
        str | None,
        typer.Option(help="center, suburb, old-town, industrial, avenue; default: by the seed."),
    ] = None,
    beams: Annotated[int, typer.Option(help="Beams of the LiDAR.")] = 64,
    columns: Annotated[int, typer.Option(help="Columns of a sweep.")] = 2048,
    lidars: Annotated[
        int, typer.Option(help="LiDARs, each with a topic: on the roof, and 1 or 2 at the bumper.")
    ] = 1,
    cameras: Annotated[int, typer.Option(help="Number of cameras, evenly around the vehicle.")] = 2,
    width: Annotated[int, typer.Option(help="Image width [px].")] = 640,
    height: Annotated[int, typer.Option(help="Image height [px].")] = 384,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", help="Other option of the drive or a fault, such as speed_mps=5."
        ),
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="mcap or sqlite3.")] = "mcap",
    raw_images: Annotated[
        bool, typer.Option(help="Write sensor_msgs/Image instead of JPEG.")
    ] = False,
    compress: Annotated[bool, typer.Option(help="Compress with zstd.")] = False,
    force: Annotated[bool, typer.Option(help="Replace a bag at --out.")] = False,
) -> None:
    """Write a simulated drive as a rosbag2 with exact labels.

    Labels are in the field `label` of the clouds. Faults are options too:
    -o camera_rotation_deg=1 -o stamp_offset_s=0.05 -o dropped_images=0.1
    """
    from pcseg_core.simulation.recording import SimulatedDrive
    from pcseg_core.simulation.to_bag import write_simulated_bag

    if format_ not in ("mcap", "sqlite3"):
        raise InputError(f"--format {format_}: expected mcap or sqlite3")
    named = {
        "seed": seed,
        "sweeps": sweeps,
        "town": town,
        "beams": beams,
        "columns": columns,
        "lidars": lidars,
        "cameras": cameras,
        "width": width,
        "height": height,
    }
    text = [f"{name}={value}" for name, value in named.items() if value is not None]
    recording = SimulatedDrive.from_text(",".join([*text, *(option or [])]))
    written = write_simulated_bag(
        recording,
        out,
        format="mcap" if format_ == "mcap" else "sqlite3",
        raw_images=raw_images,
        compress=compress,
        force=force,
    )
    for topic, count in written.counts.items():
        typer.echo(f"{count:6d}  {topic}")
    typer.echo(f"wrote {out}: {recording.name}, labels of the space '{recording.label_space.name}'")
