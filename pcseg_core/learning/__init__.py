# SPDX-License-Identifier: Apache-2.0
"""Training: recipes, data in steps, protocols."""
