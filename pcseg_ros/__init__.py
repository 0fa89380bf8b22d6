# SPDX-License-Identifier: Apache-2.0
"""ROS 2 node around `pcseg_core.online.pipeline.Pipeline`, and tools to run it."""
