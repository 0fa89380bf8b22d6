# SPDX-License-Identifier: Apache-2.0
"""Find the cameras of a bag: pairs of image and CameraInfo topics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pcseg_core.camera import CameraModel
from pcseg_core.data.bag_reader import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, BagFile
from pcseg_core.errors import InputError

# Kinds of images without colors, by words of topic names.
_KINDS = {
    "depth": "a depth image",
    "disparity": "a disparity image",
    "mask": "a mask",
    "masks": "a mask",
    "label": "labels",
    "labels": "labels",
    "semantic": "labels",
    "semantics": "labels",
    "segmentation": "labels",
    "segmented": "labels",
    "confidence": "a confidence image",
    "infra": "an infrared image",
    "infra1": "an infrared image",
    "infra2": "an infrared image",
    "infrared": "an infrared image",
    "ir": "an infrared image",
    "thermal": "a thermal image",
    "overlay": "a picture with drawings",
    "theora": "a video",
    "ffmpeg": "a video",
}
_COMPRESSED_DEPTH = "compresseddepth"
# Last parts that say nothing about the kind of image; the part in front of them does.
_PLAIN = re.compile(r"image(_?(raw|rect|rect_raw|rect_color|color|mono|compressed))?|compressed")


@dataclass(frozen=True)
class CameraTopics:
    """One camera.

    Attributes:
        name: its namespace ("camera/front" for /camera/front/image_raw).
        image: topic of its images.
        info: topic of its CameraInfo, or None.
        rectified: its images are rectified (image_rect*) and P applies.
    """

    name: str
    image: str
    info: str | None
    rectified: bool


def no_picture(topic: str) -> str:
    """Why the images of a topic are no pictures, by its name; empty if they are.

    The last part of the name decides, as in /camera/depth/image_rect_raw (where "depth" is the last
    part that says anything) and /depth_cam/color/image_raw. Words within other words, as in
    /infrastructure, mean nothing; nor do the names of robots and cameras in front.
    """
    parts = [part for part in topic.lower().split("/") if part]
    if parts and parts[-1] == _COMPRESSED_DEPTH:
        return _KINDS["depth"]
    telling = [part for part in parts if not _PLAIN.fullmatch(part)]
    plain_end = bool(parts) and bool(_PLAIN.fullmatch(parts[-1]))
    # "depth" alone is a kind; "depth_cam" in front of a plain end is the name of a camera.
    words = telling[-1:] if plain_end else telling[-1:] and telling[-1].split("_")
    if telling and telling[-1].startswith("aligned_depth"):
        return _KINDS["depth"]
    return next((_KINDS[word] for word in words if word in _KINDS), "")


def find_cameras(
    bag: BagFile, frames: Mapping[str, str], image_topics: Sequence[str] | None = None
) -> list[CameraTopics]:
    """Pair image topics with CameraInfo topics.

    As in image_transport, the CameraInfo of <namespace>/image_raw is <namespace>/camera_info, and
    <topic>/compressed is the compressed image. If no name matches, a CameraInfo with the same
    frame_id is taken.

    Args:
        bag: the bag.
        frames: topic -> frame_id of its first message.
        image_topics: use exactly these. None takes one per camera, preferably rectified, color and
            uncompressed, without depth images, masks and the like (see `left_out`).

    Raises:
        InputError: a given topic has no images.
    """
    present = bag.of_type(IMAGE, COMPRESSED_IMAGE)
    if image_topics is not None:
        missing = [topic for topic in image_topics if topic not in present]
        if missing:
            known = ", ".join(present) or "none"
            raise InputError(f"{bag.path}: no images on {missing[0]}; image topics: {known}")
        return [_camera(bag, frames, topic) for topic in image_topics]
    pictures = [topic for topic in present if not no_picture(topic)]
    best: dict[str, CameraTopics] = {}
    for topic in sorted(pictures, key=lambda topic: _preference(bag, topic)):
        camera = _camera(bag, frames, topic)
        best.setdefault(camera.info or _base(topic), camera)
    return _unique_names(sorted(best.values(), key=lambda camera: camera.name))


def in_own_frame(model: CameraModel, T_first_own: npt.NDArray[np.float64]) -> CameraModel:
    """The model of a second stereo camera, for points in its own frame where it has one.

    By CameraInfo, P of the second camera maps points of the first camera's frame, so its fourth
    column holds the baseline. Some drivers give the images a frame of their own, at that baseline
    in TF, and the same P: then the baseline would count twice.

    Args:
        model: of the second camera.
        T_first_own: (4, 4) its frame in the frame of another camera.

    Returns:
        The model without the baseline if TF holds the same one (to 10 %), else the model.
    """
    if model.P is None or not model.P[:, 3].any():
        return model
    offset = np.linalg.solve(model.P[:, :3], model.P[:, 3])
    baseline = float(np.linalg.norm(offset))
    if np.linalg.norm(T_first_own[:3, 3] + model.R.T @ offset) > 0.1 * baseline:
        return model
    P = model.P.copy()
    P[:, 3] = 0.0
    return replace(model, P=P)


def _camera(bag: BagFile, frames: Mapping[str, str], topic: str) -> CameraTopics:
    base = _base(topic)
    namespace, _, leaf = base.rpartition("/")
    return CameraTopics(
        name=namespace.strip("/") or leaf,
        image=topic,
        info=_info_topic(bag, frames, topic),
        rectified=_is_rectified(leaf),
    )


def _info_topic(bag: BagFile, frames: Mapping[str, str], topic: str) -> str | None:
    infos = bag.of_type(CAMERA_INFO)
    base = _base(topic)
    namespace = base.rpartition("/")[0]
    for candidate in (f"{namespace}/camera_info", f"{base}/camera_info", f"{base}_camera_info"):
        if candidate in infos:
            return candidate
    frame = frames.get(topic)
    same = [info for info in infos if frame and frames.get(info) == frame]
    return same[0] if len(same) == 1 else None


def _is_rectified(leaf: str) -> bool:
    """Whether the last part of a topic names rectified images ("image_rect_color")."""
    return any(word in ("rect", "rectified") for word in leaf.lower().split("_"))


def _base(topic: str) -> str:
    return topic.removesuffix("/compressed")


def _preference(bag: BagFile, topic: str) -> tuple[bool, bool, bool, str]:
    leaf = _base(topic).rpartition("/")[2]
    gray = "mono" in leaf or "gray" in leaf or "grey" in leaf
    return not _is_rectified(leaf), gray, bag.topics[topic] == COMPRESSED_IMAGE, topic


def _unique_names(cameras: list[CameraTopics]) -> list[CameraTopics]:
    """Name cameras that share a namespace by their topics."""
    names = [camera.name for camera in cameras]
    return [
        camera
        if names.count(camera.name) == 1
        else CameraTopics(
            _base(camera.image).strip("/"), camera.image, camera.info, camera.rectified
        )
        for camera in cameras
    ]
