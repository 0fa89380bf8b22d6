# SPDX-License-Identifier: Apache-2.0
"""Label the points of one LiDAR sweep with the checkpoint that comes with the package."""

import numpy as np

import pcseg_core as pcseg

# Any sweep will do: xyz is (N, 3) in meters, in the LiDAR frame (x forward, z up), intensity is
# (N,) in 0..1. This one is simulated.
measured = pcseg.open_recording("simulated:seed=7,sweeps=1,cameras=0,columns=1024")[0].cloud
xyz, intensity = measured.xyz, measured.intensity

segmenter = pcseg.Segmenter.load("bundled")  # or the folder of a run of `pcseg distill`
result = segmenter.segment(pcseg.PointCloud(xyz, intensity))

# One label and one confidence per point, in the order of the points. -1 is unlabeled.
names = segmenter.label_space.names
for label, count in enumerate(np.bincount(result.labels[result.labels >= 0])):
    confidence = result.confidence[result.labels == label].mean() if count else 0.0
    print(f"{names[label]:12} {count:7} points, mean confidence {confidence:.2f}")
