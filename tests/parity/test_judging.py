# SPDX-License-Identifier: Apache-2.0
"""Validation and videos during training are the same in every layout, and leave the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kinema_api.validation import TrainingSamples, Validation
from kinema_trainer.data.shards import Sample
from kinema_trainer.evaluation import previews, validation
from kinema_trainer.evaluation.validation import UNWEIGHTED, Examples, Validator
from kinema_trainer.objectives.flow import tokens
from kinema_trainer.objectives.loss import Loss

from tests.parity.cases import LAYOUTS, TEXT, Case
from tests.parity.processes import Processes
from tests.parity.worker import trainer

CLIPS = 3
"""Times three noise levels: 9 passes, which no number of data coordinates divides."""


def clip(number: int, task: str) -> Sample:
    stream = torch.Generator().manual_seed(number)
    shape = (16, 1 + number % 3, 4, 6)
    given = task == "i2v"
    return Sample(
        key=f"clip-{number}",
        latents=torch.randn(shape, generator=stream),
        text=torch.randn((7, 16), generator=stream),
        condition=torch.randn(shape, generator=stream) if given else None,
        image=torch.randn((5, 16), generator=stream) if given else None,
    )


def judge(case: Case, *, folder: Path) -> tuple[dict[str, float], dict[str, Tensor], float]:
    """What one process finds: the validation's numbers, the videos' latents by file, and the loss of a step after."""
    run = trainer(case, folder=folder)
    images = 1 if case.task == "i2v" else 0
    examples = Examples(objective=run.settings.objective, text_length=TEXT, images=images, temporal=4)
    common: dict[str, Any] = {
        "adapter": run.adapter,
        "model": run.model,
        "mesh": run.mesh,
        "device": run.device,
        "dtype": torch.float32,
        "stops": lambda: False,
        "moved": lambda: None,
    }
    clips = [clip(number, case.task) for number in range(CLIPS)]
    validator = Validator(
        settings=Validation(every_steps=1, timesteps=3),
        clips=clips,
        examples=examples,
        team=run.team,
        loss=Loss(objective=UNWEIGHTED, sign=1.0, patch=(1, 2, 2), spatial=8),
        **common,
    )
    before = {name: type(parameter) for name, parameter in run.model.named_parameters()}
    found = validator.run()
    assert {name: type(parameter) for name, parameter in run.model.named_parameters()} == before
    videos: dict[str, Tensor] = {}
    shots = [
        previews.Shot(
            scene=previews.Scene(prompt="", text=example.text, given=previews.given_by(example, leading=number == 2)),
            seed=number,
            file=f"{number}.mp4",
        )
        for number, example in enumerate(examples.of(one, sigma=1.0) for one in clips)
    ]
    stubs: dict[str, Any] = {"workspace": None, "decode": None}
    previewer = previews.Previewer(
        settings=TrainingSamples(steps=2, guidance=2.0),
        shots=shots,
        empty_text=torch.zeros(TEXT, 16),
        sign=1.0,
        fps=8,
        run="run",
        **common,
        **stubs,
    )
    with validation.judged(run.model):
        for shot in shots:
            latents = previewer._denoised(shot)
            assert latents is not None
            videos[shot.file] = latents
    results: list[float] = []
    run.on_step = lambda result: results.append(result.loss)
    run.run()
    return found, videos, results[-1]


FAST = ("HSDP", "Ulysses x ring x TP")


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in LAYOUTS])
def test_judging(processes: Processes, name: str, task: str) -> None:
    case = Case(task=task, layout=LAYOUTS[name], steps=1, settings={"steps": 1})
    ((numbers, videos, loss),) = processes.call(1, judge, case=case.alone, folder=processes.folder)
    assert len(numbers) == 4
    for found, own, after in processes.call(case.world, judge, case=case, folder=processes.folder, seconds=300):
        assert found == pytest.approx(numbers, rel=1e-5)
        for file, latents in videos.items():
            difference = tokens(own[file] - latents, patch=(1, 2, 2)).norm() / latents.norm()
            assert float(difference) < 1e-4, file
        assert after == pytest.approx(loss, rel=1e-4)
