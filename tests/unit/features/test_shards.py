# SPDX-License-Identifier: Apache-2.0
"""Shards: what is written is read back, equal samples give equal bytes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import webdataset

from kinema_trainer.data.shards import (
    Sample,
    ShardIndex,
    Sidecar,
    load_tensor,
    pack,
    read_shard,
    scan_shard,
    shard_name,
    sidecar_name,
    write_shard,
)


def samples(start: int, count: int, dtype: torch.dtype = torch.float32) -> list[Sample]:
    made = []
    for number in range(start, start + count):
        generator = torch.Generator().manual_seed(number)
        latents = torch.randn(16, 3, 4, 6, generator=generator).to(dtype)
        text = torch.randn(64, 32, generator=generator).to(dtype)[: number + 2]
        made.append(Sample(f"clip{number:04x}", latents, text, {"caption": f"clip {number} é", "frames": 9}))
    return made


def assert_equal(left: Sample, right: Sample) -> None:
    assert left.key == right.key
    assert left.latents.dtype == right.latents.dtype
    assert torch.equal(left.latents, right.latents)
    assert torch.equal(left.text, right.text)
    assert left.meta == right.meta


def store(folder: Path, shards: list[list[Sample]]) -> None:
    for index, content in enumerate(shards):
        path = folder / shard_name(index)
        records = write_shard(path, content)
        keys = tuple(sample.key for sample in content)
        sidecar = Sidecar(
            shard=path.name, size=path.stat().st_size, holder="t", clips=keys, encoded=keys, reused=(), records=records
        )
        (folder / sidecar_name(path.name)).write_text(sidecar.model_dump_json())


def test_the_shapes_are_known_without_the_samples(tmp_path: Path) -> None:
    store(tmp_path, [samples(0, 2), samples(2, 1)])
    index = ShardIndex.open(tmp_path)
    first = Sidecar.model_validate_json((tmp_path / "shard-000000.json").read_bytes()).records[0]
    assert first.shapes == {"latents.pth": (16, 3, 4, 6), "text.pth": (2, 32)}
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    assert index.shapes == [(16, 3, 4, 6)] * 3


def test_shards_of_the_first_release_tell_their_shapes_too(tmp_path: Path) -> None:
    store(tmp_path, [samples(0, 2)])
    path = tmp_path / "shard-000000.json"
    old = Sidecar.model_validate_json(path.read_bytes())
    records = tuple(record.model_copy(update={"shapes": {}}) for record in old.records)
    path.write_text(old.model_copy(update={"records": records}).model_dump_json(exclude_defaults=True))
    assert ShardIndex.open(tmp_path).shapes == [(16, 3, 4, 6)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_samples_come_back_as_they_went_in(tmp_path: Path, dtype: torch.dtype) -> None:
    written = samples(0, 4, dtype)
    write_shard(tmp_path / "a.tar", written)
    read = list(read_shard(tmp_path / "a.tar"))
    assert len(read) == 4
    for left, right in zip(written, read, strict=True):
        assert_equal(left, right)


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", samples(0, 3))
    write_shard(tmp_path / "b.tar", samples(0, 3))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_view_is_stored_without_the_storage_behind_it() -> None:
    big = torch.zeros(512, 64)
    parts = pack(Sample("k", big[:1, :4], big[:2], {}))
    assert len(parts["text.pth"]) < 4096
    assert load_tensor(parts["text.pth"]).shape == (2, 64)


def test_the_index_reads_single_samples_across_shards(tmp_path: Path) -> None:
    store(tmp_path, [samples(0, 3), samples(3, 2)])
    index = pickle.loads(pickle.dumps(ShardIndex.open(tmp_path)))
    assert index.keys == [f"clip{number:04x}" for number in range(5)]
    assert_equal(index[4], samples(4, 1)[0])
    assert_equal(index[0], samples(0, 1)[0])
    with pytest.raises(IndexError):
        index[5]


def test_records_point_at_members(tmp_path: Path) -> None:
    records = write_shard(tmp_path / "a.tar", samples(0, 2))
    assert [record.model_copy(update={"shapes": {}}) for record in records] == list(scan_shard(tmp_path / "a.tar"))
    data = (tmp_path / "a.tar").read_bytes()
    offset, size = records[1].parts["json"]
    assert data[offset : offset + size].decode().startswith('{"caption": "clip 1 é"')
    assert records[0].end == records[1].offset


def test_a_cut_off_shard_says_what_to_do(tmp_path: Path) -> None:
    store(tmp_path, [samples(0, 2)])
    path = tmp_path / shard_name(0)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OSError, match="cut off; delete the shard"):
        ShardIndex.open(tmp_path)[1]


def test_webdataset_reads_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", samples(0, 2))
    dataset = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode()
    read = list(dataset)
    assert [item["__key__"] for item in read] == ["clip0000", "clip0001"]
    assert torch.equal(read[1]["latents.pth"], samples(1, 1)[0].latents)
    assert read[1]["json"]["caption"] == "clip 1 é"


def test_a_pickled_object_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError):
        load_tensor(pickle.dumps(Path("/")))
