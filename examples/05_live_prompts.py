# SPDX-License-Identifier: Apache-2.0
"""Choose the classes in words, and change them while the segmenter runs."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pcseg_core as pcseg

# Give the bundled checkpoint a text head. The word vectors here are random directions, which need
# no download. With `source: open_clip` they are those of CLIP.
RECIPE = """
teacher: {weights: "bundled:simulation_teacher", label_space: simulation, scales: [1.0]}
text: {space: {source: generated}}
student: {depth: 14, width: 0.25, voxel_size_m: 0.15, inputs: [z, intensity]}
optimizer: {heads_only: true, steps: 60, batch_size: 1, sector_deg: 360, learning_rate: 0.05}
"""
SENSORS = "beams=32,columns=512,width=320,height=192"

with tempfile.TemporaryDirectory() as folder:
    recipe, run = Path(folder, "words.yaml"), Path(folder, "words")
    recipe.write_text(RECIPE)
    distill = [sys.executable, "-m", "pcseg_core.cli", "distill", "--start", "bundled"]
    source = f"simulated:seed=3,sweeps=1,cameras=1,{SENSORS}"
    subprocess.run([*distill, "--recipe", recipe, "--out", run, source], check=True)
    segmenter = pcseg.Segmenter.load(run)

cloud = pcseg.open_recording(f"simulated:seed=9,sweeps=1,cameras=0,{SENSORS}")[0].cloud
for prompts in (["vehicle: car, truck, bus", "*"], ["drivable: road, parking", "building", "*"]):
    segmenter.set_prompts(prompts)  # takes effect on the next sweep; "*" is everything else
    labels = segmenter.segment(cloud).labels
    for label, name in enumerate(segmenter.label_space.names):
        print(f"{name:16} {(labels == label).mean():.0%} of the points")
