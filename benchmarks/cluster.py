# SPDX-License-Identifier: Apache-2.0
"""Labeling on a Ray cluster of two machines, both of them this one: files, speed, faults, memory.

    pip install 'pcseg_ros[cluster]' 'moto[s3]' flask flask-cors
    python -m benchmarks.cluster --json OUT

Copies of a simulated recording lie on a server of the S3 protocol on this machine (moto). They are
labeled by the plain run, by one worker and by two workers of one thread each, and once more with a
worker that is killed. The files are compared. Workers are loaded before the clock starts. Two
workers need two free cores: judge by the CPU time of a sweep where other work runs. Then 40 and 400
recordings of one sweep get superpixels, each number in a new process, whose peak memory is that of
the driver.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import cpu_name, memory_mb
from pcseg_core.cli.superpixels import _maker
from pcseg_core.cluster.job import Job
from pcseg_core.cluster.label import LabelJob, label_folders
from pcseg_core.cluster.ray_workers import RayWorkers, connected
from pcseg_core.cluster.run import Here, RayOptions, run_job
from pcseg_core.cluster.superpixels import SuperpixelJob
from pcseg_core.files import write_atomic
from pcseg_core.learning.recipe import load_recipe
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.to_bag import write_simulated_bag

RECIPE = "teacher: {weights: 'bundled:simulation_teacher', label_space: simulation}\n"
DRIVE = "seed=1,sweeps={sweeps},beams=32,columns=512,cameras=2,width=320,height=192"
BUCKET = "fleet"


@dataclass
class Timed(RayWorkers):
    """Workers that tell their CPU time, and whose first task may end with SIGKILL."""

    cpu_s: float = 0.0
    pids: list[int] = field(default_factory=list)

    def settle(self, count: int) -> None:
        """Wait until all workers have loaded their networks."""
        while len(self.idle()) < count:
            self.wait(1.0)
        self.pids = self._ask(lambda process: os.getpid())
        self.cpu_s = -sum(self._ask(lambda process: time.process_time()))

    def stop(self) -> None:
        """Read the CPU time, then end the workers."""
        if self.pids:
            self.cpu_s += sum(self._ask(lambda process: time.process_time()))
            self.pids = []
        super().stop()

    def _ask(self, question: Any) -> list[Any]:
        handles = [actor.handle for actor in self._actors.values() if actor.ready]
        return list(self.ray.get([handle.__ray_call__.remote(question) for handle in handles]))


@dataclass(frozen=True)
class Run:
    """Wall and CPU time of the work [s], sweeps, and a digest of the files."""

    wall_s: float
    cpu_s: float
    sweeps: int
    files: str


@contextmanager
def bucket(drives: Path) -> Iterator[str]:
    """The URL of a bucket with a copy of a folder."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "benchmark"
    try:
        system = s3fs.S3FileSystem()
        system.mkdir(BUCKET)
        system.put(f"{drives}/", f"{BUCKET}/", recursive=True)
        yield f"s3://{BUCKET}"
    finally:
        server.stop()


