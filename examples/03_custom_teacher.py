# SPDX-License-Identifier: Apache-2.0
"""Use a pixel classifier of your own: its classes are fused with those of the points."""

import numpy as np

import pcseg_core as pcseg


class ColorTeacher:
    """Takes green pixels for vegetation. Put your network here."""

    label_space = pcseg.LabelSpace.load("street")  # or LabelSpace.from_dict, with a grouping

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (C, H, W) float32; all zeros where the teacher has no opinion."""
        red, green, blue = np.moveaxis(image.astype(np.float32), 2, 0)
        result = np.zeros((len(self.label_space), *image.shape[:2]), np.float32)
        result[self.label_space.index("vegetation")] = 0.9 * (green > 1.1 * np.maximum(red, blue))
        return result


recording = pcseg.open_recording("simulated:seed=7,sweeps=1,columns=1024,width=320,height=192")
sweep = pcseg.Sweep.of(recording[0])
segmenter = pcseg.Segmenter.load("bundled")

config = pcseg.PipelineConfig.model_validate({"teacher": {"fuse": True, "camera_weight": 1.0}})
pipeline = pcseg.Pipeline(segmenter, config, cameras=pcseg.ImmediateCameras(ColorTeacher()))

alone = segmenter.segment(sweep.cloud)
fused = pipeline.process(sweep)
vegetation = fused.label_space.index("vegetation")
print(f"vegetation, LiDAR alone: {np.sum(alone.labels == vegetation)} points")
print(f"vegetation, with camera: {np.sum(fused.labels == vegetation)} points")
