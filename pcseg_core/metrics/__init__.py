# SPDX-License-Identifier: Apache-2.0
"""Figures of merit: confusion matrices, calibration error, flicker, zero-shot figures."""

from pcseg_core.metrics.confusion import Calibration, Confusion, ScanCalibration

__all__ = ["Calibration", "Confusion", "ScanCalibration"]
