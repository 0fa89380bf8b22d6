# SPDX-License-Identifier: Apache-2.0
"""Extrinsics and time offsets of cameras, measured from an ordinary drive without targets."""
