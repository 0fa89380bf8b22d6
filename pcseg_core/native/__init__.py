# SPDX-License-Identifier: Apache-2.0
"""The native CPU library: C++ sources, build and calls. Only `tensors` and `checks` need torch."""
