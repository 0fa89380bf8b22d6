# SPDX-License-Identifier: Apache-2.0
"""Work in a Ray cluster of two machines: the files of the plain run, also if workers are killed."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from recordings import bag
from small_runs import semantic_kitti, sweep, write_run
from test_jobs import RECIPE, files, pcseg
from torch.utils.data import DataLoader

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'pcseg_ros[cluster]'")

from pcseg_core.cluster import ray_workers
from pcseg_core.cluster.job import Plan, perform
from pcseg_core.cluster.label import LabelJob, LabelWorker
from pcseg_core.cluster.observe import ObserveJob
from pcseg_core.cluster.run import RayOptions, run_on_ray
from pcseg_core.copies import CACHE, RUN, local_copy
from pcseg_core.errors import InputError
from pcseg_core.learning.dataset import StepDataset
from pcseg_core.learning.recipe import load_recipe

MARK = "PCSEG_TEST_CLUSTER"
SWEEPS = 4


class Unsteady:
    """An application that answers 503 while `refusals` last, else as another one."""

    refusals = 0

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
        if Unsteady.refusals <= 0 or environ["REQUEST_METHOD"] != "GET":
            return self.app(environ, start)
        Unsteady.refusals -= 1
        start("503 Slow Down", [("Content-Length", "0")])
        return []


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """Address of a storage of the S3 protocol on this machine, as AWS's variables give it."""
    server = pytest.importorskip(
        "moto.moto_server.threaded_moto_server",
        reason="moto is not installed; pip install moto[s3]",
    )
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    with pytest.MonkeyPatch.context() as patch:
        whole = server.DomainDispatcherApplication
        patch.setattr(server, "DomainDispatcherApplication", lambda make: Unsteady(whole(make)))
        running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        running.start()
        host, port = running.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(scope="module")
def machines(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two machines of one core each, both on this one."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, uuid4().hex)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PCSEG_FETCHED", str(tmp_path_factory.mktemp("fetched")))
        patch.setenv("PCSEG_COPIES", str(tmp_path_factory.mktemp("copies")))
        one = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
        found = Cluster(initialize_head=True, head_node_args=one)
        found.add_node(num_cpus=1, object_store_memory=80_000_000)
        yield found
        ray.shutdown()
        found.shutdown()


@pytest.fixture(scope="module")
def cluster(machines: Any) -> str:
    """Address of the cluster."""
    address: str = machines.address
    return address


