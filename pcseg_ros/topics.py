# SPDX-License-Identifier: Apache-2.0
"""Topics and services of the node. No ROS imports."""

from __future__ import annotations

from dataclasses import dataclass

POINTS = "points"
ODOMETRY = "odometry"
LABELED = "labeled_points"
TEACHER = "teacher_points"
OVERLAY = "overlay/{camera}"
LABEL_INFO = "label_info"
TIMES = "~/debug/{stage}_ms"
DIAGNOSTICS = "/diagnostics"
RESET = "~/reset"
ENABLE = "~/enable"

STAGES = ("wait", "queue", "decode", "motion", "inference", "fusion", "encode", "latency", "age")
"""Timed stages of a sweep; `latency` is their sum, `age` the time since the sweep's stamp."""


@dataclass(frozen=True)
class Topic:
    """One topic or service.

    Attributes:
        name: as given to rclpy; {camera} and {stage} are placeholders.
        kind: message or service type.
        direction: "in", "out" or "service".
        qos: delivery.
        text: content.
    """

    name: str
    kind: str
    direction: str
    qos: str
    text: str


_ADAPTS = "reliable if the publisher is, else best effort"
_SENSOR = f"{_ADAPTS}; newest only"
_LAZY = "reliable; computed only while subscribed"

TOPICS = (
    Topic(POINTS, "sensor_msgs/PointCloud2", "in", _SENSOR, "Sweeps: any fields with x, y, z"),
    Topic("(`cameras.topics`)", "sensor_msgs/Image or CompressedImage", "in", _SENSOR, "Images"),
    Topic("(`cameras.info_topics`)", "sensor_msgs/CameraInfo", "in", "best effort", "Calibration"),
    Topic("/tf, /tf_static", "tf2_msgs/TFMessage", "in", "reliable", "If tf2_ros is installed"),
    Topic(ODOMETRY, "nav_msgs/Odometry", "in", _ADAPTS, "If `motion.source` is odometry"),
    Topic(
        LABELED,
        "sensor_msgs/PointCloud2",
        "out",
        _LAZY,
        "The sweep: its fields, order, organization and header, with `label` (uint32, 65535 is "
        "unlabeled), `confidence` (float32), optionally `instance` (uint32), `rgb`, `entropy` and "
        "`p_CLASS`; or the fields of another `output.profile`",
    ),
    Topic(
        "(`clouds.names`)",
        "sensor_msgs/PointCloud2",
        "out",
        _LAZY,
        "Its points of some classes, unorganized; `filtered_points` by default",
    ),
    Topic(TEACHER, "sensor_msgs/PointCloud2", "out", _LAZY, "Labels of the camera teacher"),
    Topic(OVERLAY, "sensor_msgs/Image", "out", _LAZY, "Labels drawn over the camera's image"),
    Topic(LABEL_INFO, "vision_msgs/LabelInfo", "out", "reliable, latched", "Classes of `label`"),
    Topic(TIMES, "std_msgs/Float64", "out", _LAZY, "Stages: " + ", ".join(STAGES)),
    Topic(
        DIAGNOSTICS,
        "diagnostic_msgs/DiagnosticArray",
        "out",
        "reliable",
        "Rates, latency p50 and p95, age, drops by reason, faults, memory, device, engine "
        "(backend, instruction set, precision), checkpoint, intensity scale",
    ),
    Topic(RESET, "std_srvs/Trigger", "service", "", "Forget past sweeps, images, transforms"),
    Topic(ENABLE, "std_srvs/SetBool", "service", "", "Label sweeps, or ignore them"),
)
