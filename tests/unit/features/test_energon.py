# SPDX-License-Identifier: Apache-2.0
"""A features folder as Megatron-Energon reads it, and as its own preparation would have made it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema_trainer.data.energon import metadata, offsets, offsets_name
from kinema_trainer.data.shards import Sample, Sidecar, shard_name, sidecar_name, write_shard

energon: Any = pytest.importorskip("megatron.energon")


def sample(number: int) -> Sample:
    generator = torch.Generator().manual_seed(number)
    return Sample(
        f"{number:020x}",
        torch.randn(16, 3, 4, 6, generator=generator),
        torch.randn(number + 2, 32, generator=generator),
        {"caption": f"clip {number}", "frames": 9},
    )


def store(folder: Path, shards: list[list[Sample]]) -> list[Sidecar]:
    sidecars = []
    for index, content in enumerate(shards):
        path = folder / shard_name(index)
        records = write_shard(path, content)
        keys = tuple(item.key for item in content)
        sidecar = Sidecar(
            shard=path.name, size=path.stat().st_size, holder="t", clips=keys, encoded=keys, reused=(), records=records
        )
        (folder / sidecar_name(path.name)).write_text(sidecar.model_dump_json())
        (folder / offsets_name(path.name)).write_bytes(offsets(sidecar))
        sidecars.append(sidecar)
    for name, data in metadata(sidecars, identity="k").items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
    return sidecars


def test_energon_trains_from_the_folder(tmp_path: Path) -> None:
    store(tmp_path, [[sample(0), sample(1), sample(2)], [sample(3)]])

    @energon.stateless
    def cook(raw: dict[str, Any]) -> dict[str, Any]:
        return {"__key__": raw["__key__"], **{part: raw[part] for part in ("latents.pth", "text.pth", "json")}}

    class Plain(energon.TaskEncoder):
        cookers = (energon.Cooker(cook),)

        def encode_sample(self, sample: dict[str, Any]) -> dict[str, Any]:
            return sample

        def batch(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return samples

    dataset = energon.get_train_dataset(
        tmp_path,
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Plain(),
        repeat=False,
    )
    read = {item["__key__"]: item for batch in energon.get_loader(dataset) for item in batch}
    assert sorted(key.rpartition("/")[2] for key in read) == [sample(number).key for number in range(4)]
    for key, item in read.items():
        original = sample(int(key.rpartition("/")[2], 16))
        assert torch.equal(item["latents.pth"], original.latents)
        assert torch.equal(item["text.pth"], original.text)
        assert item["json"] == original.meta


def rows(path: Path, table: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as database:
        return sorted(database.execute(f"SELECT * FROM {table}"))


def test_the_index_equals_that_of_energon_prepare(tmp_path: Path) -> None:
    from megatron.energon.flavors import BaseWebdatasetFactory

    shards = [[sample(0), sample(1)], [sample(2), sample(3), sample(4)]]
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    sidecars = store(tmp_path / "ours", shards)
    for sidecar in sidecars:
        (tmp_path / "theirs" / sidecar.shard).write_bytes((tmp_path / "ours" / sidecar.shard).read_bytes())
    BaseWebdatasetFactory.prepare_dataset(
        tmp_path / "theirs",
        [sidecar.shard for sidecar in sidecars],
        split_parts_ratio=[("train", 1.0)],
        workers=1,
    )
    for sidecar in sidecars:
        name = offsets_name(sidecar.shard)
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    for table in ("samples", "sample_parts"):
        ours, theirs = (rows(tmp_path / side / ".nv-meta" / "index.sqlite", table) for side in ("ours", "theirs"))
        assert ours == theirs
        assert ours


def test_a_shard_without_samples_is_left_out(tmp_path: Path) -> None:
    files = metadata(store(tmp_path, [[], [sample(0)]]), identity="k")
    assert b"shard-000000" not in files[".nv-meta/split.yaml"]
    assert b"shard-000001.tar: 1" in files[".nv-meta/.info.yaml"]
