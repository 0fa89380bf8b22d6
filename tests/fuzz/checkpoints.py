# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with damaged bytes, metadata and tensors."""

from __future__ import annotations

import functools
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pcseg_core.checkpoint import CheckpointMeta, CheckpointText, save_checkpoint
from pcseg_core.cloud import PointCloud
from pcseg_core.input_check import InputStatistics
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.text_table import TextTable

from .clouds import check_labels
from .harness import Target
from .mutations import altered, mutated


@functools.cache
def _seed() -> bytes:
    """A small checkpoint with words."""
    torch.manual_seed(0)
    space = LabelSpace.load("street")
    config = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5, text_channels=4)
    vectors = np.random.default_rng(0).normal(size=(len(space), 4))
    text = CheckpointText(
        TextTable("fuzz", space.names, vectors), {name: (name,) for name in space.names}
    )
    meta = CheckpointMeta(
        student=config.model_dump(mode="json"),
        label_space=space.to_dict(),
        inputs=InputStatistics.measure([cloud()], 1 / 255, "time", "start", True),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.safetensors"
        save_checkpoint(path, Student(config, len(space)).state_dict(), meta, text)
        return path.read_bytes()


@functools.cache
def _parts() -> tuple[dict[str, Any], bytes]:
    """The header of the file and the bytes of its tensors."""
    (size,) = struct.unpack_from("<Q", _seed())
    return json.loads(_seed()[8 : 8 + size]), _seed()[8 + size :]


def _joined(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


@st.composite
def checkpoints(draw: st.DrawFn) -> bytes:
    """A checkpoint with one kind of damage."""
    kind = draw(st.sampled_from(["bytes", "head", "header", "metadata", "metadata", "tensor"]))
    header, data = _parts()
    if kind == "bytes":
        return draw(mutated([_seed()]))
    if kind == "head":
        return draw(mutated([_seed()[:3000]])) + _seed()[3000:]
    if kind == "header":
        return _joined(draw(altered([header])), data)
    if kind == "metadata":
        meta = draw(altered([json.loads(header["__metadata__"]["pcseg"])]))
        text = json.dumps(meta) if draw(st.integers(0, 9)) else json.dumps(meta)[:-3]
        return _joined({**header, "__metadata__": {"pcseg": text}}, data)
    return _with_other_tensor(draw)


def _with_other_tensor(draw: st.DrawFn) -> bytes:
    header, _ = _parts()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "changed.safetensors"
        path.write_bytes(_seed())
        state = load_file(path)
        name = draw(st.sampled_from(sorted(state)))
        state[name] = changed(draw, state[name])
        save_file(state, path, metadata=header["__metadata__"])
        return path.read_bytes()


def changed(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    kind = draw(st.sampled_from(["number", "all", "shape", "type", "large"]))
    number = draw(st.sampled_from([float("nan"), float("inf"), -1.0, 1e5, 1e30, 1e-40, 0.0]))
    if kind == "number" and tensor.numel():
        flat = tensor.clone().reshape(-1).to(torch.float32)
        flat[draw(st.integers(0, len(flat) - 1))] = number
        return flat.reshape(tensor.shape).to(tensor.dtype)
    if kind == "all":
        return torch.full(tensor.shape, number).to(tensor.dtype)
    if kind == "shape":
        return draw(st.sampled_from([tensor.reshape(-1)[:1], tensor[None], tensor.reshape(-1)]))
    types = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8)
    return tensor.to(draw(st.sampled_from(types))) if kind == "type" else tensor * 1e4


@functools.cache
def cloud() -> PointCloud:
    rng = np.random.default_rng(1)
    xyz = rng.normal(0, 8, (1200, 3)).astype(np.float32)
    xyz[:3] = [[np.nan] * 3, [0] * 3, [1e30] * 3]
    return PointCloud(xyz, rng.random(1200, np.float32))


def check_checkpoint(case: bytes, folder: Path) -> None:
    """A network that loads labels each point with a class of its table, and takes words."""
    path = folder / "given.safetensors"
    path.write_bytes(case)
    segmenter = Segmenter.load(path, device="cpu")
    labeled = Pipeline(segmenter).process(Sweep(cloud()))
    check_labels(cloud(), labeled.labels, labeled.confidence, len(segmenter.label_space))
    if segmenter.text is not None:
        space = segmenter.set_prompts([segmenter.text.table.words[0], "*"])
        result = segmenter.segment(cloud())
        check_labels(cloud(), result.labels, result.confidence, len(space))


NAMES = ("given", "checkpoint", "label space", "text table", "prompt", "word")
TARGETS = (Target("checkpoint", checkpoints, check_checkpoint, NAMES, 40),)
