# SPDX-License-Identifier: Apache-2.0
"""What a block keeps for its backward pass, and where: nothing here changes what is computed.

The forward passes hold no random state: what is computed again is computed alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from kinema_api.exits import Exit, StageError
from kinema_api.recompute import Recompute, RecomputeMode

Forward = Callable[..., Any]

GROUPS: dict[str, tuple[str, ...]] = {
    "attention": (
        "aten._scaled_dot_product_flash_attention.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_efficient_attention.default",
        "aten._scaled_dot_product_cudnn_attention.default",
        "aten._scaled_dot_product_fused_attention_overrideable.default",
        "npu.npu_fusion_attention.default",
    ),
    "matmul": ("aten.mm.default", "aten.addmm.default", "aten.bmm.default", "aten.linear.default"),
}
"""What a word of `recompute.save` stands for; a build of torch has some of them."""


def apply(blocks: Sequence[nn.Module], settings: Recompute) -> None:
    """Make the blocks keep what the settings say; before they are compiled and sharded, and once."""
    operations = frozenset(operation for name in settings.save for operation in resolve(name))
    for index, block in enumerate(blocks):
        again = settings.mode in (RecomputeMode.FULL, RecomputeMode.SELECTIVE) or (
            settings.mode is RecomputeMode.INTERVAL and index % settings.every == 0
        )
        forward: Forward = block.forward
        if again:
            selective = settings.mode is RecomputeMode.SELECTIVE
            forward = partial(_again, forward, operations if selective else None)
        if settings.offload:
            forward = partial(_offloaded, block, forward)
        if forward is not block.forward:
            vars(block)["forward"] = forward


def resolve(name: str) -> set[OpOverload]:
    """The operators that a word of `recompute.save` stands for.

    Raises:
        StageError: torch has none of that name.
    """
    if name in GROUPS:
        return {found for one in GROUPS[name] for found in _operators(one)}
    found = _operators(name)
    if not found:
        raise StageError(
            Exit.USER,
            f"stages.train.recompute.save: torch {torch.__version__} has no operator {name}; write"
            f" {', '.join(GROUPS)}, or a name such as aten.gelu.default",
        )
    return found


def _operators(name: str) -> set[OpOverload]:
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, namespace), packet, None) if packet else None
    if not isinstance(found, OpOverloadPacket):
        return set()
    names = [overload] if overload else found.overloads()
    return {getattr(found, one) for one in names if one in found.overloads()}


def _again(forward: Forward, saved: frozenset[OpOverload] | None, *args: Any, **kwargs: Any) -> Any:
    """A block's forward pass that is made again when its gradient is due."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    selective: dict[str, Any] = {}
    if saved is not None:
        selective["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, saved))
        # What is saved goes where the block's input goes.
        selective["respect_saved_tensors_hooks"] = True
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **selective, **kwargs)


def _policy(
    saved: frozenset[OpOverload], context: Any, operation: OpOverload, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in saved else CheckpointPolicy.PREFER_RECOMPUTE


def _offloaded(block: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """A block's forward pass whose saved tensors lie on the host until they are needed."""
    offload: AbstractContextManager[Any] = HostMemory(block) if torch.is_grad_enabled() else nullcontext()
    with offload:
        return forward(*args, **kwargs)


class HostMemory(saved_tensors_hooks):
    """Keeps saved tensors in the host's memory, pinned where there is a device; a block's weights stay where they are.

    Args:
        block: whose weights; called while they are gathered.
    """

    def __init__(self, block: nn.Module) -> None:
        weights = frozenset(_address(parameter) for parameter in block.parameters())

        def pack(tensor: Tensor) -> Tensor | _Kept:
            return tensor if _address(tensor) in weights else _Kept(tensor)

        def unpack(kept: Tensor | _Kept) -> Tensor:
            return kept.back() if isinstance(kept, _Kept) else kept

        super().__init__(pack, unpack)


class _Kept:
    """One tensor on the host. Copies run in the device's own order of work: nobody waits for them."""

    def __init__(self, tensor: Tensor) -> None:
        local = _local(tensor)
        self._device = local.device
        self._make = _rebuild(tensor)
        on_device = local.device.type != "cpu"
        self._host = torch.empty_like(local, device="cpu", pin_memory=on_device)
        self._host.copy_(local, non_blocking=on_device)

    def back(self) -> Tensor:
        """The tensor on its device."""
        return self._make(self._host.to(self._device, non_blocking=True))


def _rebuild(tensor: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes a tensor like the given one of its local part."""
    if not isinstance(tensor, DTensor):
        return lambda local: local
    mesh, placements, shape, stride = tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride()
    return lambda local: DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def _address(tensor: Tensor) -> int:
    return _local(tensor).untyped_storage().data_ptr()
