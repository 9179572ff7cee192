# SPDX-License-Identifier: Apache-2.0
"""What a model is judged by, over however many processes predict a batch's tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kinema_api.objective import Objective
from kinema_trainer.batch import Batch
from kinema_trainer.objectives import flow
from kinema_trainer.parallel.sequence import Share


@dataclass(frozen=True, slots=True)
class Loss:
    """The weighted squared error of predicted tokens.

    Args:
        objective: how samples are weighed.
        sign: 1 if the family predicts noise - data, -1 for its opposite.
        patch: latent frames, rows and columns of a token.
        spatial: pixels of a latent pixel, each way.
    """

    objective: Objective
    sign: float
    patch: tuple[int, int, int]
    spatial: int

    def __call__(self, prediction: Tensor, batch: Batch, share: Share) -> Tensor:
        """The sum over samples of their losses, as far as this process's tokens make it.

        Args:
            prediction: [tokens, features] of this process.
            batch: the samples.
            share: which of their tokens those are.
        """
        wanted, weights = [], []
        for example, (start, stop) in zip(batch, share.rows, strict=True):
            wanted.append(flow.target(example, sign=self.sign, patch=self.patch)[start:stop])
            each = flow.token_weights(self.objective, example, patch=self.patch, spatial=self.spatial)
            weights.append(each[start:stop])
        return flow.squared_error(prediction, torch.cat(wanted), torch.cat(weights))
