# SPDX-License-Identifier: Apache-2.0
"""What Wan is given beside noise and caption, by task.

i2v and flf2v are given whole frames of the clip, in two ways: as tokens of an image encoder, and as 20 channels beside
the 16 of the noise, 4 of a mask and 16 of the latents of the clip with every other frame grey (0 in [-1, 1]). t2v and
v2v are given nothing; clean frames within the clip are drawn, see `kinema_trainer.objectives.masks`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kinema_trainer.batch import Condition


def given_frames(video: Tensor, *, images: int) -> Tensor:
    """The first frame of a clip [3, frames, height, width], or the first and the last: [images, 3, height, width]."""
    return video[:, [0, -1][:images]].transpose(0, 1)


def blanked(video: Tensor, *, images: int) -> Tensor:
    """The clip [3, frames, height, width] with every frame grey that is not given."""
    blank = torch.zeros_like(video)
    blank[:, 0] = video[:, 0]
    if images == 2:
        blank[:, -1] = video[:, -1]
    return blank


def mask(*, images: int, frames: int, temporal: int) -> Tensor:
    """Which frames are given: [temporal, latent frames], 1 for a given frame.

    A column stands for the frames of a latent frame; of the first latent frame, which is one frame alone, for that one
    repeated.

    Args:
        images: 1 for the first frame, 2 for the first and the last.
        frames: latent frames.
        temporal: frames of a latent frame, after the first.
    """
    found = torch.zeros(temporal, frames)
    found[:, 0] = 1
    if images == 2:
        found[-1, -1] = 1
    return found


def channels(latents: Tensor, *, images: int, temporal: int) -> Tensor:
    """Mask and condition as the transformer takes them, behind the noise.

    Args:
        latents: [channels, frames, height, width] of the blanked clip.
        images: 1 for the first frame, 2 for the first and the last.
        temporal: frames of a latent frame, after the first.

    Returns:
        [temporal + channels, frames, height, width], float32.
    """
    _, frames, height, width = latents.shape
    marks = mask(images=images, frames=frames, temporal=temporal)
    return torch.cat([marks[:, :, None, None].expand(-1, -1, height, width), latents.float()])


def condition_of(
    *, latents: Tensor | None, image: Tensor | None, clean: Tensor | None, images: int, temporal: int
) -> Condition:
    """What a sample is given, of what the features stage stored and of the clean frames that were drawn for it.

    Args:
        latents: of the blanked clip; None for a task without given frames.
        image: [tokens, width], the image encoder's tokens; None likewise.
        clean: [frames], bool; None when no frame within the clip is clean.
        images: how many frames the task is given.
        temporal: frames of a latent frame, after the first.
    """
    return Condition(
        channels=None if latents is None else channels(latents, images=images, temporal=temporal),
        image=None if image is None else image.float(),
        clean=clean,
    )
