# SPDX-License-Identifier: Apache-2.0
"""What clips cost on the devices at hand: measured before the first step of a run, once.

The result lies in the run's folder before anything is packed by it: whoever is killed before the first checkpoint goes
on with the same packs.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kinema_api.buckets import Geometry
from kinema_api.packing import Cost, Packing
from kinema_api.stage import TrainConfig
from kinema_stage.workspace import Workspace
from kinema_trainer import spread
from kinema_trainer.checkpoints.folders import Found
from kinema_trainer.data.costs import Measured, Shape, tokens
from kinema_trainer.data.feed import Features
from kinema_trainer.models import Adapter
from kinema_trainer.objectives.loss import Loss
from kinema_trainer.optim import lora
from kinema_trainer.parallel.mesh import Mesh
from kinema_trainer.planning.examples import examples
from kinema_trainer.spread import Team

logger = logging.getLogger(__name__)

FILE = "cost.json"
"""In the run's folder."""
REPEATS = 4
"""Of each pass; the first one warms up and counts nothing."""


def wanted(config: TrainConfig, *, found: Found | None) -> bool:
    """Whether a run that goes on from a checkpoint, or from none, has to measure."""
    packing = config.settings.packing
    return found is None and packing is not None and packing.measured and packing.cost is None


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Measures the cost of clips with the model as it will be trained; every process of the run takes part.

    Args of note:
        moved: called after each pass.
    """

    config: TrainConfig
    workspace: Workspace
    adapter: Adapter
    model: nn.Module
    mesh: Mesh
    team: Team
    device: torch.device
    moved: Callable[[], None]

    def cost(self, features: Features) -> Cost | None:
        """The cost of a clip, the same in every process; None where too few lengths tell nothing of it."""
        found = self.team.tell(self._stored() if self.team.leads else None)
        if found is None:
            measured = self._measured(features)
            if self.team.leads and measured is not None:
                self.workspace.create(self._path, json.dumps(measured.wire()).encode())
                logger.info("clips cost, measured: %s", ", ".join(f"{k} {v:.3g}" for k, v in measured.wire().items()))
            found = self.team.tell(self._stored() if self.team.leads else None)
        return None if found is None else Cost.stored(found)

    @property
    def _path(self) -> str:
        return f"{self.config.run}/{FILE}"

    def _stored(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.workspace.read(self._path))
        except FileNotFoundError:
            return None
        return found

    def _measured(self, features: Features) -> Cost | None:
        settings, patch = self.config.settings, self.config.model.transformer.patch
        assert settings.packing is not None
        # What an addition leaves out is drawn anew for each step.
        lora.begin_step(self.model, settings.lora, seed=settings.seed, step=1)
        held = set(features.held)
        shapes = {shape for place, shape in enumerate(features.samples.shapes) if place not in held}
        measured = Measured()
        for clips in passes(
            sorted(shapes, key=lambda shape: (tokens(shape, patch=patch), shape)), settings.packing, patch
        ):
            for number in range(REPEATS):
                seconds = self._seconds(clips)
                self.moved()
                if number:
                    measured.add([tokens(shape, patch=patch) for shape in clips], seconds=seconds)
        return measured.fit()

    def _seconds(self, clips: Sequence[Shape]) -> float:
        """The time of a forward and a backward pass, whose gradients are forgotten."""
        batch = tuple(example.to(self.device) for example in self._examples(clips))
        self.team.meet()
        self._settle()
        began = time.perf_counter()
        spread.begin_pass(self.model, last=True)
        dtype = spread.DTYPES[self.config.settings.precision]
        prediction = self.adapter.forward(self.model, batch, mesh=self.mesh, dtype=dtype)
        share = self.adapter.share(self.model, batch, mesh=self.mesh)
        (self._loss(prediction, batch, share) / len(batch)).backward()
        self._settle()
        seconds = time.perf_counter() - began
        for parameter in self.model.parameters():
            parameter.grad = None
        return seconds

    def _examples(self, clips: Sequence[Shape]) -> Sequence[Any]:
        vae = self.config.model.vae
        geometries = [
            Geometry((frames - 1) * vae.temporal + 1, height * vae.spatial, width * vae.spatial)
            for _, frames, height, width in clips
        ]
        made = examples(self.config.model, task=self.config.task, clips=geometries)
        for example in made:
            # What memory happens to hold may be slower to compute with than any number.
            for tensor in (example.latents, example.noise, example.text, example.condition.channels,
                           example.condition.image):  # fmt: skip
                if tensor is not None:
                    tensor.zero_()
            example.sigma.fill_(0.5)
        return made

    @property
    def _loss(self) -> Loss:
        model = self.config.model
        return Loss(
            objective=self.config.settings.objective,
            sign=model.velocity.sign,
            patch=model.transformer.patch,
            spatial=model.vae.spatial,
        )

    def _settle(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()


def passes(shapes: Sequence[Shape], packing: Packing, patch: Sequence[int]) -> list[tuple[Shape, ...]]:
    """What is measured: the shortest clip alone and twice, one of the middle, and the longest, as far as they fit.

    Args:
        shapes: of all clips, by length.
        packing: bounds a pass.
        patch: latent frames, rows and columns of a token.
    """
    short, middle, long = shapes[0], shapes[len(shapes) // 2], shapes[-1]
    found = dict.fromkeys([(short,), (short, short), (middle,), (long,)])
    return [clips for clips in found if sum(tokens(shape, patch=patch) for shape in clips) <= packing.tokens]
