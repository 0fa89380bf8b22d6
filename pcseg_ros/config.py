# SPDX-License-Identifier: Apache-2.0
"""Parameters of the segmentation node. No ROS imports.

`PipelineConfig` decides the labels; the node adds its inputs and outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, create_model, model_validator

from pcseg_core.body import read_body
from pcseg_core.config import LIVE, Section, parse_section
from pcseg_core.data.lidar_sets import MAX_LIDAR_OFFSET_S
from pcseg_core.errors import InputError
from pcseg_core.online.grid import GridConfig
from pcseg_core.online.pipeline_config import CameraUseConfig, MotionConfig, PipelineConfig
from pcseg_core.online.tracks import TrackRules
from pcseg_ros.output_parameters import (
    CloudsParameters,
    DefaultClouds,
    MovingParameters,
    Numbers,
    OutputParameters,
    TrackParameters,
    Words,
    clouds_section,
)

if TYPE_CHECKING:
    from pcseg_core.vision.pixel_classes import TeacherConfig


class PointsParameters(Section):
    """The sweeps: what of them is the robot itself, and how those of several LiDARs are united."""

    body: Annotated[Numbers, AfterValidator(read_body)] = Field(
        (),
        description="Box around the robot: x_min, y_min, z_min, x_max, y_max, z_max in the frame "
        "of the sweeps, m; returns in it are no surroundings: they stay unlabeled, and no other "
        "output has them; empty for none",
    )

    topics: Words = Field(
        (),
        description="Topics of several LiDARs (sensor_msgs/PointCloud2), whose sweeps are united; "
        "empty takes the topic points",
    )
    frame: str = Field(
        "", description="Frame of the united sweeps; empty takes that of the first LiDAR"
    )
    tolerance_s: float = Field(
        MAX_LIDAR_OFFSET_S,
        ge=0.0,
        le=1.0,
        description="Maximum time between the stamps of sweeps that are united, s",
    )
    deadline_s: float = Field(
        0.08,
        ge=0.0,
        le=10.0,
        description="Maximum time that a sweep waits for those of other LiDARs, s",
    )


class MonitorParameters(Section):
    """Checks the calibration of the cameras while the node runs."""

    period_s: float = Field(
        2.0,
        ge=0.0,
        le=60.0,
        description="Time between two sweeps whose images are compared with their depth edges, s; "
        "0 turns the monitor off",
    )
    images: int = Field(
        8, ge=3, le=64, description="Number of the newest images of a camera compared together"
    )
    max_rotation_deg: float = Field(
        0.5,
        gt=0.0,
        le=5.0,
        description="Warn if a camera seems turned by more than this since the first images, "
        "degrees; where the first estimates scatter, by more than twice their scatter",
    )


class CameraParameters(Section):
    """Image topics and how they are matched to sweeps."""

    topics: Words = Field(
        (),
        description="Image topics (sensor_msgs/Image, or CompressedImage if the name ends in "
        "/compressed); empty uses no cameras",
    )
    info_topics: Words = Field(
        (),
        description="CameraInfo topic of each image topic; empty takes camera_info in the "
        "namespace of the images",
    )
    calibration: str = Field(
        "",
        description="Calibration file (YAML) with the extrinsics and time offsets, and the "
        "intrinsics if there is no CameraInfo; empty takes the extrinsics from TF",
    )
    sync: Literal["nearest", "exact", "approximate"] = Field(
        "nearest",
        description="How images are matched to a sweep: nearest takes the nearest image of each "
        "camera and leaves out cameras that miss the deadline; exact and approximate "
        "(message_filters) label only sweeps with an image of every camera",
    )
    tolerance_s: float = Field(
        0.05, ge=0.0, le=10.0, description="Maximum time between a sweep and its images, s"
    )
    deadline_s: float = Field(
        0.05, ge=0.0, le=10.0, description="Maximum time that a sweep waits for its images, s"
    )
    monitor: MonitorParameters = Field(MonitorParameters(), description="Calibration monitor")


class MotionParameters(MotionConfig):
    """Source of the motion of the platform."""

    renamed: ClassVar[dict[str, str]] = {"stamp_is": "stamp_reference"}

    source: Literal["auto", "tf", "odometry", "none"] = Field(
        "auto",
        description="Motion of the platform: tf, odometry (topic odometry, nav_msgs/Odometry), or "
        "none for a platform that stands still; auto takes tf if tf2_ros is installed",
    )
    fixed_frame: str = Field(
        "odom",
        min_length=1,
        description="Frame in /tf without jumps in which the platform moves (REP-105)",
    )
    timeout_s: float = Field(
        0.1, ge=0.0, le=5.0, description="Maximum time that a sweep waits for late transforms, s"
    )


class TeacherParameters(CameraUseConfig):
    """The camera teacher at run time."""

    renamed: ClassVar[dict[str, str]] = {"trust": "camera_weight"}

    config: str = Field(
        "",
        description="Teacher of any kind, whose labels are published on teacher_points: a block as "
        "in recipes, in braces, or the path of a YAML file with it; empty takes weights",
    )
    weights: str = Field(
        "",
        description="Weights of an ESPNetv2 (safetensors); bundled:simulation_teacher is trained "
        "on simulated images; empty, with empty config, loads no teacher",
    )
    label_space: str = Field("cityscapes", description="Label space of the outputs of weights")
    scale: float = Field(
        1.0, gt=0.0, le=2.0, description="Factor by which images are resized for weights"
    )
    deadline_s: float = Field(
        0.15,
        ge=0.0,
        le=5.0,
        description="Time from the arrival of a sweep after which it is published without the "
        "teacher's classes, s",
    )

    def teacher_config(self) -> TeacherConfig | None:
        """The teacher as `pcseg_core.vision.pixel_classes.load_teacher` takes it, if any.

        Raises:
            InputError: a wrong block, or both `config` and `weights`.
        """
        if self.config and self.weights:
            raise InputError("give teacher.config or teacher.weights, not both")
        if self.config:
            from pcseg_core.vision.pixel_classes import read_teacher

            return read_teacher(self.config)
        if not self.weights:
            return None
        from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config  # imports torch

        values = {"weights": self.weights, "label_space": self.label_space}
        return ESPNetv2Config.model_validate({**values, "scales": [self.scale], "flip": False})


class NodeConfig(PipelineConfig):
    """Parameters of `segment_node`; see `node_section` for clouds of other names."""

    renamed: ClassVar[dict[str, str]] = {"filter_classes": "clouds.filtered_points.classes"}

    checkpoint: str = Field(
        "",
        description="Run directory of `pcseg distill`, a checkpoint file, or its URL; empty loads "
        "the bundled checkpoint, trained on simulated drives (57 % mIoU on real sweeps)",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where inference runs: auto, cpu, cuda or cuda:N",
    )
    backend: Literal["auto", "torch", "native", "triton", "torchsparse"] = Field(
        "auto", description="Implementation of the sparse convolutions"
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        "auto",
        description="Arithmetic of the network; int8 needs a checkpoint of `pcseg quantize`; auto "
        "takes fp16 on a GPU; on a CPU it measures fp32, bf16 and int8 and takes a less exact one "
        "if it is at least 1.1 times as fast",
    )
    autostart: bool = Field(
        True, description="Configure and activate at start, without a lifecycle manager"
    )
    intensity_scale: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Factor that maps the intensity to 0..1, for example 0.00392 for 0..255; 0 "
        "takes that of the checkpoint's training, else guesses one from the first sweeps",
    )
    input_reliability: Literal["auto", "reliable", "best_effort"] = Field(
        "auto",
        description="Reliability of the subscription to the sweeps; auto requests reliable, "
        "and best effort while a publisher offers no more",
    )
    diagnostics_period_s: float = Field(
        1.0, ge=0.1, le=60.0, description="Time between two messages on /diagnostics, s"
    )
    max_age_s: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Drop sweeps whose stamp is older than this when inference would start, s; 0 "
        "drops none. Requires sensor stamps in the node's clock",
        json_schema_extra=LIVE,
    )
    prompts: Words = Field(
        (),
        description="Classes in words, for a checkpoint with a text head: one entry per class, "
        "'vehicle: car, truck, bus' for a group, '*' for everything else; empty at start keeps "
        "the classes of the checkpoint",
        json_schema_extra=LIVE,
    )
    publish_rgb: bool = Field(
        False, description="Add the class color as the field rgb", json_schema_extra=LIVE
    )
    publish_instances: bool = Field(
        False,
        description="Add the field instance, which numbers connected points of one of "
        "instance_classes from 1; 0 is no instance; numbers change from sweep to sweep without "
        "tracks.enabled",
        json_schema_extra=LIVE,
    )
    instance_classes: Words = Field(
        ("vehicle", "person"), description="Classes with instances", json_schema_extra=LIVE
    )
    instance_cell_m: float = Field(
        0.3,
        ge=0.05,
        le=5.0,
        description="Edge of the ground plane cells whose neighbors are connected, m",
        json_schema_extra=LIVE,
    )
    instance_min_points: int = Field(
        10, ge=1, description="Minimum number of points of an instance", json_schema_extra=LIVE
    )
    only_when_subscribed: bool = Field(
        True, description="Skip inference without subscribers", json_schema_extra=LIVE
    )
    output: OutputParameters = Field(OutputParameters(), description="Fields of the clouds")
    clouds: DefaultClouds = Field(DefaultClouds(), description="Named clouds")
    moving: MovingParameters = Field(MovingParameters(), description="What moves")
    tracks: TrackParameters = Field(TrackParameters(), description="Tracks of things")
    grid: GridConfig = Field(GridConfig(), description="Occupancy grid")
    points: PointsParameters = Field(PointsParameters(), description="The sweeps")
    cameras: CameraParameters = Field(CameraParameters(), description="Cameras")
    motion: MotionParameters = Field(MotionParameters(), description="Motion of the platform")
    teacher: TeacherParameters = Field(TeacherParameters(), description="Camera teacher")

    @model_validator(mode="after")
    def _check_profile(self) -> NodeConfig:
        wanted = {
            "publish_rgb": self.publish_rgb,
            "publish_instances": self.publish_instances,
            "output.entropy": self.output.entropy,
            "output.probabilities": self.output.probabilities,
        }
        further = [name for name, value in wanted.items() if value]
        if self.output.profile == "autoware" and further:
            raise ValueError(
                f"output.profile autoware has exactly six fields; turn off {', '.join(further)}, "
                "or take the profile append or minimal"
            )
        return self

    def thing_rules(self) -> TrackRules:
        """What has instances, and how it is tracked."""
        return TrackRules(
            self.instance_classes,
            self.instance_cell_m,
            self.instance_min_points,
            self.tracks.coast_s,
        )

    def recording_options(self) -> dict[str, Any]:
        """Arguments of `BagRecording` that open a bag with the inputs that the node would have.

        Topics are those of the bag: remappings of the node are not known here.
        """
        cameras, motion, points = self.cameras, self.motion, self.points
        lidars = ",".join(f"/{topic.lstrip('/')}" for topic in points.topics)
        return {
            **({"cloud_topic": lidars} if lidars else {}),
            "max_lidar_offset_s": points.tolerance_s,
            "united_frame": points.frame,
            "camera_topics": [f"/{topic.lstrip('/')}" for topic in cameras.topics],
            "calibration": cameras.calibration or None,
            "max_image_offset_s": cameras.tolerance_s,
            "poses": "recorded" if motion.source == "auto" else motion.source,
            "fixed_frame": motion.fixed_frame if motion.source == "tf" else None,
            "time_field": motion.time_field,
            "stamp_reference": motion.stamp_reference,
            "intensity_scale": self.intensity_scale,
        }


class _Named(Section):
    clouds: CloudsParameters = Field(CloudsParameters(), description="Named clouds")


def node_section(given: Mapping[str, Any], source: str = "parameters") -> type[NodeConfig]:
    """The section of the node with the clouds that its parameters name.

    Args:
        given: parameters by their dotted names.
        source: of the parameters, for messages.

    Raises:
        InputError: the names cannot be those of clouds.
    """
    if "clouds.names" not in given:
        return NodeConfig
    named = {"clouds": {"names": given["clouds.names"]}}
    return _section(parse_section(named, _Named, source).clouds.names)


@functools.cache
def _section(names: tuple[str, ...]) -> type[NodeConfig]:
    if names == DefaultClouds().names:
        return NodeConfig
    section = clouds_section(names)
    clouds = (section, Field(section(), description="Named clouds"))
    return create_model("NodeConfig", __base__=NodeConfig, clouds=clouds)
