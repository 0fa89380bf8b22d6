# SPDX-License-Identifier: Apache-2.0
"""Running a trained student on sweeps as they come."""
