# SPDX-License-Identifier: Apache-2.0
"""Names of `pcseg_core.progress` that commands use."""

from pcseg_core.progress import bar as progress_bar
from pcseg_core.progress import console, note

__all__ = ["console", "note", "progress_bar"]
