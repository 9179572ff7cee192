# SPDX-License-Identifier: Apache-2.0
"""The pretrained pipeline folder: is it whole, and is it the model that the job names?

Only names, sizes and headers are read, so that terabytes of weights take seconds.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kinema_api.catalogue import Entry
from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Weights
from kinema_stage.source import FolderSource, Source, open_source

WEIGHTS = ("transformer", "vae", "text_encoder")
TOKENIZER = "tokenizer"
IMAGE = ("image_encoder", "image_processor")
"""What only models that are given an image have."""

_HEADER_BYTES = 100 << 20
"""The format's own limit."""


def check(weights: Weights, model: Entry) -> Source:
    """Check a pipeline folder against a catalogue entry.

    Returns:
        The folder.

    Raises:
        StageError: a file is missing, cut off or not readable, or a dimension differs.
    """
    source = _open(weights)
    try:
        _check(source, model)
    except StageError:
        raise
    except OSError as error:
        raise _fault(f"cannot read {error.filename or source.where}: {error.strerror}") from None
    return source


def fetch(weights: Weights, *components: str) -> Path:
    """The pipeline folder on this machine, with at least these of its files and folders; all when none is named.

    Raises:
        StageError: it cannot be read, or one of them is not there.
    """
    source = _open(weights)
    try:
        return source.fetch_folders(*components)
    except FileNotFoundError as error:
        raise _fault(f"there is no {error.filename}; download it again") from None


def _open(weights: Weights) -> Source:
    try:
        if weights.uri.startswith("hf://"):
            from kinema_stage.hub import HubSource

            return HubSource(weights)
        return open_source(weights)
    except ValueError as error:
        raise StageError(Exit.USER, f"model.weights.uri: {error}") from None


def _check(source: Source, model: Entry) -> None:
    missing = isinstance(source, FolderSource) and not source.root.is_dir()
    names = [] if missing else source.names()
    if not names:
        hint = f"download {model.repository} there, or " if model.repository else ""
        raise _fault(f"there is no folder {source.where}; {hint}correct the address")
    index = _json(source, "model_index.json", "it must be a folder in diffusers' layout")
    if index.get("_class_name") != model.pipeline:
        raise _fault(f"{source.where} holds a {index.get('_class_name')}, but {model.name} is a {model.pipeline}")
    folders = {name.split("/")[0] for name in names if "/" in name}
    if TOKENIZER not in folders:
        raise _fault(f"there is no tokenizer in {source.place(TOKENIZER)}")
    for component in (name for name, value in index.items() if isinstance(value, list) and any(value)):
        if component not in folders:
            raise _fault(f"model_index.json names {component}, but there is no folder {source.place(component)}")
    for component in (*WEIGHTS, *IMAGE[:1]) if model.image else WEIGHTS:
        _check_tensors(source, component, names)
    if model.image and IMAGE[1] not in folders:
        raise _fault(f"there is no image processor in {source.place(IMAGE[1])}")
    for component, dimensions in _expected(model).items():
        _check_dimensions(source, f"{component}/config.json", dimensions, model)


def _expected(model: Entry) -> dict[str, dict[str, Any]]:
    """What the config of each component must say, by field; products are written with a star."""
    shape, image = model.transformer, model.image
    transformer: dict[str, Any] = {}
    encoder: dict[str, dict[str, Any]] = {}
    if image is not None:
        transformer = {"image_dim": image.width, "added_kv_proj_dim": shape.hidden}
        transformer |= {"pos_embed_seq_len": image.given} if image.positions else {}
        encoder = {IMAGE[0]: {"hidden_size": image.width}}
    return {
        **encoder,
        "transformer": {
            **transformer,
            "num_attention_heads": shape.heads,
            "num_attention_heads*attention_head_dim": shape.hidden,
            "num_layers": shape.layers,
            "ffn_dim": shape.ffn,
            "in_channels": shape.in_channels,
            "text_dim": shape.text_dim,
            "patch_size": list(shape.patch),
        },
        "vae": {
            "z_dim": model.vae.channels,
            "scale_factor_temporal": model.vae.temporal,
            "scale_factor_spatial": model.vae.spatial,
        },
        "text_encoder": {"d_model": shape.text_dim},
    }


