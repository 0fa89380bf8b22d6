# SPDX-License-Identifier: Apache-2.0
"""Read sweeps, images and poses: python examples/02_read_a_recording.py [BAG or reader:path]."""

import sys

import numpy as np

import pcseg_core as pcseg

source = sys.argv[1] if len(sys.argv) > 1 else "simulated:seed=7,sweeps=2,columns=1024,width=320"
recording = pcseg.open_recording(source)
print(f"{recording.name}: {len(recording)} samples, poses from {recording.pose_source}")

sample = recording[0]
cloud = sample.cloud
print(f"sweep at {cloud.stamp_ns} ns: {len(cloud)} points, {np.sum(cloud.finite)} with a position")

if sample.trajectory is not None:  # T_world_lidar over time
    print(
        f"LiDAR position in the world [m]: {sample.trajectory.at(cloud.stamp_ns)[:3, 3].round(2)}"
    )

# T_cam_lidar maps points of the LiDAR frame at the sweep's stamp into the camera frame at the
# image's stamp. The camera model knows the distortion of its lens.
for frame in sample.frames_at_sweep():
    xyz_cam = cloud.xyz @ frame.T_cam_lidar[:3, :3].T + frame.T_cam_lidar[:3, 3]
    uv, in_front = frame.camera.project(xyz_cam)
    inside = in_front & frame.camera.contains(uv)
    print(f"{frame.name}: image {frame.image.shape}, {np.sum(inside)} points project into it")

if sample.labels is not None and sample.label_space is not None:  # where the recording has labels
    present = np.unique(sample.labels[sample.labels >= 0])
    print("classes:", ", ".join(sample.label_space.names[label] for label in present))
