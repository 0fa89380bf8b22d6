# SPDX-License-Identifier: Apache-2.0
"""Studies behind the figures of the documents: ablations and words, one command each."""
