# SPDX-License-Identifier: Apache-2.0
"""pcseg: from unlabeled LiDAR and camera recordings to a LiDAR segmenter that runs live.

The names in `__all__` are the public API; everything else may change without notice:

    import pcseg_core as pcseg

    segmenter = pcseg.Segmenter.load("bundled")
    result = segmenter.segment(pcseg.PointCloud(xyz, intensity))

Names are imported on first use, so that `import pcseg_core` is quick and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcseg_core.camera import CameraModel
    from pcseg_core.cloud import PointCloud
    from pcseg_core.data import CameraFrame, Recording, Sample, open_recording
    from pcseg_core.errors import InputError, PcsegError
    from pcseg_core.evaluation import evaluate
    from pcseg_core.geometry import Trajectory
    from pcseg_core.labels import LabelSpace
    from pcseg_core.online.camera_observers import ImmediateCameras
    from pcseg_core.online.pipeline import Pipeline
    from pcseg_core.online.pipeline_config import PipelineConfig
    from pcseg_core.online.segmenter import Segmentation, Segmenter
    from pcseg_core.online.sweep import LabeledSweep, Sweep

__all__ = [
    "CameraFrame",
    "CameraModel",
    "ImmediateCameras",
    "InputError",
    "LabelSpace",
    "LabeledSweep",
    "PcsegError",
    "Pipeline",
    "PipelineConfig",
    "PointCloud",
    "Recording",
    "Sample",
    "Segmentation",
    "Segmenter",
    "Sweep",
    "Trajectory",
    "__version__",
    "evaluate",
    "open_recording",
]

__version__ = "0.1.0"

_NAMES_OF = {
    "pcseg_core.camera": "CameraModel",
    "pcseg_core.cloud": "PointCloud",
    "pcseg_core.data": "CameraFrame Recording Sample open_recording",
    "pcseg_core.errors": "InputError PcsegError",
    "pcseg_core.evaluation": "evaluate",
    "pcseg_core.geometry": "Trajectory",
    "pcseg_core.labels": "LabelSpace",
    "pcseg_core.online.camera_observers": "ImmediateCameras",
    "pcseg_core.online.pipeline": "Pipeline",
    "pcseg_core.online.pipeline_config": "PipelineConfig",
    "pcseg_core.online.segmenter": "Segmentation Segmenter",
    "pcseg_core.online.sweep": "LabeledSweep Sweep",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}

if not TYPE_CHECKING:  # to a type checker, every attribute would exist

    def __getattr__(name: str) -> object:
        """Import a public name on first use."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'pcseg_core' has no attribute '{name}'")
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
