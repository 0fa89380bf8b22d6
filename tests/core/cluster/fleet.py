# SPDX-License-Identifier: Apache-2.0
"""Workers of a test: they divide recordings into parts of two sweeps, and fail as they are told."""

from __future__ import annotations

from collections.abc import Callable

from pcseg_core.cluster.job import Failure, Plan, Summary, Task, stretches
from pcseg_core.cluster.run import Done

DIES = "dies"
Behavior = Callable[[str, Task], object]
"""(worker, task) -> a `Failure`, `DIES`, or None for success."""


class Fleet:
    """Workers on two machines, "a" and "b"; each task takes one step.

    Attributes:
        log: (worker, task) in the order in which they were given.
    """

    def __init__(
        self,
        behavior: Behavior = lambda worker, task: None,
        sweeps: int = 4,
        whole: bool = False,
        machines: str = "ab",
    ) -> None:
        self.behavior, self.sweeps, self.whole = behavior, sweeps, whole
        self.log: list[tuple[str, Task]] = []
        self.nodes = {f"{machine}1": machine for machine in machines}
        self.tasks: dict[str, Task] = {}
        self.stopped = False

    def idle(self) -> list[tuple[str, str]]:
        return [(name, node) for name, node in self.nodes.items() if name not in self.tasks]

    def start(self, worker: str, task: Task) -> None:
        self.log.append((worker, task))
        self.tasks[worker] = task

    def wait(self, timeout_s: float) -> list[Done]:
        tasks, self.tasks = self.tasks, {}
        return [self._do(worker, task) for worker, task in tasks.items()]

    def _do(self, worker: str, task: Task) -> Done:
        found = self.behavior(worker, task)
        if found == DIES:
            node = self.nodes.pop(worker)
            self.nodes[f"{node}{int(worker[1:]) + 1}"] = node
            return Done(worker, ended="killed")
        if isinstance(found, Failure):
            return Done(worker, found)
        if task.kind == "plan":
            return Done(worker, Plan(self.sweeps, stretches(self.sweeps, 2), self.whole))
        if task.kind == "run":
            return Done(worker, task.stretch)
        return Done(worker, Summary(self.sweeps, counts={"parts": len(task.results)}))

    def states(self) -> list[str]:
        return [f"{name}: busy" for name in self.tasks]

    def stop(self) -> None:
        self.stopped = True

    def workers_of(self, source: str) -> set[str]:
        return {worker for worker, task in self.log if task.source == source}
