# SPDX-License-Identifier: Apache-2.0
"""Memory settings: one heap for all threads, and freed memory that is kept."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
