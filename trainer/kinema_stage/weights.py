# SPDX-License-Identifier: Apache-2.0
"""The pretrained pipeline folder: is it whole, and is it the model that the job names?

Only names, sizes and headers are read, so that terabytes of weights take seconds.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kinema_api.catalogue import Entry
from kinema_api.exits import Exit, StageError
from kinema_stage.workspace import local_path

WEIGHTS = ("transformer", "vae", "text_encoder")
TOKENIZER = "tokenizer"

_HEADER_BYTES = 100 << 20
"""The format's own limit."""


def check(uri: str, model: Entry) -> Path:
    """Check a pipeline folder against a catalogue entry.

    Returns:
        The folder.

    Raises:
        StageError: a file is missing, cut off or not readable, or a dimension differs.
    """
    try:
        root = local_path(uri)
    except ValueError as error:
        raise StageError(Exit.USER, f"model.weights.uri: {error}") from None
    try:
        _check(root, model)
    except OSError as error:
        raise _fault(f"cannot read {error.filename or root}: {error.strerror}") from None
    return root


def _check(root: Path, model: Entry) -> None:
    if not root.is_dir():
        hint = f"; download {model.repository} there" if model.repository else ""
        raise _fault(f"there is no folder {root}{hint}, or correct the address")
    index = _json(root / "model_index.json", "it must be a folder in diffusers' layout")
    if index.get("_class_name") != model.pipeline:
        raise _fault(f"{root} holds a {index.get('_class_name')}, but {model.name} is a {model.pipeline}")
    for component in (name for name, value in index.items() if isinstance(value, list) and any(value)):
        if not (root / component).is_dir():
            raise _fault(f"model_index.json names {component}, but there is no folder {root / component}")
    for component in WEIGHTS:
        _check_tensors(root / component)
    if not any((root / TOKENIZER).glob("*")):
        raise _fault(f"there is no tokenizer in {root / TOKENIZER}")
    for component, dimensions in _expected(model).items():
        _check_dimensions(root / component / "config.json", dimensions, model)


def _expected(model: Entry) -> dict[str, dict[str, Any]]:
    """What the config of each component must say, by field; products are written with a star."""
    shape = model.transformer
    return {
        "transformer": {
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


def _check_dimensions(path: Path, dimensions: Mapping[str, Any], model: Entry) -> None:
    config = _json(path, "a pretrained component has one")
    for field, expected in dimensions.items():
        factors = [config.get(factor) for factor in field.split("*")]
        if None in factors and field in _OPTIONAL:
            continue
        found = factors[0] if len(factors) == 1 else _product(factors)
        if found != expected:
            raise _fault(
                f"{path} says {field.replace('*', ' x ')} = {found}, but the catalogue's {model.name} has {expected};"
                " use that model's weights, or name the model that these weights are of"
            )


def _product(factors: list[Any]) -> int | None:
    if not all(isinstance(factor, int) for factor in factors):
        return None
    product = 1
    for factor in factors:
        product *= factor
    return product


def _check_tensors(folder: Path) -> None:
    names: dict[Path, set[str]] = {}
    for path, tensors in _files(folder):
        names[path] = tensor_names(path)
        lacking = sorted(tensors - names[path])
        if lacking:
            raise _fault(f"{path} lacks {len(lacking)} of the tensors that its index names, for instance {lacking[0]}")
    if not any(names.values()):
        raise _fault(f"{folder} holds no tensors")


def _files(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """The weight files of a component, each with the tensors that an index expects in it."""
    if not folder.is_dir():
        raise _fault(f"there is no folder {folder}")
    indices = sorted(folder.glob("*.safetensors.index.json"))
    for index in indices:
        shards: dict[str, set[str]] = {}
        for tensor, shard in _json(index, "it lists the shards").get("weight_map", {}).items():
            shards.setdefault(shard, set()).add(tensor)
        for shard, tensors in sorted(shards.items()):
            if not (folder / shard).is_file():
                raise _fault(f"{folder / shard} is missing, but {index.name} names it; download it again")
            yield folder / shard, tensors
    if indices:
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "no weights at all"
        raise _fault(f"{folder} has no .safetensors file (it has {others})")
    for file in files:
        yield file, set()


def tensor_names(path: Path) -> set[str]:
    """The tensors of a safetensors file, by its header alone.

    Raises:
        StageError: the file is cut off or is none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _HEADER_BYTES:
            raise _fault(f"{path} is no safetensors file ({size} bytes); download it again")
        header = file.read(length)
    if len(header) < length:
        raise _fault(f"{path} is cut off: {size} bytes, but its header alone has {8 + length}; download it again")
    try:
        tensors = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise _fault(f"{path} has a damaged header; download it again") from None
    if size < expected:
        raise _fault(f"{path} is cut off: {size} of {expected} bytes are there; download it again")
    if size > expected:
        raise _fault(f"{path} has {size} bytes, but its header speaks of {expected}; download it again")
    return {name for name in tensors if name != "__metadata__"}


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _fault(f"there is no {path}: {what}") from None
    except ValueError as error:
        raise _fault(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise _fault(f"{path} is not a JSON object")
    return data


def _fault(message: str) -> StageError:
    return StageError(Exit.WEIGHTS, f"model.weights.uri: {message}")
