# SPDX-License-Identifier: Apache-2.0
"""Arbitrary inputs: each is read completely, or refused with an error that names it.

`python -m tests.fuzz` runs it for minutes or hours; `test_fuzz.py` runs a few cases of each target.
"""
