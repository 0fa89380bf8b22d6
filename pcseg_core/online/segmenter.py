# SPDX-License-Identifier: Apache-2.0
"""The segmenter: load once, segment often."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pcseg_core.checkpoint import (
    CheckpointMeta,
    CheckpointText,
    IntegerScales,
    load_checkpoint,
    load_text,
)
from pcseg_core.cloud import PointCloud
from pcseg_core.confidence import ConfidenceScaling
from pcseg_core.errors import InputError
from pcseg_core.input_check import InputStatistics
from pcseg_core.labels import NO_CLASSES, LabelSpace
from pcseg_core.models.inference import CompiledMinkUNet, choose_device, compile_inference
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.models.network import Network
from pcseg_core.models.quantized import QuantizedMinkUNet
from pcseg_core.models.student import Student, load_student, stored_config
from pcseg_core.models.sweep_input import SweepInput, sweep_input
from pcseg_core.native import library
from pcseg_core.native.precision import choose
from pcseg_core.online.point_labels import point_labels
from pcseg_core.online.prompts import PromptHead, PromptSet
from pcseg_core.online.prototypes import PrototypeHead, Prototypes
from pcseg_core.sparse import SparseTensor
from pcseg_core.sparse.backends import resolve

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]

log = logging.getLogger(__name__)

_FUSED_WORDS = 128  # with more words, the logits are computed in blocks


@dataclass
class Segmentation:
    """Labels of one sweep.

    Attributes:
        labels: (N,) int32 class ids; IGNORE for points that are no returns (not finite, or exactly
            zero), out of range, without a finite confidence, or with an entropy above the limit.
        confidence: (N,) float32 probability of the label in 0..1; 0 without a label.
        timings_ms: wall time of each stage [ms].
        probabilities: (N, C) float32 of all classes, rows sum to 1, 0 without a label; None if
            they were not requested.
        label_space: classes of the labels; the segmenter's may have changed since.
        out_of_range: number of returns farther than the checkpoint's `max_range_m`.
        not_finite: number of points whose confidence is not a finite number: a damaged network.
        uncalibrated: (N,) float32 confidence before calibration; None if it was not requested.
    """

    labels: np.ndarray
    confidence: np.ndarray
    timings_ms: dict[str, float] = field(default_factory=dict)
    probabilities: np.ndarray | None = None
    label_space: LabelSpace | None = None
    out_of_range: int = 0
    not_finite: int = 0
    uncalibrated: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Classes:
    """Active classes; swapped atomically.

    Attributes:
        label_space: the classes.
        prompts: as given by the user; empty for the classes of the checkpoint.
        logits: voxels of a sweep -> blocks of rows of the (M, K) logits.
        owner: (K,) int64 class of each column of the logits; None if column k is class k.
        scaling: calibrates the logits; None leaves them as they are.
    """

    label_space: LabelSpace
    prompts: tuple[str, ...]
    logits: Callable[[SparseTensor], Iterable[Tensor]]
    owner: Tensor | None = None
    scaling: ConfidenceScaling | None = None


class Segmenter:
    """A trained student with its label space.

    The classes may be changed while another thread segments: a sweep is labeled with either the
    old or the new classes.

    Attributes:
        meta: metadata of the checkpoint.
        device: where the network runs.
        backend: implementation of the sparse convolutions in use, never "auto".
        text: words of the checkpoint, or None.
        max_entropy: points whose classes have a higher entropy, 0..1, become unlabeled; 1 labels
            all points.
        keep_uncalibrated: also return the confidence before calibration.
    """

    def __init__(
        self,
        student: Student,
        label_space: LabelSpace,
        meta: CheckpointMeta,
        device: str = "auto",
        precision: Precision = "auto",
        text: CheckpointText | None = None,
        backend: str = "auto",
    ) -> None:
        self.meta = meta
        self.text = text
        self.device = choose_device(device)
        self.backend = resolve(backend, self.device)
        self.student = student.to(self.device).eval()
        self._network = prepare_network(self.student.network, self.backend, precision, meta.int8)
        self.max_entropy = 1.0
        self.keep_uncalibrated = False
        self._trained = Classes(label_space, (), self._trained_logits, scaling=meta.confidence)
        self._classes = self._trained

    def replace_network(self, network: CompiledMinkUNet) -> None:
        """Run another form of the student's network."""
        self._network = network

    @property
    def engine(self) -> str:
        """Backend, instruction set of the native one, and precision: "native avx2 fp32"."""
        if not isinstance(self._network, CompiledMinkUNet):
            plain = isinstance(self._network, MinkUNet)
            return f"{self.backend if plain else 'torch'} fp32"
        isa = f" {library.isa_names()[library.best_isa()]}" if self.backend == "native" else ""
        return f"{self.backend}{isa} {self._network.precision}"

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        precision: Precision = "auto",
        backend: str = "auto",
        max_entropy: float = 1.0,
    ) -> Segmenter:
        """Load a checkpoint file, the run directory that holds it, or the bundled one.

        Logs a warning for a checkpoint that was trained on simulated drives, or whose license
        forbids commercial use.

        Args:
            path: checkpoint file, run directory, or "bundled".
            device: "auto", "cpu", "cuda" or "cuda:N".
            precision: arithmetic of the native and triton backends: "fp32", "bf16", on a GPU
                "fp16", with a checkpoint of `pcseg quantize` on a CPU "int8", or "auto": float16
                on a GPU; on a CPU the fastest one, see `native.precision`.
            backend: implementation of the sparse convolutions: "torch", "native", "triton",
                "torchsparse", or "auto" for the fastest one available on the device.
            max_entropy: points whose classes have a higher entropy become unlabeled; in (0, 1],
                1 labels all points.

        Raises:
            InputError: no checkpoint, a damaged one, one without classes, no such device, an
                unavailable backend, or a limit of the entropy outside of (0, 1].
        """
        if not 0 < max_entropy <= 1:
            raise InputError(f"max_entropy {max_entropy:g}: expected above 0 and at most 1")
        state, meta = load_checkpoint(Path(path))
        if meta.caution:
            log.warning("checkpoint '%s': %s", path, meta.caution)
        if meta.license:
            log.info("checkpoint '%s': weights under %s", path, meta.license)
        config = stored_config(meta.student, path)
        space = LabelSpace.from_dict(meta.label_space)
        if space == NO_CLASSES:
            raise InputError(
                f"checkpoint {path} is pretrained and has no classes yet; train them with `pcseg "
                "finetune` or `pcseg distill --start`"
            )
        student = load_student(config, len(space), state, path)
        found = cls(student, space, meta, device, precision, load_text(Path(path)), backend)
        found.max_entropy = max_entropy
        return found

    @property
    def trained_on(self) -> InputStatistics | None:
        """Scale and distribution of the sweeps of the training; None for old checkpoints."""
        return self.meta.inputs

    @property
    def label_space(self) -> LabelSpace:
        """Classes of the labels: those of the checkpoint, or the prompts."""
        return self._classes.label_space

    @property
    def prompts(self) -> tuple[str, ...]:
        """The active prompts as given; empty for the classes of the checkpoint."""
        return self._classes.prompts

    def set_prompts(self, prompts: Sequence[str] | None) -> LabelSpace:
        """Use words as the classes from the next sweep on.

        Args:
            prompts: each a word ("tree"), a group of words ("vehicle: car, truck") or "*" for
                everything that no other prompt names; None for the classes of the checkpoint.

        Returns:
            The new label space: ids in the order of the prompts.

        Raises:
            InputError: no prompts, a word without a vector, or a checkpoint without a text head;
                the classes do not change.
        """
        if prompts is None:
            self._classes = self._trained
            return self.label_space
        parsed = PromptSet.parse(prompts)
        head, text = self._text_head()
        space = parsed.label_space(text, self._trained.label_space)
        rows, owner = parsed.encode(text)
        classify = PromptHead(head, rows, owner, len(space), text.temperature)
        self._classes = Classes(space, tuple(prompts), self._answering(classify), classify.owner)
        return space

    def _answering(self, classify: PromptHead) -> Callable[[SparseTensor], Iterable[Tensor]]:
        """The network with the words as its last layer, fused if the network is compiled."""
        network = self._network
        if isinstance(network, CompiledMinkUNet) and classify.rows <= _FUSED_WORDS:
            product = network.with_head(classify.matrix, classify.offset)
            return lambda sparse: [classify.logits(product(sparse))]
        return lambda sparse: classify.blocks(network.features(sparse))

    def set_prototypes(self, prototypes: Prototypes) -> LabelSpace:
        """Use classes learned from example pictures from the next sweep on.

        Args:
            prototypes: fitted to the image encoder whose features the checkpoint regresses.

        Raises:
            InputError: the checkpoint regresses no or other image features; the classes do not
                change.
        """
        regression = self.student.regression
        size = self.student.config.feature_channels
        if regression is None or prototypes.weight.shape[1] != size:
            raise InputError(
                f"this checkpoint regresses {size or 'no'} image features and the prototypes have "
                f"{prototypes.weight.shape[1]}; train with 'loss: {{regression: 1}}' and fit the "
                "prototypes to the same encoder"
            )
        space = prototypes.label_space(self._trained.label_space)
        classify = PrototypeHead(regression, prototypes, self.device)

        def logits(sparse: SparseTensor) -> list[Tensor]:
            return [classify(self._network.features(sparse))]

        self._classes = Classes(space, (), logits)
        return space

    def _text_head(self) -> tuple[nn.Linear, CheckpointText]:
        head = self.student.text_head
        if head is None or self.text is None:
            names = ", ".join(self._trained.label_space.names)
            raise InputError(
                f"this checkpoint answers its own classes only ({names}), no words: it was trained "
                "without a text head; train one with a recipe that has a 'text' section, such as "
                "--recipe kitti-words"
            )
        return head, self.text

    def _trained_logits(self, sparse: SparseTensor) -> list[Tensor]:
        return [self._network(sparse).feats.float()]

    @torch.inference_mode()
    def segment(self, cloud: PointCloud, probabilities: bool = False) -> Segmentation:
        """Label every point of a sweep; keeps the order and number of points.

        Args:
            cloud: the sweep.
            probabilities: return the probabilities of all classes too, for fusion.

        Raises:
            InputError: `cloud` is not a PointCloud.
        """
        if not isinstance(cloud, PointCloud):
            shape = f" {cloud.shape}" if isinstance(cloud, np.ndarray) else ""
            raise InputError(
                f"segment: expected a PointCloud, got {type(cloud).__name__}{shape}; for arrays "
                "call segmenter.segment(pcseg_core.PointCloud(xyz, intensity)) with xyz (N, 3) in "
                "meters and intensity (N,) in 0 to 1"
            )
        timings: dict[str, float] = {}
        classes = self._classes
        count, owner = len(classes.label_space), classes.owner
        with _stage("voxelize", timings):
            arrays = cloud.xyz, cloud.intensity
            sweep = sweep_input(self.student, *arrays, self.device, self.backend)
        raw: Iterable[Tensor] = [torch.empty(0, count, device=self.device)]
        if sweep.sparse is None:
            owner = None
        else:
            with _stage("infer", timings):
                raw = classes.logits(sweep.sparse)
        with _stage("label", timings):
            logits = _calibrated(classes.scaling, raw, cloud.xyz, sweep)
            place = sweep.inverse, count, owner
            found = point_labels(logits, *place, probabilities, self.backend, self.max_entropy)
            asked = self.keep_uncalibrated and logits is not raw
            before = point_labels(raw, *place, backend=self.backend).confidence if asked else None
        return Segmentation(
            found.labels,
            found.confidence,
            timings,
            found.probabilities,
            classes.label_space,
            sweep.out_of_range,
            found.not_finite,
            before,
        )


