# SPDX-License-Identifier: Apache-2.0
"""Recordings and results for the eye: Rerun and pictures."""
