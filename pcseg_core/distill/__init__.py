# SPDX-License-Identifier: Apache-2.0
"""From camera teachers to training signals for points: pseudo labels, consolidation, losses."""
