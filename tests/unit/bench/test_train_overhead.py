# SPDX-License-Identifier: Apache-2.0
"""The bare loop takes the same steps as the train stage that it is compared with."""

from __future__ import annotations

from pathlib import Path

import torch

from bench import bare_loop
from bench.train_overhead import Setting
from kinema_api.objective import TimestepSampling, Weighting
from kinema_trainer.objectives.flow import sigma_of


class Zeros(torch.nn.Module):
    """A model that answers with its only weight, whatever it is asked, and remembers the timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.timesteps = torch.empty(0)

    def forward(self, *, hidden_states: torch.Tensor, timestep: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        self.timesteps = timestep
        return (self.weight.expand_as(hidden_states),)


def test_every_number_of_the_bare_loop_is_one(tmp_path: Path) -> None:
    numbers = Setting(tmp_path, processes=1, threads=1).numbers
    assert all(isinstance(value, (int, float)) for value in numbers.values()), numbers


def test_the_bare_loop_has_the_objective_of_the_train_stage(tmp_path: Path) -> None:
    setting = Setting(tmp_path, processes=1, threads=1)
    recipe = setting.settings.objective.recipe
    assert (recipe.timesteps, recipe.weighting) == (TimestepSampling.UNIFORM, Weighting.SHIFT)
    model, shift = Zeros(), setting.numbers["shift"]
    adam = torch.optim.AdamW(model.parameters(), lr=0.0)
    latents = torch.randn(2, 1, 1, 2, 2)
    torch.manual_seed(1)
    found = bare_loop.step(model, adam, latents=latents, text=latents, shift=shift, clip=1.0)
    torch.manual_seed(1)
    noise, u = torch.randn_like(latents), torch.rand(2)
    sigma = sigma_of(recipe, u, shift=shift)
    torch.testing.assert_close(model.timesteps, 1000 * sigma)
    losses = (noise - latents).square().flatten(1).mean(dim=1) * (1 + recipe.shift * sigma)
    torch.testing.assert_close(torch.tensor(found), losses.mean())
