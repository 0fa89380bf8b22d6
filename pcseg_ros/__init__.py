# SPDX-License-Identifier: Apache-2.0
"""ROS 2 adapters of pcseg: thin nodes around `pcseg_core.online`."""
