# SPDX-License-Identifier: Apache-2.0
"""The benchmarks are not installed with the package: find them beside it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
