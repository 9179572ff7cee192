# SPDX-License-Identifier: Apache-2.0
"""Shards of encoded clips: WebDataset tar files, each with a sidecar that says what lies where.

A sample is three members of the tar: `KEY.json` (caption and geometry), `KEY.latents.pth` and `KEY.text.pth`; where
the task is given frames, also `KEY.condition.pth` and `KEY.image.pth`. The
sidecar is written last, so that a shard with a sidecar is complete. Equal samples give equal bytes.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import webdataset
from pydantic import Field

from kinema_api.base import Model

LATENTS, TEXT, META = "latents.pth", "text.pth", "json"
CONDITION, IMAGE = "condition.pth", "image.pth"
_TENSOR = ".pth"
EMPTY_TEXT = "empty-text.pth"
"""The embedding of the empty caption, one file beside the shards."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One encoded clip.

    Shapes: latents [channels, frames, height, width], normalised; text [tokens, width], without padding.
    """

    key: str
    latents: torch.Tensor
    text: torch.Tensor
    meta: Mapping[str, Any] = field(default_factory=dict)
    condition: torch.Tensor | None = None
    """Latents of the clip with nothing but its given frames, of the latents' shape; None for a task without."""
    image: torch.Tensor | None = None
    """[tokens, width]: the image encoder's tokens of the given frames; None likewise."""


class Record(Model):
    """Where a sample lies in its tar file."""

    key: str
    """The clip's key."""
    offset: int
    """First byte of the sample's first header."""
    end: int
    """First byte behind the sample."""
    parts: dict[str, tuple[int, int]]
    """Offset and size of each member's content, by extension."""
    shapes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Shape of each tensor, by extension: what a sample costs is known without reading it. Empty in shards of the first
    release."""


class Sidecar(Model):
    """What a finished shard holds."""

    shard: str
    """Name of the tar file."""
    size: int
    """Bytes of the tar file."""
    holder: str
    """Who wrote it."""
    clips: tuple[str, ...]
    """Keys of the samples, in order."""
    encoded: tuple[str, ...]
    """Keys that were encoded for this shard."""
    reused: tuple[str, ...]
    """Keys whose latents were copied from another artifact of the same encoder."""
    quarantined: dict[str, str] = Field(default_factory=dict)
    """Keys of clips that could not be read, with the reason."""
    records: tuple[Record, ...]
    """Where each sample lies."""


def shard_name(index: int) -> str:
    """The tar file of a shard."""
    return f"shard-{index:06d}.tar"


def sidecar_name(shard: str) -> str:
    """The sidecar of a tar file."""
    return shard.removesuffix(".tar") + ".json"


def dump_tensor(tensor: torch.Tensor) -> bytes:
    """A tensor as `torch.save` writes it.

    A view is copied first: `torch.save` would write the whole storage behind it.
    """
    buffer = io.BytesIO()
    torch.save(tensor.detach().to("cpu", copy=True).contiguous().clone(), buffer)
    return buffer.getvalue()


def load_tensor(data: bytes) -> torch.Tensor:
    """The tensor that `dump_tensor` wrote; nothing else is ever unpickled."""
    tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"expected one tensor, found {type(tensor).__name__}")
    return tensor


def dump_meta(meta: Mapping[str, Any]) -> bytes:
    """A sample's description as JSON; equal ones give equal bytes."""
    return json.dumps(dict(meta), sort_keys=True, ensure_ascii=False).encode()


def pack(sample: Sample) -> dict[str, bytes]:
    """The members of a sample, by extension."""
    tensors = {LATENTS: sample.latents, TEXT: sample.text, CONDITION: sample.condition, IMAGE: sample.image}
    found = {part: dump_tensor(tensor) for part, tensor in tensors.items() if tensor is not None}
    return {META: dump_meta(sample.meta), **found}


def unpack(key: str, parts: Mapping[str, bytes]) -> Sample:
    """The sample that `pack` took apart."""
    return Sample(
        key=key,
        latents=load_tensor(parts[LATENTS]),
        text=load_tensor(parts[TEXT]),
        meta=json.loads(parts[META]),
        condition=load_tensor(parts[CONDITION]) if CONDITION in parts else None,
        image=load_tensor(parts[IMAGE]) if IMAGE in parts else None,
    )


