# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from pcseg_core.native import library


@pytest.fixture
def native() -> None:
    """Skip where the native library was not built."""
    loaded = library.load()
    if isinstance(loaded, str):
        pytest.skip(loaded)
