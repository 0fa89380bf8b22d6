# SPDX-License-Identifier: Apache-2.0
"""Figures and pictures of pipelines against labels, boxes, cameras and baselines."""

from pcseg_core.evaluation.boxes import evaluate_boxes
from pcseg_core.evaluation.evaluator import evaluate
from pcseg_core.evaluation.report import Report
from pcseg_core.evaluation.report_picture import render
from pcseg_core.metrics.confusion import Calibration, Confusion

__all__ = ["Calibration", "Confusion", "Report", "evaluate", "evaluate_boxes", "render"]
