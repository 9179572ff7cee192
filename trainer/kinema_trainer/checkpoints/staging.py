# SPDX-License-Identifier: Apache-2.0
"""Copies of what is trained, made beside the loop, so that it goes on while they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.tensor import DTensor

State = Mapping[str, Any]
"""Tensors by name, nested by part."""


class Live(AsyncStager):
    """Makes no copy: for a loop that waits until all is written."""

    _synchronize_after_execute = False

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state itself."""
        return state_dict

    def synchronize_staging(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to let go of."""


class HostCopy(AsyncStager):
    """Copies the state into the host's memory in another thread: memory that is kept from one checkpoint to the next.

    The loop may read what is copied, and must wait for the copy before it changes it.
    """

    _synchronize_after_execute = False

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], Tensor] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="staging")

    def stage(self, state_dict: dict[str, Any]) -> Future[dict[str, Any]]:
        """Start to copy the state as the work that the device has been given leaves it."""
        return self._pool.submit(self._copy, state_dict, _Moment.now(state_dict))

    def synchronize_staging(self) -> None:
        """Nothing: whoever started the copy waits for it."""

    def close(self) -> None:
        """Wait for the last copy and let the memory go."""
        self._pool.shutdown(wait=True)
        self._kept.clear()

    @torch.no_grad()
    def _copy(self, state: State, moment: _Moment) -> dict[str, Any]:
        copies: dict[str, Any] = {}
        with moment:
            for path, tensor in walk(state):
                place = copies
                for name in path[:-1]:
                    place = place.setdefault(name, {})
                place[path[-1]] = self._host(path, tensor)
        return copies

    def _host(self, path: tuple[str, ...], tensor: Tensor) -> Tensor:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        on_device = local.device.type != "cpu"
        host = self._kept.get(path)
        if host is None or host.shape != local.shape or host.dtype != local.dtype:
            pinned = on_device and local.numel() > 0
            host = self._kept[path] = torch.empty(local.shape, dtype=local.dtype, pin_memory=pinned)
        host.copy_(local, non_blocking=on_device)
        return DTensor(host, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else host


class _Moment:
    """A stream of copies beside the device's work that begins where that work was; nothing on a CPU."""

    def __init__(self, device: torch.device | None) -> None:
        self._stream: Any = None
        if device is not None:
            module = torch.get_device_module(device)
            self._module = module
            self._stream = module.Stream(device=device)
            self._stream.wait_stream(module.current_stream(device))

    @classmethod
    def now(cls, state: State) -> _Moment:
        """The end of what the device of a state has to do so far."""
        devices = (tensor.device for _, tensor in walk(state))
        return cls(next((device for device in devices if device.type != "cpu"), None))

    def __enter__(self) -> None:
        if self._stream is not None:
            self._context = self._module.stream(self._stream)
            self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._stream is not None:
            self._context.__exit__(*error)
            self._stream.synchronize()


def walk(state: State, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Every tensor of a state with its path."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from walk(value, (*path, name))
        else:
            assert isinstance(value, Tensor), name
            yield (*path, name), value
