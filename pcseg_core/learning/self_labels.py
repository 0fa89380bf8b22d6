# SPDX-License-Identifier: Apache-2.0
"""Class probabilities of all points of a sweep by the student itself, averaged over views.

Labels near the vehicle are rare, and come from few places, if cameras look far ahead. A student
then learns the density of points instead of the surface: near ground is one class, far ground
another. So near surfaces are shown to it as thin as far ones, for which it has labels of many
places.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from scipy.spatial import cKDTree

from pcseg_core.bundled import bundled_file, find_file
from pcseg_core.cloud import PointCloud
from pcseg_core.config import Section
from pcseg_core.distill.lidar_teacher import (
    LidarTeacher,
    LidarTeacherConfig,
    grouped_probabilities,
    load_lidar_teacher,
)
from pcseg_core.distill.observation import Observation
from pcseg_core.geometry import from_euler
from pcseg_core.input_check import IntensityMatch
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.augment import check_shares, thinned
from pcseg_core.models.inference import compile_inference
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.models.student import Student
from pcseg_core.models.sweep_input import sweep_input
from pcseg_core.sparse.backends import resolve

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class RoundsConfig(Section):
    """Rounds after the first training: the student labels all points, and training goes on."""

    count: int = Field(0, ge=0, le=5, description="Rounds; 0 trains once, on the teacher's labels")
    views: int = Field(4, ge=1, le=16, description="Turned and thinned copies of a sweep, averaged")
    thin_m: tuple[float, float] = Field(
        (12.0, 24.0),
        description="Smallest and largest range [m] that a copy is thinned to: nearer surfaces "
        "keep as many points as they would have at this range",
    )
    weight: float = Field(
        0.3,
        gt=0,
        description="Weight of the student's probabilities relative to one camera's; with 1 it "
        "outvotes the cameras on rare classes",
    )
    steps: int | None = Field(
        None, ge=1, description="Steps of each further training.  [default: optimizer.steps]"
    )
    further: bool = Field(
        False, description="Train the student of the round before further, instead of a new one"
    )
    beside: Path | None = Field(
        None,
        description="Run or checkpoint whose class probabilities are averaged with the student's, "
        "such as bundled: the next student learns from both",
    )

    split_ground: bool = Field(
        False,
        description="Cameras tell what is ground; which ground it is, such as road or sidewalk, "
        "they tell together with the student and the run beside, by the product of their "
        "probabilities",
    )
    corrupt: dict[str, float] | None = Field(
        None,
        description="augment.corrupt of the further trainings: a student that knows clean clouds "
        "learns corrupted ones.  [default: augment.corrupt]",
    )

    @model_validator(mode="after")
    def _one_corruption_per_cloud(self) -> RoundsConfig:
        check_shares(self.corrupt or {})
        return self

    def relative_to(self, folder: Path) -> RoundsConfig:
        """The same with an absolute path, see `find_file`.

        Raises:
            InputError: the run does not exist.
        """
        if self.beside is None or bundled_file(self.beside):
            return self
        return self.model_copy(update={"beside": find_file(self.beside, folder)})


def load_beside(rounds: RoundsConfig, space: LabelSpace, device: str) -> LidarTeacher | None:
    """The network that labels beside the student in rounds, or None.

    Raises:
        InputError: no such run, or its classes are not those of the student.
    """
    if rounds.beside is None or not rounds.count:
        return None
    return load_lidar_teacher(LidarTeacherConfig(run=rounds.beside), space, device)


class SelfLabeler:
    """A trained student that labels the sweeps of its own training.

    Args:
        student: the network.
        config: views.
        seed: of the random views.
        beside: another network, whose probabilities are averaged with the student's.
    """

    def __init__(
        self, student: Student, config: RoundsConfig, seed: int, beside: LidarTeacher | None = None
    ) -> None:
        classes = student.network.classifier.out_features
        self.config, self.seed, self.classes = config, seed, classes
        self.inputs = beside.inputs if beside else None
        self._student = _Network(student, np.arange(classes), classes)
        self._beside = _Network(beside.student, beside.table, classes) if beside else None
        voices = np.ones(classes) if beside is None else 1.0 + beside.knows
        self._voices = voices.astype(np.float32)

    def scene(self, sweeps: Sequence[Observation]) -> list[Float32]:
        """Class probabilities (N, C) of the points of each sweep of a scene.

        Rows are 0 out of range. The same sweep gets the same views.
        """
        match = IntensityMatch(self.inputs)
        clouds = [PointCloud(sweep.xyz, sweep.intensity) for sweep in sweeps]
        for cloud in clouds:
            match.observe(cloud)
        mapped = [match(cloud).intensity for cloud in clouds]
        return [
            self._probabilities(sweep, sweep.intensity if other is None else other)
            for sweep, other in zip(sweeps, mapped)
        ]

    def _probabilities(self, sweep: Observation, mapped: Array) -> Float32:
        rng = np.random.default_rng((self.seed, zlib.crc32(sweep.name.encode())))
        views = [self._view(sweep, mapped, rng) for _ in range(self.config.views)]
        result: Float32 = np.mean(views, axis=0)
        return result

    def _view(self, sweep: Observation, mapped: Array, rng: np.random.Generator) -> Float32:
        xyz = sweep.xyz
        kept = np.flatnonzero(thinned(xyz, rng.uniform(*self.config.thin_m), rng))
        turn = from_euler(0, 0, rng.uniform(-np.pi, np.pi))[:3, :3].astype(np.float32)
        if rng.random() < 0.5:
            turn = turn @ np.diag([1.0, -1.0, 1.0]).astype(np.float32)
        moved = np.ascontiguousarray(xyz[kept] @ turn.T)
        likely = self._student(moved, sweep.intensity[kept])
        if self._beside is not None:
            likely = (likely + self._beside(moved, mapped[kept])) / self._voices
            likely /= np.maximum(likely.sum(1, keepdims=True), 1e-9)
        found = np.zeros((len(xyz), self.classes), np.float32)
        found[kept] = likely
        left_out = np.ones(len(xyz), bool)
        left_out[kept] = False
        if len(kept):
            found[left_out] = found[kept[cKDTree(xyz[kept]).query(xyz[left_out])[1]]]
        return found


class _Network:
    """Class probabilities by a network, in the classes of the student."""

    def __init__(self, student: Student, table: Array, classes: int) -> None:
        self.student, self.table, self.classes = student.eval(), table, classes
        self.device = next(student.parameters()).device
        self.backend = resolve("auto", self.device)
        network = student.network
        compiled = self.backend == "native" and isinstance(network, MinkUNet)
        self.network = compile_inference(network, "fp32") if compiled else network  # type: ignore

    @torch.inference_mode()
    def __call__(self, xyz: Array, intensity: Array) -> Float32:
        """(N, C) float32 of points (N, 3) [m] with intensities (N,); rows of 0 out of range."""
        found = np.zeros((len(xyz), self.classes), np.float32)
        sweep = sweep_input(self.student, xyz, intensity, self.device, self.backend)
        if sweep.sparse is None:
            return found
        logits = self.network(sweep.sparse).feats
        likely = grouped_probabilities(logits, self.table, self.classes).cpu().numpy()
        inverse = sweep.inverse.cpu().numpy()
        found[inverse >= 0] = likely[inverse[inverse >= 0]]
        return found
