# SPDX-License-Identifier: Apache-2.0
"""Work on many recordings: divided into tasks, done here or by workers of a Ray cluster.

A `Job` says what is done with a recording, `Schedule` which task is next, `run_job` runs it with
`Workers`. Results go to files; nothing but summaries comes back.
"""
