# SPDX-License-Identifier: Apache-2.0
"""A ROS domain of this process's own, and the client that talks to nodes under test."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness import Client

sys.path.insert(0, str(Path(__file__).parent))  # fakes, harness
_locks = []


def _claim_domain() -> int:
    """A domain id that no other test process on this machine uses; kept until the process ends."""
    for domain in range(1, 100):  # beyond 101 DDS ports meet the system's ephemeral ones
        lock = (Path(tempfile.gettempdir()) / f"pcseg_tests_ros_domain_{domain}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _locks.append(lock)
        return domain
    raise RuntimeError("all ROS domain ids are in use by other test processes")


# Inherited by the nodes that tests start. Distributions since Iron read the second variable.
os.environ["ROS_LOCALHOST_ONLY"] = "1"
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_DOMAIN_ID"] = str(_claim_domain())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Repeat a failed test of nodes once: on a busy machine messages may come too late."""
    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A node in this process that publishes sweeps and collects what comes back."""
    pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    from harness import Client

    made = Client()
    yield made
    made.close()
