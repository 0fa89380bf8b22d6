# SPDX-License-Identifier: Apache-2.0
"""pcseg: from unlabeled LiDAR and camera recordings to a segmenter that runs live."""

__version__ = "0.1.0"
