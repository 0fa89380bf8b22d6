# SPDX-License-Identifier: Apache-2.0
"""Play a bag to a checkpoint: through the ROS 2 node where there is one, else in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.data import open_recording
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.progress import tracked

# An entry point `replay` of this group has the signature of `Replay` and plays over DDS.
PLUGIN_GROUP = "pcseg.plugins"


@dataclass
class ReplayResult:
    """What came back for the sweeps of a bag.

    Attributes:
        transport: how the sweeps got to the network: "DDS" or "in process".
        sent: sweeps that were played.
        labels: stamp of the sweep [ns] -> (N,) int32 labels, -1 for none.
        dropped: reason -> number of sweeps that got no answer.
        stages_ms: stage -> median and 95th percentile [ms].
    """

    transport: str
    sent: int
    labels: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    stages_ms: dict[str, tuple[float, float]] = field(default_factory=dict)


Replay = Callable[[Path, Path, Path, "Path | None"], ReplayResult]
"""(bag, checkpoint, folder for logs, ROS parameter file of the node or None) -> result."""


def find_replay() -> tuple[Replay, str]:
    """What plays a bag here, and in words why it is not the ROS 2 node ("" if it is)."""
    plugins: list[Any] = list(entry_points(group=PLUGIN_GROUP, name="replay"))
    if not plugins:
        return replay_in_process, "pcseg_ros is not installed"
    try:
        return plugins[0].load(), ""
    except ImportError as error:
        return replay_in_process, f"ROS 2 is not installed ({error})"


def replay_in_process(
    bag: Path, checkpoint: Path, logs: Path, params: Path | None = None
) -> ReplayResult:
    """Segment the sweeps of a bag one after the other, as the node would, without DDS."""
    segmenter = Segmenter.load(checkpoint)
    recording = open_recording(f"bag:{bag}")
    result = ReplayResult("in process", len(recording))
    timings: dict[str, list[float]] = {}
    for index in tracked(range(len(recording)), "segmenting sweeps", len(recording)):
        cloud = recording[index].cloud
        answer = segmenter.segment(cloud)
        result.labels[cloud.stamp_ns] = answer.labels
        for stage, milliseconds in {
            **answer.timings_ms,
            "inference": sum(answer.timings_ms.values()),
        }.items():
            timings.setdefault(stage, []).append(milliseconds)
    for stage, values in timings.items():
        low, high = np.percentile(values, (50, 95))
        result.stages_ms[stage] = (round(float(low), 2), round(float(high), 2))
    return result
