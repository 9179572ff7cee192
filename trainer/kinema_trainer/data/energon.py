# SPDX-License-Identifier: Apache-2.0
"""What Megatron-Energon needs beside the tar files, so that it reads a features folder as it is.

Layout of megatron-energon 7.4.1: `.nv-meta/` with the shards' counts, the split, the sample type and a SQLite index for
random access, and beside each tar file the offsets of its samples. Energon itself is not needed to write them.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import yaml

from kinema_trainer.data.shards import Sidecar

FOLDER = ".nv-meta"
VERSION = "7.4.1"

_SCHEMA = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
                      byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
                           content_byte_offset INTEGER, content_byte_size INTEGER);
CREATE INDEX idx_samples_by_tar_and_idx ON samples (tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts (tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts (tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


def offsets_name(shard: str) -> str:
    """The file of sample offsets beside a tar file."""
    return f"{shard}.idx"


def offsets(sidecar: Sidecar) -> bytes:
    """Where each sample begins and the last one ends, as little-endian 64-bit numbers."""
    places = [record.offset for record in sidecar.records] + [record.end for record in sidecar.records[-1:]]
    return struct.pack(f"<{len(places)}Q", *places)


def metadata(sidecars: Sequence[Sidecar], *, identity: str) -> dict[str, bytes]:
    """The files of `.nv-meta`, by name relative to the features folder.

    Args:
        sidecars: finished shards, in order; empty ones are left out.
        identity: names the data; equal data may give equal names.
    """
    filled = [sidecar for sidecar in sidecars if sidecar.records]
    info = {
        "energon_version": VERSION,
        "shard_counts": {sidecar.shard: len(sidecar.records) for sidecar in filled},
    }
    split = {
        "split_parts": {"train": [sidecar.shard for sidecar in filled], "val": [], "test": []},
        "exclude": [],
    }
    sample_type = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    files = {
        ".info.json": json.dumps(info, indent=1).encode(),
        ".info.yaml": yaml.safe_dump(info, sort_keys=False).encode(),
        "split.yaml": yaml.safe_dump(split, sort_keys=False).encode(),
        "dataset.yaml": yaml.safe_dump(sample_type, sort_keys=False).encode(),
        "index.uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"kinema.dev/features/{identity}")).encode(),
        "index.sqlite": _index(filled),
    }
    return {f"{FOLDER}/{name}": data for name, data in files.items()}


def _index(sidecars: Sequence[Sidecar]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.sqlite"
        with closing(sqlite3.connect(path)) as database, database:
            database.executescript(_SCHEMA)
            for shard, sidecar in enumerate(sidecars):
                database.executemany(
                    "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
                    (
                        (shard, record.key, index, record.offset, record.end - record.offset)
                        for index, record in enumerate(sidecar.records)
                    ),
                )
                database.executemany(
                    "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
                    (
                        (shard, index, part, offset, size)
                        for index, record in enumerate(sidecar.records)
                        for part, (offset, size) in record.parts.items()
                    ),
                )
        return path.read_bytes()
