# SPDX-License-Identifier: Apache-2.0
"""What a job costs: a few sweeps are measured, the rest follows from their number.

The hours of W workers are

    teachers(W) = (recordings * opening + sweeps * (reading + teachers)) / W + loading
    training    = sweeps * fusing * (1 + rounds) + steps * step

The first line is the work of `--ray`. It holds as long as W is at most the number of stretches, the
storage delivers W times what a worker reads, and no recording whose poses are estimated takes
longer than the mean share of a worker. The second line is of one machine and does not scale; a
round, in which the student labels too, costs more by the student's own work, which is not measured.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from pcseg_core.cluster.job import Stretch
from pcseg_core.cluster.observe import ObserveJob, ObserveWorker
from pcseg_core.data import Recording, evenly_spaced, find_source, readable, split_query
from pcseg_core.distill.observation import StoredObservation
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.runs import on_gpu
from pcseg_core.learning.sweep_labels import Labeling
from pcseg_core.learning.taught_student import new_module, new_student
from pcseg_core.learning.trainer import train
from pcseg_core.progress import bar, note
from pcseg_core.storage import is_url, listing

WORKERS = (1, 2, 8, 32, 128)
_OPENED = 5  # recordings at most, evenly over all
_STEPS = 3  # of the training, besides one that warms up


class Times(BaseModel):
    """Measured times [s] and sizes [bytes].

    Attributes:
        loading: of the teachers, once for each worker.
        opening: of a recording, with its poses.
        reading: of a sweep with its images.
        teachers: of the teachers for a sweep, with projection and writing.
        fusing: of the evidence of a sweep over time, into labels.
        step: of the training, with a batch of the recipe.
        cache: prepared data of a sweep.
        labels: label file of a sweep.
        recording: a recording on its storage.
    """

    model_config = ConfigDict(extra="forbid")

    loading: float
    opening: float
    reading: float
    teachers: float
    fusing: float
    step: float
    cache: float
    labels: float
    recording: float


class Row(BaseModel):
    """Hours with so many workers."""

    workers: int
    label_h: float
    teachers_h: float
    rest_h: float
    gpu_h: float | None


class Estimate(BaseModel):
    """What `pcseg label` and `pcseg distill` of some recordings cost.

    Attributes:
        recordings: their number.
        sweeps: number of sweeps, from those of the opened recordings.
        opened: number of recordings that were opened.
        cameras: mean number of images of a sweep.
        estimated_poses: share of the opened recordings whose poses are estimated by kiss-icp.
        measured: number of sweeps that were measured.
        machine: processor, threads and load during the measurement.
        gpu: name of the GPU, or None.
        steps: optimizer steps of the recipe, with those of its rounds.
        rounds: number of rounds, after each of which the sweeps are labeled again.
        times: see `Times`.
        rows: hours by number of workers.
    """

    recordings: int
    sweeps: int
    opened: int
    cameras: float
    estimated_poses: float
    measured: int
    machine: str
    gpu: str | None
    steps: int
    rounds: int
    times: Times
    rows: list[Row]

    def bytes(self) -> dict[str, float]:
        """Sizes of everything: recordings, prepared data of a training, labels."""
        return {
            "recordings": self.recordings * self.times.recording,
            "cache": self.sweeps * self.times.cache,
            "labels": self.sweeps * self.times.labels,
        }


def hours(
    times: Times, recordings: int, sweeps: int, steps: int, workers: int, gpu: bool, rounds: int = 0
) -> Row:
    """The hours of a number of workers by the formula of this module."""
    opening = recordings * times.opening
    teachers = (opening + sweeps * (times.reading + times.teachers)) / workers + times.loading
    label = teachers + sweeps * times.fusing / workers
    rest = sweeps * times.fusing * (1 + rounds) + steps * times.step
    used = (teachers * workers + steps * times.step) / 3600 if gpu else None
    return Row(
        workers=workers,
        label_h=label / 3600,
        teachers_h=teachers / 3600,
        rest_h=rest / 3600,
        gpu_h=used,
    )


def estimate(
    sources: Sequence[str], recipe: Recipe, sweeps: int = 5, device: str = "auto"
) -> Estimate:
    """Measure some sweeps with the teachers and a few steps of the training.

    Args:
        sources: the recordings, of which a few are opened.
        recipe: of the training.
        sweeps: number of sweeps that are measured, besides one that warms up.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: none of the recordings that were tried can be used.
    """
    with tempfile.TemporaryDirectory(prefix="pcseg-estimate-") as folder:
        measure = _Measure(recipe, Path(folder), sweeps, device)
        chosen = [sources[k] for k in evenly_spaced(len(sources), _OPENED)]
        with bar("opening recordings") as progress:
            for done, source in enumerate(chosen, start=1):
                measure.open(source)
                progress(done, len(chosen))
        return measure.estimate(len(sources))


class _Measure:
    """Opens recordings, and measures the largest of them."""

    def __init__(self, recipe: Recipe, folder: Path, wanted: int, device: str) -> None:
        self.recipe, self.folder, self.wanted, self.device = recipe, folder, wanted, device
        self.worker = ObserveWorker(ObserveJob(recipe, folder, folder / "cache", device))
        self.lengths: list[int] = []
        self.sizes: list[int] = []
        self.opening: list[float] = []
        self.posed: list[bool] = []
        self.best: tuple[str, Recording] | None = None

    def open(self, source: str) -> None:
        """Open a recording; one that cannot be opened is noted."""
        start = time.monotonic()
        try:
            recording = self.worker.open(source)[1]
        except PcsegError as error:
            note(f"left out: {source}: {error}")
            return
        self.opening.append(time.monotonic() - start)
        self.lengths.append(len(recording))
        self.sizes.append(_bytes(source))
        self.posed.append(recording.pose_source == "kiss-icp")
        if self.best is None or len(recording) > len(self.best[1]):
            self.best = source, recording

    def estimate(self, recordings: int) -> Estimate:
        if self.best is None:
            raise InputError("none of the recordings that were tried can be opened")
        start = time.monotonic()
        self.worker.load()
        loading = time.monotonic() - start
        source, recording = self.best
        first = max(0, (len(recording) - self.wanted - 1) // 2)
        stretch = first, min(first + self.wanted + 1, len(recording))
        reading, cameras = _reading(recording, stretch)
        observed, found = self._observe(source, stretch)
        fusing, step, labels = self._train(found)
        cache = sum(p.stat().st_size for p in (self.folder / "cache").glob("*.npz"))
        times = Times(
            loading=loading,
            opening=sum(self.opening) / len(self.opening),
            reading=reading,
            teachers=max(0.0, observed - reading),
            fusing=fusing,
            step=step,
            cache=cache / len(found),
            labels=labels,
            recording=sum(self.sizes) / len(self.sizes),
        )
        total, gpu = round(recordings * sum(self.lengths) / len(self.lengths)), self._gpu()
        rounds = self.recipe.rounds.count
        steps = self.recipe.optimizer.steps + rounds * self.recipe.of_round().optimizer.steps
        use = bool(gpu)
        return Estimate(
            recordings=recordings,
            sweeps=total,
            opened=len(self.lengths),
            cameras=cameras,
            estimated_poses=sum(self.posed) / len(self.posed),
            measured=len(found),
            machine=machine(),
            gpu=gpu,
            steps=steps,
            rounds=rounds,
            times=times,
            rows=[hours(times, recordings, total, steps, count, use, rounds) for count in WORKERS],
        )

    def _observe(self, source: str, stretch: Stretch) -> tuple[float, list[StoredObservation]]:
        """Time of the teachers for a sweep, without the first; the observations."""
        skipped = Counter[str]()
        with bar("measuring sweeps", stretch[1] - stretch[0]) as progress:
            start, found = time.monotonic(), []
            for index in range(*stretch):
                found += self.worker.observe(source, (index, index + 1), skipped)
                if index == stretch[0]:
                    start = time.monotonic()
                progress.advance()
        if not found:
            raise InputError(f"{source}: no sweep could be measured: {'; '.join(skipped)}")
        count = max(1, stretch[1] - stretch[0] - 1)
        return (time.monotonic() - start) / count, found

    def _train(self, found: Sequence[StoredObservation]) -> tuple[float, float, float]:
        """Times of fusing a sweep and of a step; bytes of the labels of a sweep."""
        teachers, cache = self.worker.teachers, self.folder / "cache"
        start = time.monotonic()
        labeling = Labeling.of(found, self.recipe, teachers, cache)
        sweeps = labeling.label(self.folder).sweeps
        fusing = (time.monotonic() - start) / len(sweeps)
        few, more = (self._steps(sweeps, steps) for steps in (1, 1 + _STEPS))
        return (
            fusing,
            max(0.0, more - few) / _STEPS,
            4.0 * sum(len(sweep.xyz) for sweep in sweeps) / len(sweeps),
        )

    def _steps(self, sweeps: Sequence[TrainingSweep], steps: int) -> float:
        """Time of a training of so many steps [s]."""
        optimizer = self.recipe.optimizer.model_copy(update={"steps": steps})
        recipe = self.recipe.model_copy(update={"optimizer": optimizer})
        teachers = self.worker.teachers
        student = new_student(recipe, sweeps, teachers.space, teachers.text)
        module = new_module(student, sweeps, recipe, teachers)
        start = time.monotonic()
        train(module, self.folder / f"steps-{steps}", self.device)
        return time.monotonic() - start

    def _gpu(self) -> str | None:
        return torch.cuda.get_device_name() if on_gpu(self.device) else None


def _reading(recording: Recording, stretch: Stretch) -> tuple[float, float]:
    """Mean time to read a sweep with its images, and number of images."""
    start, sweeps, images = time.monotonic(), 0, 0
    for _, sample in readable(recording, range(*stretch)):
        sweeps += 1
        _ = sample.cloud.finite
        for frame in sample.cameras:
            try:
                _ = frame.image
            except InputError:
                continue
            images += 1
    if not sweeps:
        raise InputError(f"{recording.name}: no sweep could be read")
    return (time.monotonic() - start) / sweeps, images / sweeps


def _bytes(source: str) -> int:
    """Size of a recording on its storage; 0 for simulated ones."""
    reader, place = find_source(source)
    path = split_query(place)[0]
    if reader == "simulated":
        return 0
    if is_url(path):
        return listing(path).bytes
    root = Path(path)
    files = [root] if root.is_file() else [p for p in root.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def machine() -> str:
    """The processor, the threads of torch and the load of this machine."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = ", busy with other work" if load > cores else ""
    return f"{name}, {torch.get_num_threads()} threads, load {load:.1f} on {cores} cores{busy}"
