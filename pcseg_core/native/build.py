# SPDX-License-Identifier: Apache-2.0
"""Compile the native library: ``python -m pcseg_core.native.build``.

This file needs the standard library alone; setup.py runs it by its path::

    native = runpy.run_path("pcseg_core/native/build.py")
    setup(**native["setup_arguments"]())

The library has a plain C interface: one build serves every version of Python and torch.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parent
LIBRARY = "libpcseg_native.so"
FLAGS = ("-std=gnu++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-w")
# Each kernel file is compiled for its instruction set; the library chooses one at run time.
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_BF16 = (*_AVX512, "-mavx512vnni", "-mavx512bf16")
_PLAIN_MATH = ("-fno-math-errno", "-fno-trapping-math")  # loops with roots and choices are vectors
FILE_FLAGS = {
    "entropy.cpp": _PLAIN_MATH,
    "free_space.cpp": _PLAIN_MATH,
    "grid.cpp": (*_PLAIN_MATH, "-ffp-contract=off"),  # cells do not depend on the CPU
    "headings.cpp": (*_PLAIN_MATH, "-ffp-contract=off"),  # nor do headings
    "records.cpp": _PLAIN_MATH,
    "kernels_avx2.cpp": _AVX2,
    "kernels_avx512.cpp": _AVX512,
    "kernels_avxvnni.cpp": (*_AVX2, "-mavxvnni"),
    "kernels_avx512vnni.cpp": (*_AVX512, "-mavx512vnni"),
    "kernels_avx512bf16.cpp": _BF16,
    "kernels_amx.cpp": (*_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    "kernels_neondot.cpp": ("-march=armv8.2-a+dotprod",),
    "kernels_neonbf16.cpp": ("-march=armv8.2-a+dotprod+bf16+i8mm",),
}


class BuildError(RuntimeError):
    """The library could not be built; the message gives the reason."""


def source_hash() -> str:
    """Hash of the sources; it is compiled into the library to detect stale builds."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def is_current(library: Path) -> bool:
    """The library was built from these sources."""
    return library.is_file() and source_hash().encode() in library.read_bytes()


def find_compiler() -> list[str]:
    """The C++ compiler's command: $CXX, else the first of c++, g++, clang++.

    Raises:
        BuildError: no compiler was found.
    """
    command = shlex.split(os.environ.get("CXX", ""))
    for candidate in [command] if command else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(candidate[0]):
            return candidate
    raise BuildError("no C++ compiler found; install g++ or set CXX")


def build(folder: Path = SOURCES, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compile the library into a folder atomically and return its path.

    Args:
        folder: folder of the library.
        extra_flags: additional flags for compiler and linker, such as "-fsanitize=address".

    Raises:
        BuildError: no compiler was found, or it failed (with its output).
    """
    if not sys.platform.startswith("linux"):
        raise BuildError(f"the native library is for Linux, this is {sys.platform}")
    compiler = find_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".native") as temporary:
        objects = _compile(compiler, Path(temporary), extra_flags)
        library = Path(temporary) / LIBRARY
        _run([*compiler, "-shared", "-pthread", *extra_flags, *objects, "-o", str(library)])
        return library.replace(folder / LIBRARY)


def _compile(compiler: list[str], folder: Path, extra_flags: tuple[str, ...]) -> list[str]:
    sources = sorted(SOURCES.glob("*.cpp"))
    define = f'-DPCSEG_SOURCE_HASH="{source_hash()}"'
    objects = []
    running: list[tuple[list[str], subprocess.Popen[str]]] = []
    for source in sources:
        objects.append(str(folder / f"{source.stem}.o"))
        own = _known(compiler, FILE_FLAGS.get(source.name, ()))
        flags = (*FLAGS, *own, *extra_flags, define)
        command = [*compiler, *flags, "-c", str(source), "-o", objects[-1]]
        running.append((command, _start(command)))
    for command, process in running:
        _finish(command, process)
    return objects


def _known(compiler: list[str], flags: tuple[str, ...]) -> tuple[str, ...]:
    """The flags, or none if the compiler does not know them: the file is then empty.

    It is older than the instruction set, or compiles for another machine.
    """
    if not flags:
        return flags
    command = [*compiler, *flags, "-x", "c++", "-c", os.devnull, "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, check=False)
    return () if done.returncode else flags


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(command: list[str], process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    if process.returncode:
        raise BuildError(f"the compiler failed:\n{shlex.join(command)}\n{output[-4000:]}")


def _run(command: list[str]) -> None:
    _finish(command, _start(command))


def setup_arguments() -> dict[str, Any]:
    """Arguments for `setuptools.setup` that build the library with the package.

    A failed build is a warning: without the library the package runs on plain torch.
    """
    from setuptools import Command, Distribution
    from setuptools.command.build_py import build_py
    from setuptools.command.develop import develop

    def build_for(command: Command, folder: Path) -> None:
        try:
            build(folder)
        except (BuildError, OSError) as error:
            command.warn(f"the native library was not built, plain torch is used: {error}")

    class BuildWithNative(build_py):
        def run(self) -> None:
            super().run()
            editable = getattr(self, "editable_mode", False)
            build_for(self, SOURCES if editable else Path(self.build_lib) / "pcseg_core/native")

    class DevelopWithNative(develop):
        """Run by `colcon build --symlink-install`; older versions do not run `build_py`."""

        def run(self) -> None:
            super().run()
            if not is_current(SOURCES / LIBRARY):
                build_for(self, SOURCES)

        def write_script(self, name: str, contents: str, *args: Any) -> None:
            """As setup.cfg says for other installations, but `develop` does not read it."""
            option = self.distribution.get_option_dict("build_scripts").get("executable")
            if option and contents.startswith("#!"):
                contents = "\n".join([f"#!{option[1]}", *contents.split("\n")[1:]])
            super().write_script(name, contents, *args)

    class PlatformDistribution(Distribution):
        def has_ext_modules(self) -> bool:
            return True  # the wheel holds machine code

    commands = {"build_py": BuildWithNative, "develop": DevelopWithNative, **_wheel_command()}
    return {"cmdclass": commands, "distclass": PlatformDistribution}


def _wheel_command() -> dict[str, Any]:
    """The command that names the wheel: one serves every Python 3 of the platform."""
    try:
        from setuptools.command.bdist_wheel import bdist_wheel
    except ImportError:  # before setuptools 70.1
        try:
            from wheel.bdist_wheel import bdist_wheel
        except ImportError:
            return {}  # colcon and `setup.py develop` build no wheel

    class WheelOfAnyPython(bdist_wheel):
        def get_tag(self) -> tuple[str, str, str]:
            return "py3", "none", super().get_tag()[2]

    return {"bdist_wheel": WheelOfAnyPython}


def main() -> int:
    """Build in place, or into --out."""
    parser = argparse.ArgumentParser(description="Build the native sparse convolution library.")
    parser.add_argument("--out", type=Path, default=SOURCES, help="folder of the library")
    parser.add_argument("--flag", action="append", default=[], help="extra compiler flag")
    arguments = parser.parse_args()
    try:
        print(build(arguments.out, tuple(arguments.flag)))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