def shapes_of(parts: Mapping[str, bytes]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor among the members of a sample, by extension."""
    return {part: tuple(_shape(data)) for part, data in parts.items() if part.endswith(_TENSOR)}


def _shape(data: bytes) -> torch.Size:
    found = torch.load(io.BytesIO(data), map_location="meta", weights_only=True)
    assert isinstance(found, torch.Tensor)
    return found.shape


class ShardWriter:
    """Writes one tar file, sample by sample; times and owners are fixed."""

    def __init__(self, path: Path) -> None:
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        """Of each sample's tensors, by key and extension."""
        self._file = path.open("wb")
        self._tar = webdataset.TarWriter(self._file, encoder=False, user="", group="", mode=0o644, mtime=0)

    def add(self, key: str, parts: Mapping[str, bytes]) -> None:
        """Append a sample."""
        self._tar.write({"__key__": key, **parts})
        self.shapes[key] = shapes_of(parts)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tar.close()
        self._file.close()


def write_shard(path: Path, samples: Iterable[Sample]) -> tuple[Record, ...]:
    """Write a tar file and say where each sample lies."""
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.add(sample.key, pack(sample))
    return scan_shard(path, shapes=writer.shapes)


def scan_shard(path: Path, *, shapes: Mapping[str, Mapping[str, tuple[int, ...]]] | None = None) -> tuple[Record, ...]:
    """Where each sample lies, from the headers of the tar file.

    Args:
        path: the tar file.
        shapes: of each sample's tensors, which headers do not tell.
    """
    records: list[Record] = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, part = member.name.partition(".")
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            place = (member.offset_data, member.size)
            if records and records[-1].key == key:
                last = records.pop()
                records.append(Record(key=key, offset=last.offset, end=end, parts={**last.parts, part: place}))
            else:
                records.append(Record(key=key, offset=member.offset, end=end, parts={part: place}))
    known = shapes or {}
    return tuple(record.model_copy(update={"shapes": dict(known.get(record.key, {}))}) for record in records)


def read_parts(path: Path, record: Record) -> dict[str, bytes]:
    """The members of one sample, without a scan of the tar file.

    Raises:
        OSError: the tar file is shorter than its sidecar says.
    """
    with path.open("rb") as file:
        data = os.pread(file.fileno(), record.end - record.offset, record.offset)
    if len(data) != record.end - record.offset:
        raise OSError(f"{path}: sample {record.key} is cut off; delete the shard and its .json to encode it again")
    return {
        part: data[offset - record.offset : offset - record.offset + size]
        for part, (offset, size) in record.parts.items()
    }


def read_shard(path: Path) -> Iterator[Sample]:
    """Every sample of a tar file, in order."""
    for record in scan_shard(path):
        yield unpack(record.key, read_parts(path, record))


class ShardIndex(Sequence[Sample]):
    """A features folder as one sequence of samples, in the order of its shards; each is read when asked for.

    Holds no open file, so it may be sent to worker processes.
    """

    def __init__(self, folder: Path, sidecars: Sequence[Sidecar]) -> None:
        self._folder = folder
        self._places = [(sidecar.shard, record) for sidecar in sidecars for record in sidecar.records]

    @classmethod
    def open(cls, folder: Path) -> ShardIndex:
        """The index of all finished shards of a folder."""
        paths = sorted(folder.glob("shard-*.json"))
        return cls(folder, [Sidecar.model_validate_json(path.read_bytes()) for path in paths])

    @property
    def keys(self) -> list[str]:
        """Clip keys, in order."""
        return [record.key for _, record in self._places]

    @cached_property
    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Shape of each sample's latents, in order; read from the sample only where no sidecar says it."""
        return [self._latents(shard, record) for shard, record in self._places]

    def _latents(self, shard: str, record: Record) -> tuple[int, int, int, int]:
        shapes = record.shapes or shapes_of(read_parts(self._folder / shard, record))
        channels, frames, height, width = shapes[LATENTS]
        return channels, frames, height, width

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # slices have no use here
        shard, record = self._places[index]
        return unpack(record.key, read_parts(self._folder / shard, record))


def read_empty_text(folder: Path) -> torch.Tensor:
    """The embedding of the empty caption: [tokens, width]."""
    return load_tensor((folder / EMPTY_TEXT).read_bytes())