@contextmanager
def two_machines() -> Iterator[str]:
    """Address of a cluster of two machines of one core each, both on this one."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    one = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**one, "include_dashboard": False})
    try:
        cluster.add_node(**one)
        yield cluster.address
    finally:
        cluster.shutdown()


def copies(folder: Path, count: int, sweeps: int) -> list[str]:
    """So many copies of a bag of a simulated drive; their names. Existing ones are kept."""
    names = [f"drive{k:03d}" for k in range(count)]
    if not (folder / names[0]).exists():
        drive = SimulatedDrive.from_text(DRIVE.format(sweeps=sweeps))
        write_simulated_bag(drive, folder / names[0])
    for name in names[1:]:
        if not (folder / name).exists():
            shutil.copytree(folder / names[0], folder / name)
    return names


def label_job(out: Path, recipe: Path, sources: Sequence[str], window: int) -> LabelJob:
    """Labels of the recordings, on the CPU."""
    folders = label_folders(sources, out)
    return LabelJob(out, load_recipe(recipe), folders, window=window, device="cpu")


def plain(job: LabelJob, sources: Sequence[str]) -> Run:
    """The run in this process."""
    here = Here(job)
    here.worker.load()
    start, cpu = time.perf_counter(), time.process_time()
    outcome = run_job(job, sources, here)
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    return Run(wall, used, outcome.sweeps, digest(job.out))


def on_ray(
    job: LabelJob, sources: Sequence[str], address: str, count: int, kill: bool = False
) -> Run:
    """The run by some workers, one of which may be killed."""
    job.out.mkdir(parents=True)
    with connected(address) as ray:
        workers = Timed(ray, job, RayOptions(address, count, gpu=False))
        workers.settle(count)
        if kill:
            victim, workers.pids = workers.pids[0], []
            threading.Timer(3.0, os.kill, (victim, signal.SIGKILL)).start()
        start = time.perf_counter()
        outcome = run_job(job, sources, workers)
        wall = time.perf_counter() - start
    assert not outcome.left_out, outcome.left_out
    return Run(wall, workers.cpu_s, outcome.sweeps, digest(job.out))


def digest(folder: Path) -> str:
    """SHA-256 of all results with their names; notes of what is done do not count."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("done"):
            found.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def driver_memory(address: str, drives: Path, count: int) -> float:
    """Peak memory [MB] of a new process that has so many recordings done."""
    command = [sys.executable, "-m", "benchmarks.cluster", "--driver", f"{count}"]
    command += ["--address", address, "--drives", f"{drives}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=3600)
    return float(done.stdout.split()[-1])


def drive_many(address: str, drives: Path, count: int) -> None:
    """In a process of its own: superpixels of many recordings; prints the peak memory."""
    maker = partial(_maker, "slic", None, None, 20, 10.0, 100, "cityscapes", "cpu")
    with tempfile.TemporaryDirectory() as out:
        job: Job = SuperpixelJob(Path(out) / "maps", maker)
        job.out.mkdir()
        sources = [str(drives / f"drive{k:03d}") for k in range(count)]
        with connected(address) as ray:
            workers = RayWorkers(ray, job, RayOptions(address, gpu=False))
            outcome = run_job(job, sources, workers)
        assert outcome.recordings == count, outcome.left_out
    print(memory_mb())


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    names = copies(folder / "drives", arguments.recordings, arguments.sweeps)
    os.environ["PCSEG_FETCHED"] = str(folder / "fetched")
    with ExitStack() as stack:
        url = stack.enter_context(bucket(folder / "drives"))
        address = stack.enter_context(two_machines())
        sources = [f"{url}/{name}" for name in names]
        job = partial(label_job, recipe=recipe, sources=sources, window=arguments.window)
        found = {"plain": [plain(job(folder / "plain"), sources)]}
        for turn in range(arguments.rounds):
            for count in (1, 2):
                run = on_ray(job(folder / f"{count}-{turn}"), sources, address, count)
                found.setdefault(f"{count} workers", []).append(run)
        found["killed"] = [on_ray(job(folder / "killed"), sources, address, 2, kill=True)]
        memory = {}
        small = folder / "small"
        for count in arguments.many:
            copies(small, count, 1)
            memory[f"{count}"] = driver_memory(address, small, count)
    return {**summary(found), "driver_mb": memory, "load": os.getloadavg(), "cpu": cpu_name()}


def summary(found: dict[str, list[Run]]) -> dict[str, Any]:
    """Rates by kind of run, their ratios, and whether all files are the same."""
    rate = {k: statistics.median(r.sweeps / r.wall_s for r in runs) for k, runs in found.items()}
    cpu = {k: statistics.median(r.cpu_s / r.sweeps for r in runs) for k, runs in found.items()}
    cpu.pop("killed")
    return {
        "sweeps": found["plain"][0].sweeps,
        "same_files": len({run.files for runs in found.values() for run in runs}) == 1,
        "sweeps_per_s": rate,
        "cpu_s_per_sweep": cpu,
        "speed_up": rate["2 workers"] / rate["1 workers"],
        "speed_up_by_cpu_time": 2 * cpu["1 workers"] / cpu["2 workers"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=6)
    parser.add_argument("--sweeps", type=int, default=20, help="of each recording")
    parser.add_argument("--window", type=int, default=5, help="sweeps of a part")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--many", type=int, nargs="*", default=[40, 400])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--driver", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--drives", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.driver:
        drive_many(arguments.address, arguments.drives, arguments.driver)
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.json:
        write_atomic(arguments.json, text + "\n")


if __name__ == "__main__":
    main()
