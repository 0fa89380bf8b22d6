# SPDX-License-Identifier: Apache-2.0
"""Everything is declared in setup.cfg; this builds the native library along with the package."""

import runpy
from pathlib import Path

from setuptools import setup

native = runpy.run_path(str(Path(__file__).parent / "pcseg_core/sparse/native/build.py"))
setup(**native["setup_arguments"]())
