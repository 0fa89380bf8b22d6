# SPDX-License-Identifier: Apache-2.0
"""Views: sweeps with what frozen image networks say of their images, kept on disk."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.data import Recording, Sample
from pcseg_core.distill.temporal import TemporalConfig, temporal_segments
from pcseg_core.errors import InputError, PcsegError, require
from pcseg_core.files import atomic_path, slug
from pcseg_core.labels import IGNORE
from pcseg_core.learning.pretrain_recipe import ViewConfig
from pcseg_core.projection import project_sample
from pcseg_core.vision.image_cache import SuperpixelCache, image_key
from pcseg_core.vision.pixel_features import PixelFeatures
from pcseg_core.vision.superpixels import SegmentMap, resize_ids, segments_at

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]
_FORMAT = 1
_FEW = 8


@dataclass
class CameraView:
    """One image: frozen features, segments and the points that it shows.

    Attributes:
        features: (D, h, w) float16; the map covers the whole image.
        mirrored: the same of the mirrored image, mirrored back; (0,) where not wanted.
        ids: (h, w) int32 segment of each pixel of the map, IGNORE for none.
        classes: (S,) int16 class of each segment, IGNORE for none.
        point: (P,) int32 points of the sweep that the camera sees.
        pixel: (P, 2) int16 row and column of each in the map.
        segment: (P,) int32 segment of each, read at the image's own resolution.
    """

    features: Array
    mirrored: Array
    ids: Array
    classes: Array
    point: Array
    pixel: Array
    segment: Array


@dataclass
class View:
    """A sweep with its images.

    Attributes:
        xyz: (N, 3) float32 finite points, LiDAR frame [m].
        intensity: (N,) float32 in 0..1, 0 where the source has none.
        pose: (4, 4) T_world_lidar, NaN without poses.
        cameras: at least one that sees points.
    """

    xyz: Array
    intensity: Array
    pose: Array
    cameras: list[CameraView]

    def save(self, path: Path) -> None:
        """Write as an uncompressed npz."""
        arrays: dict[str, Any] = {"xyz": self.xyz, "intensity": self.intensity, "pose": self.pose}
        for k, camera in enumerate(self.cameras):
            arrays |= {f"{k}_{name}": value for name, value in vars(camera).items()}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @staticmethod
    def load(path: Path) -> View:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        names = list(CameraView.__dataclass_fields__)
        count = sum(name.endswith("_ids") for name in arrays)
        cameras = [CameraView(*(arrays[f"{k}_{n}"] for n in names)) for k in range(count)]
        return View(arrays["xyz"], arrays["intensity"], arrays["pose"], cameras)


@dataclass(frozen=True)
class Entry:
    """Where a view is and where it belongs.

    Attributes:
        path: its file.
        scene: views of one scene share the world frame of their poses.
        number: place of the sweep in its drive.
        posed: whether it has a pose.
    """

    path: Path
    scene: str
    number: int
    posed: bool


@dataclass
class ViewMaker:
    """Makes the views of recordings, one file per sweep, so that it can be interrupted.

    Attributes:
        encoder: frozen features.
        superpixels: segments, from a generator or made before.
        config: projection.
        mirror: also keep the features of mirrored images.
        cache: folder of the files; several runs may share it.
        skipped: sweeps and images that could not be used, by reason.
    """

    encoder: PixelFeatures
    superpixels: SuperpixelCache
    config: ViewConfig
    mirror: bool
    cache: Path
    skipped: Counter[str] = field(default_factory=Counter)

    def make(self, recordings: Mapping[str, Recording], progress: Progress) -> list[Entry]:
        """Views of every usable sweep.

        Args:
            recordings: by the source they were opened from, which identifies them in the cache.
            progress: called with (stage, done, total).

        Raises:
            InputError: not one sweep is usable; the message counts the reasons.
        """
        total, done = sum(len(recording) for recording in recordings.values()), 0
        entries = []
        for source, recording in recordings.items():
            for index in range(len(recording)):
                done += 1
                try:
                    entries.append(self._entry(source, recording, index))
                except PcsegError as error:
                    self.skipped[f"sweep: {error}"] += 1
                progress("views", done, total)
        if not entries:
            reasons = "; ".join(f"{n}x {r}" for r, n in self.skipped.most_common(5))
            raise InputError(f"none of the {total} sweeps can be used: {reasons}")
        return entries

    def _entry(self, source: str, recording: Recording, index: int) -> Entry:
        path = self.cache / "views" / f"{slug(recording.name)}-{index:06d}-{self._key(source)}.npz"
        pose = stored_pose(path)
        if pose is None:
            view = self.look(recording[index], recording.name)
            view.save(path)
            pose = view.pose
        posed = bool(np.isfinite(pose).all())
        return Entry(path, f"{source}/{recording.scenes[index]}", index, posed)

    def _key(self, source: str) -> str:
        parts = {
            "source": source,
            "encoder": [self.encoder.name, self.encoder.parameters],
            "superpixels": self.superpixels.manifest["hash"],
            "config": self.config.model_dump(mode="json", exclude={"min_points"}),
            "mirror": self.mirror,
            "format": _FORMAT,
        }
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def look(self, sample: Sample, source: str) -> View:
        """The view of one sample.

        Raises:
            InputError: no finite points, no camera, or no camera that sees points.
        """
        cloud = sample.cloud
        finite = cloud.finite
        if not finite.any():
            raise InputError("no finite points")
        if not sample.cameras:
            raise InputError("no camera has an image")
        position = np.full(len(cloud), IGNORE, np.int32)
        position[finite] = np.arange(finite.sum(), dtype=np.int32)
        cameras = []
        for k in range(len(sample.cameras)):
            try:
                cameras.append(self._camera(sample, k, position, source))
            except PcsegError as error:
                self.skipped[f"image of {sample.cameras[k].name}: {error}"] += 1
        if not cameras:
            raise InputError("no camera sees any point")
        intensity = cloud.intensity if cloud.intensity is not None else np.zeros(len(cloud))
        pose = sample.T_world_lidar
        return View(
            np.ascontiguousarray(cloud.xyz[finite], np.float32),
            np.nan_to_num(intensity[finite]).astype(np.float32),
            np.full((4, 4), np.nan) if pose is None else pose,
            cameras,
        )

    def _camera(self, sample: Sample, k: int, position: Array, source: str) -> CameraView:
        frame = sample.cameras[k]
        projection = project_sample(
            sample, k, splat_radius_px=self.config.splat_radius_px, border_px=self.config.border_px
        )
        seen = np.flatnonzero(projection.visible & (projection.weight >= self.config.min_weight))
        seen = seen[position[seen] != IGNORE]
        if len(seen) == 0:
            raise InputError("it sees no point of the sweep")
        image = frame.image
        if image.size == 0:
            raise InputError("the image is empty")
        load = partial(getattr, frame, "image")
        segments = self.superpixels.get(source, image_key(sample, k), load)
        features = self._features(image)
        mirrored = np.zeros(0, np.float16)
        if self.mirror:
            mirrored = self._features(np.ascontiguousarray(image[:, ::-1]))[:, :, ::-1]
        size = (frame.camera.width, frame.camera.height)
        return CameraView(
            features,
            np.ascontiguousarray(mirrored),
            *_at_map(segments, features.shape[1:]),
            position[seen],
            map_pixels(projection.uv[seen], size, features.shape[1:]),
            segments_at(segments.ids, projection.uv[seen], size),
        )

    def _features(self, image: Array) -> Array:
        values = self.encoder.features(image)
        factor = int(self.config.stride_px * values.shape[1] / image.shape[0])
        limit = float(np.finfo(np.float16).max)
        return np.clip(average_down(values, factor), -limit, limit).astype(np.float16)


def _at_map(segments: SegmentMap, size: tuple[int, ...]) -> tuple[Array, Array]:
    classes = segments.classes
    if classes is None:
        classes = np.full(segments.count, IGNORE, np.int16)
    return resize_ids(segments.ids, *size), classes


def average_down(values: Array, factor: int) -> Array:
    """Means of (D, h, w) over blocks; sides are first cut to multiples of the factor by nearest
    pixel, so that the map still covers the whole image."""
    if factor <= 1:
        return values
    depth, height, width = values.shape
    rows, columns = max(1, height // factor), max(1, width // factor)
    row = ((np.arange(rows * factor) + 0.5) * height / (rows * factor)).astype(np.intp)
    column = ((np.arange(columns * factor) + 0.5) * width / (columns * factor)).astype(np.intp)
    cut = values[:, row][:, :, column]
    means: Array = cut.reshape(depth, rows, factor, columns, factor).mean((2, 4))
    return means


def map_pixels(uv: Array, size: tuple[int, int], shape: tuple[int, ...]) -> Array:
    """(P, 2) int16 row and column, in a map of (h, w), of pixels of an image of (width, height)."""
    scale = np.array([shape[1] / size[0], shape[0] / size[1]])
    place = np.floor((uv + 0.5) * scale).astype(np.int64)
    place = np.clip(place, 0, [shape[1] - 1, shape[0] - 1])
    return np.ascontiguousarray(place[:, ::-1]).astype(np.int16)


def stored_pose(path: Path) -> Array | None:
    """The pose inside a stored view; None where there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            pose: Array = stored["pose"]
            return pose
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def partners(entries: list[Entry], gap: int) -> dict[int, int]:
    """The entry `gap` sweeps later in the same scene, for those that have one, both with poses."""
    place = {(e.scene, e.number): i for i, e in enumerate(entries) if e.posed}
    return {
        i: place[e.scene, e.number + gap]
        for i, e in enumerate(entries)
        if e.posed and (e.scene, e.number + gap) in place
    }


