# SPDX-License-Identifier: Apache-2.0
"""Workers in a Ray cluster: an actor per GPU, or per some cores, each with its own networks."""

from __future__ import annotations

import os
import platform
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pcseg_core import __version__, copies, storage
from pcseg_core.cluster.job import Failure, Job, Task, perform
from pcseg_core.cluster.run import AUTO, LOCAL, Done, RayOptions
from pcseg_core.copies import shown, url_of
from pcseg_core.errors import InputError, PcsegError, require
from pcseg_core.progress import note
from pcseg_core.storage import is_url

_ANSWER_S = 5.0  # an address answers in this time
_READY_S = 120.0  # a machine starts a process and says what it has in this time
_ALONE_S = 600.0  # a job without any worker ends after this time
_COMPARED = ("torch", "numpy")


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The ray module, connected to a cluster until the block ends.

    Raises:
        MissingDependency: Ray is not installed.
        InputError: no cluster at the address, or one of other versions.
    """
    ray = require("ray", "cluster")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _check_answer(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _connect(ray, address)
        for number, handler in handlers.items():  # Ray replaces that of SIGTERM
            signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _connect(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        if address == AUTO and "RAY_ADDRESS" not in os.environ:
            try:
                ray.init(address="auto", **quiet)
                return
            except ConnectionError:
                address = LOCAL
        if address == LOCAL:
            note("starting Ray on this machine")
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, TimeoutError) as error:
        raise _no_ray(address, str(error)) from error
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        if "ersion" in told:
            raise InputError(f"--ray {address}: the versions there differ: {told}") from error
        raise _no_ray(address, told) from error


def _check_answer(address: str) -> None:
    """Raise InputError if nothing listens at HOST:PORT."""
    given = os.environ.get("RAY_ADDRESS", "") if address == AUTO else address
    host, colon, port = given.rpartition(":")
    if "://" in given:
        raise InputError(
            f"--ray {given}: Ray Client is not supported; run the command on a machine of the "
            "cluster and give HOST:PORT of its head"
        )
    if not colon or not port.isdigit():
        if address not in (AUTO, LOCAL):
            raise InputError(f"--ray {address}: expected auto, local or HOST:PORT")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise _no_ray(given, str(error)) from None


def _no_ray(address: str, reason: str) -> InputError:
    return InputError(
        f"--ray {address}: no Ray cluster answers there ({reason}); start one with `ray start "
        "--head` and join it here with `ray start --address`, or give --ray local to use this "
        "machine alone"
    )


def versions() -> dict[str, str]:
    """What has to be the same on all machines, for the same results."""
    found = {"pcseg": __version__, "Python": ".".join(platform.python_version_tuple()[:2])}
    for name in _COMPARED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def check_nodes(ray: Any, out: Path) -> None:
    """Check that the machines of a cluster have the same versions and see the same folder.

    Raises:
        InputError: one does not; the message names it.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = out / f".{secrets.token_hex(8)}.pcseg-job"
    with copies.writing(mark) as temporary:
        temporary.touch()
    place = url_of(mark) or str(mark.resolve())
    try:
        asked = {}
        for node in (node for node in ray.nodes() if node["Alive"]):
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(_facts).options(num_cpus=0, max_retries=1, scheduling_strategy=here)
            asked[task.remote(place)] = node["NodeManagerAddress"]
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_READY_S)
        for reference in silent:
            note(f"{asked[reference]}: this machine does not answer and is not used")
        for reference in answered:
            _check_facts(ray, reference, asked[reference], out)
    finally:
        mark.unlink()
        if is_url(place):
            storage.remove(place)


def _facts(mark: str) -> tuple[dict[str, str], bool]:
    """In a process on each machine: its versions, and whether it sees a file, or one at a URL."""
    return versions(), storage.exists(mark) if is_url(mark) else Path(mark).exists()


def _check_facts(ray: Any, reference: Any, address: str, out: Path) -> None:
    gone = (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError)
    try:
        there, sees_mark = ray.get(reference)
    except gone:
        note(f"{address}: this machine has left the cluster and is not used")
        return
    except Exception as error:  # such as a missing package, in the words of Ray
        told = [line for line in str(error).splitlines() if line.strip()][-1:]
        raise InputError(
            f"{address}: pcseg does not run on this machine of the cluster: {' '.join(told)}; "
            f"install pcseg {__version__} there"
        ) from error
    for name, own in versions().items():
        if there.get(name) != own:
            raise InputError(
                f"{address}: {name} {there.get(name, 'is missing')} on this machine of the "
                f"cluster, {own} here; install the same versions on all machines"
            )
    if not sees_mark:
        raise InputError(
            f"{shown(out)}: the machine {address} of the cluster does not see this folder; give an "
            "--out on storage that all machines mount at the same path"
        )


