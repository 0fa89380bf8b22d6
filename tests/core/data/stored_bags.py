# SPDX-License-Identifier: Apache-2.0
"""What a bag of `recordings.bag` holds, and what is read of a bag."""

from pcseg_core.data.bag_reader import BagFile

HELD = {
    "/tf_static": 1,
    "/points": 5,
    "/tf": 5,
    "/front/image_raw/compressed": 5,
    "/front/camera_info": 5,
}


def read_counts(path) -> dict[str, int]:
    """Topic -> number of messages that are read."""
    counts = dict.fromkeys(BagFile(path).topics, 0)
    for connection, _, _ in BagFile(path).messages():
        counts[connection.topic] += 1
    return counts
