# SPDX-License-Identifier: Apache-2.0
"""Observations: sweeps, deskewed once, with the results of the image networks; cached on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pcseg_core import copies
from pcseg_core.data import Recording, Sample
from pcseg_core.data.account import grouped
from pcseg_core.distill.cache import MappedArray, SweepCache, read_arrays, write_arrays
from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.image_views import ImageView, ImageViewer
from pcseg_core.distill.pixels import PixelSampler, PointPixels
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig, gather_evidence, pixel_evidence
from pcseg_core.errors import InputError, PcsegError, may_pass
from pcseg_core.geometry import deskew
from pcseg_core.labels import IGNORE, LabelSpace, grouping, truth_of
from pcseg_core.vision.pixel_classes import PixelClasses

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
Part = TypeVar("Part")

_FORMAT = 2
_MAPPED = ("/image", "/text", "/features", "/mirrored")  # large arrays, left on disk


@dataclass
class Observation:
    """A sweep, deskewed once, with the results of image networks. Unused parts are None.

    Attributes:
        name: unique in a run.
        scene: observations of one scene share the world frame of their poses.
        index: place in the recording.
        xyz: (N, 3) float32 finite points as measured, LiDAR frame [m]; for the network.
        deskewed: (N, 3) float32 the same points corrected for the motion within the sweep, LiDAR
            frame at the sweep's stamp [m]; for everything across sweeps and cameras.
        intensity: (N,) float32 in 0..1, 0 where the source has none.
        pose: (4, 4) float64 T_world_lidar, NaN where the source has no poses.
        truth: (N,) int16 true classes, IGNORE for none.
        evidence: class evidence of the points that a camera sees.
        pixels: image features of the points that a camera sees.
        images: images with feature maps and segments; empty without.
    """

    name: str
    scene: str
    index: int
    xyz: Array
    deskewed: Array
    intensity: Array
    pose: Array
    truth: Array | None = None
    evidence: Evidence | None = None
    pixels: PointPixels | None = None
    images: tuple[ImageView, ...] = ()

    @property
    def posed(self) -> bool:
        """Whether the pose is known."""
        return bool(np.isfinite(self.pose).all())

    def save(self, path: Path) -> None:
        """Write all arrays to one file, atomically."""
        arrays = dict(flat_arrays(self))
        if self.deskewed is self.xyz:
            del arrays["deskewed"]
        write_arrays(path, arrays)


@dataclass(frozen=True)
class StoredObservation:
    """An observation in a file; attributes are those of `Observation`."""

    path: Path
    name: str
    scene: str
    index: int
    posed: bool

    def load(self) -> Observation:
        """Read the observation; image features stay on disk until they are used.

        Raises:
            InputError: the file is missing or damaged.
        """
        arrays = read_arrays(self.path, _MAPPED)
        views = sum(name.startswith("images/") and name.endswith("/ids") for name in arrays)
        images = [part_of(ImageView, arrays, f"images/{k}/") for k in range(views)]
        return Observation(
            self.name,
            self.scene,
            self.index,
            xyz=arrays["xyz"],
            deskewed=arrays.get("deskewed", arrays["xyz"]),
            intensity=arrays["intensity"],
            pose=arrays["pose"],
            truth=arrays.get("truth"),
            evidence=part_of(Evidence, arrays, "evidence/"),
            pixels=part_of(PointPixels, arrays, "pixels/"),
            images=tuple(image for image in images if image is not None),
        )


def scenes(
    observations: Sequence[StoredObservation],
) -> Iterator[tuple[str, list[StoredObservation]]]:
    """Scenes with their observations, in order. The scenes of a recording do not interleave."""
    for scene, members in groupby(observations, lambda stored: stored.scene):
        yield scene, list(members)


class ClassEvidence:
    """Classes of points from the pixel classes of a camera teacher.

    Args:
        teacher: pixel classes.
        config: label space of the result, and projection settings.
        identity: everything that the teacher depends on, as JSON can write it.
        space: label space of the result instead of that of `config`.
        required: whether a sweep of which no camera sees a point is an error.
    """

    def __init__(
        self,
        teacher: PixelClasses,
        config: PseudoLabelConfig,
        identity: Mapping[str, Any],
        space: LabelSpace | None = None,
        required: bool = True,
    ) -> None:
        self.teacher, self.config, self.required = teacher, config, required
        self.space = space or LabelSpace.load(config.label_space)
        self.groups = grouping(teacher.label_space, self.space)
        self.identity = {
            "teacher": dict(identity),
            "space": self.space.to_dict(),
            "projection": config.model_dump(
                include={"splat_radius_px", "border_px", "see_through"}
            ),
        }

    def evidence(self, sample: Sample, xyz: Array) -> Evidence:
        """Evidence of all cameras of a sample for its points (N, 3), deskewed [m].

        Raises:
            InputError: no camera sees a point, and evidence is required.
        """
        images = pixel_evidence(sample, self.teacher, self.groups, len(self.space))
        found = gather_evidence(xyz, images, len(self.space), self.config, self.space)
        if self.required and len(found.index) == 0:
            raise InputError("no camera sees any point of the sweep")
        return found


@dataclass
class Observer:
    """Makes the observations of recordings. Resumes: existing files are kept, damaged ones redone.

    Attributes:
        folder: of the files; several runs may share it.
        space: label space of the ground truth, or None.
        evidence: makes class evidence, or None.
        pixels: samples image features at points, or None.
        images: makes image views, or None.
        skipped: number of unusable sweeps and images by reason.
    """

    folder: Path
    space: LabelSpace | None = None
    evidence: ClassEvidence | None = None
    pixels: PixelSampler | None = None
    images: ImageViewer | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def observe(
        self, recordings: Mapping[str, Recording], progress: Progress, every: int = 1
    ) -> list[StoredObservation]:
        """Observe every k-th sweep of recordings.

        Args:
            recordings: by the source they were opened from, which identifies them in the cache.
            progress: called with (sweeps done, sweeps in all).
            every: k; 1 takes all sweeps.

        Raises:
            InputError: no sweep can be used; the message counts the reasons. Or the disk is full.
        """
        chosen = [(s, r, i) for s, r in recordings.items() for i in range(0, len(r), every)]
        found: list[StoredObservation] = []
        for done, (source, recording, index) in enumerate(chosen, start=1):
            found += self.observe_sweeps(source, recording, range(index, index + 1))
            progress(done, len(chosen))
        if not found:
            raise self.nothing(len(chosen))
        return found

    def nothing(self, count: int) -> InputError:
        """The error that none of some sweeps can be used, with the reasons."""
        reasons = "; ".join(f"{n}x {reason}" for reason, n in grouped(self.skipped)[:5])
        return InputError(f"none of the {count} sweeps can be used: {reasons}")

    def observe_sweeps(
        self, source: str, recording: Recording, sweeps: Iterable[int]
    ) -> list[StoredObservation]:
        """Observe some sweeps of a recording; those that cannot be used are counted in `skipped`.

        Args:
            source: see `observe`.
            recording: the recording.
            sweeps: indices in it.

        Raises:
            InputError: the file of an observation cannot be written.
        """
        cache = SweepCache(self.folder, self._identity())
        found: list[StoredObservation] = []
        for index in sweeps:
            try:
                found.append(self._stored(cache, source, recording, index))
            except PcsegError as error:
                if may_pass(error):
                    raise
                self.skipped[str(error)] += 1
        return found

    def _identity(self) -> dict[str, Any]:
        parts = {"evidence": self.evidence, "pixels": self.pixels, "images": self.images}
        identity = {name: part.identity for name, part in parts.items() if part is not None}
        return {
            "format": _FORMAT,
            "truth": self.space.to_dict() if self.space is not None else None,
            **identity,
        }

    def _stored(
        self, cache: SweepCache, source: str, recording: Recording, index: int
    ) -> StoredObservation:
        path = cache.path(source, recording.name, index)
        name, scene = f"{recording.name}-{index:06d}", f"{source}/{recording.scenes[index]}"
        posed = _is_posed(path)
        if posed is None:
            known_as = recording.name
            if self.images is not None:
                known_as = self.images.recording_name(recording.name, source)
            observation = self.observe_sample(recording[index], known_as, name, scene, index)
            observation.save(path)
            posed = observation.posed
        return StoredObservation(path, name, scene, index, posed)

    def observe_sample(
        self, sample: Sample, recording: str, name: str = "", scene: str = "", index: int = 0
    ) -> Observation:
        """Observe one sample.

        Args:
            sample: sweep, with images if any part needs them.
            recording: name of the recording, under which its superpixels are stored.
            name, scene, index: see `Observation`.

        Raises:
            InputError: no finite point, an unreadable image, or a part cannot be made.
        """
        cloud = sample.cloud
        finite = cloud.finite
        if not finite.any():
            raise InputError(f"sweep {sample.name}: no finite points")
        if self.evidence is not None or self.pixels is not None or self.images is not None:
            sample = self._with_usable_images(sample)
        xyz = np.ascontiguousarray(cloud.xyz[finite], np.float32)
        deskewed = xyz
        if sample.trajectory is not None and cloud.time is not None:
            deskewed = deskew(xyz, cloud.time[finite], sample.trajectory, cloud.stamp_ns)
        intensity = cloud.intensity if cloud.intensity is not None else np.zeros(len(cloud))
        pose = sample.T_world_lidar
        truth = None
        if self.space is not None:
            truth = np.full(len(xyz), IGNORE, np.int16)
            if sample.labels is not None:
                truth = truth_of(sample, self.space)[finite].astype(np.int16)
        views: tuple[ImageView, ...] = ()
        if self.images is not None:
            views = self.images.views(sample, deskewed, recording, self.skipped)
        return Observation(
            name,
            scene,
            index,
            xyz,
            deskewed,
            np.nan_to_num(intensity[finite]).astype(np.float32),
            np.full((4, 4), np.nan) if pose is None else pose,
            truth,
            self.evidence.evidence(sample, deskewed) if self.evidence is not None else None,
            self.pixels.pixels(sample, deskewed) if self.pixels is not None else None,
            views,
        )

    def _with_usable_images(self, sample: Sample) -> Sample:
        """The sample with the images that can be used, decoded once; the others are counted.

        Raises:
            InputError: it has images, needs one and none can be used.
        """
        usable, faults = [], []
        for k, frame in enumerate(sample.cameras):
            try:
                sample.T_cam_lidar(k)
                usable.append(frame.decoded())
            except InputError as error:
                faults.append(f"image of {frame.name}: {error}")
        needed = self.images is not None or (self.evidence is not None and self.evidence.required)
        if faults and not usable and needed:
            raise InputError(faults[0])
        self.skipped.update(faults)
        return replace(sample, cameras=usable)


def flat_arrays(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays of a dataclass and of the dataclasses inside it, by path."""
    for entry in fields(part):
        value, name = getattr(part, entry.name), f"{prefix}{entry.name}"
        if isinstance(value, (np.ndarray, MappedArray)):
            yield name, value
        elif isinstance(value, tuple):
            for k, member in enumerate(value):
                yield from flat_arrays(member, f"{name}/{k}/")
        elif is_dataclass(value):
            yield from flat_arrays(value, f"{name}/")


def part_of(kind: type[Part], arrays: Mapping[str, Any], prefix: str) -> Part | None:
    """The dataclass whose arrays have a prefix; None without any."""
    own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    return kind(**own) if own else None


def _is_posed(path: Path) -> bool | None:
    """Whether a stored observation has a pose; None if its file is missing or damaged."""
    if not copies.is_here(path):
        return None
    try:
        return bool(np.isfinite(read_arrays(path, only=("pose",))["pose"]).all())
    except (InputError, KeyError):
        return None