class Process:
    """The actor: a worker in a process of its own."""

    def __init__(self, job: Job, folder: str, settings: Mapping[str, str]) -> None:
        """Work in the folder of the driver, as far as it exists, with its settings."""
        os.environ.update(settings)
        with suppress(OSError):
            os.chdir(folder)
        self.worker = job.worker()

    def load(self) -> tuple[str, str]:
        """Load the networks; the machine, and an error if they cannot be loaded, else ""."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        try:
            self.worker.load()
        except PcsegError as error:
            return node, str(error)
        return node, ""

    def do(self, task: Task) -> object:
        """Do a task, see `perform`."""
        return perform(self.worker, task)


@dataclass
class _Actor:
    handle: Any
    node: str = ""
    task: Task | None = None
    reference: Any = None
    ready: bool = False


@dataclass
class RayWorkers:
    """A pool of actors; one that dies is replaced. See `run.Workers`.

    Attributes:
        ray: the module, see `connected`.
        job: what the workers do.
        options: of the cluster.
    """

    ray: Any
    job: Job
    options: RayOptions
    _actors: dict[str, _Actor] = field(default_factory=dict)
    _made: int = 0
    _deaths: int = 0
    _size: int = 0
    _since: float = field(default_factory=time.monotonic)
    _needs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start the first worker, and the others when it has loaded its networks.

        Raises:
            InputError: the cluster has no room, or the first worker cannot load its networks.
        """
        gpus = int(self.ray.cluster_resources().get("GPU", 0)) if self.options.gpu else 0
        self._needs = {"num_cpus": self.options.cpus, "num_gpus": 1 if gpus else 0}
        self._size = self._room(gpus)
        try:
            self._add()
            while not self.idle():
                for done in self.wait(_READY_S):
                    raise InputError(f"the first worker ended: {done.ended}")
            for _ in range(self._size - 1):
                self._add()
        except BaseException:
            self.stop()
            raise

    def _room(self, gpus: int) -> int:
        """Number of workers that fit."""
        resources = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        fits = sum(int(r.get("CPU", 0) // self.options.cpus) for r in resources)
        fits = min(fits, gpus) if gpus else fits
        if not fits:
            raise InputError(
                f"no machine of the cluster has {self.options.cpus} cores for a worker; give a "
                "smaller --worker-cpus, or start Ray with more --num-cpus"
            )
        return min(fits, self.options.workers or fits)

    def _add(self) -> None:
        self._made += 1
        settings = {name: value for name, value in os.environ.items() if name.startswith("PCSEG_")}
        kind = self.ray.remote(Process).options(max_restarts=0, **self._needs)
        handle = kind.remote(self.job, str(Path.cwd()), settings)
        self._actors[f"{self._made}"] = _Actor(handle, reference=handle.load.remote())

    def idle(self) -> list[tuple[str, str]]:
        """(name, machine) of the actors that have loaded their networks and have no task."""
        return [(n, a.node) for n, a in self._actors.items() if a.ready and a.task is None]

    def start(self, worker: str, task: Task) -> None:
        """Send a task to an actor."""
        actor = self._actors[worker]
        actor.task, actor.reference = task, actor.handle.do.remote(task)

    def wait(self, timeout_s: float) -> list[Done]:
        """Take the results that there are."""
        if any(actor.ready for actor in self._actors.values()):
            self._since = time.monotonic()
        elif time.monotonic() - self._since > _ALONE_S:
            raise InputError(
                f"no worker could start for {_ALONE_S / 60:.0f} minutes: the cluster has no room, "
                "or its machines are gone; run the same command again later"
            )
        pending = {a.reference: name for name, a in self._actors.items() if a.reference is not None}
        if not pending:
            time.sleep(timeout_s)
            return []
        first, _ = self.ray.wait(list(pending), num_returns=1, timeout=timeout_s)
        ready, _ = self.ray.wait(list(pending), num_returns=len(pending), timeout=0)
        found = [self._take(pending[reference]) for reference in {*first, *ready}]
        return [done for done in found if done is not None]

    def _take(self, name: str) -> Done | None:
        actor = self._actors[name]
        reference, actor.reference = actor.reference, None
        loading, actor.task = not actor.ready, None
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayActorError as error:
            return self._ended(name, _cause(error))
        except Exception as error:  # a bug in a task, or a full object store; in the words of Ray
            reason = _last_line(error)
            return self._ended(name, reason) if loading else Done(name, Failure(reason, again=True))
        if not loading:
            self._deaths = 0
            return Done(name, result)
        actor.node, problem = result
        if not problem:
            actor.ready = True
            return None
        del self._actors[name]  # another one there would lack the same
        if not self._actors:
            raise InputError(problem)
        return Done(name, ended=problem)

    def _ended(self, name: str, reason: str) -> Done:
        del self._actors[name]
        self._deaths += 1
        if self._deaths > 3 * self._size:
            raise InputError(f"workers end again and again, the last one by: {reason}")
        self._add()
        return Done(name, ended=reason)

    def states(self) -> list[str]:
        """The task of each actor."""
        return [
            f"{name}: {actor.task or ('waits' if actor.ready else 'starts')}"
            for name, actor in self._actors.items()
        ]

    def stop(self) -> None:
        """Kill all actors."""
        for actor in self._actors.values():
            with suppress(Exception):  # it is gone already
                self.ray.kill(actor.handle, no_restart=True)
        self._actors.clear()


def _cause(error: Exception) -> str:
    """Why an actor died, in a line."""
    text = " ".join(str(error).split())
    known = {"out-of-memory": "it ran out of memory", "node": "its machine is gone"}
    cause = next((told for word, told in known.items() if f"{word} " in text[:200]), "")
    return f"its process ended{f': {cause}' if cause else ''} ({type(error).__name__})"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
