# SPDX-License-Identifier: Apache-2.0
"""Clips that have the shapes of a run's, and no content."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kinema_api.buckets import Geometry
from kinema_api.catalogue import Entry
from kinema_api.job import Task
from kinema_trainer.batch import Batch, Condition, Example


def examples(model: Entry, *, task: Task, clips: Sequence[Geometry]) -> Batch:
    """A batch of the shapes that clips of these geometries have once they are encoded."""
    return tuple(_example(model, task=task, clip=clip) for clip in clips)


def _example(model: Entry, *, task: Task, clip: Geometry) -> Example:
    vae, dims, image = model.vae, model.transformer, model.image
    plane = (vae.latent_frames(clip.frames), clip.height // vae.spatial, clip.width // vae.spatial)
    more = dims.in_channels - vae.channels
    given = image.given if image is not None and task is not Task.T2V else 0
    return Example(
        key="",
        latents=torch.empty(vae.channels, *plane),
        noise=torch.empty(vae.channels, *plane),
        sigma=torch.empty(()),
        text=torch.empty(model.text_length, dims.text_dim),
        condition=Condition(
            channels=torch.empty(more, *plane) if more else None,
            image=torch.empty(given, image.width) if image is not None and given else None,
        ),
    )
