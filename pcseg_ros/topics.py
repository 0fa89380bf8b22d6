# SPDX-License-Identifier: Apache-2.0
"""Topics and services of the node. No ROS imports."""

from __future__ import annotations

from dataclasses import dataclass

POINTS = "points"
ODOMETRY = "odometry"
LABELED = "labeled_points"
LABELED_PART = "labeled_points/{lidar}"
TEACHER = "teacher_points"
OVERLAY = "overlay/{camera}"
LABEL_INFO = "label_info"
LABEL_IMAGE = "label_image"
CONFIDENCE_IMAGE = "confidence_image"
LABEL_IMAGE_INFO = "label_image_info"
GRID = "grid"
STATIC = "static_points"
MOVING = "moving_points"
TRACKS = "tracks"
TRACK_BOXES = "track_boxes"
TRACK_MARKERS = "track_markers"
LEGEND = "legend"
LEGEND_SCENE = "legend_scene"
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
        name: as given to rclpy; {camera}, {lidar} and {stage} are placeholders.
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
_LATCHED = "reliable, latched"

TOPICS = (
    Topic(POINTS, "sensor_msgs/PointCloud2", "in", _SENSOR, "Sweeps: any fields with x, y, z"),
    Topic(
        "(`points.topics`)",
        "sensor_msgs/PointCloud2",
        "in",
        _SENSOR,
        "Sweeps of several LiDARs instead, which are united",
    ),
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
        "unlabeled), `confidence` (float32), optionally `instance` (uint32, the track with "
        "`tracks.enabled`), `moving` (uint8), `rgb`, `entropy` and `p_CLASS`; or the fields of "
        "another `output.profile`",
    ),
    Topic(
        LABELED_PART,
        "sensor_msgs/PointCloud2",
        "out",
        _LAZY,
        "The sweep of one of several LiDARs as it came, with the same fields; `labeled_points` is "
        "then the united sweep, with `source` (uint8), the number of the LiDAR",
    ),
    Topic(
        "(`clouds.names`)",
        "sensor_msgs/PointCloud2",
        "out",
        _LAZY,
        "Its points of some classes, unorganized; `filtered_points` by default",
    ),
    Topic(STATIC, "sensor_msgs/PointCloud2", "out", _LAZY, "Its static points; `moving.enabled`"),
    Topic(MOVING, "sensor_msgs/PointCloud2", "out", _LAZY, "Its moving points; `moving.enabled`"),
    Topic(
        TRACKS,
        "sensor_msgs/PointCloud2",
        "out",
        _LAZY,
        "A point for each tracked vehicle and person: its box, velocity, id and class; "
        "`tracks.enabled`",
    ),
    Topic(
        TRACK_BOXES,
        "vision_msgs/Detection3DArray",
        "out",
        _LAZY,
        "The boxes of those that the sweep sees, if vision_msgs is installed",
    ),
    Topic(
        TRACK_MARKERS,
        "visualization_msgs/MarkerArray",
        "out",
        _LAZY,
        "Outlines, ids and velocities of all, if visualization_msgs is installed",
    ),
    Topic(TEACHER, "sensor_msgs/PointCloud2", "out", _LAZY, "Labels of the camera teacher"),
    Topic(OVERLAY, "sensor_msgs/Image", "out", _LAZY, "Labels drawn over the camera's image"),
    Topic(LABEL_INFO, "vision_msgs/LabelInfo", "out", _LATCHED, "Classes of `label`"),
    Topic(
        LABEL_IMAGE,
        "sensor_msgs/Image",
        "out",
        _LAZY,
        "Class ids of an organized cloud, pixel by pixel (mono8, 255 is unlabeled; mono16 and "
        "65535 for more than 255 classes)",
    ),
    Topic(CONFIDENCE_IMAGE, "sensor_msgs/Image", "out", _LAZY, "Its confidences (mono8, 0 to 255)"),
    Topic(LABEL_IMAGE_INFO, "vision_msgs/LabelInfo", "out", _LATCHED, "Classes of `label_image`"),
    Topic(
        GRID,
        "nav_msgs/OccupancyGrid",
        "out",
        "reliable, latched; computed only while subscribed",
        "Costs around the sensor: 0 free to 100 occupied, -1 unknown",
    ),
    Topic(
        LEGEND,
        "visualization_msgs/MarkerArray",
        "out",
        _LATCHED,
        "Class names in their colors above the sensor, if visualization_msgs is installed",
    ),
    Topic(
        LEGEND_SCENE,
        "foxglove_msgs/SceneUpdate",
        "out",
        _LATCHED,
        "The same, if foxglove_msgs is installed",
    ),
    Topic(TIMES, "std_msgs/Float64", "out", _LAZY, "Stages: " + ", ".join(STAGES)),
    Topic(
        DIAGNOSTICS,
        "diagnostic_msgs/DiagnosticArray",
        "out",
        "reliable",
        "Rates, latency p50 and p95, age, drops by reason, faults, memory, device, engine "
        "(backend, instruction set, precision), checkpoint, intensity scale, calibration; of "
        "several LiDARs rate, age, missed sweeps and clock offset",
    ),
    Topic(RESET, "std_srvs/Trigger", "service", "", "Forget past sweeps, images, transforms"),
    Topic(ENABLE, "std_srvs/SetBool", "service", "", "Label sweeps, or ignore them"),
)
