# SPDX-License-Identifier: Apache-2.0
"""The workspace in a bucket, over HTTP, with and without faults on the way."""

from __future__ import annotations

import errno
import pickle
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.config import Config

from kinema_api.exits import Exit, StageError
from kinema_api.inputs import SecretRef, Storage
from kinema_stage import artifact, s3
from kinema_stage.claim import Observer
from kinema_stage.faults import StoreError
from kinema_stage.stages import check
from kinema_stage.workspace import Workspace, open_workspace

from tests.s3.bucket import BUCKET, ObjectStore, secret, storage
from tests.s3.faults import FAULTS, FaultyProxy


@pytest.fixture
def workspace(store: ObjectStore) -> Workspace:
    return open_workspace(storage(store.url))


def test_what_was_written_is_read_listed_and_deleted(workspace: Workspace, store: ObjectStore) -> None:
    workspace.write("a/b.txt", b"one")
    workspace.write("a/b.txt", b"two!")
    workspace.write("ab/c", b"")
    assert workspace.read("a/b.txt") == b"two!"
    assert workspace.read_range("a/b.txt", start=1, end=3) == b"wo"
    assert workspace.read_range("a/b.txt", start=4, end=9) == b""
    assert workspace.exists("a/b.txt") and workspace.exists("a") and not workspace.exists("a/c")
    assert workspace.uri("a/b.txt") == f"s3://{BUCKET}/work/a/b.txt"
    assert workspace.sizes("a") == {"a/b.txt": 4} and workspace.list("") == ["a/b.txt", "ab/c"]
    with pytest.raises(FileNotFoundError):
        workspace.read("a/c")
    with pytest.raises(ValueError, match=r"has no '\.\.'"):
        workspace.read("a/../../x")
    workspace.delete("a")
    workspace.delete("gone")
    assert store.keys() == ["work/ab/c"]


def test_long_listings_have_every_page(workspace: Workspace, store: ObjectStore) -> None:
    names = [f"many/{number:04d}" for number in range(1005)]
    store.fill(f"work/{name}" for name in names)
    assert workspace.list("many") == names
    workspace.delete("many")
    assert store.keys() == []


def test_large_files_go_in_parts_and_come_back(workspace: Workspace, tmp_path: Path, store: ObjectStore) -> None:
    content = bytes(range(256)) * (40 << 12)
    (tmp_path / "large").write_bytes(content)
    workspace.upload(tmp_path / "large", "x/large")
    assert "-" in store.s3.head_object(Bucket=BUCKET, Key="work/x/large")["ETag"], "of several parts"
    assert (workspace.fetch("x", "large") / "large").read_bytes() == content


def test_a_filled_folder_appears_with_its_manifest_last_and_only_once(workspace: Workspace) -> None:
    for number, first in enumerate((True, False)):
        with workspace.scratch("a/b") as scratch:
            (scratch / "deep").mkdir()
            (scratch / "deep/x").write_bytes(str(number).encode())
            (scratch / artifact.MANIFEST).write_bytes(b"{}")
            assert workspace.place(scratch, "a/b") is first
        assert not scratch.exists()
    assert workspace.read("a/b/deep/x") == b"0"


def test_a_fetched_folder_is_kept_until_it_changes(workspace: Workspace, store: ObjectStore) -> None:
    for name in ("vae/w", "vae/c", "text"):
        workspace.write(f"m/{name}", name.encode())
    folder = workspace.fetch("m", "vae")
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["c", "w"]
    (folder / "vae/w").write_bytes(b"cut")
    assert (workspace.fetch("m") / "vae/w").read_bytes() == b"vae/w", "a cut copy is made again"
    assert (folder / "text").read_bytes() == b"text"
    with pytest.raises(FileNotFoundError, match="m/gone"):
        workspace.fetch("m", "gone")
    with pytest.raises(FileNotFoundError):
        workspace.fetch("none")


def test_a_claim_is_one_holders_at_a_time(workspace: Workspace) -> None:
    claim = Observer().try_claim(workspace, "claims/x", holder="a", background=False)
    assert claim is not None and claim.beat()
    assert Observer().try_claim(workspace, "claims/x", holder="b", background=False) is None
    claim.release()
    taken = Observer().try_claim(workspace, "claims/x", holder="b", background=False)
    assert taken is not None and not claim.beat() and taken.beat()
    assert workspace.list("claims") == ["claims/x/00000002.json"]


def test_the_probe_uses_the_bucket_and_leaves_nothing(workspace: Workspace, store: ObjectStore) -> None:
    check.probe(workspace)
    assert store.keys() == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_survived(store: ObjectStore, fault: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"f" * 100_000)
    with FaultyProxy(store.port, share=0.2, seed=3, faults=(fault,), delay=0.01) as proxy:
        workspace = open_workspace(storage(proxy.url))
        for number in range(8):
            data = f"{fault} {number}".encode() * 50
            workspace.write(f"a/{number}", data)
            assert workspace.create(f"b/{number}", data), "a put that meets itself is ours"
            assert not workspace.create(f"b/{number}", data), "the same bytes of another caller are not"
            assert workspace.read(f"a/{number}") == data
        workspace.upload(tmp_path / "file", "c/file")
        assert (workspace.fetch("c") / "file").stat().st_size == 100_000
        assert len(workspace.list("b")) == 8
        assert proxy.counts[fault] >= 3


