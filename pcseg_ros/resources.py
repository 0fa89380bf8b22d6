# SPDX-License-Identifier: Apache-2.0
"""Memory and threads of the process. No ROS imports."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

_MIB = 1 << 20


def process_values() -> dict[str, str]:
    """Memory and threads of this process."""
    values = {"threads": str(threading.active_count())}
    resident = resident_mib()
    if resident is not None:
        values["memory (MiB)"] = f"{resident:.0f}"
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        values["GPU memory (MiB)"] = f"{torch.cuda.memory_reserved() / _MIB:.0f}"
    return values


def resident_mib() -> float | None:
    """Resident memory of this process, MiB; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB
