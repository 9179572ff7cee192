# SPDX-License-Identifier: Apache-2.0
"""Which latent frames of a sample are given as they are.

The strategies are those of Open-Sora (mindspore-lab/mindone, examples/opensora_hpcai, training mask_ratios), over
latent frames. Where a clip is too short for a quarter of its frames, one frame is given; at least one stays noisy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kinema_api.objective import Masks

LEAST, MOST = 0.1, 0.9
"""Shares of the frames that `random` gives, at least and at most."""


def clean_frames(masks: Masks, *, frames: int, numbers: Tensor) -> Tensor | None:
    """The frames that are given, [frames], bool; None when none is.

    Args:
        masks: the share of each strategy.
        frames: latent frames of the clip.
        numbers: 3 + frames numbers, uniform on [0, 1): for the strategy, the count, the place, and one for each frame.
    """
    coin, size, place = numbers[:3].tolist()
    chosen = _strategy(masks, coin)
    if chosen is None or frames < 2:
        return None
    clean = torch.zeros(frames, dtype=torch.bool)
    clean[_STRATEGIES[chosen](frames, size, place, numbers[3:])] = True
    if bool(clean.all()):
        clean[-1] = False
    return clean


def _strategy(masks: Masks, coin: float) -> str | None:
    for name, share in masks.shares.items():
        if coin < share:
            return name
        coin -= share
    return None


def _up_to(most: int, size: float) -> int:
    """A whole number from 1 to `most`, all equally likely."""
    return 1 + min(int(size * most), most - 1)


def _quarter(frames: int, size: float) -> int:
    return _up_to(max(1, frames // 4), size)


def _random(frames: int, size: float, scores: Tensor) -> Tensor:
    """10 to 90 percent of the frames: those of the smallest numbers."""
    count = round((LEAST + (MOST - LEAST) * size) * frames)
    return scores.argsort()[: min(max(count, 1), frames - 1)]


def _ends(frames: int, head: int, tail: int) -> Tensor:
    return torch.tensor([*range(head), *range(frames - tail, frames)], dtype=torch.long)


_STRATEGIES: dict[str, Callable[[int, float, float, Tensor], Tensor]] = {
    "random": lambda frames, size, place, scores: _random(frames, size, scores),
    "interpolate": lambda frames, size, place, scores: torch.arange(0, frames, 2),
    "quarter_random": lambda frames, size, place, scores: scores.argsort()[: _quarter(frames, size)],
    "quarter_head": lambda frames, size, place, scores: _ends(frames, _quarter(frames, size), 0),
    "quarter_tail": lambda frames, size, place, scores: _ends(frames, 0, _quarter(frames, size)),
    "quarter_head_tail": lambda frames, size, place, scores: _ends(
        frames, _quarter(frames, size), _quarter(frames, size)
    ),
    "image_random": lambda frames, size, place, scores: torch.tensor([min(int(place * frames), frames - 1)]),
    "image_head": lambda frames, size, place, scores: _ends(frames, 1, 0),
    "image_tail": lambda frames, size, place, scores: _ends(frames, 0, 1),
    "image_head_tail": lambda frames, size, place, scores: _ends(frames, 1, 1),
}
