# SPDX-License-Identifier: Apache-2.0
"""Simulated sweeps with exact labels, of towns and LiDARs that are drawn by a seed.

Beside recordings they teach what cameras do not see: the ground around the vehicle, in many places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.data import open_recording
from pcseg_core.distill.cache import digest, is_whole, read_arrays, write_arrays
from pcseg_core.labels import LabelSpace, truth_of
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.progress import bar

_FORMAT = 1


class SimulatedConfig(Section):
    """Simulated sweeps beside those of the recordings."""

    towns: int = Field(
        0, ge=0, description="Drawn towns, each with a drawn LiDAR; a town is a scene as any other"
    )
    sweeps: int = Field(1, ge=1, description="Sweeps of each town")
    stride: int = Field(25, ge=1, description="Tenths of a second between two sweeps")
    first_seed: int = Field(20_000, ge=0, description="Seed of the first town")

    @property
    def sources(self) -> list[str]:
        """The towns, for `open_recording`."""
        options = f"town=varied,sensor=varied,sweeps={self.sweeps},stride={self.stride},cameras=0"
        return [f"simulated:seed={self.first_seed + k},{options}" for k in range(self.towns)]


def labeled_sweeps(
    sources: Sequence[str], space: LabelSpace, range_m: float, cache: Path, workers: int = 0
) -> Iterator[TrainingSweep]:
    """Sweeps of simulated drives with exact labels, rendered where the cache lacks them.

    Args:
        sources: drives; each is a scene.
        space: classes of the labels.
        range_m: points beyond are left out [m].
        cache: folder of the rendered sweeps.
        workers: processes that render, for scripts whose main module may be imported again; 0
            renders in this process.

    Raises:
        InputError: the classes of the simulation do not group into the space.
    """
    if not sources:
        return
    cache.mkdir(parents=True, exist_ok=True)
    with bar("rendering towns") as progress:
        files = _rendered(sources, space, range_m, cache, workers)
        for count, (source, file) in enumerate(zip(sources, files), start=1):
            arrays = read_arrays(file)
            progress(count, len(sources))
            bounds = np.cumsum(arrays["counts"])[:-1]
            parts = (np.split(arrays[name], bounds) for name in ("xyz", "intensity", "label"))
            for xyz, intensity, label in zip(*parts):
                sure = np.ones(len(xyz), np.float32)
                yield TrainingSweep(xyz, intensity, label, sure, source)


def _rendered(
    sources: Sequence[str], space: LabelSpace, range_m: float, cache: Path, workers: int
) -> Iterator[Path]:
    """The file of each drive, in order."""
    if workers == 0:
        yield from (render(source, space, range_m, cache) for source in sources)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(render, source, space, range_m, cache) for source in sources]
        yield from (job.result() for job in jobs)


def render(source: str, space: LabelSpace, range_m: float, cache: Path) -> Path:
    """File with the labeled points of all sweeps of a drive, cached."""
    known = {"format": _FORMAT, "source": source, "space": space.to_dict(), "range": range_m}
    path = cache / f"simulated-{digest(known)}.npz"
    if is_whole(path):
        return path
    drive = open_recording(source)
    xyz, intensity, label = [], [], []
    for k in range(len(drive)):
        sample = drive[k]
        cloud, truth = sample.cloud, truth_of(sample, space)
        near = np.linalg.norm(cloud.xyz, axis=1) < range_m
        measured = np.zeros(len(cloud)) if cloud.intensity is None else cloud.intensity
        xyz.append(cloud.xyz[near].astype(np.float32))
        intensity.append(measured[near].astype(np.float32))
        label.append(truth[near].astype(np.int16))
    arrays = {
        "xyz": np.concatenate(xyz),
        "intensity": np.concatenate(intensity),
        "label": np.concatenate(label),
        "counts": np.array([len(part) for part in xyz], np.int64),
    }
    write_arrays(path, arrays)
    return path