_OPTIONAL = frozenset({"scale_factor_temporal", "scale_factor_spatial"})
"""Fields that older configs leave out."""


def _check_dimensions(source: Source, name: str, dimensions: Mapping[str, Any], model: Entry) -> None:
    config = _json(source, name, "a pretrained component has one")
    for field, expected in dimensions.items():
        factors = [config.get(factor) for factor in field.split("*")]
        if None in factors and field in _OPTIONAL:
            continue
        found = factors[0] if len(factors) == 1 else _product(factors)
        if found != expected:
            raise _fault(
                f"{source.place(name)} says {field.replace('*', ' x ')} = {found}, but the catalogue's {model.name} has"
                f" {expected}; use that model's weights, or name the model that these weights are of"
            )


def _product(factors: list[Any]) -> int | None:
    if not all(isinstance(factor, int) for factor in factors):
        return None
    product = 1
    for factor in factors:
        product *= factor
    return product


def _check_tensors(source: Source, folder: str, names: list[str]) -> None:
    found = False
    for name, tensors in _files(source, folder, names):
        there = tensor_names(source, name)
        found = found or bool(there)
        lacking = sorted(tensors - there)
        if lacking:
            raise _fault(
                f"{source.place(name)} lacks {len(lacking)} of the tensors that its index names, for instance"
                f" {lacking[0]}"
            )
    if not found:
        raise _fault(f"{source.place(folder)} holds no tensors")


def _files(source: Source, folder: str, names: list[str]) -> Iterator[tuple[str, set[str]]]:
    """The weight files of a component, each with the tensors that an index expects in it."""
    below = [name for name in names if PurePosixPath(name).parent == PurePosixPath(folder)]
    if not below:
        raise _fault(f"there is no folder {source.place(folder)}")
    indices = [name for name in below if name.endswith(".safetensors.index.json")]
    for index in indices:
        shards: dict[str, set[str]] = {}
        for tensor, shard in _json(source, index, "it lists the shards").get("weight_map", {}).items():
            shards.setdefault(f"{folder}/{shard}", set()).add(tensor)
        for shard, tensors in sorted(shards.items()):
            if shard not in below:
                named = index.rpartition("/")[2]
                raise _fault(f"{source.place(shard)} is missing, but {named} names it; download it again")
            yield shard, tensors
    if indices:
        return
    files = [name for name in below if name.endswith(".safetensors")]
    if not files:
        others = ", ".join(PurePosixPath(name).name for name in below if name.endswith(".bin")) or "no weights at all"
        raise _fault(f"{source.place(folder)} has no .safetensors file (it has {others})")
    for file in files:
        yield file, set()


def tensor_names(source: Source, name: str) -> set[str]:
    """The tensors of a safetensors file, by its header alone.

    Raises:
        StageError: the file is cut off or is none.
    """
    path = source.place(name)
    size = source.size(name)
    start = source.read(name, end=8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= _HEADER_BYTES:
        raise _fault(f"{path} is no safetensors file ({size} bytes); download it again")
    header = source.read(name, end=8 + length)[8:]
    if len(header) < length:
        raise _fault(f"{path} is cut off: {size} bytes, but its header alone has {8 + length}; download it again")
    try:
        tensors = json.loads(header)
        ends = [entry["data_offsets"][1] for tensor, entry in tensors.items() if tensor != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise _fault(f"{path} has a damaged header; download it again") from None
    if size < expected:
        raise _fault(f"{path} is cut off: {size} of {expected} bytes are there; download it again")
    if size > expected:
        raise _fault(f"{path} has {size} bytes, but its header speaks of {expected}; download it again")
    return {tensor for tensor in tensors if tensor != "__metadata__"}


def _json(source: Source, name: str, what: str) -> dict[str, Any]:
    path = source.place(name)
    try:
        data = json.loads(source.read(name))
    except FileNotFoundError:
        raise _fault(f"there is no {path}: {what}") from None
    except ValueError as error:
        raise _fault(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise _fault(f"{path} is not a JSON object")
    return data


def _fault(message: str) -> StageError:
    return StageError(Exit.WEIGHTS, f"model.weights.uri: {message}")
