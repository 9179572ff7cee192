# SPDX-License-Identifier: Apache-2.0
"""Diffusers weights to a sharded checkpoint and back, tensor by tensor.

The checkpoint is torch's distributed checkpoint (DCP) of the transformer's tensors under their diffusers names, in the
number format in which they are stored. Any number of processes can load it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader

from kinema_api.exits import Exit, StageError
from kinema_trainer.checkpoints.saver import plain_errors

CONFIG = "config.json"

OnTensor = Callable[[], None]


def _nothing() -> None:
    """What happens at a tensor when nobody wants to hear of it."""


class Source:
    """The tensors of a diffusers model folder, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _files(folder)
        self.shapes: dict[str, Tensor] = {}
        """Shape and number format of each tensor, as a stand-in that takes no memory (DCP would fill meta tensors)."""
        for name, file in self._files.items():
            with self._open(file) as reader:
                part = reader.get_slice(name)
                self.shapes[name] = torch.zeros((), dtype=reader_dtype(part)).expand(part.get_shape())

    @property
    def config(self) -> dict[str, Any]:
        """The model's config."""
        return read_config(self.folder)

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        with self._open(self._files[name]) as reader:
            tensor: Tensor = reader.get_tensor(name)
        return tensor

    def _open(self, file: str) -> Any:
        try:
            return safe_open(self.folder / file, framework="pt", device="cpu")
        except (OSError, SafetensorError) as error:
            raise StageError(
                Exit.WEIGHTS, f"{self.folder / file} cannot be read ({error}): download the weights again"
            ) from error


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def reader_dtype(part: Any) -> torch.dtype:
    """The number format of a safetensors slice."""
    name = str(part.get_dtype())
    if name not in _DTYPES:
        raise StageError(
            Exit.WEIGHTS, f"weights of the number format {name} cannot be trained; it takes {list(_DTYPES)}"
        )
    return _DTYPES[name]


def read_config(folder: Path) -> dict[str, Any]:
    """A diffusers model's config."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(
            Exit.WEIGHTS, f"{folder / CONFIG} is missing or no JSON: download the weights again"
        ) from error
    return config


def _files(folder: Path) -> dict[str, str]:
    """The file of each tensor."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        table: dict[str, str] = json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"]
        missing = sorted(file for file in set(table.values()) if not (folder / file).is_file())
        if missing:
            raise StageError(Exit.WEIGHTS, f"{folder} lacks {', '.join(missing)}: download the weights again")
        return table
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise StageError(Exit.WEIGHTS, f"{folder} has no .safetensors file: weights.uri must be a diffusers pipeline")
    found: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt", device="cpu") as reader:
                found.update(dict.fromkeys(reader.keys(), file.name))
        except (OSError, SafetensorError) as error:
            raise StageError(Exit.WEIGHTS, f"{file} cannot be read ({error}): download the weights again") from error
    return found


def check_names(source: Source, model: nn.Module, folder: Path) -> None:
    """Compare a folder's tensors with the parameters that its config promises."""
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: tuple(shape.shape) for name, shape in source.shapes.items()}
    problems = [f"lacks {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"has an unknown {name}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"has {name} of shape {list(found[name])}, not {list(wanted[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise StageError(Exit.WEIGHTS, f"{folder} does not fit its config.json: it {', it '.join(problems[:3])}{more}")


class _StreamingSave(DefaultSavePlanner):
    """Writes tensors that are only read when their turn comes."""

    def __init__(self, source: Source, on_tensor: OnTensor) -> None:
        super().__init__(flatten_state_dict=False)
        self._source = source
        self._on_tensor = on_tensor

    def lookup_object(self, index: MetadataIndex) -> Any:
        self._on_tensor()
        return self._source.read(index.fqn)


class _StreamingCheck(DefaultLoadPlanner):
    """Reads a checkpoint and compares each piece of a tensor bit by bit with a model folder; keeps none."""

    def __init__(self, source: Source, prefix: str, on_tensor: OnTensor) -> None:
        super().__init__(flatten_state_dict=False)
        self._source = source
        self._prefix = prefix
        self._on_tensor = on_tensor
        self.checked: Counter[str] = Counter()
        """Elements of each tensor that were compared."""

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        assert read_item.type is LoadItemType.TENSOR
        return torch.empty(read_item.lengths, dtype=self._source.shapes[self._name(read_item)].dtype)

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        name = self._name(read_item)
        piece = narrow_tensor_by_index(self._source.read(name), read_item.dest_offsets, read_item.lengths)
        if not same_bits(tensor, piece):
            raise StageError(
                Exit.STORAGE, f"tensor {name} read back differs from {self._source.folder}: the workspace is faulty"
            )
        self.checked[name] += tensor.numel()
        if self.checked[name] == self._source.shapes[name].numel():
            self._on_tensor()

    def _name(self, read_item: ReadItem) -> str:
        return str(read_item.dest_index.fqn).removeprefix(self._prefix)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same bytes; unlike torch.equal, NaN equals NaN and 0 differs from -0."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(_raw(left), _raw(right))


def _raw(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def write_checkpoint(source: Source, folder: Path, *, on_tensor: OnTensor = _nothing) -> None:
    """Write a model folder's tensors as a sharded checkpoint; one tensor at a time is in memory.

    Args:
        source: the tensors.
        folder: where to.
        on_tensor: called before each tensor; what it raises ends the work.
    """
    # One thread, the caller's: DCP loses what its further threads raise.
    writer = FileSystemWriter(folder, single_file_per_rank=True, thread_count=1)
    with plain_errors():
        save(dict(source.shapes), storage_writer=writer, planner=_StreamingSave(source, on_tensor), no_dist=True)


def verify_checkpoint(
    source: Source, checkpoint: StorageReader, *, under: str = "", on_tensor: OnTensor = _nothing
) -> int:
    """Compare a sharded checkpoint with a model folder bit by bit and return how many tensors it has.

    Args:
        source: the tensors.
        checkpoint: written by any number of processes.
        under: the part of the checkpoint that holds the weights; all of it when empty.
        on_tensor: called after each tensor; what it raises ends the work.

    Raises:
        StageError: a tensor is missing or differs.
    """
    prefix = f"{under}." if under else ""
    planner = _StreamingCheck(source, prefix, on_tensor)
    wanted = {f"{prefix}{name}": shape for name, shape in source.shapes.items()}
    with plain_errors():
        load(wanted, storage_reader=checkpoint, planner=planner, no_dist=True)
    missing = [name for name, shape in source.shapes.items() if planner.checked[name] != shape.numel()]
    if missing:
        raise StageError(Exit.STORAGE, f"the checkpoint lacks {len(missing)} tensors, one is {min(missing)}")
    return len(source.shapes)


def read_into(model: nn.Module, checkpoint: StorageReader, *, under: str = "") -> None:
    """Load a sharded checkpoint into a whole model in this process.

    Args:
        model: its parameters are overwritten, in their own number format.
        checkpoint: written by any number of processes.
        under: the part of the checkpoint that holds the weights, for instance `ema`; all of it when empty.
    """
    tensors: Mapping[str, Tensor] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with plain_errors():
        load({under: dict(tensors)} if under else dict(tensors), storage_reader=checkpoint, no_dist=True)
