# SPDX-License-Identifier: Apache-2.0
"""Low-rank additions in one process; `tests/parity` has them in several."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from kinema_api.catalogue import entry, linears, model_names
from kinema_api.exits import Exit, StageError
from kinema_api.lora import Lora
from kinema_trainer import tiny
from kinema_trainer.batch import Example
from kinema_trainer.models.configs import config
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.optim import lora
from kinema_trainer.parallel.mesh import Mesh

from tests.engine import SPEC

SETTINGS = Lora(enabled=True, rank=4, alpha=8)


def model() -> WanTransformer3DModel:
    """A tiny transformer whose head is not zero."""
    torch.manual_seed(0)
    made: WanTransformer3DModel = tiny.make_transformer(SPEC)
    torch.nn.init.normal_(made.proj_out.weight, std=0.1)
    return made


def injected(settings: Lora = SETTINGS, *, seed: int = 1) -> WanTransformer3DModel:
    made = model()
    lora.inject(made, settings, defaults=ADAPTER.lora_targets, cuts={}, mesh=Mesh())
    for parameter in lora.trained(made).values():
        assert parameter.device.type == "meta"
    for _, module in made.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta":
                setattr(module, name, torch.nn.Parameter(torch.empty_like(parameter, device="cpu")))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type == "meta":
                setattr(module, name, torch.ones_like(buffer, device="cpu"))
    lora.initialise(made, seed=seed)
    return made


def sample() -> Example:
    stream = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream)

    return Example(
        key="a",
        latents=drawn(16, 2, 4, 4),
        noise=drawn(16, 2, 4, 4),
        sigma=torch.tensor(0.7),
        text=drawn(SPEC.text_length, SPEC.transformer.text_dim),
    )


def forward(made: Any) -> Tensor:
    return ADAPTER.forward(made, (sample(),), dtype=torch.float32)


def moved(made: WanTransformer3DModel) -> None:
    """Give B values, as training does."""
    with torch.no_grad():
        for name, parameter in lora.trained(made).items():
            stream = torch.Generator().manual_seed(len(name))
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))


def test_only_additions_are_trained_and_names_are_diffusers_own() -> None:
    made = injected()
    trained = lora.trained(made)
    layers = [f"blocks.{block}.attn{one}.{name}" for block in (0, 1) for one in (1, 2) for name in ADAPTER.lora_targets]
    assert trained.keys() == {f"{layer}.lora_{factor}.weight" for layer in layers for factor in "AB"}
    assert trained["blocks.0.attn1.to_q.lora_A.weight"].shape == (4, 24)
    assert trained["blocks.0.attn1.to_q.lora_B.weight"].shape == (24, 4)
    assert lora.pretrained(made).keys() == dict(model().named_parameters()).keys()
    assert not any(parameter.requires_grad for parameter in lora.pretrained(made).values())


def test_a_fresh_addition_adds_nothing() -> None:
    assert torch.equal(forward(injected()), forward(model()))


def test_an_addition_is_alpha_over_rank_times_both_factors() -> None:
    made = injected()
    moved(made)
    merged = model()
    weights = dict(merged.named_parameters())
    trained = lora.trained(made)
    with torch.no_grad():
        for name in {key.rsplit(".lora_", 1)[0] for key in trained}:
            product = trained[f"{name}.lora_B.weight"] @ trained[f"{name}.lora_A.weight"]
            weights[f"{name}.weight"].add_(8 / 4 * product)
    wanted, found = forward(merged), forward(made)
    assert (found - forward(model())).abs().max() > 1e-2
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_additions_alone() -> None:
    made = injected()
    moved(made)
    forward(made).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in lora.trained(made).values())
    assert all(parameter.grad is None for parameter in lora.pretrained(made).values())


def test_the_start_follows_from_the_seed_and_the_layer() -> None:
    one, same, other = (lora.trained(injected(seed=seed)) for seed in (1, 1, 2))
    a, b = "blocks.0.attn1.to_q.lora_A.weight", "blocks.0.attn1.to_k.lora_A.weight"
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one[a], other[a])
    assert not torch.equal(one[a], one[b])
    assert not one["blocks.0.attn1.to_q.lora_B.weight"].any()
    bound = 24**-0.5
    assert 0.8 * bound < float(one[a].detach().abs().max()) <= bound


def test_dropout_follows_from_seed_and_step_and_spares_evaluation() -> None:
    settings = SETTINGS.model_copy(update={"dropout": 0.5})
    made = injected(settings).train()
    moved(made)

    def at(step: int, *, seed: int = 5) -> Tensor:
        lora.begin_step(made, settings, seed=seed, step=step)
        return forward(made).detach()

    first = at(1)
    assert not torch.equal(at(2), first)
    assert not torch.equal(at(1, seed=6), first)
    assert torch.equal(at(1), first)
    plain = injected()
    moved(plain)
    assert torch.allclose(forward(made.eval()), forward(plain), atol=1e-6)
    layer = made.get_submodule("blocks.0.attn1.to_q")
    assert set(layer.keep.tolist()) == {0.0, 2.0}


def test_targets_are_the_ends_of_names() -> None:
    settings = Lora(enabled=True, rank=2, targets=["ffn.net.2", "attn1.to_q"])
    names = {name.rsplit(".lora_", 1)[0] for name in lora.trained(injected(settings))}
    assert names == {f"blocks.{block}.{end}" for block in (0, 1) for end in ("ffn.net.2", "attn1.to_q")}


def test_a_target_that_is_no_layer_is_refused() -> None:
    with pytest.raises(StageError, match=r"no linear layer's name ends with to_query; .*attn1\.to_q") as caught:
        lora.targets(model(), ["to_q", "to_query"])
    assert caught.value.code is Exit.USER


def test_optimizer_and_average_hold_the_additions_alone(tmp_path: Path) -> None:
    from kinema_api.settings import Optimizer
    from kinema_trainer.optim.optimizer import Average, create_moments, make_optimizer, moments

    made = injected()
    adam = make_optimizer(made, Optimizer(learning_rate=0.1), fused=True)
    create_moments(adam, step=0)
    average = Average(made, decay=0.9)
    names = lora.trained(made).keys()
    assert average.tensors.keys() == names
    assert all(tensors.keys() == names for tensors in moments(adam).values())
    before = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    forward(made).square().mean().backward()
    adam.step()
    changed = {name for name, parameter in made.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name, parameter in made.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", model_names())
def test_the_catalogue_knows_every_linear_layer(name: str) -> None:
    """A target that is none of them is refused before anything runs."""
    spec = entry(name)
    with torch.device("meta"):
        built = ADAPTER.build(config(spec))
    found = {re.sub(r"^blocks\.\d+\.", "blocks.*.", path) for path, module in built.named_modules()
             if isinstance(module, torch.nn.Linear)}  # fmt: skip
    assert set(linears(spec)) == found
