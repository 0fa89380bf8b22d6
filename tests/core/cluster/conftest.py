# SPDX-License-Identifier: Apache-2.0
"""Recordings as the tests of readers write them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