def _calibrated(
    scaling: ConfidenceScaling | None, logits: Iterable[Tensor], xyz: np.ndarray, sweep: SweepInput
) -> Iterable[Tensor]:
    """The logits of the trained classes divided by their temperatures, others unchanged."""
    if scaling is None or sweep.sparse is None:
        return logits
    ranges = sweep.voxel_ranges(xyz)
    return [scaling.apply(block, ranges) for block in logits]


def prepare_network(
    network: Network, backend: str, precision: Precision, scales: IntegerScales | None = None
) -> Network | CompiledMinkUNet:
    """The fused MinkUNet for the native and triton backends, else the module itself.

    Raises:
        InputError: precision "int8" without scales, or a precision that the backend or the family
            of networks lacks.
    """
    if not isinstance(network, MinkUNet):
        if precision not in ("auto", "fp32"):
            name = type(network).__name__
            raise InputError(f"precision '{precision}': {name} runs in fp32 only; use fp32 or auto")
        return network
    if backend == "triton":
        return compile_inference(network, "fp16" if precision == "auto" else precision, backend)
    if backend != "native":
        return network
    if precision == "auto":
        precision = choose(integers=scales is not None and scales.exact_enough)
    if precision != "int8":
        return compile_inference(network, precision)
    if scales is None:
        raise InputError(
            "precision 'int8': this checkpoint is not calibrated; run `pcseg quantize RUN SOURCE "
            "--out FILE` and load FILE"
        )
    return QuantizedMinkUNet(network, scales.tops)


@contextmanager
def _stage(name: str, timings: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[name] = (time.perf_counter() - started) * 1e3
