# SPDX-License-Identifier: Apache-2.0
"""Files to deploy a student without Python: an ONNX graph and its description.

The graph reads the features of voxels and the neighbor tables between them; any ONNX runtime runs
it without plug-ins. The native library makes these inputs in C (`pcseg_core/native/pcseg.h`).
"""