@pytest.fixture(scope="module")
def drives(storage: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pattern of three bags in a bucket, the second of which is damaged."""
    import s3fs

    folder = tmp_path_factory.mktemp("drives")
    for k in (0, 2):
        bag(folder / f"drive{k}", SWEEPS, image_delay_ns=10_000_000 * k)
    (folder / "drive1").mkdir()
    (folder / "drive1" / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    system = s3fs.S3FileSystem()
    system.mkdir("fleet")
    system.put(f"{folder}/", "fleet/", recursive=True)
    return "s3://fleet/drive*"


def workers(title: bytes = b"ray::Process") -> list[int]:
    """Processes of the workers of this test, by the start of their title."""
    found = []
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = mark in (folder / "environ").read_bytes().split(b"\0")
            if ours and (folder / "cmdline").read_bytes().startswith(title):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill_at(sign: Path, pattern: str, killed: list[int], ended: threading.Event) -> None:
    """Kill a worker that does a task, once a file exists."""
    while not killed and not ended.wait(0.02):
        if any(sign.glob(pattern)) and (found := workers(b"ray::Process.do")):
            os.kill(found[0], signal.SIGKILL)
            killed.append(found[0])


def test_labels_are_those_of_the_plain_run_even_if_a_worker_is_killed(
    cluster: str, drives: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    options = ("--recipe", tmp_path / "recipe.yaml", "--window", 2)
    plain = pcseg("label", drives, *options, "--out", tmp_path / "plain")
    assert plain.exit_code == 2 and "8 sweeps of 2 recordings labeled" in plain.output
    out, killed, ended = tmp_path / "ray", [], threading.Event()
    killer = threading.Thread(target=kill_at, args=(out, "drive*/cache/done-0-2", killed, ended))
    killer.start()
    command = ("label", drives, *options, "--out", out, "--ray", cluster)
    result = pcseg(*command)
    ended.set()
    killer.join()
    assert killed and "its process ended" in result.output
    assert "8 sweeps of 2 recordings labeled" in result.output, result.output
    assert "1 of 3 recordings were left out (drive1)" in result.output
    assert files(out) == files(tmp_path / "plain")
    assert not workers()
    again = pcseg(*command)
    assert "8 of them by an earlier run" in again.output, again.output


def labeling(drives: str, out: Path, cluster: str, *options: object) -> tuple[object, ...]:
    """A command that labels two recordings by parts of a sweep, and leaves one out."""
    recipe = out.parent / "recipe.yaml"
    recipe.write_text(RECIPE)
    fixed = ("--recipe", recipe, "--window", 1, "--out", out, "--ray", cluster)
    return ("label", drives, *fixed, *options)


def test_a_machine_that_goes_in_mid_job_costs_no_sweep(
    machines: Any, drives: str, tmp_path: Path
) -> None:
    more = machines.add_node(num_cpus=1, object_store_memory=80_000_000)
    out, gone, ended = tmp_path / "out", threading.Event(), threading.Event()

    def remove() -> None:
        while not gone.is_set() and not ended.wait(0.02):
            if any(out.glob("drive*/cache/done-*")):
                machines.remove_node(more, allow_graceful=False)
                gone.set()

    remover = threading.Thread(target=remove)
    remover.start()
    result = pcseg(*labeling(drives, out, machines.address, "--workers", 3))
    ended.set()
    remover.join()
    assert gone.is_set()
    assert "8 sweeps of 2 recordings labeled" in result.output, result.output
    assert not workers()


def test_storage_that_is_unavailable_for_a_while_costs_no_recording(
    cluster: str, drives: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = os.environ["PCSEG_FETCHED"]
    for file in Path(fetched).rglob("*.db3"):
        file.unlink()  # so that workers read the bucket again
    monkeypatch.setattr(Unsteady, "refusals", 12)
    result = pcseg(*labeling(drives, tmp_path / "out", cluster))
    assert Unsteady.refusals <= 0
    assert "8 sweeps of 2 recordings labeled" in result.output, result.output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk))
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(("umount", "--lazy", str(disk)), check=True)


@dataclass(frozen=True)
class Awaited(LabelJob):
    """Labels, which no machine begins before a worker of the one with the small disk has a task."""

    disk: Path = Path()

    def worker(self) -> LabelWorker:
        class Worker(LabelWorker):
            def plan(self, source: str) -> Plan:
                begun, end = self.job.out / "begun", time.monotonic() + 120
                if os.environ["PCSEG_FETCHED"] == str(self.job.disk):
                    begun.touch()
                while not begun.exists() and time.monotonic() < end:
                    time.sleep(0.05)
                return super().plan(source)

        return Worker(self)


def test_a_full_disk_on_one_machine_costs_no_sweep(
    machines: Any,
    drives: str,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    sources, out = [drives.replace("*", f"{k}") for k in (0, 2)], tmp_path / "out"
    folders = {source: out / source[-6:] for source in sources}
    recipe = load_recipe(tmp_path / "recipe.yaml")
    job = Awaited(out, recipe, folders, window=2, device="cpu", disk=small_disk)
    monkeypatch.delenv("PCSEG_FETCHED")  # each machine has its own
    settings = {"PCSEG_FETCHED": str(small_disk)}
    size = 80_000_000
    more = machines.add_node(num_cpus=1, object_store_memory=size, env_vars=settings)
    try:
        outcome = run_on_ray(job, sources, RayOptions(machines.address, workers=3))
    finally:
        machines.remove_node(more, allow_graceful=False)
    assert (out / "begun").is_file() and "No space left on device" in capsys.readouterr().err
    assert outcome.sweeps == 2 * SWEEPS and not outcome.left_out
    assert not [path for path in small_disk.rglob("*") if path.stat().st_size > 1000]


def test_an_interrupted_job_stops_its_workers_and_resumes(
    cluster: str, drives: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [str(word) for word in labeling(drives, out, cluster)]
    job = subprocess.Popen(
        [sys.executable, "-m", "pcseg_core.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any(out.glob("drive*/cache/done-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    told, _ = job.communicate(timeout=120)
    assert job.returncode == 130, told
    while workers() and time.monotonic() < deadline + 60:
        time.sleep(0.1)
    assert not workers()
    again = pcseg(*command)
    assert "8 sweeps of 2 recordings labeled" in again.output, again.output


def test_a_training_streams_from_object_storage(storage: str, tmp_path: Path) -> None:
    import s3fs

    from pcseg_core.learning.recipe import OptimizerConfig, TrainingRecipe
    from pcseg_core.learning.sectors import LabeledSectors
    from pcseg_core.learning.shards import prepared

    s3fs.S3FileSystem().mkdir("shards")
    units = [(f"{k}", lambda k=k: [sweep("a", 2 * k), sweep("b", 2 * k + 1)]) for k in range(3)]
    there, here = (prepared(units, place).sweeps for place in ("s3://shards/run", None))
    assert len(s3fs.S3FileSystem().ls("shards/run")) == 4
    recipe = TrainingRecipe(optimizer=OptimizerConfig(batch_size=3))
    loader = DataLoader(StepDataset(LabeledSectors(there, recipe), 2, 4), None, num_workers=1)
    plain = StepDataset(LabeledSectors(here, recipe), 2, 4)
    for step, batch in enumerate(loader):
        assert torch.equal(batch.points.xyz, plain[step].points.xyz)
    assert step == 3
    assert [one.scene for one in prepared([], "s3://shards/run").sweeps] == ["a", "b"] * 3


def test_teachers_fill_the_cache_of_a_training(cluster: str, drives: str, tmp_path: Path) -> None:
    import s3fs

    from pcseg_core.cluster.job import Task

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe, source = load_recipe(tmp_path / "recipe.yaml"), drives.replace("*", "0")
    there = local_copy("s3://fleet/cache", CACHE)
    here, there = (ObserveJob(recipe, tmp_path, out, "cpu") for out in (tmp_path / "a", there))
    (tmp_path / "a").mkdir()
    perform(here.worker(), Task("run", source, (0, 2)))
    outcome = run_on_ray(there, [source], RayOptions(cluster, workers=1))
    assert outcome.sweeps == SWEEPS and not outcome.left_out
    part, system = files(tmp_path / "a"), s3fs.S3FileSystem(use_listings_cache=False)
    stored = {path.rpartition("/")[2]: system.cat(path) for path in system.find("fleet/cache")}
    assert len(part) == 2 and part.items() <= stored.items() and len(stored) == SWEEPS


def test_no_work_starts_on_a_wrong_cluster(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    job = ObserveJob(load_recipe(tmp_path / "recipe.yaml"), tmp_path, tmp_path / "cache")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=f"--ray {nobody}: no Ray cluster answers there"):
            run_on_ray(job, [], RayOptions(nobody))
    with pytest.raises(InputError, match="expected auto, local or HOST:PORT"):
        run_on_ray(job, [], RayOptions("somewhere"))
    with pytest.raises(InputError, match="Ray Client is not supported"):
        run_on_ray(job, [], RayOptions(f"ray://{nobody}"))
    with pytest.raises(InputError, match="has 64 cores for a worker"):
        run_on_ray(job, [], RayOptions(cluster, cpus=64))
    monkeypatch.setattr(ray_workers, "versions", lambda: {"pcseg": "99"})
    with pytest.raises(InputError, match=r"pcseg .* on this machine of the cluster, 99 here"):
        run_on_ray(job, [], RayOptions(cluster))
    assert not (tmp_path / "cache").exists()


def test_a_training_on_the_cluster_resumes_when_a_process_is_killed(
    cluster: str, tmp_path: Path
) -> None:
    reason = "Ray Train is not installed; pip install 'ray[train]'"
    pytest.importorskip("ray.train.torch", reason=reason, exc_type=ImportError)
    import s3fs

    start, labeled = write_run(tmp_path / "start"), semantic_kitti(tmp_path / "labeled", 2)
    (tmp_path / "recipe.yaml").write_text("optimizer: {steps: 120, batch_size: 2}\n")
    s3fs.S3FileSystem().mkdir("trained")
    url, killed, ended = "s3://trained/runs/first", [], threading.Event()
    out = local_copy(url, RUN)

    def kill() -> None:
        while not killed and not ended.wait(0.02):
            if (out / "last.ckpt").is_file() and (found := workers(b"ray::RayTrainWorker")):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])

    killer = threading.Thread(target=kill)
    killer.start()
    command = ("finetune", start, f"semantic-kitti:{labeled}", "--device", "cpu", "--out")
    shared = ("--recipe", tmp_path / "recipe.yaml", "--ray", cluster, "--processes", 2)
    result = pcseg(*command, url, *shared)
    ended.set()
    killer.join()
    assert result.exit_code == 0 and killed, result.output
    assert f"{url}: 2 sweeps, 120 steps" in result.output
    system = s3fs.S3FileSystem(use_listings_cache=False)
    found = {path.removeprefix("trained/runs/first/") for path in system.find("trained/runs/first")}
    assert {"checkpoint.safetensors", "shards/index-1.npz", "last.ckpt", "command.yaml"} <= found
    assert [name for name in found if name.startswith(".")] == [".pcseg-run.json"]
    other = pcseg(*command, tmp_path / "other", "--label-space", "nonsense", *shared)
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
    assert other.exit_code == 2 and "nonsense" in other.output
