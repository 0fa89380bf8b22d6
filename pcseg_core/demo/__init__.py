# SPDX-License-Identifier: Apache-2.0
"""The demo, end to end on simulated drives: record, distill, replay, measure, draw."""
