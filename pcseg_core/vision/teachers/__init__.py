# SPDX-License-Identifier: Apache-2.0
"""The kinds of pixel-class teachers."""
