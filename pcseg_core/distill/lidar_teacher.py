# SPDX-License-Identifier: Apache-2.0
"""3D teachers: a trained LiDAR network labels every point in range for a smaller student.

Hinton, Vinyals, Dean, Distilling the knowledge in a neural network (2015).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from pcseg_core.bundled import bundled_file, checkpoint_file, find_file
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cloud import PointCloud
from pcseg_core.config import Section, parse_section
from pcseg_core.distill.cache import Stored, digest, is_whole, read_arrays, write_arrays
from pcseg_core.distill.observation import Progress, StoredObservation
from pcseg_core.errors import InputError
from pcseg_core.files import file_checksum, slug
from pcseg_core.input_check import InputCheck, InputStatistics
from pcseg_core.labels import IGNORE, NO_CLASSES, LabelSpace, grouping
from pcseg_core.models.student import Student, StudentConfig, load_student
from pcseg_core.models.sweep_input import usable_points
from pcseg_core.progress import note
from pcseg_core.vision.class_names import NameMatch, Words, match_names, read_mapping

Array = npt.NDArray[Any]

_FORMAT = 1
_LEAST = 1e-9  # probability that is stored for 0
_MAPPED = ("log_probabilities", "features")  # large arrays, left on disk


class LidarTeacherConfig(Section):
    """A run of this project that teaches a student, and how."""

    run: Path | None = Field(
        None,
        description="Run directory or checkpoint of the teacher; `pcseg distill --teacher-3d` "
        "gives it as well",
    )
    mapping: dict[str, tuple[str, ...]] | Path = Field(
        default_factory=dict,
        description="Class of labels.label_space -> classes of the teacher, with * as wildcard; or "
        "a YAML file of them. Without it the groupings of the teacher's label space decide, or "
        "the names",
    )
    ignore: tuple[str, ...] = Field(
        (), description="Classes of the teacher without a class; '*' is all that are left"
    )
    logits: float = Field(
        1.0,
        ge=0,
        description="Weight of the divergence from the teacher's class probabilities; unused for a "
        "run without classes",
    )
    temperature: float = Field(
        2.0, gt=0, le=20, description="Divisor of the logits of both networks in the divergence"
    )
    features: float | None = Field(
        None,
        ge=0,
        description="Weight of the distance to the teacher's features, which a linear layer of the "
        "training predicts.  [default: 1 for a run without classes, else 0]",
    )
    labels: bool = Field(
        True, description="Points without a camera label get the teacher's best class as label"
    )

    def relative_to(self, folder: Path) -> LidarTeacherConfig:
        """The same with absolute paths, see `find_file`.

        Raises:
            InputError: a file does not exist.
        """
        paths = {"run": self.run, "mapping": self.mapping}
        files = {k: v for k, v in paths.items() if isinstance(v, Path) and not bundled_file(v)}
        found = {k: find_file(v, folder) for k, v in files.items()}
        return self.model_copy(update=found)


@dataclass
class LidarTargets:
    """What a 3D teacher says about the points of a sweep, by the voxels of the teacher.

    Attributes:
        voxel: (N,) int32 row of each point, IGNORE beyond the teacher's range.
        log_probabilities: (V, C) float16 logarithm of the probability of each class of the
            student, at least log(1e-9). The sum of a row is below 1 where the teacher sees a class
            that the student lacks. None without classes.
        features: (V, D) float16 penultimate features, or None.
    """

    voxel: Array
    log_probabilities: Stored | None = None
    features: Stored | None = None

    def labels(self) -> tuple[Array, Array]:
        """(N,) int16 best class, IGNORE beyond range, and (N,) float32 its probability."""
        label = np.full(len(self.voxel), IGNORE, np.int16)
        confidence = np.zeros(len(self.voxel), np.float32)
        if self.log_probabilities is not None and len(self.log_probabilities):
            values = self.log_probabilities[:].astype(np.float32)
            best, inside = values.argmax(1), self.voxel != IGNORE
            rows = self.voxel[inside]
            label[inside] = best[rows]
            confidence[inside] = np.minimum(np.exp(values.max(1)), 1.0)[rows]
        return label, confidence


class LidarTeacher:
    """A frozen student of a run.

    Args:
        student: the network.
        own: its classes; `NO_CLASSES` if it has none.
        table: (len(own),) class of the new student for each, IGNORE for none.
        space: classes of the new student.
        config: weights of what is taught.
        name: for messages.
        inputs: statistics of the teacher's training.
        license: of its weights, where they were imported.

    Attributes:
        knows: (C,) bool, classes of the new student that some class of the teacher maps to.
    """

    def __init__(
        self,
        student: Student,
        own: LabelSpace,
        table: Array,
        space: LabelSpace,
        config: LidarTeacherConfig,
        name: str,
        checksum: str = "",
        inputs: InputStatistics | None = None,
        license: str | None = None,
    ) -> None:
        self.student = student.eval().requires_grad_(False)
        self.own, self.table, self.space, self.config = own, table, space, config
        self.name, self.inputs, self.license = name, inputs, license
        self.knows = np.isin(np.arange(len(space)), table)
        self.has_classes = own != NO_CLASSES
        default = 0.0 if self.has_classes else 1.0
        self.features_weight = default if config.features is None else config.features
        self.identity: dict[str, Any] = {
            "format": _FORMAT,
            "teacher_3d": checksum,
            "classes": [space.names, table.tolist()] if self.has_classes else None,
            "features": self.features_weight > 0,
        }

    @property
    def channels(self) -> int:
        """Size of the features that are taught; 0 if none are."""
        return self.student.network.feature_channels if self.features_weight else 0

    @property
    def mapped(self) -> dict[str, str | None]:
        """Class of the new student for each class of the teacher; None without one."""
        names = self.space.names
        pairs = zip(self.own.names, self.table)
        return {name: None if k == IGNORE else names[k] for name, k in pairs}

    @property
    def summary(self) -> dict[str, Any]:
        """Run and classes, for the figures of a training."""
        return {"run": self.name, "classes": self.mapped}

    @torch.inference_mode()
    def targets(self, xyz: Array, intensity: Array, sweep: str = "") -> LidarTargets:
        """Targets of the points of one sweep.

        Args:
            xyz: (N, 3) float32 points, LiDAR frame [m].
            intensity: (N,) float32 in 0..1.
            sweep: its name, for messages.

        Raises:
            InputError: the network gives numbers that are not finite.
        """
        device = next(self.student.parameters()).device
        reach = self.student.config.max_range_m
        points, kept, _ = usable_points(xyz, intensity, reach, device)
        found = LidarTargets(np.full(len(xyz), IGNORE, np.int32))
        logits, features = torch.zeros(0, len(self.own)), torch.zeros(0, self.channels)
        if len(kept):
            output = self.student(points)
            found.voxel[kept.cpu().numpy()] = output.voxels.inverse.cpu().numpy()
            logits, features = output.logits, output.features
            self._check_finite(logits, features, sweep)
        if self.has_classes:
            found.log_probabilities = grouped_log_probabilities(logits, self.table, len(self.space))
        if self.features_weight:
            limit = float(np.finfo(np.float16).max)
            found.features = features.clamp(-limit, limit).cpu().numpy().astype(np.float16)
        return found

    def _check_finite(self, logits: Tensor, features: Tensor, sweep: str) -> None:
        if not bool(torch.isfinite(logits).all() and torch.isfinite(features).all()):
            raise InputError(
                f"3D teacher {self.name}: outputs that are not finite numbers for sweep {sweep}; "
                "its training diverged or the file is damaged: take another run"
            )


def grouped_log_probabilities(
    logits: Tensor, table: Array, classes: int
) -> npt.NDArray[np.float16]:
    """Logarithm of `grouped_probabilities`, at least log(1e-9)."""
    likely = grouped_probabilities(logits, table, classes)
    found: npt.NDArray[np.float16] = likely.clamp_min(_LEAST).log().cpu().numpy().astype("f2")
    return found


def grouped_probabilities(logits: Tensor, table: Array, classes: int) -> Tensor:
    """Probabilities (V, classes) of groups of classes, from logits (V, K).

    Args:
        logits: of the teacher.
        table: (K,) class of each, IGNORE for none.
        classes: number of groups; those without a member get 0.
    """
    likely = logits.float().softmax(1)
    used = torch.from_numpy(np.flatnonzero(table != IGNORE)).to(likely.device)
    target = torch.from_numpy(table[table != IGNORE]).to(likely.device)
    return likely.new_zeros(len(likely), classes).index_add_(1, target, likely[:, used])


def load_lidar_teacher(
    config: LidarTeacherConfig, space: LabelSpace, device: str = "cpu"
) -> LidarTeacher:
    """The 3D teacher of a configuration.

    Args:
        config: names the run.
        space: classes of the student.
        device: "cpu" or "cuda".

    Raises:
        InputError: no such run or a damaged one, classes without a class of the student, or
            nothing that it could teach.
    """
    if config.run is None:
        raise InputError("teacher_3d: no run; give --teacher-3d RUN, or teacher_3d.run in a recipe")
    file = checkpoint_file(config.run)
    state, meta = load_checkpoint(file)
    own = LabelSpace.from_dict(meta.label_space)
    title = f"3D teacher {config.run}"
    settings = parse_section(meta.student, StudentConfig, title)
    student = load_student(settings, len(own), state, title).to(device)
    has_classes = own != NO_CLASSES
    table = class_table(own, space, config, title) if has_classes else np.array([IGNORE])
    about = str(config.run), file_checksum(file), meta.inputs, meta.license
    teacher = LidarTeacher(student, own, table, space, config, *about)
    if not teacher.features_weight and not (has_classes and (config.logits or config.labels)):
        why = "has no classes" if not has_classes else "has neither logits nor labels to teach"
        raise InputError(f"{title} {why}; give teacher_3d.features a weight above 0")
    return teacher


def class_table(
    own: LabelSpace, space: LabelSpace, config: LidarTeacherConfig, title: str
) -> npt.NDArray[np.int64]:
    """Class of the student for each class of the teacher, IGNORE for none.

    Raises:
        InputError: a class has none and is not ignored, or no class has one.
    """
    mapping: Words = read_mapping(config.mapping)
    match: NameMatch | None = None
    if not mapping and not config.ignore:
        try:
            match = NameMatch(own.names, space, grouping(own, space), ())
        except InputError:  # of an own label space, whose names may still be known
            match = None
    if match is None:
        match = match_names(own.names, space, mapping, config.ignore)
    match.require_all(title)
    return match.table


def store_targets(
    observations: Sequence[StoredObservation],
    teacher: LidarTeacher,
    folder: Path,
    progress: Progress,
) -> list[Path]:
    """Targets of observations, in a file each. Resumes: whole files are kept.

    Args:
        observations: the sweeps.
        teacher: gives the targets.
        folder: of the files; several runs may share it.
        progress: called with (sweeps done, sweeps in all).

    Raises:
        InputError: see `LidarTeacher.targets`.
    """
    paths: list[Path] = []
    checks: dict[str, InputCheck] = {}
    told: set[str] = set()
    for stored in observations:
        path = _path(folder, stored, teacher.identity)
        if not is_whole(path):
            sweep = stored.load()
            check = checks.setdefault(stored.scene, InputCheck(teacher.inputs))
            reason = check(PointCloud(sweep.xyz, sweep.intensity))
            if reason and stored.scene not in told:
                told.add(stored.scene)
                note(f"3D teacher {teacher.name}: sweeps of {stored.name} differ: {reason}")
            targets = teacher.targets(sweep.xyz, sweep.intensity, stored.name)
            write_arrays(path, {k: v for k, v in vars(targets).items() if v is not None})
        paths.append(path)
        progress(len(paths), len(observations))
    return paths


def _path(folder: Path, stored: StoredObservation, identity: Mapping[str, Any]) -> Path:
    key = digest({"scene": stored.scene, **identity})
    return folder / f"{slug(stored.name)}-teacher3d-{key}.npz"


def read_targets(path: Path) -> LidarTargets:
    """Targets of a file of `store_targets`; probabilities and features stay on disk.

    Raises:
        InputError: the file is missing or damaged.
    """
    return LidarTargets(**read_arrays(path, _MAPPED))
