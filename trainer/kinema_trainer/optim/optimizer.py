# SPDX-License-Identifier: Apache-2.0
"""AdamW over sharded parameters, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from kinema_api.settings import Optimizer
from kinema_trainer.optim.lora import trained
from kinema_trainer.parallel import collectives
from kinema_trainer.parallel.collectives import Axis, Use

MOMENTS = ("exp_avg", "exp_avg_sq")
"""The names that torch's AdamW gives its state; checkpoints use them too."""


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


class LocalAdamW(torch.optim.AdamW):
    """AdamW over this process's parts of the trained parameters: plain tensors, however they are cut.

    Weight decay spares norms, biases and tables.
    """

    def __init__(self, model: nn.Module, settings: Optimizer, *, fused: bool) -> None:
        self.parts = {
            name: Part(parameter, nn.Parameter(local(parameter))) for name, parameter in trained(model).items()
        }
        """By stored name."""
        decayed: list[nn.Parameter] = []
        spared: list[nn.Parameter] = []
        for name, part in self.parts.items():
            (decayed if part.whole.ndim > 1 and name.endswith(".weight") else spared).append(part.own)
        super().__init__(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": spared, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=fused,
            foreach=not fused,
        )

    def step(self, closure: Any = None) -> Any:
        """Change the parameters by their gradients."""
        for part in self.parts.values():
            gradient = part.whole.grad
            part.own.grad = None if gradient is None else local(gradient)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts.values():
            part.own.grad = part.whole.grad = None


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A parameter, and this process's part of it in the same memory."""

    whole: nn.Parameter
    own: nn.Parameter

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of the shape of the part as this process's part of one that is cut as the parameter is."""
        if not isinstance(self.whole, DTensor):
            return tensor.detach()
        return DTensor(tensor.detach(), self.whole._spec, requires_grad=False)


def make_optimizer(model: nn.Module, settings: Optimizer, *, fused: bool) -> LocalAdamW:
    """AdamW over the trained parameters of a model that is spread already."""
    return LocalAdamW(model, settings, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def create_moments(optimizer: LocalAdamW, *, step: int) -> None:
    """Give every parameter the state that AdamW would make at its first step, so that it can be loaded into."""
    for part in optimizer.parts.values():
        # torch keeps the counter on the device for the fused kernel, else on the CPU.
        place = part.own.device if optimizer.defaults["fused"] else torch.device("cpu")
        optimizer.state[part.own] = {
            "step": torch.tensor(float(step), dtype=torch.float32, device=place),
            **{moment: torch.zeros_like(part.own, requires_grad=False) for moment in MOMENTS},
        }


def moments(optimizer: LocalAdamW) -> dict[str, dict[str, Tensor]]:
    """The optimizer's tensors by moment and parameter, sharing its memory and cut as the parameters are."""
    return {
        moment: {name: part.like(optimizer.state[part.own][moment]) for name, part in optimizer.parts.items()}
        for moment in MOMENTS
    }


def clip(parameters: Iterable[nn.Parameter], *, limit: float) -> float:
    """Scale gradients to a global norm of at most `limit` (0: leave them) and return the norm before.

    Parameters may be cut over different processes: the squares of each part are added up over those that cut it.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = _norm(gradients)
    if limit > 0:
        # As torch.nn.utils.clip_grads_with_norm_ has it, on this process's parts.
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
    return float(norm)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm over all parts of all gradients; float32, on their device."""
    parts: dict[tuple[Cut, ...], list[Tensor]] = {}
    for gradient in gradients:
        parts.setdefault(_cuts(gradient), []).append(local(gradient))
    kinds = sorted(parts, key=lambda cuts: [cut.name for cut in cuts])
    squares = torch.stack([_square_sum(parts[cuts]) for cuts in kinds])
    for axis in dict.fromkeys(cut for cuts in kinds for cut in cuts):
        chosen = [index for index, cuts in enumerate(kinds) if axis in cuts]
        squares[chosen] = collectives.sum_over(Use.NORM, squares[chosen], axis.axis())
    return squares.sum().sqrt()


def _square_sum(tensors: Sequence[Tensor]) -> Tensor:
    full = [tensor for tensor in tensors if tensor.numel()]
    if not full:
        return torch.zeros((), device=tensors[0].device)
    return torch.stack(torch._foreach_norm(full)).float().square().sum()


@dataclass(frozen=True, slots=True)
class Cut:
    """An axis over which a tensor is cut."""

    name: str
    mesh: DeviceMesh

    def axis(self) -> Axis:
        """The processes of the axis."""
        part = self.mesh[self.name]
        return Axis(size=part.size(), rank=part.get_local_rank(), group=part.get_group())


def _cuts(tensor: Tensor) -> tuple[Cut, ...]:
    if not isinstance(tensor, DTensor):
        return ()
    names = tensor.device_mesh.mesh_dim_names
    assert names is not None
    return tuple(
        Cut(name, tensor.device_mesh[name])
        for name, placement in zip(names, tensor.placements, strict=True)
        if not placement.is_replicate() and tensor.device_mesh[name].size() > 1
    )


class Average:
    """An exponential moving average of the weights, sharded as they are.

    Early on the decay is at most (1 + n) / (10 + n) after n steps, so that the starting point is forgotten.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._decay = decay
        self._weights = {name: parameter.detach() for name, parameter in trained(model).items()}
        self.tensors: Mapping[str, Tensor] = {name: weight.clone() for name, weight in self._weights.items()}
        """The average of the trained parameters, by stored name."""

    def update(self, step: int) -> None:
        """Take in the weights after a step; steps count from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        average = [local(tensor) for tensor in self.tensors.values()]
        torch._foreach_lerp_(average, [local(weight) for weight in self._weights.values()], 1 - decay)
