# SPDX-License-Identifier: Apache-2.0
"""Parts of the GPU benchmark; run by `benchmarks.cuda`."""
