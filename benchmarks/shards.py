# SPDX-License-Identifier: Apache-2.0
"""Shards of prepared sweeps against litdata and WebDataset: writing, shuffled reading, memory.

    pip install litdata webdataset
    python -m benchmarks.shards --sweeps 200 --points 30000

All write the same sweeps once and give them to torch's loader, shuffled by a seed.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from torch.utils.data import DataLoader, Dataset

from pcseg_core.cluster.estimate import machine
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.shards import prepared

NAMES = ("xyz", "intensity", "label", "confidence")


def sweep(number: int, points: int) -> TrainingSweep:
    """A sweep of random points."""
    rng = np.random.default_rng(number)
    parts = (rng.random((points, 3), np.float32), rng.random(points, np.float32))
    label = rng.integers(0, 8, points).astype(np.int16)
    return TrainingSweep(*parts, label, rng.random(points, np.float32), f"scene{number // 50}")


def record(number: int, points: int) -> dict[str, Any]:
    """The arrays of a sweep by name."""
    found = sweep(number, points)
    return {name: getattr(found, name) for name in NAMES}


class Shuffled(Dataset[dict[str, Any]]):
    """Our shards in an order that a seed decides."""

    def __init__(self, sweeps: Any, seed: int) -> None:
        self.sweeps, self.order = sweeps, np.random.default_rng(seed).permutation(len(sweeps))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = self.sweeps[int(self.order[index])]
        return {name: getattr(found, name) for name in NAMES}


def ours(folder: Path, count: int, points: int) -> Callable[[int], Iterable[Any]]:
    """Write our shards; a loader by its number of workers."""
    units = [
        (f"{k:05d}", lambda k=k: (sweep(i, points) for i in range(k, min(k + 50, count))))
        for k in range(0, count, 50)
    ]
    sweeps = prepared(units, str(folder)).sweeps
    return lambda workers: DataLoader(Shuffled(sweeps, 0), batch_size=None, num_workers=workers)


def of_litdata(folder: Path, count: int, points: int) -> Callable[[int], Iterable[Any]]:
    """The same by litdata."""
    import litdata
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for k in range(count):
        writer[k] = record(k, points)
    writer.done()
    writer.merge(1)

    def loader(workers: int) -> Iterable[Any]:
        data = litdata.StreamingDataset(str(folder), shuffle=True, seed=0)
        return DataLoader(data, batch_size=None, num_workers=workers)

    return loader


def of_webdataset(folder: Path, count: int, points: int) -> Callable[[int], Iterable[Any]]:
    """The same by WebDataset, with a buffer of 100 sweeps to shuffle in."""
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=10**9, maxsize=64e6) as sink:
        for k in range(count):
            arrays = {f"{name}.npy": value for name, value in record(k, points).items()}
            sink.write({"__key__": f"{k:06d}", **arrays})
    files = [str(path) for path in sorted(folder.glob("*.tar"))]

    def loader(workers: int) -> Iterable[Any]:
        data = webdataset.WebDataset(files, shardshuffle=len(files), seed=0, empty_check=False)
        return DataLoader(data.shuffle(100).decode(), batch_size=None, num_workers=workers)

    return loader


def memory_mb() -> float:
    """Anonymous memory of the children of this process [MB]."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = dict(x.split(":", 1) for x in (folder / "status").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if int(lines["PPid"]) == os.getpid() and "RssAnon" in lines:
            total += int(lines["RssAnon"].split()[0]) / 1024
    return total


def rate(samples: Iterable[Any]) -> dict[str, float]:
    """Figures of a pass: samples per second after the first, CPU time of each, memory."""
    used, iterator = sum(os.times()[:4]), iter(samples)
    next(iterator)
    start, count, memory = time.perf_counter(), 0, memory_mb()
    for _ in iterator:
        count += 1
        if count % 20 == 0:
            memory = max(memory, memory_mb())
    seconds = time.perf_counter() - start
    del iterator  # the workers end, and their time counts
    cpu = sum(os.times()[:4]) - used
    return {"per_s": count / seconds, "cpu_ms": 1000 * cpu / (count + 1), "worker_mb": memory}


KINDS = {"ours": ours, "litdata": of_litdata, "webdataset": of_webdataset}


def main(
    sweeps: Annotated[int, typer.Option(help="Number of sweeps.")] = 200,
    points: Annotated[int, typer.Option(help="Points of each.")] = 30_000,
    repeats: Annotated[int, typer.Option(help="Passes, of which the median counts.")] = 3,
) -> None:
    """Print a line of JSON for each kind."""
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        loaders: dict[str, Callable[[int], Iterable[Any]]] = {}
        rows: dict[str, dict[str, list[float]]] = {}
        for name, write in KINDS.items():
            start, used = time.perf_counter(), time.process_time()
            loaders[name] = write(Path(folder, name), sweeps, points)
            rows[name] = {
                "write_s": [time.perf_counter() - start],
                "write_cpu_s": [time.process_time() - used],
            }
        for _ in range(repeats):  # in turn
            for name, loader in loaders.items():
                for workers in (1, 2):
                    for key, value in rate(loader(workers)).items():
                        rows[name].setdefault(f"{key}_{workers}", []).append(value)
    for name, row in rows.items():
        medians = {key: round(statistics.median(values), 2) for key, values in row.items()}
        print(json.dumps({"kind": name, **medians}))


if __name__ == "__main__":
    typer.run(main)
