# SPDX-License-Identifier: Apache-2.0
"""Whether a training can work where it is about to start: asked before anything is allocated or read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema_api import fit
from kinema_api.exits import Exit, StageError
from kinema_api.pool import Accelerator
from kinema_api.settings import ClipVideo
from kinema_api.stage import TrainConfig

if TYPE_CHECKING:
    from kinema_trainer.device import Device

KINDS = {"cuda": Accelerator.NVIDIA, "npu": Accelerator.ASCEND}


def check(config: TrainConfig, *, world: int, here: Device | None = None) -> int | None:
    """Refuse a layout that cannot work, or a model that does not fit into the device at hand.

    Args:
        config: of the train stage.
        world: processes of the run.
        here: this process's device; without one only the layout is looked at.

    Returns:
        What a process should hold at the peak of a step, in bytes of tensors; None where nobody told the clips.

    Raises:
        StageError: with the nearest layout that works.
    """
    # Whoever wrote the config knew less: without the clips nothing is known of memory.
    memory = here.memory_total() if here is not None and config.video is not None else None
    place = fit.Place(
        world=world,
        accelerator=Accelerator.CPU if here is None else KINDS.get(here.device.type, Accelerator.CPU),
        memory=memory,
        name="" if here is None else here.name,
    )
    video = config.video or ClipVideo()
    try:
        sizes = fit.check(config.model, config.settings, video, place)
    except fit.FitError as error:
        raise StageError(Exit.USER, str(error)) from None
    if config.video is None:
        return None
    passes = fit.works(config.model, config.settings, video)
    return fit.needed(config.model, config.settings, sizes=sizes, passes=passes, place=place).total
