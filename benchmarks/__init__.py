# SPDX-License-Identifier: Apache-2.0
"""Speed side by side with peers; see the README of this folder."""
