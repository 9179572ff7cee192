# SPDX-License-Identifier: Apache-2.0
"""Low-rank additions as diffusers' `load_lora_weights` reads them: one file beside the pipeline that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import StorageReader

from kinema_api.exits import Exit, StageError
from kinema_api.lora import Lora
from kinema_trainer.checkpoints.saver import plain_errors
from kinema_trainer.checkpoints.weights import same_bits

FILE = "pytorch_lora_weights.safetensors"
_PREFIX = "transformer."


def read(checkpoint: StorageReader, *, under: str) -> dict[str, Tensor]:
    """The additions of a checkpoint by name, whole.

    Args:
        checkpoint: written by any number of processes.
        under: the part of the checkpoint that holds them.
    """
    entries = checkpoint.read_metadata().state_dict_metadata
    found = {
        name.removeprefix(f"{under}."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(f"{under}.") and isinstance(entry, TensorStorageMetadata)
    }
    with plain_errors():
        load({under: dict(found)}, storage_reader=checkpoint, no_dist=True)
    return found


def write(tensors: Mapping[str, Tensor], settings: Lora, folder: Path, *, pipeline: str) -> None:
    """Write the file, read it again and compare it bit by bit.

    Args:
        tensors: the additions.
        settings: what they were trained with.
        folder: where to.
        pipeline: diffusers' class that will load them.

    Raises:
        StageError: what was read differs.
    """
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    getattr(diffusers, pipeline).save_lora_weights(
        save_directory=folder,
        weight_name=FILE,
        transformer_lora_layers=dict(tensors),
        transformer_lora_adapter_metadata={
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "target_modules": layers,
            "lora_dropout": 0.0,
            "bias": "none",
        },
    )
    back = load_file(folder / FILE)
    names = {f"{_PREFIX}{name}": tensor for name, tensor in tensors.items()}
    wrong = [name for name in names.keys() | back.keys() if not _same(names.get(name), back.get(name))]
    if wrong:
        raise StageError(
            Exit.STORAGE, f"tensor {min(wrong)} read back from {folder / FILE} differs: the disk is faulty"
        )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and same_bits(one, other)


def use(pipeline: Any, folder: Path) -> bool:
    """Give a pipeline the additions that lie beside it, if there are any."""
    if not (folder / FILE).exists():
        return False
    pipeline.load_lora_weights(folder, weight_name=FILE, local_files_only=True)
    return True
