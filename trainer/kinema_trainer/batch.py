# SPDX-License-Identifier: Apache-2.0
"""What one forward pass is made of: samples with everything drawn that is drawn for them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """What a sample is given beside its caption."""

    channels: Tensor | None = None
    """[channels, frames, height, width]: concatenated behind the noisy latents."""
    image: Tensor | None = None
    """[tokens, width]: the image encoder's tokens, attended to beside the caption."""
    clean: Tensor | None = None
    """[frames], bool: latent frames that are given as they are, at sigma 0, and carry no loss; None: no frame is."""

    def to(self, device: torch.device) -> Condition:
        """The condition on a device."""
        return Condition(
            channels=None if self.channels is None else self.channels.to(device, non_blocking=True),
            image=None if self.image is None else self.image.to(device, non_blocking=True),
            clean=None if self.clean is None else self.clean.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One sample as a step trains on it.

    Shapes: latents and noise [channels, frames, height, width], float32; sigma [], float32; text [tokens, width],
    float32, padded to the model's text length.
    """

    key: str
    latents: Tensor
    noise: Tensor
    sigma: Tensor
    text: Tensor
    condition: Condition = field(default_factory=Condition)
    weight: float = 1.0
    """Share of the sample in the step's loss beside the others'; 0 for a filler."""

    def to(self, device: torch.device) -> Example:
        """The sample on a device."""
        return replace(
            self,
            latents=self.latents.to(device, non_blocking=True),
            noise=self.noise.to(device, non_blocking=True),
            sigma=self.sigma.to(device, non_blocking=True),
            text=self.text.to(device, non_blocking=True),
            condition=self.condition.to(device),
        )


Batch = tuple[Example, ...]
"""The samples of one forward pass of one model copy; of any shapes, side by side in one sequence."""
