# SPDX-License-Identifier: Apache-2.0
"""Time that ROS adds to a sweep: from message to arrays, and from labels to message.

    python -m benchmarks.ros_cost --points 125000 --json OUT

Stages of every sweep: `deserialize` (bytes from DDS to a message), `read` (message to arrays),
`encode` (labels and confidence to a message) and `publish` (message to DDS, with a subscriber in
this process). Then the outputs that are computed on request, each by itself, without publishing;
`at once` is the most that one node has: the profile autoware, two named clouds, both images, what
moves and the tracks of up to 40 vehicles, half of which drive, with their states and markers, and
the grid at 2 Hz for sweeps at 10 Hz. What moves, with its trails remembered, and tracks are from
one free space, as in the node: `moving and tracks` is both. Not in it are `buffer grid` (from the
buffer, without the trails of five sweeps, which `trails` remembers), and what rclpy takes to
serialize the tracks and their markers.
With `--threads 1` judge by the CPU time, which other work on the machine disturbs least. With more,
further threads do a part of the work, whose time and whose awaiting are not in the CPU time of the
thread that publishes: judge by the wall time on an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from benchmarks.sweeps import load_sweep
from pcseg_core.cloud import PointCloud, encode_cloud
from pcseg_core.files import write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.online.class_maps import autoware_ids
from pcseg_core.online.grid import (
    Grid,
    GridConfig,
    draw_grid,
    memory_s,
    read_costs,
    sweep_evidence,
    voxel_evidence,
)
from pcseg_core.online.label_images import confidence_image, label_image
from pcseg_core.online.moving import MovingThings
from pcseg_core.online.output_clouds import (
    ExtraFields,
    append_labels,
    autoware_cloud,
    choose_points,
    entropy,
    minimal_cloud,
)
from pcseg_core.online.over_time import OverTime
from pcseg_core.online.pipeline import LabeledSweep, Voxels
from pcseg_core.online.temporal import TemporalBuffer, TemporalBufferConfig
from pcseg_core.online.tracks import Tracker, TrackRules
from pcseg_core.online.trails import Trails
from pcseg_ros.message_types import message_class
from pcseg_ros.output_parameters import CloudParameters
from pcseg_ros.process import keep_freed_memory

Table: TypeAlias = dict[str, dict[str, float]]
Street: TypeAlias = Callable[[int], tuple[PointCloud, np.ndarray]]

LIMIT_MS = 5.0  # of the stages of every sweep
OUTPUTS_LIMIT_MS = 8.0  # of the outputs that a node can have at once
AT_ONCE = {
    "autoware": 1.0,
    "ground and rest": 1.0,
    "label image": 1.0,
    "confidence image": 1.0,
    "moving and tracks": 1.0,
    "track markers": 1.0,
    "grid": 0.2,
}
"""Outputs on request that one sweep can have together, with the share of the sweeps."""
SWEEP_NS = 100_000_000
SCENES = 24  # sweeps in which a vehicle drives to the place of the next one


def random_sweep(points: int) -> np.ndarray:
    """(N, 4) x, y, z, intensity."""
    rng = np.random.default_rng(0)
    return np.hstack([rng.uniform(-60, 60, (points, 3)), rng.uniform(0, 1, (points, 1))])


def driver_message(points: np.ndarray) -> Any:
    """A cloud with the fields of a Velodyne driver: x, y, z, intensity, ring, time (22 bytes)."""
    from std_msgs.msg import Header

    from pcseg_ros.conversions import cloud_message

    columns = dict(zip(("x", "y", "z", "intensity"), points.T.astype(np.float32)))
    ring = np.arange(len(points), dtype=np.uint16) % 64
    times = np.linspace(0, 0.1, len(points), dtype=np.float32)
    return cloud_message(Header(), encode_cloud({**columns, "ring": ring, "time": times}))


class Clock:
    """Wall and CPU time of named stages, ms."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def time(self, stage: str, work: Callable[[], Any]) -> Any:
        """Run a stage and record its times."""
        wall, cpu = time.perf_counter(), time.thread_time()
        result = work()
        self.cpu.setdefault(stage, []).append(1e3 * (time.thread_time() - cpu))
        self.wall.setdefault(stage, []).append(1e3 * (time.perf_counter() - wall))
        return result

    def table(self, total: str, shares: Mapping[str, float] | None = None) -> Table:
        """Medians of each stage, and of the sum of the stages with these shares; None is all.

        Also the least times, which other work on the machine disturbs least.
        """
        result: Table = {}
        for kind, times in (("wall_ms", self.wall), ("cpu_ms", self.cpu)):
            part = dict.fromkeys(times, 1.0) if shares is None else shares
            runs = zip(*(times[stage] for stage in part))
            totals = [sum(map(operator.mul, part.values(), run)) for run in runs]
            for stage, values in {**times, total: totals}.items():
                result.setdefault(stage, {})[kind] = statistics.median(values)
                result[stage][f"least_{kind}"] = min(values)
        return result


