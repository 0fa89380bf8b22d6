# SPDX-License-Identifier: Apache-2.0
"""2D foundation models behind small interfaces: pixel classes, pixel features, superpixels."""
