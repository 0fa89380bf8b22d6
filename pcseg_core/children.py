# SPDX-License-Identifier: Apache-2.0
"""Commands of child processes that run Python but nothing from the current folder.

`python -m` and `python -c` put the current folder on the path, where a folder named like a
package would run instead of it. The option -P avoids that from Python 3.11 on only.
"""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])
# `os` is loaded before the current folder is on the path.
_PATH = (
    "import os, sys; here = ('', os.getcwd()); "
    "sys.path[:] = [p for p in sys.path if p not in here]; "
    f"{_ROOT!r} in sys.path or sys.path.insert(0, {_ROOT!r}); "
)
_MODULE = (
    "import runpy; sys.argv[:] = sys.argv[1:]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def module_command(module: str, *arguments: str) -> list[str]:
    """Command that runs a module with arguments, as `python -m`."""
    return [sys.executable, "-c", _PATH + _MODULE, module, *arguments]


def code_command(code: str) -> list[str]:
    """Command that runs statements, as `python -c`."""
    return [sys.executable, "-c", _PATH + code]
