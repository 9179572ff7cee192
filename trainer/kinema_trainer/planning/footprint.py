# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes that tensors hold while they are made and let go, without any of them being there.

Run a step on fake tensors (`torch._subclasses.FakeTensorMode`) inside a `Footprint`: each storage counts from the
operation that makes it until it is freed, so that the peak is that of the real step, temporaries of each operation and
buffers of each collective included. What an operation takes inside its kernel is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kinema_api.base import Word


class Part(Word):
    """What a storage holds."""

    PARAMETERS = "parameters"
    BUFFERS = "buffers"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    AVERAGE = "average"
    GATHERED = "gathered"
    """Parameters of a block that FSDP has gathered, and what it gathers and reduces them in."""
    ACTIVATIONS = "activations"
    """What autograd keeps for the backward pass."""
    TEMPORARY = "temporary"
    """Everything else: results in flight, gradients of activations, buffers of collectives."""


class Footprint(TorchDispatchMode):
    """Bytes of living storages by part, now and at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[Part] = Counter()
        self.peak: Counter[Part] = Counter()
        """At the moment when most bytes were held since the last `mark`."""
        self._most = 0
        self._held: dict[int, tuple[Part, int]] = {}
        self._resize: Callable[..., Any] | None = None
        self._hooks: Any = None

    def __enter__(self) -> Footprint:
        super().__enter__()
        self._resize = torch.UntypedStorage.resize_
        footprint, resize = self, self._resize

        # FSDP frees a gathered block by resizing its storage to nothing, past the dispatcher.
        def counted(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            footprint._resized(storage)
            return result

        torch.UntypedStorage.resize_ = counted  # type: ignore[method-assign, assignment]
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._saved, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        assert self._resize is not None
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            # Distributed tensors first become operations and collectives on local ones.
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    @property
    def total(self) -> int:
        """Bytes held now."""
        return sum(self.now.values())

    def mark(self) -> None:
        """Look for the peak from here on."""
        self._most = 0
        self._note()

    def belongs(self, tensors: Iterable[Tensor], part: Part) -> None:
        """Say what these tensors hold."""
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            self._see(local)
            self._move(local.untyped_storage(), part)

    def _saved(self, tensor: Tensor) -> Tensor:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        storage = local.untyped_storage()
        if self._held.get(storage._cdata, (None, 0))[0] is Part.TEMPORARY:
            self._move(storage, Part.ACTIVATIONS)
        return tensor

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            if self._held[key][1] != storage.nbytes():
                self._resized(storage)
            return
        self._held[key] = (Part.TEMPORARY, storage.nbytes())
        weakref.finalize(storage, self._gone, key)
        self.now[Part.TEMPORARY] += storage.nbytes()
        self._note()

    def _move(self, storage: torch.UntypedStorage, part: Part) -> None:
        before, size = self._held[storage._cdata]
        self.now[before] -= size
        self.now[part] += size
        self._held[storage._cdata] = (part, size)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._held:
            return
        part, size = self._held[key]
        part = Part.GATHERED if part in (Part.TEMPORARY, Part.ACTIVATIONS) else part
        self.now[self._held[key][0]] -= size
        self.now[part] += storage.nbytes()
        self._held[key] = (part, storage.nbytes())
        self._note()

    def _gone(self, key: int) -> None:
        part, size = self._held.pop(key)
        self.now[part] -= size

    def _note(self) -> None:
        total = self.total
        if total > self._most:
            self._most = total
            self.peak = Counter(self.now)
