# SPDX-License-Identifier: Apache-2.0
"""Measure a pipeline on labeled sweeps: mIoU, IoU per class, calibration error, latency."""

import pcseg_core as pcseg

# "semantic-kitti:DIR", or any other recording with labels
recording = pcseg.open_recording("simulated:seed=7000,sweeps=3,cameras=0,columns=1024")

# The configuration is that of the node: smoothing over time, deskewing, minimum confidence, ...
config = pcseg.PipelineConfig.model_validate({"temporal": {"enabled": True}})
pipeline = pcseg.Pipeline(pcseg.Segmenter.load("bundled"), config)
report = pcseg.evaluate(pipeline, recording, space="street")

print(f"{report.scans} sweeps, {report.points} points with ground truth")
print(f"mIoU {report.miou:.1%}, accuracy {report.accuracy:.1%}")
print(
    f"calibration error {report.calibration_error:.3f}, {report.milliseconds_median:.0f} ms a sweep"
)
for name, iou in report.iou.items():
    print(f"{name:12} " + ("not present" if iou is None else f"{iou:.1%}"))
