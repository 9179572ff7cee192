# SPDX-License-Identifier: Apache-2.0
"""LoRA, recomputation and bfloat16 give what one process gets, under every layout."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parity.cases import LAYOUTS, STEPS, Case
from tests.parity.processes import Processes
from tests.parity.test_layouts import check, marked
from tests.parity.worker import RELATIVE

LORA: dict[str, Any] = {"lora": {"enabled": True, "rank": 4, "alpha": 8, "dropout": 0.25}}
EVERYWHERE: dict[str, Any] = {
    "lora": {
        "enabled": True,
        "rank": 4,
        "targets": ["to_q", "to_out.0", "ffn.net.0.proj", "ffn.net.2", "text_embedder.linear_1", "proj_out"],
    }
}
"""Layers that are cut by columns, by rows, and not at all: before, in and behind the blocks."""
BF16: dict[str, Any] = {"precision": "bf16"}
NAMES = {**LAYOUTS, "TP+SP x FSDP2": {"tensor": 2, "sequence": True, "shard": 2}}


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("name", marked(NAMES, ("TP+SP",)))
def test_five_steps_of_lora(processes: Processes, name: str, task: str) -> None:
    check(processes, Case(task=task, layout=NAMES[name], steps=STEPS, settings=LORA))


@pytest.mark.parametrize("name", marked(NAMES, ("TP", "TP+SP")))
def test_five_steps_of_lora_on_every_kind_of_layer(processes: Processes, name: str) -> None:
    check(processes, Case(layout=NAMES[name], steps=STEPS, settings=EVERYWHERE))


@pytest.mark.parametrize(
    "recompute",
    [
        {"mode": "full"},
        {"mode": "selective", "save": ["attention", "matmul"]},
        {"mode": "interval", "every": 2, "offload": True},
        {"offload": True},
    ],
    ids=["full", "selective", "interval and offload", "offload"],
)
@pytest.mark.parametrize(
    "name", marked({name: LAYOUTS[name] for name in ("FSDP2", "TP+SP", "Ulysses x ring x TP")}, ())
)
def test_recomputation(processes: Processes, name: str, recompute: dict[str, Any]) -> None:
    check(processes, Case(layout=LAYOUTS[name], steps=STEPS, settings={"recompute": recompute}))


@pytest.mark.parametrize("name", marked({name: LAYOUTS[name] for name in ("DDP", "FSDP2", "HSDP")}, ("DDP",)))
def test_gradients_of_bfloat16_are_added_up_in_float32(processes: Processes, name: str) -> None:
    """Each pack's gradient has the same bits as in one process, so that only their sum could differ."""
    check(processes, Case(layout=LAYOUTS[name], settings=BF16))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["weights", "additions"])
@pytest.mark.parametrize("name", ["TP", "TP+SP", "Ulysses", "ring", "Ulysses x ring x TP"])
def test_bfloat16_only_rounds(processes: Processes, name: str, lora: bool) -> None:
    """What is added up elsewhere is rounded elsewhere: gradients are as near as bfloat16 lets them be."""
    settings = BF16 | ({"lora": {"enabled": True, "rank": 4}} if lora else {})
    for outcome in processes.run(Case(layout=LAYOUTS[name], settings=settings)):
        for part, (ratio, tensor) in outcome.worst.items():
            assert ratio * RELATIVE < 0.05, f"{part} {tensor} differs by {ratio * RELATIVE:.3g} of itself"
