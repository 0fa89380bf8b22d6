# SPDX-License-Identifier: Apache-2.0
"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# One thread: the tests are small, and results must not depend on the machine's core count. Set
# before NumPy and torch are imported, since their libraries read it when they load.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell that starts the tests in the background lets them and their children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real recordings: {folder} does not exist")
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Tests of a file run in one process of `pytest -n`, and all tests of nodes in the same one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ros" if nodeid.startswith("tests/ros/") else nodeid.partition("::")[0]

    return ByFile(config, log)
