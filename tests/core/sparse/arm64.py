# SPDX-License-Identifier: Apache-2.0
"""The native library, built for ARM64 and run on an emulated CPU.

`EmulatedLibrary` stands in for the library that ctypes loads: each call goes to `arm64_calls.cpp`,
which runs under qemu. Buffers travel there and back; a read beyond the end of one ends the program.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from torch import Tensor

from pcseg_core.native import library

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ROOT = Path("/usr/aarch64-linux-gnu")  # of the C library for ARM64

Region = tuple[int, int]  # address and size


def require_tools() -> None:
    """Skip the test where a program that it needs is missing."""
    missing = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {' or '.join(missing)}: apt-get install g++-{ROOT.name} qemu-user")


def compile_program(folder: Path, sources: list[Path], *flags: str) -> Path:
    """A program for ARM64."""
    program = folder / sources[0].stem
    command = [COMPILER, "-std=gnu++17", "-O1", *flags, *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True, timeout=120)
    return program


class EmulatedLibrary:
    """The library on an emulated CPU.

    Args:
        program: `arm64_calls`.
        path: the library.
        cpu: qemu's name of the CPU.
    """

    def __init__(self, program: Path, path: Path, cpu: str) -> None:
        command = [EMULATOR, "-cpu", cpu, "-L", str(ROOT), str(program), str(path)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        self._regions: dict[int, Region] = {}

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(timeout=60) == 0

    def isa_names(self) -> tuple[str, ...]:
        """Instruction sets of the emulated CPU."""
        names: list[str] = []
        while address := self.call("pcseg_isa_name", len(names)):
            text = np.zeros(self.call("strlen", address), np.uint8)
            self.call("memcpy", text, address, text.size)
            names.append(text.tobytes().decode())
        return tuple(names)

    def pointer(self, array: np.ndarray | Tensor | None) -> int | None:
        """The address of an array, whose memory a call may then use; in place of `_pointer`."""
        if array is None or (isinstance(array, np.ndarray) and array.size == 0):
            return None
        if isinstance(array, Tensor):
            storage = array.untyped_storage()
            address, region = array.data_ptr(), (storage.data_ptr(), storage.nbytes())
        else:
            address = array.ctypes.data
            region = address, array.nbytes
        self._regions[address] = region
        return address

    def __getattr__(self, name: str) -> Callable[..., int]:
        """A function of the library, called as through ctypes."""
        return partial(self._as_ctypes, name, library._SIGNATURES[name][1])

    def _as_ctypes(self, name: str, kinds: list[type], *given: object) -> int:
        arguments: list[object] = []
        for kind, value in zip(kinds, given, strict=True):
            if kind is ctypes.c_void_p and isinstance(value, int):
                arguments.append(ctypes.c_void_p(value))
            else:
                arguments.append(0 if value is None else getattr(value, "_obj", value))  # of byref
        return ctypes.c_int32(self.call(name, *arguments)).value

    def call(self, name: str, *given: object) -> int:
        """Call a function; arrays and structures are changed in place.

        Args:
            name: of the library or of the C library.
            given: integers, at most one float, arrays, structures, and c_void_p from `pointer`.
        """
        request = _Request(self._regions)
        arguments = [request.argument(value) for value in given if not isinstance(value, float)]
        real = next((value for value in given if isinstance(value, float)), 0.0)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(request.message(name, arguments, real))
        self._process.stdin.flush()
        return request.read(self._process.stdout)


class _Request:
    """One call: its buffers, and the addresses in them."""

    def __init__(self, regions: dict[int, Region]) -> None:
        self._known = regions
        self._buffers: list[Region] = []
        self._pointers: list[tuple[int, int, int, int]] = []
        self._structures: list[tuple[ctypes.Structure, bytes]] = []

    def argument(self, value: object) -> tuple[int, int]:
        """A number and -1, or a place in a buffer and the buffer."""
        if isinstance(value, np.ndarray):
            return 0, self._buffer((value.ctypes.data, value.nbytes))
        if isinstance(value, ctypes.c_void_p):
            return self._place(value.value or 0)
        if isinstance(value, ctypes.Structure):
            return 0, self._structure(value)
        if isinstance(value, ctypes.c_int64):
            return 0, self._buffer((ctypes.addressof(value), 8))
        assert isinstance(value, int)
        return value, -1

    def _buffer(self, region: Region) -> int:
        if region not in self._buffers:
            self._buffers.append(region)
        return self._buffers.index(region)

    def _place(self, address: int) -> tuple[int, int]:
        base, size = self._known[address]
        return address - base, self._buffer((base, size))

    def _structure(self, structure: ctypes.Structure) -> int:
        own = self._buffer((ctypes.addressof(structure), ctypes.sizeof(structure)))
        self._structures.append((structure, bytes(structure)))
        for name, kind in structure._fields_:
            address = getattr(structure, name)
            if kind is ctypes.c_void_p and address:
                byte, buffer = self._place(address)
                self._pointers.append((own, getattr(type(structure), name).offset, buffer, byte))
        return own

    def message(self, name: str, arguments: list[tuple[int, int]], real: float) -> bytes:
        sizes = len(self._buffers), len(self._pointers), len(arguments)
        parts = [struct.pack("<64s3q", name.encode(), *sizes)]
        for address, size in self._buffers:
            parts += [struct.pack("<q", size), ctypes.string_at(address, size)]
        parts += [struct.pack("<4q", *pointer) for pointer in self._pointers]
        parts += [struct.pack("<2q", *argument) for argument in arguments]
        return b"".join([*parts, struct.pack("<f", real)])

    def read(self, answer: IO[bytes]) -> int:
        """Write what came back to the buffers; the addresses in structures stay those from here."""
        head = answer.read(8)
        assert len(head) == 8, "the program ended during a call; its standard error may tell why"
        (result,) = struct.unpack("<q", head)
        for address, size in self._buffers:
            ctypes.memmove(address, answer.read(size), size)
        for structure, before in self._structures:
            for name, kind in structure._fields_:
                if kind is ctypes.c_void_p:
                    offset = getattr(type(structure), name).offset
                    ctypes.memmove(ctypes.addressof(structure) + offset, before[offset:], 8)
        return int(result)
