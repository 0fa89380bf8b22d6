# SPDX-License-Identifier: Apache-2.0
"""A short simulated drive around corners, rendered once."""

from __future__ import annotations

from collections import Counter

import pytest

from pcseg_core.calibration.alignment import View
from pcseg_core.calibration.calibrate import collect_views
from pcseg_core.data import open_recording
from pcseg_core.data.sample import Sample

DRIVE = (
    "simulated:seed=3,sweeps=6,stride=12,turns=1,beams=32,columns=1024,cameras=1,width=320,"
    "height=192"
)


class Drive:
    """Samples as a recording."""

    name, label_space, pose_source = "drive", None, "exact"

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.scenes = ["drive"] * len(samples)
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


@pytest.fixture(scope="session")
def as_drive() -> type[Drive]:
    """Makes a recording of samples."""
    return Drive


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Six sweeps with an image each."""
    drive = open_recording(DRIVE)
    return [drive[i] for i in range(len(drive))]


@pytest.fixture(scope="session")
def views(samples: list[Sample]) -> list[View]:
    """Views of the camera, with the exact calibration."""
    (found,) = collect_views((sample, None) for sample in samples).values()
    return found
