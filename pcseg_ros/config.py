# SPDX-License-Identifier: Apache-2.0
"""Configuration of the segmentation node: the source of its ROS parameters. No ROS imports."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from pcseg_core.config import Section
from pcseg_core.online.temporal import TemporalBufferConfig

# Marks a field that may change while the node runs; all others become read-only parameters.
LIVE: dict[str, Any] = {"live": True}


def _without_empty(values: Any) -> Any:
    return [v for v in values if v != ""] if isinstance(values, (list, tuple)) else values


# ROS parameter files cannot hold an empty array, whose type would not be known; [""] stands for it.
Words: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_without_empty)]


class CameraParameters(Section):
    """Cameras beside the LiDAR."""

    topics: Words = Field(
        (),
        description="Image topics: sensor_msgs/Image, or CompressedImage where the name ends in "
        "/compressed; empty runs without cameras",
    )
    info_topics: Words = Field(
        (), description="CameraInfo topic of each image topic; empty takes camera_info beside them"
    )
    calibration: str = Field(
        "",
        description="Calibration file (YAML) with the extrinsics, and intrinsics where there is no "
        "CameraInfo; empty takes the extrinsics from TF",
    )
    sync: Literal["nearest", "exact", "approximate"] = Field(
        "nearest",
        description="Which images belong to a sweep: the nearest ones, going on at the deadline "
        "without those that are missing; or exact and approximate of message_filters, which label "
        "only sweeps that all cameras have an image for",
    )
    tolerance_s: float = Field(
        0.05, ge=0.0, le=10.0, description="Greatest time between a sweep and its images, s"
    )
    deadline_s: float = Field(
        0.05, ge=0.0, le=10.0, description="How long a sweep waits for its images, s"
    )


class MotionParameters(Section):
    """Where the motion of the platform comes from."""

    source: Literal["auto", "tf", "odometry", "none"] = Field(
        "auto",
        description="Motion of the platform: tf, odometry (topic odometry, nav_msgs/Odometry) or "
        "none, for a rig that stands still; auto takes tf where tf2_ros is installed",
    )
    fixed_frame: str = Field(
        "odom", description="Frame in /tf without jumps in which the platform moves (REP-105)"
    )
    timeout_s: float = Field(
        0.1,
        ge=0.0,
        le=5.0,
        description="How long a sweep waits for transforms that are on their way, s",
    )
    required: bool = Field(
        False,
        description="Drop sweeps whose motion is not known, instead of labeling them without "
        "deskewing and smoothing",
    )
    deskew: bool = Field(
        False, description="Correct the points for the motion within the sweep by their times"
    )
    time_field: str = Field(
        "auto", description="Field with the time of each point; auto knows the usual names"
    )
    stamp_reference: Literal["auto", "start", "mid", "end"] = Field(
        "auto", description="Which moment of the sweep its stamp marks"
    )


class TemporalParameters(TemporalBufferConfig):
    """Labels smoothed over time."""

    enabled: bool = Field(
        False, description="Fuse the classes of the last seconds; needs the motion of the platform"
    )


class TeacherParameters(Section):
    """The camera teacher at run time."""

    weights: str = Field(
        "",
        description="Weights of an ESPNetv2 (safetensors) whose projected labels are published on "
        "teacher_points beside the node's own (label mode); bundled:simulation_teacher knows "
        "simulated images; empty for no teacher",
    )
    label_space: str = Field("cityscapes", description="Label space of its outputs")
    scale: float = Field(1.0, gt=0.0, le=2.0, description="Image scale that it works at")
    fuse: bool = Field(
        False,
        description="Fuse what it sees with the node's own classes, where it is done before "
        "deadline_s; sweeps never wait longer",
    )
    deadline_s: float = Field(
        0.15, ge=0.0, le=5.0, description="Time from a sweep's arrival that it may wait for it, s"
    )
    camera_weight: float = Field(
        1.0,
        ge=0.0,
        le=4.0,
        description="Weight of a pixel's class beside that of the point; 1 takes both as sure",
    )


class NodeConfig(Section):
    """Parameters of `segment_node`."""

    checkpoint: str = Field(
        "",
        description="Run directory of `pcseg distill`, or a checkpoint file in it; empty takes the "
        "one that comes with the package, trained on simulated drives",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where inference runs: auto, cpu, cuda or cuda:N",
    )
    backend: Literal["auto", "torch", "native", "triton", "torchsparse"] = Field(
        "auto", description="Implementation of the sparse convolutions"
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto",
        description="Arithmetic of the network; auto takes fp16 on a GPU, bf16 where the CPU "
        "multiplies it itself (avx512_bf16), else fp32",
    )
    autostart: bool = Field(
        True, description="Configure and activate at start, without waiting for a lifecycle manager"
    )
    intensity_scale: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Factor that brings the intensity to 0..1, for example 0.00392 for 0..255; "
        "0 guesses it from every sweep",
    )
    input_reliability: Literal["auto", "reliable", "best_effort"] = Field(
        "auto",
        description="Delivery asked of the publishers of the sweeps; auto asks for reliable and "
        "takes best effort where a publisher offers no more",
    )
    diagnostics_period_s: float = Field(
        1.0, ge=0.1, le=60.0, description="Time between two messages on /diagnostics, s"
    )
    min_confidence: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Points labeled with less confidence become unlabeled (65535)",
        json_schema_extra=LIVE,
    )
    max_age_s: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Sweeps whose stamp is older than this when inference would start are "
        "dropped, s; 0 drops none. Needs sensor stamps in the node's clock",
        json_schema_extra=LIVE,
    )
    prompts: Words = Field(
        (),
        description="Classes in words, for a checkpoint that knows words: one entry a class, "
        "'vehicle: car, truck, bus' for a group, '*' for everything else; empty at the start takes "
        "the classes of the checkpoint",
        json_schema_extra=LIVE,
    )
    publish_rgb: bool = Field(
        False, description="Add the class color as the field rgb", json_schema_extra=LIVE
    )
    publish_instances: bool = Field(
        False,
        description="Add the field instance: points of instance_classes that touch each other have "
        "one number, 0 is none; numbers are not tracked from sweep to sweep",
        json_schema_extra=LIVE,
    )
    instance_classes: Words = Field(
        ("vehicle", "person"), description="Classes that have instances", json_schema_extra=LIVE
    )
    instance_cell_m: float = Field(
        0.3,
        ge=0.05,
        le=5.0,
        description="Edge of the cells of the ground plane whose neighbors touch, m",
        json_schema_extra=LIVE,
    )
    instance_min_points: int = Field(
        10, ge=1, description="Smaller clusters are no instance", json_schema_extra=LIVE
    )
    filter_classes: Words = Field(
        (),
        description="Classes of the points on filtered_points; empty takes all labeled points",
        json_schema_extra=LIVE,
    )
    only_when_subscribed: bool = Field(
        True, description="Skip inference while nobody subscribes", json_schema_extra=LIVE
    )
    cameras: CameraParameters = Field(CameraParameters(), description="Cameras")
    motion: MotionParameters = Field(MotionParameters(), description="Motion of the platform")
    temporal: TemporalParameters = Field(TemporalParameters(), description="Smoothing over time")
    teacher: TeacherParameters = Field(TeacherParameters(), description="Camera teacher")
