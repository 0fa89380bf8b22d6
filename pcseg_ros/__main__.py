# SPDX-License-Identifier: Apache-2.0
"""The node as a program: `segment_node`, `pcseg-segment-node` or `python -m pcseg_ros`."""

from __future__ import annotations

from typing import NoReturn

from pcseg_ros.process import keep_freed_memory


def main() -> NoReturn:
    """Spin `segment_node` until a signal; ends the process."""
    keep_freed_memory()
    from pcseg_ros.segment_node import main as run  # imports numpy, which must come later

    run()


if __name__ == "__main__":
    main()