def labels_of(points: np.ndarray, message: Any) -> LabeledSweep:
    """The sweep of a message with classes that follow each other, and probabilities."""
    from pcseg_ros.conversions import read_sweep

    labels = np.arange(len(points), dtype=np.int32) % 8
    likely = np.full((len(points), 8), 0.1 / 7, np.float32)
    likely[np.arange(len(points)), labels] = 0.9
    confidence = np.full(len(points), 0.9, np.float32)
    space = LabelSpace.load("street")
    cloud = read_sweep(message, 0.0)
    return LabeledSweep(cloud, labels, confidence, space, probabilities=likely)


def traffic(xyz: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The points (N, 3) with 40 vehicles among them, and which of them are of vehicles (N,) bool.

    A beam that meets a vehicle before its return ends there. Half of the vehicles stand. The others
    drive behind each other in four lanes; where the first one of a lane leaves it another one
    enters it, so that sweep 24 is sweep 0 and each follows on another.
    """
    vehicle = np.arange(40)
    lane, drives = vehicle // 10, vehicle % 2 == 1
    way = 0.5 * ((number + 5 * lane) % SCENES)
    x = 12.0 * (vehicle % 10 // 2) - 30 + np.where(drives, way, 3.0)
    y = np.array([-34.0, -25.0, 22.0, 31.0])[lane] + np.where(drives, 0.0, 4.0)
    low = np.stack([x, y, np.full(40, -1.6)], 1).astype(np.float32)
    ray = xyz[:, None].astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = low / ray, (low + np.float32([4.4, 1.8, 1.5])) / ray
    enters, leaves = np.minimum(one, two).max(2), np.maximum(one, two).min(2)
    share = np.where((enters < leaves) & (enters > 0), enters, np.inf).min(1)
    return xyz * np.minimum(share, 1)[:, None], share < 1


class BufferGrid:
    """Grids from the temporal buffer without the trails of what moves, one for five sweeps.

    Args:
        street: gives the cloud and labels (N,) of a sweep by its number; they repeat after SCENES.
        space: classes of the labels.
    """

    def __init__(self, street: Street, space: LabelSpace) -> None:
        self._street, self._space = street, space
        self._numbers = itertools.count(2 * SCENES)
        self._config, self._costs, self._trails = GridConfig(), read_costs("", space), Trails()
        self._moving: dict[int, np.ndarray] = {}
        self._voxels: dict[int, Voxels] = {}
        self._newest = PointCloud(np.zeros((0, 3), np.float32))
        things, buffer = MovingThings(), TemporalBuffer(TemporalBufferConfig(), len(space))
        for number in range(2 * SCENES):
            cloud, labels = street(number)
            sure = np.full(len(labels), 0.9, np.float32)
            buffer.update(cloud.xyz, (labels, sure), np.eye(4), cloud.stamp_ns)
            self._voxels[number % SCENES] = buffer.remembered(memory_s(self._config.decay_s))
            moving = things.update(cloud, labels, space, np.eye(4))
            self._moving[number % SCENES] = moving
            self._trails.add(cloud, moving, np.eye(4))

    def remember(self) -> None:
        """Add the trails of five sweeps."""
        for number in itertools.islice(self._numbers, 5):
            self._newest, _ = self._street(number)
            self._trails.add(self._newest, self._moving[number % SCENES], np.eye(4))

    def draw(self) -> Grid:
        """The grid after these sweeps."""
        sweep = self._newest.stamp_ns // SWEEP_NS % SCENES
        voxels = self._trails.outside(self._voxels[sweep], self._space)
        evidence = voxel_evidence(voxels, self._config.decay_s)
        return draw_grid(evidence, self._newest.xyz.T, np.eye(4), self._costs, self._config)


def serializing(header: Any, tracked: LabeledSweep) -> dict[str, Callable[[], Any]]:
    """What rclpy takes to serialize the tracks of a sweep, by the name of the output."""
    from rclpy.serialization import serialize_message

    from pcseg_ros.tracks import TrackMarkers, confidence_of, detections, states

    assert tracked.tracked is not None
    known = tracked.tracked.tracks, tracked.label_space, confidence_of(tracked)
    draws: dict[str, Any] = {"tracks": states, "markers": TrackMarkers()}
    if message_class("vision_msgs/msg/Detection3DArray") is not None:
        draws["boxes"] = detections
    return {
        f"serialize {name}": partial(serialize_message, draw(header, *known))
        for name, draw in draws.items()
    }


def outputs_of(message: Any, labeled: LabeledSweep) -> dict[str, Callable[[], Any]]:
    """The outputs on request by name."""
    from pcseg_ros.conversions import cloud_message, filtered_messages, grid_message, mono_message
    from pcseg_ros.tracks import TrackMarkers, confidence_of, states

    space, header = labeled.label_space, message.header
    encoded = cloud_message(header, append_labels(message, labeled, ExtraFields()))
    rest = CloudParameters.model_validate({"classes": ["*"]})
    ground = CloudParameters.model_validate({"classes": ["road", "sidewalk", "terrain"]})
    rules = {"ground_points": ground, "nonground_points": rest}
    ids = autoware_ids("", space)

    def split() -> None:
        filtered_messages(encoded, [choose_points(rules, name, labeled) for name in rules])

    height, width = 1, len(labeled.labels)  # one row: organized clouds cost the same
    config, costs = GridConfig(), read_costs("", space)

    def draw() -> None:
        newest = sweep_evidence(labeled)
        drawn = draw_grid(newest, newest.points, np.eye(4), costs, config)
        grid_message(drawn, header.stamp, "map")

    roads, vehicles = space.index("road"), space.index("vehicle")
    scenes = [traffic(labeled.cloud.xyz, number) for number in range(SCENES)]
    labels = [np.where(of_vehicle, vehicles, roads).astype(np.int32) for _, of_vehicle in scenes]
    result = replace(labeled, labels=labels[0], pose=np.eye(4))
    things, drive = MovingThings(), itertools.count(1)

    def street(number: int) -> tuple[PointCloud, np.ndarray]:
        xyz = scenes[number % SCENES][0]
        cloud = replace(labeled.cloud, xyz=xyz, stamp_ns=number * SWEEP_NS)
        return cloud, labels[number % SCENES]

    def move() -> None:
        things.update(*street(next(drive)), space, np.eye(4))

    tracker, draw_tracks, followed = Tracker(), TrackMarkers(), itertools.count(1)

    def publish_states() -> None:
        assert result.tracked is not None
        states(header, result.tracked.tracks, space, confidence_of(result))

    def track() -> None:
        cloud, result.labels = street(next(followed))
        result.tracked = tracker.update(cloud, result.labels, space, np.eye(4), TrackRules())
        publish_states()

    together, both = OverTime(), itertools.count(1)

    def move_and_track() -> None:
        result.cloud, result.labels = street(next(both))
        together.add(result, True, TrackRules())
        publish_states()

    def mark() -> None:
        assert result.tracked is not None
        draw_tracks(header, result.tracked.tracks, space, {})

    for _ in range(SCENES):
        track()
    buffer_grid = BufferGrid(street, space)

    fields = ExtraFields(probabilities=("road", "person"))
    return {
        "entropy": lambda: entropy(labeled.probabilities, len(labeled.labels)),
        "two probabilities": lambda: fields.of(labeled),
        "ground and rest": split,
        "minimal": lambda: cloud_message(header, minimal_cloud(message, labeled, ExtraFields())),
        "autoware": lambda: cloud_message(header, autoware_cloud(message, labeled, ids)),
        "label image": lambda: mono_message(label_image(labeled, height, width), header),
        "moving": move,
        "tracks": track,
        "moving and tracks": move_and_track,
        "track markers": mark,
        "grid": draw,
        "confidence image": lambda: mono_message(confidence_image(labeled, height, width), header),
        "trails": buffer_grid.remember,
        "buffer grid": lambda: grid_message(buffer_grid.draw(), header.stamp, "map"),
        **serializing(header, result),
    }


def measure(points: np.ndarray, rounds: int) -> tuple[Table, Table]:
    """Medians of the stages of every sweep and of the outputs, without the first rounds."""
    import rclpy
    from rclpy.serialization import deserialize_message, serialize_message
    from sensor_msgs.msg import PointCloud2

    from pcseg_ros import qos
    from pcseg_ros.conversions import cloud_message, read_sweep

    keep_freed_memory()
    rclpy.init(args=[])
    node = rclpy.create_node("ros_cost")
    publisher = node.create_publisher(PointCloud2, "cost", qos.result())
    node.create_subscription(PointCloud2, "cost", lambda _: None, 1)
    raw = serialize_message(driver_message(points))
    labeled = labels_of(points, deserialize_message(raw, PointCloud2))
    outputs = outputs_of(deserialize_message(raw, PointCloud2), labeled)
    clock, further = Clock(), Clock()

    def encode(message: PointCloud2) -> PointCloud2:
        return cloud_message(message.header, append_labels(message, labeled, ExtraFields()))

    for number in range(rounds + 5):
        if number == 5:
            clock, further = Clock(), Clock()
        message = clock.time("deserialize", partial(deserialize_message, raw, PointCloud2))
        clock.time("read", partial(read_sweep, message, 0.0))
        answer = clock.time("encode", partial(encode, message))
        clock.time("publish", partial(publisher.publish, answer))
        rclpy.spin_once(node, timeout_sec=0.1)
        for name, compute in outputs.items():
            further.time(name, compute)
    node.destroy_node()
    rclpy.try_shutdown()
    return clock.table("total"), further.table("at once", AT_ONCE)


def main() -> int:
    """Measure, print, write; 1 if a median time exceeds its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=Path, help="(N, 4) sweep; random points without")
    parser.add_argument("--points", type=int, default=125_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2, help="that share the work of a sweep")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    points = load_sweep(chosen.sweep) if chosen.sweep else random_sweep(chosen.points)
    torch.set_num_threads(chosen.threads)
    stages, outputs = measure(points, chosen.rounds)
    for title, table in (("every sweep", stages), ("outputs on request", outputs)):
        print(title)
        for stage, times in table.items():
            wall, cpu = (
                f"{times[kind]:7.2f} ms {name} (least {times[f'least_{kind}']:.2f})"
                for kind, name in (("wall_ms", "wall"), ("cpu_ms", "CPU"))
            )
            print(f"  {stage:20s} {wall} {cpu}")
    if chosen.json:
        sizes = {"points": len(points), "threads": chosen.threads}
        report = {**sizes, "stages": stages, "outputs": outputs}
        write_atomic(chosen.json, json.dumps(report, indent=1))
    kind = "cpu_ms" if chosen.threads == 1 else "wall_ms"
    slow = stages["total"][kind] > LIMIT_MS
    return int(slow or outputs["at once"][kind] > OUTPUTS_LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
