# SPDX-License-Identifier: Apache-2.0
"""Datasets and weights in a bucket: check and prepare over HTTP, and what is said of wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Dataset, SecretRef, Weights
from kinema_api.stage import CheckConfig
from kinema_stage import clips, dataset, weights
from kinema_stage.stages import check, prepare

from tests.s3.bucket import BUCKET, ObjectStore, at, storage
from tests.s3.faults import FaultyProxy
from tests.unit.stage.support import captioned, check_config, context_of, make_video, numbers, prepare_config


@pytest.fixture
def store(store: ObjectStore, tmp_path: Path) -> ObjectStore:
    """The bucket with two videos and the weights of a tiny model."""
    captioned(tmp_path / "data" / "a.mp4", "a wall")
    make_video(tmp_path / "data" / "deep" / "b.mp4")
    check_config(tmp_path)
    store.put(tmp_path / "data", "data")
    store.put(tmp_path / "weights", "weights")
    return store


def config(tmp_path: Path, url: str) -> CheckConfig:
    return check_config(tmp_path).model_copy(
        update={
            "workspace": storage(url),
            "dataset": Dataset(**at(url, "data")),
            "weights": Weights(**at(url, "weights")),
        }
    )


def failure(run: Callable[[], object]) -> StageError:
    with pytest.raises(StageError) as caught:
        run()
    return caught.value


def test_check_and_prepare_do_their_work_through_faults(store: ObjectStore, tmp_path: Path) -> None:
    straight = check.run(context_of(config(tmp_path, store.url)))
    assert straight.counts == {"videos": 2, "usable": 1}
    with FaultyProxy(store.port, share=0.05, seed=5, delay=0.01) as proxy:
        faulty = config(tmp_path, proxy.url)
        end = check.run(context_of(faulty))
        assert end.keys == straight.keys, "the same bytes have the same keys"
        context = context_of(prepare_config(faulty, end.keys["prepare"]))
        assert prepare.run(context).counts == {"videos": 2, "clips": 2, "quarantined": 1}
    found = clips.read(context.workspace, context.folder)
    with dataset.fetch(faulty.dataset.model_copy(update={"endpoint": store.url}), found[1].video) as path:
        assert numbers(found[1].decode(path)) == list(range(17, 34))
    assert not path.exists(), "the copy is removed"
    assert check.run(context_of(config(tmp_path, store.url))).existing == ["prepare"]


def test_a_changed_video_or_caption_changes_the_key(store: ObjectStore, tmp_path: Path) -> None:
    keys = [check.run(context_of(config(tmp_path, store.url))).keys["prepare"]]
    for name, body in (("a.txt", b"other words"), ("a.mp4", b"other bytes")):
        store.s3.put_object(Bucket=BUCKET, Key=f"data/{name}", Body=body)
        keys.append(check.run(context_of(config(tmp_path, store.url))).keys["prepare"])
    assert len(set(keys)) == 3


def test_listings_are_read_from_buckets(store: ObjectStore) -> None:
    rows = [{"video": "data/a.mp4", "caption": "one"}, {"video": "s3://bucket/data/deep/b.mp4", "caption": "two"}]
    store.s3.put_object(Bucket=BUCKET, Key="l.jsonl", Body="\n".join(map(json.dumps, rows)).encode())
    listing = dataset.read(Dataset.model_validate({**at(store.url, "l.jsonl"), "format": "jsonl"}))
    assert [item.video for item in listing.usable] == ["data/a.mp4", "data/deep/b.mp4"]
    assert set(dataset.tags(listing)) == {"data/a.mp4", "data/deep/b.mp4"}
    error = failure(lambda: dataset.read(Dataset.model_validate({**at(store.url, "gone.csv"), "format": "csv"})))
    assert error.message.startswith("dataset.uri: s3://bucket/gone.csv does not exist; put the videos there")


def test_an_empty_dataset_and_an_absent_secret_are_named(store: ObjectStore) -> None:
    error = failure(lambda: dataset.read(Dataset(**at(store.url, "none"))))
    assert error.code is Exit.DATA
    assert error.message.startswith("dataset.uri: s3://bucket/none lists no videos; it needs videos (.3gp, ")
    gone = {**at(store.url, "data"), "secret_ref": SecretRef(name="gone")}
    error = failure(lambda: dataset.read(Dataset(**gone)))
    assert error.code is Exit.USER
    assert error.message.startswith("dataset.secretRef: there is no Secret gone in the namespace, or it has no AWS_A")


def test_wrong_weights_are_named_by_their_address(store: ObjectStore, tmp_path: Path) -> None:
    place = config(tmp_path, store.url)

    def fault(name: str, body: bytes) -> str:
        old = store.s3.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        store.s3.put_object(Bucket=BUCKET, Key=name, Body=body)
        error = failure(lambda: weights.check(place.weights, place.model))
        store.s3.put_object(Bucket=BUCKET, Key=name, Body=old)
        assert error.code is Exit.WEIGHTS
        return error.message

    assert "s3://bucket/weights/vae/model.safetensors is no safetensors file (3" in fault(
        "weights/vae/model.safetensors", b"cut"
    )
    whole = (tmp_path / "weights/vae/model.safetensors").read_bytes()
    assert "is cut off" in fault("weights/vae/model.safetensors", whole[:-4])
    assert "says z_dim = 48, but the catalogue's wan2.1-tiny has 16" in fault(
        "weights/vae/config.json", b'{"z_dim": 48}'
    )
    error = failure(lambda: weights.check(Weights(**at(store.url, "none")), place.model))
    assert error.message.startswith("model.weights.uri: there is no folder s3://bucket/none")


def test_only_what_is_asked_for_is_fetched(store: ObjectStore, tmp_path: Path) -> None:
    place = config(tmp_path, store.url).weights
    folder = weights.fetch(place, "vae", "model_index.json")
    assert sorted(path.name for path in folder.iterdir()) == ["model_index.json", "vae"]
    assert (folder / "vae/model.safetensors").read_bytes() == (tmp_path / "weights/vae/model.safetensors").read_bytes()
    assert failure(lambda: weights.fetch(place, "gone")).code is Exit.WEIGHTS
