# SPDX-License-Identifier: Apache-2.0
"""Published 3D networks become runs: `run.import_weights` reads a file and writes a run directory.

`published` reads files and reports keys. One module per family turns its tensors into those of a
student; `registry` lists the families.
"""
