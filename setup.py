# SPDX-License-Identifier: Apache-2.0
"""Builds the native library along with the package. What is constant is declared in setup.cfg.

colcon takes setup.cfg alone for what it needs to know where it finds a plain `setup()` in this
file, as it does in this sentence; it cannot read the arguments below.
"""

import re
import runpy
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def description() -> str:
    """The README with links that lead into the repository at the tag of this version.

    A package index shows the text without the repository, so that relative links lead nowhere.
    """
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    package = (ROOT / "pcseg_core" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.*)"', package, re.MULTILINE)
    url, text = config["metadata"]["url"], (ROOT / "README.md").read_text(encoding="utf-8")
    for image, place in ((r"!\[[^\]]*\]", "raw"), (r"(?<!!)\[[^\]]*\]", "blob")):
        text = re.sub(rf"({image})\((?!\w+:|#)", rf"\1({url}/{place}/v{version}/", text)
    return text


native = runpy.run_path(str(ROOT / "pcseg_core/native/build.py"))
setup(long_description=description(), **native["setup_arguments"]())