def make_segments(
    entries: list[Entry], config: TemporalConfig, cache: Path, progress: Progress
) -> dict[int, Path]:
    """Segments of every sweep and its partner (or of it alone), one file each, in parallel.

    Returns:
        By entry, a file of `now` and `then` (see `temporal_segments`); `then` is empty for
        entries without partner.
    """
    joblib = require("joblib", "cluster")

    pairs = partners(entries, config.gap)
    key = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:8]
    files = {
        i: cache / "segments" / f"{entry.path.stem}-{key}.npz" for i, entry in enumerate(entries)
    }
    missing = [i for i, file in files.items() if not file.is_file()]
    jobs = (
        joblib.delayed(_write_segments)(
            entries[i].path, entries[pairs[i]].path if i in pairs else None, config, files[i]
        )
        for i in missing
    )
    # Starting processes takes longer than a few sweeps do.
    workers = -1 if len(missing) > _FEW else 1
    for done, _ in enumerate(joblib.Parallel(n_jobs=workers, return_as="generator")(jobs)):
        progress("segments", done + 1, len(missing))
    return files


def _write_segments(now: Path, then: Path | None, config: TemporalConfig, file: Path) -> None:
    views = [View.load(path) for path in (now, then) if path is not None]
    poses = [view.pose if then else np.eye(4) for view in views]
    ids = temporal_segments([view.xyz for view in views], poses, config)
    second = ids[1] if then else np.zeros(0, np.int32)
    with atomic_path(file) as temporary, temporary.open("wb") as handle:
        np.savez(handle, now=ids[0].astype(np.int16), then=second.astype(np.int16))
