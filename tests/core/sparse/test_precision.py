# SPDX-License-Identifier: Apache-2.0
"""The precision that "auto" takes on a CPU."""

from __future__ import annotations

import logging

import pytest

from pcseg_core.models.inference import CompiledMinkUNet
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.native import library, precision
from pcseg_core.online.segmenter import prepare_network
from pcseg_core.sparse import backends_report

pytestmark = pytest.mark.usefixtures("native")


@pytest.mark.parametrize(("fp32", "chosen"), [(0.9, "fp32"), (1.09, "fp32"), (1.11, "bf16")])
def test_a_less_exact_precision_must_be_faster(
    fp32: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"fp32": fp32, "bf16": 1.0, "int8": 0.1}  # int8 needs a calibrated checkpoint
    monkeypatch.setattr(precision, "layer_ms", lambda isa: times)
    network = prepare_network(MinkUNet(3, 4, 14, 0.5).eval(), "native", "auto")
    assert isinstance(network, CompiledMinkUNet) and network.precision == chosen
    report = {row.name: row.note for row in backends_report()}
    assert f"auto precision {chosen}, int8 after `pcseg quantize`" in report["native"]
    assert f"bf16 {fp32:.1f}, int8 {fp32 / 0.1:.1f}" in report["native"]


def test_measured_once_per_instruction_set_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    precision.layer_ms.cache_clear()
    with caplog.at_level(logging.INFO, "pcseg_core.native.precision"):
        times = [precision.layer_ms(isa) for isa in (0, 0, len(library.isa_names()) - 1)]
    assert times[0] is times[1] and list(times[0]) == ["fp32", "bf16", "int8"]
    assert min(times[0].values()) > 0
    assert [record.args[0] for record in caplog.records] == list(
        dict.fromkeys([library.isa_names()[0], library.isa_names()[-1]])
    )


def test_the_instruction_set_that_the_user_names_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def layer_ms(isa: int) -> dict[str, float]:
        asked.append(isa)
        return {"fp32": 1.0, "bf16": 1.0, "int8": 1.0}

    monkeypatch.setenv("PCSEG_ISA", "generic")
    monkeypatch.setattr(precision, "layer_ms", layer_ms)
    library.best_isa.cache_clear()
    try:
        assert precision.choose() == "fp32" and asked == [0]
    finally:
        library.best_isa.cache_clear()
