# SPDX-License-Identifier: Apache-2.0
"""The main job end to end on simulated drives: record, distil, run live, measure, show."""
