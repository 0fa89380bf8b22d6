# SPDX-License-Identifier: Apache-2.0
"""Files of `pcseg import` with damaged bytes, and with other keys and tensors."""

from __future__ import annotations

import functools
import io
import sys
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from pcseg_core.importers.run import import_weights
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.segmenter import Segmenter

from .checkpoints import changed, cloud
from .clouds import check_labels
from .harness import Target
from .mutations import mutated

sys.path.append(str(Path(__file__).parents[1]))  # published

from published import PLANES, narrow, spvnas


@functools.cache
def _state() -> dict[str, torch.Tensor]:
    """Tensors of a small segmenter of SPVNAS."""
    torch.manual_seed(0)
    return spvnas(planes=narrow(PLANES, 8)).state


def _file(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@functools.cache
def _seed() -> bytes:
    return _file({"model": _state(), "epoch": 3})


@st.composite
def published(draw: st.DrawFn) -> bytes:
    """A file with one kind of damage."""
    kind = draw(st.sampled_from(["bytes", "head", "tensor", "key", "wrapper"]))
    if kind == "bytes":
        return draw(mutated([_seed()]))
    if kind == "head":
        return draw(mutated([_seed()[:3000]])) + _seed()[3000:]
    state = dict(_state())
    name = draw(st.sampled_from(sorted(state)))
    if kind == "tensor":
        state[name] = changed(draw, state[name])
    if kind == "key":
        value = state.pop(name)
        if draw(st.booleans()):
            state[draw(st.sampled_from(["", "x" * 3000, "stem", f"{name}.0", 7, ("a",)]))] = value
    plain = st.sampled_from(
        [None, 3, "x" * 3000, [state], {"module": state}, state[min(state, key=str)]]
    )
    return _file({"model": state, "more": draw(plain)} if kind == "wrapper" else {"model": state})


def check_published(case: bytes, folder: Path) -> None:
    """A file that is imported labels each point with a class of SemanticKITTI."""
    path = folder / "given.pth"
    path.write_bytes(case)
    import_weights(path, "spvnas", folder / "run", fresh=True)
    segmenter = Segmenter.load(folder / "run", device="cpu")
    labeled = Pipeline(segmenter).process(Sweep(cloud()))
    check_labels(cloud(), labeled.labels, labeled.confidence, len(segmenter.label_space))


TARGETS = (Target("published", published, check_published, ("given", "checkpoint"), 20),)
