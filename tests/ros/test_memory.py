# SPDX-License-Identifier: Apache-2.0
"""One heap for all threads, settled before there is a second one; and what it has in reserve."""

from __future__ import annotations

import platform
import resource
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
    assert heaps("from pcseg_ros.memory import keep_freed_memory; keep_freed_memory()") == 1
    assert heaps("") > 1


def test_the_program_settles_it_before_numpy_starts_threads() -> None:
    code = "import sys, pcseg_ros.__main__; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Prints by how many pages the process grows in a reserve, and then while 48 MB of it are used.
PAGES = """
import ctypes, resource
from pcseg_ros.memory import keep_freed_memory, reserve
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
size, addresses = 1 << 20, [0] * 48
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
reserve(64)
reserved = faults()
for k in range(48):
    addresses[k] = libc.malloc(size)
    ctypes.memset(addresses[k], 1, size)
print(reserved - before, faults() - reserved)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_reserve_is_used_without_new_pages() -> None:
    def pages(first: str) -> list[int]:
        code = [sys.executable, "-c", PAGES.format(first=first)]
        ran = subprocess.run(code, capture_output=True, text=True, check=True)
        return [int(number) for number in ran.stdout.split()]

    written = 48 * (1 << 20) // resource.getpagesize()
    given, later = pages("keep_freed_memory()")
    assert given > written and later < written / 10
    assert pages("")[1] > written / 10  # freed memory goes back to the system
