# SPDX-License-Identifier: Apache-2.0
"""Try arbitrary inputs for a while, in children with limits of memory and time.

    python -m tests.fuzz --minutes 60 --jobs 2 --out DIR
    python -m tests.fuzz --replay DIR/findings/FILE.case

A finding is a case that is neither read completely nor refused with an error that names the input:
a wrong result, another error, a crash, a hang, or too much memory. Its file replays it. The exit
status is 1 if there are findings.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from .runner import Run, replay
from .targets import TARGETS


def main() -> int:
    """Parse the options; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="wall time (default 10)")
    parser.add_argument("--jobs", type=int, default=2, help="children at a time (default 2)")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder of the findings")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other cases")
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated names")
    parser.add_argument("--replay", type=Path, help="try the case of a finding again")
    options = parser.parse_args()
    if options.replay is not None:
        print("accepted" if replay(options.replay) else "refused")
        return 0
    names = options.targets.split(",")
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; targets: {', '.join(TARGETS)}")
    if any(options.out.glob("findings/*")):
        parser.error(f"{options.out} holds the findings of an earlier run; choose another folder")
    import torch

    torch.set_num_threads(1)
    run = Run([TARGETS[name] for name in names], options.out, options.jobs, options.seed)
    run.go(options.minutes)
    print(run.table())
    found = [name for row in run.rows.values() for name in row.findings]
    print(f"{len(found)} findings in {options.out / 'findings'}, figures in report.json")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
