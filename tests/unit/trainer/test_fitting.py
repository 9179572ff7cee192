# SPDX-License-Identifier: Apache-2.0
"""The trainer refuses what cannot work before it allocates or reads anything."""

from __future__ import annotations

import time

import pytest
import torch

from kinema_api.catalogue import entry
from kinema_api.exits import Exit, StageError
from kinema_api.settings import ClipVideo
from kinema_trainer.device import Device
from kinema_trainer.planning import fitting
from kinema_trainer.stages import train

from tests.engine import Engine

pytestmark = pytest.mark.unit


def test_the_stage_refuses_a_layout_before_it_starts_a_process(engine: Engine) -> None:
    config = engine.config(layout={"tensor": 2, "ulysses": 2}).model_copy(update={"devices_per_node": 4})
    began = time.monotonic()
    with pytest.raises(StageError) as caught:
        train.run(engine.context(config))
    assert caught.value.code == Exit.USER
    assert str(caught.value) == (
        "stages.train.layout: ulysses 2 is more than the 1 heads that tensor 2 leaves, and every process needs one; the"
        " nearest layout that works: shard 2, tensor 2"
    )
    assert time.monotonic() - began < 10
    assert not engine.workspace.exists(config.run)


def test_a_process_refuses_what_its_device_cannot_hold(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    config = engine.config(precision="bf16").model_copy(
        update={"model": entry("wan2.1-t2v-14b"), "video": ClipVideo(frames=81, height=720, width=1280)}
    )
    here = Device(device=torch.device("cuda", 0), backend="nccl", name="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(Device, "memory_total", lambda self: 80 << 30)
    with pytest.raises(StageError, match=r"NVIDIA H100 80GB HBM3 has 80 GiB; .*with recompute\.mode: full") as caught:
        fitting.check(config, world=16, here=here)
    assert caught.value.code == Exit.USER
    # A config of an older operator does not say what the clips are.
    assert fitting.check(config.model_copy(update={"video": None}), world=16, here=here) is None


def test_what_a_process_should_hold_is_told(engine: Engine) -> None:
    small, large = (ClipVideo(frames=frames, height=480, width=832) for frames in (17, 81))
    config = engine.config(precision="bf16").model_copy(update={"model": entry("wan2.1-t2v-1.3b")})
    told = [fitting.check(config.model_copy(update={"video": video}), world=8) for video in (small, large)]
    assert told[0] is not None and told[1] is not None
    # 16 bytes of each parameter are spread over eight processes; the rest grows with the clip.
    assert 16 * 1.4e9 / 8 < told[0] < told[1]
