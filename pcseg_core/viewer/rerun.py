# SPDX-License-Identifier: Apache-2.0
"""Sweeps of recordings and runs as views, and views as a Rerun recording.

`recording_views` and `run_views` make views of any source; `record` makes a Rerun recording of
views, and `pcseg_core.viewer.picture.draw` a picture of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError, require
from pcseg_core.evaluation import pictures
from pcseg_core.files import atomic_path
from pcseg_core.geometry import invert
from pcseg_core.labels import LabelSpace, grouping, regroup
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.projection import project_sample

if TYPE_CHECKING:
    from pcseg_core.camera import CameraModel
    from pcseg_core.data import Recording, Sample

Array = npt.NDArray[Any]

_NO_CLASS = 65535  # class id of points without a label in a Rerun recording


@dataclass
class CameraView:
    """An image and the points in its view.

    Attributes:
        name: name of the camera.
        image: (H, W, 3) uint8 RGB.
        camera: model of the image.
        T_lidar_cam: (4, 4) pose of the camera in the LiDAR frame of the sweep.
        index: (M,) positions of the visible points in the sweep.
        uv: (M, 2) their pixels.
    """

    name: str
    image: npt.NDArray[np.uint8]
    camera: CameraModel
    T_lidar_cam: Array
    index: Array
    uv: Array


@dataclass
class View:
    """A sweep to show.

    Attributes:
        name: name of the sample.
        stamp_ns: its stamp [ns].
        xyz: (N, 3) finite points, LiDAR frame [m].
        intensity: (N,) 0..1, or None.
        labels: (N,) class ids to show, IGNORE for none; None for an unlabeled sweep.
        confidence: (N,) 0..1, or None.
        truth: (N,) class ids that the labels are compared with, or None.
        truth_name: "truth" or "pseudo labels".
        pose: (4, 4) T_world_lidar, or None.
        cameras: images.
    """

    name: str
    stamp_ns: int
    xyz: Array
    intensity: Array | None = None
    labels: Array | None = None
    confidence: Array | None = None
    truth: Array | None = None
    truth_name: str = "truth"
    pose: Array | None = None
    cameras: list[CameraView] = field(default_factory=list)

    def layers(self, palette: npt.NDArray[np.uint8]) -> dict[str, pictures.Colors]:
        """Colors (N, 3) by what is known: label, truth, error, confidence; else the raw points."""
        layers = {}
        if self.labels is not None:
            layers["label"] = pictures.label_colors(self.labels, palette)
        if self.labels is not None and self.truth is not None:
            layers["truth"] = pictures.label_colors(self.truth, palette)
            layers["error"] = pictures.error_colors(self.labels, self.truth)
        if self.confidence is not None:
            shown = np.where(self.confidence > 0, self.confidence, np.nan)
            layers["confidence"] = pictures.scalar_colors(shown, 0, 1, "viridis")
        if not layers:
            layers["height"] = pictures.scalar_colors(self.xyz[:, 2], -2.5, 4.0)
            if self.intensity is not None and len(self.intensity):
                top = float(np.quantile(self.intensity, 0.98))
                layers["intensity"] = pictures.scalar_colors(self.intensity, 0, top, "viridis")
        return layers


def recording_views(
    recording: Recording,
    space: LabelSpace | None,
    pipeline: Pipeline | None,
    indices: Iterable[int],
) -> Iterator[View]:
    """Views of samples of a recording.

    Args:
        recording: any recording.
        space: label space of the labels; None shows no labels.
        pipeline: labels the sweeps; the recording's own labels then are the truth.
        indices: of the samples.
    """
    if pipeline is not None:
        pipeline.match_intensities(recording)
    for index in indices:
        yield sample_view(recording[index], space, pipeline)


def sample_view(sample: Sample, space: LabelSpace | None, pipeline: Pipeline | None) -> View:
    """View of one sample; see `recording_views`."""
    cloud = sample.cloud
    given = _given_labels(sample, space)
    confidence = cloud.extra.get("confidence")
    labels, truth = given, None
    if pipeline is not None and space is not None:
        labeled = pipeline.process(Sweep.of(sample))
        labels = regroup(labeled.labels, grouping(labeled.label_space, space))
        confidence, truth = labeled.confidence, given
    kept = np.flatnonzero(cloud.finite)

    def take(values: Array | None) -> Array | None:
        return None if values is None else values[kept]

    return View(
        name=sample.name,
        stamp_ns=sample.stamp_ns,
        xyz=cloud.xyz[kept],
        intensity=take(cloud.intensity),
        labels=take(labels),
        confidence=take(confidence),
        truth=take(truth),
        pose=sample.T_world_lidar,
        cameras=[_camera_view(sample, k, kept) for k in range(len(sample.cameras))],
    )


def _given_labels(sample: Sample, space: LabelSpace | None) -> Array | None:
    if sample.labels is None or space is None:
        return None
    if sample.label_space is None:
        return np.asarray(sample.labels, np.int64)
    return regroup(sample.labels, grouping(sample.label_space, space))


def _camera_view(sample: Sample, k: int, kept: Array) -> CameraView:
    frame = sample.cameras[k]
    projection = project_sample(sample, k)
    seen = np.flatnonzero(projection.visible[kept])
    T_lidar_cam = invert(sample.T_cam_lidar(k))
    uv = projection.uv[kept][seen]
    return CameraView(frame.name, frame.image, frame.camera, T_lidar_cam, seen, uv)


def run_views(
    run: Path, pipeline: Pipeline | None, indices: Iterable[int] | None = None
) -> Iterator[View]:
    """Views of the pseudo-labeled sweeps that a run was trained on.

    With a pipeline its labels are shown, and the pseudo labels are the truth.

    Raises:
        InputError: the run has no pseudo labels.
    """
    from pcseg_core.cloud import PointCloud
    from pcseg_core.evaluation.baselines import PseudoLabels

    pseudo = PseudoLabels(run)
    for index in range(len(pseudo)) if indices is None else indices:
        xyz, intensity = pseudo.points(index)
        labels, confidence = pseudo.labels(index), pseudo.confidence(index)
        view = View(pseudo.files[index].stem, index * 10**8, xyz, intensity, labels, confidence)
        if pipeline is not None:
            labeled = pipeline.process(Sweep(PointCloud(xyz, intensity=intensity)))
            view.labels, view.confidence = labeled.labels, labeled.confidence
            view.truth, view.truth_name = labels, "pseudo labels"
        yield view


def record(
    views: Iterable[View],
    space: LabelSpace | None,
    path: Path | None,
    *,
    name: str = "pcseg",
    max_points: int = 60_000,
) -> int:
    """Write views as a Rerun recording, or show them in the Rerun viewer.

    Args:
        views: in the order of time.
        space: classes of the labels.
        path: .rrd file, written atomically; None opens the viewer.
        name: name of the recording.
        max_points: sweeps with more points are subsampled evenly.

    Returns:
        Number of views.

    Raises:
        MissingDependency: rerun-sdk is not installed.
    """
    rr = require("rerun", "viewer")
    if path is None:
        stream = rr.RecordingStream(name)
        stream.spawn()
        return _record_all(rr, stream, views, space, max_points)
    with atomic_path(path) as temporary:
        stream = rr.RecordingStream(name)
        stream.save(temporary)
        try:
            return _record_all(rr, stream, views, space, max_points)
        finally:
            stream.disconnect()  # flushes


def _record_all(
    rr: Any, stream: Any, views: Iterable[View], space: LabelSpace | None, max_points: int
) -> int:
    _describe_classes(rr, stream, space)
    path: list[Array] = []
    start_ns, count = None, 0
    palette = space.palette if space is not None else np.zeros((0, 3), np.uint8)
    layers: dict[str, None] = {}  # ordered sets
    cameras: dict[str, None] = {}
    for view in views:
        start_ns = view.stamp_ns if start_ns is None else start_ns
        stream.set_time("time", duration=(view.stamp_ns - start_ns) / 1e9)
        stream.set_time("sweep", sequence=count)
        layers |= dict.fromkeys(_record_cloud(rr, stream, view, palette, max_points))
        for camera in view.cameras:
            _record_camera(rr, stream, view, camera)
            cameras[camera.name] = None
        if view.pose is not None:
            path.append(view.pose[:3, 3])
            strip = rr.LineStrips3D([np.array(path)], colors=[31, 111, 235])
            stream.log("world/trajectory", strip)
        count += 1
    if count == 0:
        raise InputError("nothing to show: no sample could be read")
    stream.send_blueprint(_blueprint(list(layers), list(cameras)))
    return count


def _blueprint(layers: list[str], cameras: list[str]) -> Any:
    """A tab for each layer, since all layers have the same points, and the images."""
    rrb = require("rerun.blueprint", "viewer")
    tabs = []
    for shown in layers:
        hidden = [f"- world/lidar/{name}" for name in layers if name != shown]
        contents = ["+ world/**", *hidden]
        tabs.append(rrb.Spatial3DView(origin="world", contents=contents, name=shown))
    space = rrb.Tabs(*tabs)
    if not cameras:
        return rrb.Blueprint(space)
    images = [rrb.Spatial2DView(origin=f"images/{name}", name=name) for name in cameras]
    return rrb.Blueprint(rrb.Horizontal(space, rrb.Vertical(*images), column_shares=[3, 2]))


def _describe_classes(rr: Any, stream: Any, space: LabelSpace | None) -> None:
    stream.log("/", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    if space is None:
        return
    classes = [(c.id, c.name, c.color) for c in space.classes]
    stream.log(
        "/", rr.AnnotationContext([*classes, (_NO_CLASS, "none", (200, 200, 204))]), static=True
    )


def _record_cloud(
    rr: Any, stream: Any, view: View, palette: npt.NDArray[np.uint8], max_points: int
) -> list[str]:
    """Log the cloud once per layer, labels as class ids with names; the names of the layers."""
    if view.pose is not None:
        motion = rr.Transform3D(translation=view.pose[:3, 3], mat3x3=view.pose[:3, :3])
        stream.log("world/lidar", motion)
    step = max(1, -(-len(view.xyz) // max_points))
    xyz = view.xyz[::step]
    radius = rr.Radius.ui_points(1.5)
    layers = view.layers(palette)
    for name, colors in layers.items():
        ids = {"label": view.labels, "truth": view.truth}.get(name)
        if ids is not None:
            classes = np.where(ids < 0, _NO_CLASS, ids)[::step].astype(np.uint16)
            points = rr.Points3D(xyz, class_ids=classes, radii=radius)
        else:
            shades = np.round(255 * colors[::step]).astype(np.uint8)
            points = rr.Points3D(xyz, colors=shades, radii=radius)
        stream.log(f"world/lidar/{name}", points)
    return list(layers)


def _record_camera(rr: Any, stream: Any, view: View, seen: CameraView) -> None:
    """Log the image with its points, and the pose of the camera."""
    place = f"world/lidar/cameras/{seen.name}"
    motion = rr.Transform3D(translation=seen.T_lidar_cam[:3, 3], mat3x3=seen.T_lidar_cam[:3, :3])
    model = seen.camera
    pinhole = rr.Pinhole(image_from_camera=model.K, width=model.width, height=model.height)
    stream.log(place, motion, pinhole)
    stream.log(f"images/{seen.name}", rr.Image(seen.image).compress(jpeg_quality=85))
    radius = rr.Radius.ui_points(2.0)
    if view.labels is not None:
        labels = view.labels[seen.index]
        classes = np.where(labels < 0, _NO_CLASS, labels).astype(np.uint16)
        points = rr.Points2D(seen.uv, class_ids=classes, radii=radius)
    else:
        reach = np.linalg.norm(view.xyz[seen.index], axis=1)
        shades = np.round(255 * pictures.scalar_colors(reach, 2, 40)).astype(np.uint8)
        points = rr.Points2D(seen.uv, colors=shades, radii=radius)
    stream.log(f"images/{seen.name}/points", points)