def test_of_eight_creators_one_wins_through_a_faulty_network(store: ObjectStore) -> None:
    with FaultyProxy(store.port, share=0.05, seed=1, delay=0.01) as proxy, ThreadPoolExecutor(8) as pool:
        workspace = open_workspace(storage(proxy.url))
        for unit in range(15):
            path = f"units/{unit}"
            won = list(pool.map(lambda number, path=path: workspace.create(path, f"{number}".encode() * 999), range(8)))
            assert won.count(True) == 1
            assert workspace.read(path) == f"{won.index(True)}".encode() * 999
        assert sum(count for fault, count in proxy.counts.items() if fault != "ok") >= 5


def failure(place: Storage) -> StageError:
    with pytest.raises(StageError) as caught:
        check.probe(open_workspace(place))
    return caught.value


def test_a_secret_that_is_absent_or_lacks_a_key_is_named(store: ObjectStore, tmp_path: Path) -> None:
    place = storage(store.url).model_copy(update={"secret_ref": SecretRef(name="gone")})
    error = failure(place)
    assert error.code is Exit.USER
    assert error.message == (
        "storage.secretRef: there is no Secret gone in the namespace, or it has no AWS_ACCESS_KEY_ID and no"
        " AWS_SECRET_ACCESS_KEY; create it with kubectl create secret generic gone"
        " --from-literal=AWS_ACCESS_KEY_ID=... --from-literal=AWS_SECRET_ACCESS_KEY=..."
    )
    secret(tmp_path / "secrets", "gone", AWS_ACCESS_KEY_ID="a")
    assert "or it has no AWS_SECRET_ACCESS_KEY;" in failure(place).message


def test_a_bucket_that_is_not_there_is_named(store: ObjectStore) -> None:
    error = failure(storage(store.url).model_copy(update={"uri": "s3://other-bucket/x"}))
    assert (error.code, error.message) == (
        Exit.USER,
        f"storage.uri: there is no bucket other-bucket at {store.url}; create it or correct the address",
    )


def test_an_endpoint_that_nobody_serves_is_named(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_CONFIG", s3._CONFIG.merge(Config(retries={"total_max_attempts": 1})))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        error = failure(storage(url))
    assert error.code is Exit.STORAGE
    assert error.message.startswith(f"storage.endpoint: {url} cannot be reached (Could not connect")


@pytest.mark.parametrize(
    ("status", "code", "exit_code", "text"),
    [
        (403, "InvalidAccessKeyId", Exit.USER, "refuses the credentials of the Secret s3-keys (InvalidAccessKeyId)"),
        (403, "SignatureDoesNotMatch", Exit.USER, "write the right AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", Exit.USER, "may not use s3://bucket/work/probes/"),
        (403, "RequestTimeTooSkewed", Exit.STORAGE, "set the node's clock"),
        (507, "XMinioStorageFull", Exit.USER, "the bucket bucket is full (XMinioStorageFull); free space"),
        (501, "NotImplemented", Exit.USER, "does not know conditional writes (If-None-Match)"),
        (400, "Strange", Exit.STORAGE, "failed for s3://bucket/work/probes/"),
    ],
)
def test_what_the_store_answers_becomes_a_sentence(
    store: ObjectStore, status: int, code: str, exit_code: Exit, text: str
) -> None:
    with Refusing(store.port, status=status, code=code) as proxy:
        error = failure(storage(proxy.url))
    assert error.code is exit_code
    assert error.message.startswith("storage.") and text in error.message, error.message


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("503", "storage.uri: {url} failed for s3://bucket/work/probes/{object}: SlowDown: Please reduce your request"
         " rate.; the store is overloaded or ill: see to it"),
        ("reset-before", "storage.endpoint: {url} gives no answer for s3://bucket/work/probes/{object} (Connection was"
         " closed before we received a valid response from endpoint URL: {reason}); see whether the store, and the"
         " network before it, are well"),
    ],
)  # fmt: skip
def test_an_outage_is_said_so(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, fault: str, text: str) -> None:
    monkeypatch.setattr(s3, "_CONFIG", s3._CONFIG.merge(Config(retries={"total_max_attempts": 1})))
    with FaultyProxy(store.port, share=1, faults=(fault,)) as proxy:
        error = failure(storage(proxy.url))
        assert proxy.counts[fault] >= 3, "a call is made up to three times"
    assert error.code is Exit.STORAGE
    pattern = re.escape(text.format(url=proxy.url, object="OBJECT", reason="REASON"))
    assert re.fullmatch(pattern.replace("OBJECT", "[0-9a-f]+").replace("REASON", '"[^"]+"'), error.message)


def test_a_store_that_ignores_if_none_match_is_found(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = open_workspace(storage(store.url))
    monkeypatch.setattr(s3.Store, "create", lambda self, path, data: self.write(path, data) or True)
    with pytest.raises(StageError, match="ignores If-None-Match") as caught:
        check.probe(workspace)
    assert caught.value.code is Exit.USER


def test_an_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StoreError(Exit.USER, "why", errno.EACCES)))
    assert (error.code, error.message, error.errno, str(error)) == (Exit.USER, "why", errno.EACCES, "why")
    assert isinstance(error, OSError)


class Refusing(FaultyProxy):
    """Answers every call with one error."""

    def __init__(self, port: int, *, status: int, code: str) -> None:
        super().__init__(port, share=1, faults=("refuse",))
        self.status = status
        self.content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
