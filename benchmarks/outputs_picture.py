# SPDX-License-Identifier: Apache-2.0
"""Picture of the outputs for other programs: one street from above.

    python -m benchmarks.outputs_picture simulated:seed=100010,sweeps=20,cameras=0 --picture OUT

The last sweep of a recording with poses, labeled as the node does it with smoothing: ground and
other points as two named clouds, those that move, the tracks of vehicles and people, and the grid.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from pcseg_core.data import open_recording
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.evaluation import pictures
from pcseg_core.geometry import transform
from pcseg_core.labels import MOVING
from pcseg_core.online.grid import (
    UNKNOWN,
    Grid,
    GridConfig,
    draw_grid,
    memory_s,
    read_costs,
    sweep_evidence,
    voxel_evidence,
)
from pcseg_core.online.output_clouds import choose_points
from pcseg_core.online.pipeline import LabeledSweep, Pipeline, Sweep
from pcseg_core.online.pipeline_config import MotionConfig, PipelineConfig, SmoothingConfig
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.online.tracks import TrackRules
from pcseg_core.progress import tracked
from pcseg_ros.output_parameters import CloudParameters

_POINTS = {"ground": "#2f9e5c", "other": "#7b5ea7", "moving": "#f76707"}
_GROUND_CLASSES = ("road", "sidewalk", "terrain")
_TRACK_COLOR = "#0b3d91"
_AHEAD_S = 1.0  # a velocity is drawn as the way in this time
_SHOWN_MPS = 0.5  # from which it is drawn
_COLORS = {"unknown": "#c9d1d9", "free": "#b7e4c7", "low cost": "#ffe8a3", "occupied": "#1b1f24"}


def label_all(source: str, checkpoint: str) -> tuple[LabeledSweep, Pipeline]:
    """The last sweep of a recording, and the pipeline that labeled all of them."""
    smooth = PipelineConfig(
        motion=MotionConfig(deskew=True), temporal=SmoothingConfig(enabled=True)
    )
    pipeline = Pipeline(Segmenter.load(checkpoint), smooth)
    recording = open_recording(source)
    labeled = None
    for sample in tracked(recording, recording.name, len(recording)):
        labeled = pipeline.process(Sweep.of(sample), moving=True, tracks=TrackRules())
    if labeled is None or labeled.pose is None:
        raise InputError(f"{source}: a recording with poses is needed")
    return labeled, pipeline


def grid_of(labeled: LabeledSweep, pipeline: Pipeline, config: GridConfig) -> Grid:
    """The grid in the fixed frame, from the buffer."""
    voxels = pipeline.remembered(labeled, memory_s(config.decay_s))
    assert voxels is not None and labeled.pose is not None
    costs = read_costs(config.costs, labeled.label_space)
    returns = sweep_evidence(labeled).points
    evidence = voxel_evidence(voxels, config.decay_s)
    return draw_grid(evidence, returns, labeled.pose, costs, config)


def cloud_colors(labeled: LabeledSweep) -> np.ndarray:
    """(N, 3) colors of ground points, other points, moving ones, and points in neither cloud."""
    clouds = {
        "ground_points": CloudParameters(classes=_GROUND_CLASSES),
        "nonground_points": CloudParameters(classes=("*",)),
    }
    kind = np.full(len(labeled.labels), -1)
    for number, name in enumerate(clouds):
        kind[choose_points(clouds, name, labeled)] = number
    kind[labeled.moving == MOVING] = len(clouds)
    return pictures.label_colors(kind, _bytes(*_POINTS.values()))


def grid_colors(grid: Grid) -> np.ndarray:
    """(rows, columns, 3) uint8."""
    level = np.searchsorted([0, 1, 50], grid.costs, side="right")
    level[grid.costs == UNKNOWN] = 0
    return _bytes(*_COLORS.values())[level]


def draw_tracks(axes: Axes, labeled: LabeledSweep, center: np.ndarray, half: float) -> None:
    """Outlines, ids and velocities of the tracks that are seen, in a view from above."""
    assert labeled.tracked is not None and labeled.pose is not None
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) / 2
    for track in (track for track in labeled.tracked.tracks if track.seen):
        box = labeled.pose @ track.T_lidar_box
        outline = (corners * track.size[:2]) @ box[:2, :2].T + box[:2, 3] - center[:2]
        if np.abs(outline).max() > half:
            continue
        axes.plot(-outline[:, 1], outline[:, 0], color=_TRACK_COLOR, linewidth=1.4, zorder=6)
        x, y = outline[:4].mean(0)
        label = {"color": _TRACK_COLOR, "fontsize": 8, "zorder": 8, "clip_on": True}
        axes.annotate(str(track.id), (-y, x), (6, 4), textcoords="offset points", **label)
        way = _AHEAD_S * (labeled.pose[:2, :3] @ track.velocity)
        if np.linalg.norm(track.velocity) >= _SHOWN_MPS:
            arrow = {"arrowstyle": "-|>", "color": _TRACK_COLOR, "linewidth": 1.2}
            axes.annotate("", (-y - way[1], x + way[0]), (-y, x), arrowprops=arrow, zorder=7)


def _bytes(*colors: str) -> np.ndarray:
    return np.array([tuple(bytes.fromhex(color[1:])) for color in colors], np.uint8)


def draw(labeled: LabeledSweep, grid: Grid, path: Path) -> None:
    """Write the picture."""
    assert labeled.pose is not None
    figure = pictures.new_figure(1600, 880)
    half = grid.resolution_m * len(grid.costs) / 2
    center = np.array([grid.origin_m[0] + half, grid.origin_m[1] + half, 0.0])
    returns = np.flatnonzero(labeled.cloud.finite)
    xyz = transform(labeled.pose, labeled.cloud.xyz[returns]) - center
    left, right = figure.add_axes((0.02, 0.1, 0.47, 0.84)), figure.add_axes((0.51, 0.1, 0.47, 0.84))
    title = "ground_points, nonground_points, moving_points and tracks"
    colors = cloud_colors(labeled)[returns]
    pictures.bev(left, xyz, colors, extent_m=half, title=title, point_size=2.0)
    draw_tracks(left, labeled, center, half)
    pictures.bev(right, xyz[:0], colors[:0], extent_m=half, title="grid")
    # The view has +x up and +y to the left.
    image = grid_colors(grid).transpose(1, 0, 2)[::-1, ::-1]
    right.imshow(image, extent=(-half, half, -half, half), zorder=2, interpolation="nearest")
    shades = _POINTS | {"tracks": _TRACK_COLOR} | _COLORS
    pictures.legend(figure, list(shades), list(shades.values()), anchor=(0.5, 0.015))
    pictures.save(figure, path)


def main() -> int:
    """Label the recording and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", help="with poses, such as simulated:...")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--size", type=float, default=60.0, help="edge of the grid [m]")
    parser.add_argument("--picture", type=Path, required=True)
    chosen = parser.parse_args()
    try:
        labeled, pipeline = label_all(chosen.recording, chosen.checkpoint)
        grid = grid_of(labeled, pipeline, GridConfig(frame="fixed", size_m=chosen.size))
        draw(labeled, grid, chosen.picture)
    except PcsegError as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
