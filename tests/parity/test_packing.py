# SPDX-License-Identifier: Apache-2.0
"""A pack is its samples: the same loss and gradients as one by one, and no sample hears of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kinema_api.objective import Objective
from kinema_trainer.batch import Batch, Example
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.objectives import flow
from kinema_trainer.objectives.loss import Loss

from tests.parity.cases import CONFIGS, RAGGED, make

LOSS = Loss(objective=Objective(), sign=1.0, patch=(1, 2, 2), spatial=8)
TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["t2v", "i2v"])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def transformer(task: str) -> Any:
    torch.manual_seed(3)
    return ADAPTER.build(CONFIGS[task])


def batch(task: str) -> Batch:
    """Clips of several shapes; two have frames that are given."""
    shapes = RAGGED[:5]
    clean = {0: torch.tensor([True, False, False]), 3: torch.tensor([False, True, True])}
    return tuple(make(task, shape, seed=index, clean=clean.get(index)) for index, shape in enumerate(shapes))


def gradients(model: torch.nn.Module, packs: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of several forward passes."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for pack in packs:
        prediction = ADAPTER.forward(model, pack, dtype=torch.float32)
        loss = LOSS(prediction, pack, ADAPTER.share(model, pack)) / sum(map(len, packs))
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def predictions(model: torch.nn.Module, pack: Batch) -> list[Tensor]:
    """What is predicted of each sample."""
    with torch.no_grad():
        rows = ADAPTER.forward(model, pack, dtype=torch.float32)
    return list(rows.split([stop - start for start, stop in ADAPTER.share(model, pack).rows]))


def test_a_pack_has_the_loss_and_the_gradients_of_its_samples(task: str) -> None:
    model, pack = transformer(task), batch(task)
    together, of_pack = gradients(model, [pack])
    alone, one_by_one = gradients(model, [(example,) for example in pack])
    assert together == pytest.approx(alone, rel=TOLERANCE)
    assert of_pack.keys() == one_by_one.keys() == {name for name, _ in model.named_parameters()}
    everything = torch.stack([gradient.norm() for gradient in one_by_one.values()]).norm()
    for name, gradient in one_by_one.items():
        assert (of_pack[name] - gradient).norm() <= TOLERANCE * (gradient.norm() + 0.01 * everything), name


def test_samples_of_equal_lengths_take_the_batched_way_to_the_same_result(task: str) -> None:
    model = transformer(task)
    pack = tuple(make(task, (2, 4, 4), seed=index) for index in range(3))
    together, of_pack = gradients(model, [pack])
    alone, one_by_one = gradients(model, [(example,) for example in pack])
    assert together == pytest.approx(alone, rel=TOLERANCE)
    everything = torch.stack([gradient.norm() for gradient in one_by_one.values()]).norm()
    for name, gradient in one_by_one.items():
        assert (of_pack[name] - gradient).norm() <= TOLERANCE * (gradient.norm() + 0.01 * everything), name


def other(example: Example, what: str) -> Example:
    """The sample with one thing changed."""
    match what:
        case "latents":
            return replace(example, latents=example.latents + 1)
        case "noise":
            return replace(example, noise=-example.noise)
        case "sigma":
            return replace(example, sigma=example.sigma / 2)
        case "caption":
            return replace(example, text=example.text.flip(0))
        case "image":
            assert example.condition.image is not None
            return replace(example, condition=replace(example.condition, image=-example.condition.image))
        case _:
            assert example.condition.channels is not None
            return replace(example, condition=replace(example.condition, channels=-example.condition.channels))


CHANGES = [("t2v", what) for what in ("latents", "noise", "sigma", "caption")]
CHANGES += [("i2v", what) for what in ("latents", "caption", "image", "channels")]


@pytest.mark.parametrize(("task", "what"), CHANGES)
@pytest.mark.parametrize("equal", [False, True])
def test_a_changed_sample_changes_nothing_of_its_neighbours(task: str, what: str, equal: bool) -> None:
    model = transformer(task)
    pack = tuple(make(task, (2, 4, 4), seed=index) for index in range(3)) if equal else batch(task)
    before = predictions(model, pack)
    for index in range(len(pack)):
        changed = tuple(other(one, what) if place == index else one for place, one in enumerate(pack))
        for place, (old, new) in enumerate(zip(before, predictions(model, changed), strict=True)):
            assert torch.equal(old, new) == (place != index), f"sample {place} after {what} of {index}"


def test_a_changed_sample_changes_nothing_of_its_neighbours_gradients(task: str) -> None:
    """The derivative of one sample's loss by another sample's noisy latents is 0, and its own stays bit for bit."""
    model = transformer(task)

    def slope(pack: Batch, index: int) -> list[Tensor]:
        leaves = tuple(replace(example, noise=example.noise.clone().requires_grad_()) for example in pack)
        rows = ADAPTER.forward(model, leaves, dtype=torch.float32)
        parts = rows.split([stop - start for start, stop in ADAPTER.share(model, leaves).rows])
        parts[index].square().sum().backward()
        found = [leaf.noise.grad for leaf in leaves]
        return [torch.zeros(()) if gradient is None else gradient for gradient in found]

    pack = batch(task)
    before = slope(pack, 1)
    assert [bool(gradient.any()) for gradient in before] == [place == 1 for place in range(len(pack))]
    changed = tuple(other(one, "latents") if place != 1 else one for place, one in enumerate(pack))
    assert torch.equal(slope(changed, 1)[1], before[1])


def test_one_sample_is_diffusers_own_forward(task: str) -> None:
    model, reference = transformer(task), transformer(task)
    for example, rows in zip(batch(task), predictions(model, batch(task)), strict=True):
        noisy = flow.noisy(example)
        if example.condition.channels is not None:
            noisy = torch.cat([noisy, example.condition.channels])
        timestep = flow.TIMESTEPS * example.sigma[None]
        if example.condition.clean is not None:
            plane = example.latents.shape[2] * example.latents.shape[3] // 4
            timestep = (flow.TIMESTEPS * flow.frame_sigmas(example)).repeat_interleave(plane)[None]
        with torch.no_grad():
            wanted = reference(
                hidden_states=noisy[None],
                timestep=timestep,
                encoder_hidden_states=example.text[None],
                encoder_hidden_states_image=None if example.condition.image is None else example.condition.image[None],
                return_dict=False,
            )[0][0]
        found = flow.latents_of(rows, shape=example.latents.shape, patch=(1, 2, 2))
        assert (found - wanted).norm() <= TOLERANCE * wanted.norm()


def test_fewer_caption_tokens_than_diffusers_takes_for_granted_keep_the_image_branch() -> None:
    """Diffusers takes what comes before the last 512 tokens for the image, and with fewer has no image at all."""
    model = transformer("i2v")
    example = make("i2v", (2, 4, 4), seed=0)
    short = replace(example, text=example.text[:40])
    assert not torch.equal(predictions(model, (short,))[0], predictions(model, (other(short, "image"),))[0])
