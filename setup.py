# SPDX-License-Identifier: Apache-2.0
"""Everything is declared in setup.cfg; this builds the native library along with the package.

colcon takes setup.cfg alone for what it needs to know where it finds a plain `setup()` in this
file, as it does in this sentence; it cannot read the arguments below.
"""

import runpy
from pathlib import Path

from setuptools import setup

native = runpy.run_path(str(Path(__file__).parent / "pcseg_core/native/build.py"))
setup(**native["setup_arguments"]())
