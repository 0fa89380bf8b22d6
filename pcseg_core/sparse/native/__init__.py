# SPDX-License-Identifier: Apache-2.0
"""The native CPU library: C++ sources, how to build them and how to call them."""
