# SPDX-License-Identifier: Apache-2.0
"""Training by several processes of a Ray cluster: Ray Train runs what torchrun would run."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from pcseg_core.cluster.ray_workers import check_nodes, connected
from pcseg_core.cluster.run import RayOptions
from pcseg_core.copies import shown, url_of
from pcseg_core.errors import InputError, PcsegError, require
from pcseg_core.learning.run_folder import RUN, finished
from pcseg_core.learning.run_mirror import OURS, sync
from pcseg_core.progress import bar
from pcseg_core.storage import file_system, remove_folder


class Work(Protocol):
    """Trains a run, the same in all processes; pickles."""

    def __call__(self, *, fresh: bool) -> dict[str, Any]:
        """Train; `fresh` deletes an earlier run."""


_RESTARTS = 3
_WATCH_S = 5.0


def train_on_ray(work: Work, out: Path, fresh: bool, options: RayOptions) -> dict[str, Any]:
    """Train with `options.workers` processes, which start again, and resume, if one is lost.

    Args:
        work: leaves a finished run in `out`.
        out: run directory, on storage that all machines see.
        fresh: delete an earlier run in `out`.
        options: of the cluster.

    Returns:
        Figures of the finished run.

    Raises:
        InputError: see `connected` and `check_nodes`, or one of the work.
        PcsegError: the processes ended again and again.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with connected(options.address) as ray, _notes(out) as notes:
        check_nodes(ray, out if url_of(out) else out.parent)
        require("ray.train", "cluster")
        told = ray.remote(Told).options(num_cpus=0).remote()
        try:
            with _shown(out, options.workers):
                _trainer(ray, work, fresh, options, told, notes).fit()
        except Exception as error:  # Ray's, with the causes of all processes
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise PcsegError(
                f"the training ended {_RESTARTS + 1} times; run the same command again to resume "
                f"({' '.join(lines[-3:])})"
            ) from error
        if problem := ray.get(told.problem.remote()):
            raise InputError(problem)
    sync(out, RUN, push=False)
    figures = finished(out)
    if figures is None:
        raise PcsegError(f"{shown(out)}: the training left no result; run the same command again")
    return figures


class Told:
    """An actor that the processes of a training tell what the command has to know."""

    def __init__(self) -> None:
        self._starts: dict[int, int] = {}
        self._problem = ""

    def start(self, rank: int) -> int:
        """How often the process of this rank started before."""
        self._starts[rank] = self._starts.get(rank, -1) + 1
        return self._starts[rank]

    def refuse(self, problem: str) -> None:
        """The input is wrong: to start again does not help."""
        self._problem = self._problem or problem

    def problem(self) -> str:
        """Why the input is wrong, else ""."""
        return self._problem


def _trainer(
    ray: Any, work: Work, fresh: bool, options: RayOptions, told: Any, notes: dict[str, Any]
) -> Any:
    """Ray's trainer."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpu = options.gpu and ray.cluster_resources().get("GPU", 0) > 0
    settings = {k: v for k, v in os.environ.items() if k.startswith(("PCSEG_", "AWS_"))}
    config = {"work": work, "fresh": fresh, "told": told, "folder": str(Path.cwd())}
    return TorchTrainer(
        _process,
        train_loop_config={**config, "settings": settings},
        scaling_config=ScalingConfig(
            num_workers=options.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": options.cpus, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name="run", **notes, failure_config=FailureConfig(max_failures=_RESTARTS)
        ),
    )


def _process(config: dict[str, Any]) -> None:
    """In each process: the work, by the variables of torchrun."""
    import ray
    from ray import train

    context = train.get_context()
    os.environ.update(config["settings"])
    os.environ.update(
        RANK=str(context.get_world_rank()),
        LOCAL_RANK=str(context.get_local_rank()),
        WORLD_SIZE=str(context.get_world_size()),
        LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
    )
    with suppress(OSError):
        os.chdir(config["folder"])
    before = ray.get(config["told"].start.remote(context.get_world_rank()))
    try:
        config["work"](fresh=config["fresh"] and not before)
    except InputError as error:
        ray.get(config["told"].refuse.remote(str(error)))


@contextmanager
def _notes(out: Path) -> Iterator[dict[str, Any]]:
    """A place for Ray's notes, which all machines see, until the block ends; as Ray's options.

    It is beside the run directory, or in the run at a URL.
    """
    if url := url_of(out):
        place = f"{url}/{OURS}-ray-train"
        try:
            yield {"storage_filesystem": _arrow(place), "storage_path": file_system(place)[1]}
        finally:
            with suppress(InputError):
                remove_folder(place)
        return
    folder = out.parent / f".{out.name}.ray-train"
    folder.mkdir(exist_ok=True)
    try:
        yield {"storage_path": str(folder)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _arrow(url: str) -> Any:
    """The file system of a URL in the form of pyarrow, which Ray Train takes."""
    arrow = require("pyarrow.fs", "cluster")
    return arrow.PyFileSystem(arrow.FSSpecHandler(file_system(url)[0]))


@contextmanager
def _shown(out: Path, processes: int) -> Iterator[None]:
    """Show the steps of a training, by its curve, until the block ends."""
    ended = threading.Event()

    def watch() -> None:
        with bar(f"training, {processes} processes") as progress:
            while not ended.wait(_WATCH_S):
                with suppress(OSError, ValueError, IndexError):
                    rows = (out / "logs" / "metrics.csv").read_text(encoding="utf-8").splitlines()
                    progress(int(rows[-1].partition(",")[0]) + 1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
