# SPDX-License-Identifier: Apache-2.0
"""Run an exported graph on voxels with ONNX Runtime."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import require
from pcseg_core.export.tables import graph_inputs
from pcseg_core.sparse import SparseTensor


class OnnxStudent:
    """An exported graph on the CPU.

    Args:
        model: path of the file, or its bytes.
        threads: number of threads; 0 for all cores.

    Raises:
        MissingDependency: the package onnxruntime is not installed.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes, threads: int = 1) -> None:
        onnxruntime = require("onnxruntime", "export")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        given = model if isinstance(model, bytes) else os.fspath(model)
        providers = ["CPUExecutionProvider"]
        self.session: Any = onnxruntime.InferenceSession(given, options, providers)

    def __call__(self, x: SparseTensor) -> npt.NDArray[np.float32]:
        """(M, C) logits of the voxels of a sweep, from their mean input features."""
        logits: npt.NDArray[np.float32] = self.session.run(None, graph_inputs(x))[0]
        return logits
