# SPDX-License-Identifier: Apache-2.0
"""Memory settings: one heap for all threads, freed memory that is kept, garbage collections."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from node_process import ROOT, new_namespace

# Prints the number of glibc's heaps after threads have asked for memory.
COUNT = """
import ctypes, tempfile, threading
{first}
import numpy as np

def work():
    for size in range(1, 200):
        np.ones(size * 1000)

threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap "))
"""


def heaps(first: str) -> int:
    code = COUNT.format(first=first)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_all_threads_share_one_heap() -> None:
    assert heaps("from pcseg_ros.process import keep_freed_memory; keep_freed_memory()") == 1
    assert heaps("") > 1


def test_the_program_sets_it_before_numpy_starts_threads() -> None:
    code = "import sys, pcseg_ros.__main__; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Prints the page faults of using 48 MB that were used and freed before.
FAULTS = """
import ctypes, resource
from pcseg_ros.process import keep_freed_memory
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    addresses = [libc.malloc(1 << 20) for _ in range(48)]
    for address in addresses:
        ctypes.memset(address, 1, 1 << 20)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    for address in addresses:
        libc.free(address)
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    def faults(first: str) -> int:
        code = [sys.executable, "-c", FAULTS.format(first=first)]
        return int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)

    assert 10 * faults("keep_freed_memory()") < faults("")


# Prints after each change how many objects collections leave out, and if one that became garbage
# after the first activation is there.
LIFE = """
import gc, weakref, rclpy
from fakes import make_fake
from pcseg_ros.segment_node import SegmentNode

class Part:
    def __init__(self):
        self.itself = self

gc.disable()
part = Part()
there = weakref.ref(part)
rclpy.init()
node = SegmentNode(make_fake, namespace="/{name}")
for change in ("configure", "activate", "deactivate", "activate", "deactivate", "cleanup"):
    getattr(node, "trigger_" + change)()
    if change == "activate":
        part = None
    print(gc.get_freeze_count(), int(there() is not None))
"""


def test_collections_leave_out_what_is_loaded_from_activation_to_cleanup() -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    code = LIFE.format(name=new_namespace().lstrip("/"))
    command = [sys.executable, "-c", code, "--ros-args", "-p", "checkpoint:=fake"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/ros")])}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    rows = [list(map(int, line.split())) for line in ran.stdout.splitlines()]
    counts, there = zip(*rows)
    assert counts[0] == counts[-1] == 0
    assert min(counts[1:-1]) > 10_000
    assert there == (1, 1, 1, 0, 0, 0)
