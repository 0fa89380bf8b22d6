# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 node as the evaluation uses it: its parameter file, and replays of bags to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pcseg_core.bundled import BUNDLED
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.data import open_recording
from pcseg_core.errors import InputError, MissingDependency
from pcseg_core.evaluation.methods import Prediction
from pcseg_core.labels import LabelSpace
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.pipeline_config import PipelineConfig
from pcseg_core.online.segmenter import Precision, Segmenter
from pcseg_core.progress import tracked

if TYPE_CHECKING:
    from pcseg_core.vision.pixel_classes import TeacherConfig

PLUGIN_GROUP = "pcseg.plugins"
"""Entry points of this group connect the node: `replay` is a `Replay` over DDS, and `parameters`
maps the path of a ROS parameter file to a `PipelineConfig` that is also `NodeParameters`."""


class TeacherParameters(Protocol):
    """The teacher in the parameters of the node."""

    def teacher_config(self) -> TeacherConfig | None:
        """The teacher; None if no weights are given."""


class NodeParameters(Protocol):
    """The part of `pcseg_ros.config.NodeConfig` that the evaluation reads."""

    @property
    def checkpoint(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def backend(self) -> str: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def prompts(self) -> tuple[str, ...]: ...

    @property
    def teacher(self) -> TeacherParameters: ...

    def recording_options(self) -> Mapping[str, object]:
        """Options of the bag reader that open a bag with the inputs of the node."""


@dataclass(frozen=True)
class NodeSetup:
    """The settings of a node that decide its labels. The defaults are those of the node.

    Attributes:
        pipeline: settings of the pipeline.
        checkpoint, device, backend, precision: see `Segmenter.load`.
        teacher: labels the images; None for no teacher.
        prompts: classes in words; empty for the classes of the checkpoint.
        bag_options: options of the bag reader that make it decode and pair as the node does.
    """

    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    checkpoint: str = BUNDLED
    device: str = "auto"
    backend: str = "auto"
    precision: Precision = "auto"
    teacher: TeacherConfig | None = None
    prompts: tuple[str, ...] = ()
    bag_options: Mapping[str, object] = field(
        default_factory=lambda: {"intensity_scale": 0.0, "max_image_offset_s": 0.05}
    )

    def reader_options(self) -> dict[str, Any]:
        """`bag_options` with the input of the training, for `open_recording`.

        Raises:
            InputError: see `load_checkpoint`.
        """
        trained = load_checkpoint(Path(self.checkpoint))[1].inputs
        return {**self.bag_options, "trained": trained}


@dataclass
class ReplayResult:
    """Labels that came back for the sweeps of a bag.

    Attributes:
        transport: "DDS" or "in process".
        sent: number of sweeps that were played.
        labels: stamp of the sweep [ns] -> (N,) int32 labels, IGNORE for none.
        dropped: reason -> number of sweeps without labels.
        stages_ms: stage -> median and 95th percentile [ms].
    """

    transport: str
    sent: int
    labels: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    stages_ms: dict[str, tuple[float, float]] = field(default_factory=dict)


LIDAR_OPTIONS = {
    "cloud_topic": "points.topics",
    "max_lidar_offset_s": "points.tolerance_s",
    "united_frame": "points.frame",
    "body": "points.body",
}
"""Options of the bag reader for the sweeps, and the parameters of the node with their meaning."""

OTHER_LIDARS = "united of other LiDARs"
"""Why labels of a sweep do not count: it has more or fewer points than in the bag."""


class Replay(Protocol):
    """Plays a bag to a node and collects its labels."""

    def __call__(
        self,
        bag: Path,
        checkpoint: Path,
        logs: Path,
        params: Path | None = None,
        lidars: Mapping[str, Any] | None = None,
    ) -> ReplayResult:
        """Play the sweeps.

        Args:
            bag: rosbag2.
            checkpoint: of the node.
            logs: folder for logs.
            params: ROS parameter file of the node.
            lidars: those of `LIDAR_OPTIONS` of the bag reader that are given: the node unites the
                same sweeps.
        """


@dataclass(eq=False)
class LiveMethod:
    """The labels of a node that a bag was played to; a `Method`."""

    name: str
    checkpoint: str
    label_space: LabelSpace
    result: ReplayResult
    live: bool = field(default=True, init=False)

    @property
    def dropped(self) -> Mapping[str, int]:
        """See `Method`."""
        return self.result.dropped

    @property
    def latency_ms(self) -> tuple[float, float] | None:
        """See `Method`; from arrival at the node to publication."""
        return self.result.stages_ms.get("latency")

    def predict(self, sweep: Sweep) -> Prediction | None:
        """See `Method`."""
        labels = self.result.labels.get(sweep.cloud.stamp_ns)
        if labels is not None and len(labels) != len(sweep.cloud):
            self.result.dropped[OTHER_LIDARS] = self.result.dropped.get(OTHER_LIDARS, 0) + 1
            return None
        return None if labels is None else Prediction(labels)


def find_replay() -> tuple[Replay, str]:
    """The replay over DDS and "", or the one in this process and why there is no node."""
    plugin = _plugin("replay")
    if plugin is None:
        return replay_in_process, "pcseg_ros is not installed"
    try:
        replay: Replay = plugin.load()
    except ImportError as error:
        return replay_in_process, f"ROS 2 is not installed ({error})"
    return replay, ""


def read_parameters(path: Path) -> NodeSetup:
    """The settings of a node in a ROS parameter file.

    Raises:
        InputError: no such file, or parameters that the node refuses.
        MissingDependency: pcseg_ros is not installed.
    """
    if not path.is_file():
        raise InputError(f"--params {path}: no such file")
    plugin = _plugin("parameters")
    if plugin is None:
        raise MissingDependency(
            "--params needs the parameters of the ROS 2 node, and pcseg_ros is not installed; in "
            "a clone run: pip install -e ."
        )
    read: Callable[[Path], NodeParameters] = plugin.load()
    config = read(path)
    assert isinstance(config, PipelineConfig)
    options = dict(config.recording_options())
    if not options.get("camera_topics") and not config.teacher.fuse:
        options.pop("camera_topics", None)  # the images may serve to measure the agreement
    return NodeSetup(
        pipeline=config,
        checkpoint=config.checkpoint or BUNDLED,
        device=config.device,
        backend=config.backend,
        precision=config.precision,
        teacher=config.teacher.teacher_config(),
        prompts=config.prompts,
        bag_options=options,
    )


def replay_in_process(
    bag: Path,
    checkpoint: Path,
    logs: Path,
    params: Path | None = None,
    lidars: Mapping[str, Any] | None = None,
) -> ReplayResult:
    """Label the sweeps of a bag with the pipeline of a node with default parameters; a `Replay`.

    Raises:
        InputError: `params` are given; evaluate the bag offline instead.
    """
    if params is not None:
        raise InputError(f"{params}: a replay in this process takes no parameters")
    pipeline = Pipeline(Segmenter.load(checkpoint))
    options: dict[str, Any] = {**NodeSetup().bag_options, "camera_topics": [], "poses": "none"}
    options |= lidars or {}
    recording = open_recording(f"bag:{bag}", trained=pipeline.trained_on, **options)
    result = ReplayResult("in process", len(recording))
    timings: dict[str, list[float]] = {}
    for index in tracked(range(len(recording)), "segmenting sweeps", len(recording)):
        labeled = pipeline.process(Sweep.of(recording[index]))
        result.labels[labeled.cloud.stamp_ns] = labeled.labels
        latency = sum(labeled.stages_ms.values())
        for stage, spent in {**labeled.stages_ms, "latency": latency}.items():
            timings.setdefault(stage, []).append(spent)
    for stage, values in timings.items():
        low, high = np.percentile(values, (50, 95))
        result.stages_ms[stage] = (round(float(low), 2), round(float(high), 2))
    return result


def _plugin(name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=PLUGIN_GROUP, name=name)), None)
