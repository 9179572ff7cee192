# SPDX-License-Identifier: Apache-2.0
"""Clips of fewer tokens than there are processes to share them: some processes have none, and exchange as the others.

The processes are pretended (`tests/parity/test_layouts.py` has real ones): what is looked at is not what they find, but
that each of them finds something for the same parameters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kinema_api.layout import Layout
from kinema_api.settings import TrainSettings
from kinema_trainer import spread
from kinema_trainer.device import Device
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.parallel.attention import attention
from kinema_trainer.parallel.layout import ParallelLayout
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.planning.rehearsal import pretended

from tests.parity.cases import CONFIGS, make
from tests.parity.worker import WIDTHS

CPU = Device(device=torch.device("cpu"), backend="fake", name="cpu")
CONFIG = {**CONFIGS["i2v"], "num_layers": 1}
LAYOUTS: dict[str, dict[str, Any]] = {
    "Ulysses": {"ulysses": 4},
    "ring": {"ring": 4},
    "Ulysses x FSDP2": {"ulysses": 4, "shard": 2},
    "ring x HSDP": {"ring": 4, "shard": 2, "replicate": 2},
    "TP+SP": {"tensor": 4, "sequence": True},
    "TP+SP x ring": {"tensor": 2, "sequence": True, "ring": 4},
}


def gradients(layout: ParallelLayout, settings: TrainSettings, *, rank: int) -> frozenset[str]:
    """The parameters that have a gradient after a pack of a clip of one token and another of two."""
    with pretended(world=layout.world, rank=rank):
        mesh = Mesh.make(layout, device="cpu")
        model = spread.build(ADAPTER, CONFIG, device=CPU, mesh=mesh, settings=settings)
        pack = (make("i2v", (1, 2, 2), seed=1), make("i2v", (1, 2, 4), seed=2))
        spread.begin_pass(model, last=True)
        ADAPTER.forward(model, pack, mesh=mesh, dtype=torch.float32).sum().backward()
        return frozenset(name for name, parameter in model.named_parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_process_without_tokens_has_the_gradients_that_the_others_have(name: str) -> None:
    settings = TrainSettings(precision="fp32", layout=Layout.model_validate(LAYOUTS[name]))
    layout = ParallelLayout.of(settings.layout, world=_world(settings.layout), model=WIDTHS)
    every = {name for name, _ in ADAPTER.build(CONFIG).named_parameters()}
    for rank in range(layout.context * layout.sizes.tensor):
        assert gradients(layout, settings, rank=rank) == every, f"rank {rank}"


def _world(layout: Layout) -> int:
    return layout.replicate * (layout.shard or 1) * layout.ring * layout.ulysses * layout.tensor


def drawn(tokens: int, *, seed: int) -> Tensor:
    return torch.randn(tokens, 2, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_attention_without_queries_or_without_keys_is_zero_and_keeps_its_gradients() -> None:
    query, key, value = drawn(4, seed=1), drawn(3, seed=2), drawn(3, seed=3)
    found = attention(query, key, value, queries=(2, 2), keys=(3, 0), backend=None)
    alone = attention(query[:2], key, value, queries=(2,), keys=(3,), backend=None)
    assert torch.equal(found[:2], alone)
    assert not found[2:].any()
    nobody = attention(query[:0], key, value, queries=(0, 0), keys=(2, 1), backend=None)
    assert nobody.shape == (0, 2, 8)
    nobody.sum().backward()
    for leaf in (query, key, value):
        assert leaf.grad is not None
        assert not leaf.grad.any()
