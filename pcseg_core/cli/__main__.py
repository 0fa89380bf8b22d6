# SPDX-License-Identifier: Apache-2.0
"""`python -m pcseg_core.cli` is the `pcseg` command, also where it is not installed."""

from pcseg_core.cli import main

main()
