# SPDX-License-Identifier: Apache-2.0
"""The client of the control plane, against a real API server."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes.aio.config import incluster_config

from kinema_cluster.control_plane import ControlPlane
from kinema_kube import Kube, connect
from kinema_kube import client as client_module
from kinema_kube.errors import (
    AlreadyExistsError,
    BadRequestError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    UnauthorizedError,
)
from kinema_kube.resources import CONFIG_MAPS, JOBS, NAMESPACES, PODS, SECRETS, SERVICE_ACCOUNTS, VIDEO_TRAINING_JOBS
from kinema_operator import tls

pytestmark = [pytest.mark.controlplane, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def kube(plane: ControlPlane) -> AsyncIterator[Kube]:
    async with connect(kubeconfig=plane.kubeconfig) as kube:
        yield kube


@pytest.fixture
async def namespace(kube: Kube) -> str:
    name = f"kube-{uuid.uuid4().hex[:8]}"
    await kube.create(NAMESPACES, {"metadata": {"name": name}})
    return name


def config_map(name: str, namespace: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace, "labels": {"name": name}}, "data": data}


async def test_objects_are_made_once_found_and_deleted(kube: Kube, namespace: str) -> None:
    made = await kube.create(CONFIG_MAPS, config_map("one", namespace, a="1"))
    with pytest.raises(AlreadyExistsError, match='configmaps "one" already exists'):
        await kube.create(CONFIG_MAPS, config_map("one", namespace))
    assert (await kube.get(CONFIG_MAPS, "one", namespace=namespace))["data"] == {"a": "1"}

    with pytest.raises(ConflictError):
        await kube.delete(CONFIG_MAPS, "one", namespace=namespace, uid=str(uuid.uuid4()))
    await kube.delete(CONFIG_MAPS, "one", namespace=namespace, uid=made["metadata"]["uid"])
    assert await kube.find(CONFIG_MAPS, "one", namespace=namespace) is None
    with pytest.raises(NotFoundError):
        await kube.delete(CONFIG_MAPS, "one", namespace=namespace)


async def test_a_merge_patch_of_an_old_version_is_a_conflict(kube: Kube, namespace: str) -> None:
    made = await kube.create(CONFIG_MAPS, config_map("one", namespace, a="1", b="2"))
    version = made["metadata"]["resourceVersion"]
    patched = await kube.merge_patch(
        CONFIG_MAPS, "one", {"data": {"a": None}}, namespace=namespace, resource_version=version
    )
    assert patched["data"] == {"b": "2"}
    with pytest.raises(ConflictError):
        await kube.merge_patch(CONFIG_MAPS, "one", {"data": {"b": "3"}}, namespace=namespace, resource_version=version)


async def test_apply_respects_the_owner_of_a_field_until_forced(kube: Kube, namespace: str) -> None:
    body = config_map("one", namespace, a="1")
    await kube.apply(CONFIG_MAPS, body, manager="first")
    other = {**body, "data": {"a": "2"}}
    with pytest.raises(ConflictError, match="first"):
        await kube.apply(CONFIG_MAPS, other, manager="second")
    assert (await kube.apply(CONFIG_MAPS, other, manager="second", force=True))["data"] == {"a": "2"}


async def test_a_status_of_an_old_version_never_lands_on_another_object(kube: Kube, namespace: str) -> None:
    full = {
        "apiVersion": VIDEO_TRAINING_JOBS.api_version,
        "kind": VIDEO_TRAINING_JOBS.kind,
        "metadata": {"name": "wan", "namespace": namespace},
        "spec": {
            "model": {"name": "wan2.1-tiny", "weights": {"uri": "pvc://ws/weights"}},
            "dataset": {"uri": "pvc://ws/videos"},
            "storage": {"uri": "pvc://ws/kinema"},
            "defaults": {"pool": "cpu"},
        },
    }
    first = await kube.create(VIDEO_TRAINING_JOBS, full)

    async def write(percent: str) -> dict[str, Any]:
        body = {
            "metadata": {
                "name": "wan",
                "namespace": namespace,
                "resourceVersion": first["metadata"]["resourceVersion"],
            },
            "status": {"progress": {"stage": "train", "percent": percent}},
        }
        return await kube.apply(VIDEO_TRAINING_JOBS, body, manager="server", force=True, subresource="status")

    assert (await write("1%"))["status"]["progress"]["percent"] == "1%"
    with pytest.raises(ConflictError):
        await write("2%")

    await kube.delete(VIDEO_TRAINING_JOBS, "wan", namespace=namespace)
    with pytest.raises(NotFoundError):
        await write("3%")
    assert await kube.find(VIDEO_TRAINING_JOBS, "wan", namespace=namespace) is None

    await kube.create(VIDEO_TRAINING_JOBS, full)
    with pytest.raises(ConflictError):
        await write("4%")
    assert "status" not in await kube.get(VIDEO_TRAINING_JOBS, "wan", namespace=namespace)


async def test_a_long_list_is_read_in_chunks(kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CHUNK", 2)
    for number in range(5):
        await kube.create(CONFIG_MAPS, config_map(f"c{number}", namespace))
    first = await kube.page(CONFIG_MAPS, namespace=namespace, limit=2)
    assert len(first.items) == 2
    assert first.token
    listed = await kube.list(CONFIG_MAPS, namespace=namespace)
    assert {item["metadata"]["name"] for item in listed} >= {f"c{number}" for number in range(5)}
    assert {(item["apiVersion"], item["kind"]) for item in listed} == {("v1", "ConfigMap")}

    chosen = await kube.list(CONFIG_MAPS, namespace=namespace, labels={"name": "c3"})
    assert [item["metadata"]["name"] for item in chosen] == ["c3"]
    named = await kube.list(CONFIG_MAPS, fields={"metadata.name": "c4", "metadata.namespace": namespace})
    assert [item["metadata"]["name"] for item in named] == ["c4"]
    with pytest.raises((BadRequestError, GoneError)):
        await kube.page(CONFIG_MAPS, namespace=namespace, token="nonsense")


async def test_refused_objects_say_which_field(kube: Kube, namespace: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace}, "spec": {}}
    with pytest.raises(InvalidError, match=r"spec\.containers: Required value"):
        await kube.create(PODS, pod)
    job = {"metadata": {"name": "j", "namespace": namespace}, "spec": {"paralelism": 1}}
    with pytest.raises(BadRequestError, match=r'unknown field "spec.paralelism"'):
        await kube.create(JOBS, {"apiVersion": "batch/v1", "kind": "Job", **job})


async def test_credentials_that_were_renewed_are_taken_up(plane: ControlPlane, kube: Kube, namespace: str) -> None:
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    account = {"metadata": {"name": "reader", "namespace": namespace}}
    await kube.create(SERVICE_ACCOUNTS, account)
    answer = await kube.create(SERVICE_ACCOUNTS, request, namespace=namespace, name="reader", subresource="token")
    folder = plane.layout.root
    token_file = folder / "reader.token"
    token_file.write_text("stale")
    kubeconfig = _token_kubeconfig(plane, token_file.name)
    path = folder / "reader.kubeconfig"
    path.write_text(kubeconfig)
    async with connect(kubeconfig=path) as reader:
        with pytest.raises(UnauthorizedError):
            await reader.raw("/version")
    async with connect(kubeconfig=path) as reader:
        token_file.write_text(answer["status"]["token"])
        assert b"gitVersion" in await reader.raw("/version")


def _token_kubeconfig(plane: ControlPlane, token_file: str) -> str:
    shown = json.loads(plane.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    shown["users"] = [{"name": user["name"], "user": {"tokenFile": token_file}} for user in shown["users"]]
    return json.dumps(shown)


async def test_a_pods_own_account_is_used_inside_a_cluster(
    plane: ControlPlane, kube: Kube, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kube.create(SERVICE_ACCOUNTS, {"metadata": {"name": "me", "namespace": namespace}})
    answer = await kube.create(
        SERVICE_ACCOUNTS,
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
        namespace=namespace,
        name="me",
        subresource="token",
    )
    (tmp_path / "token").write_text(answer["status"]["token"])
    shown = json.loads(plane.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))["clusters"][0]["cluster"]
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(shown["certificate-authority-data"]))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    address = urlsplit(plane.server)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(address.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(address.port))
    async with connect() as inside:
        with pytest.raises(ForbiddenError, match=f"system:serviceaccount:{namespace}:me"):
            await inside.list(PODS, namespace=namespace)


async def test_the_servers_certificate_is_made_once_and_rotated(kube: Kube, namespace: str) -> None:
    names = tls.server_names(service="kinema-server", namespace=namespace)
    now = datetime.now(UTC)

    async def ensure(moment: datetime) -> str:
        return await tls.ensure_certificate(kube, secret="tls", namespace=namespace, dns_names=names, now=moment)

    authority = await ensure(now)
    first = await kube.get(SECRETS, "tls", namespace=namespace)
    assert await ensure(now) == authority
    assert await kube.get(SECRETS, "tls", namespace=namespace) == first

    assert await ensure(now + tls.LEAF_LIFETIME * 0.7) == authority
    second = await kube.get(SECRETS, "tls", namespace=namespace)
    assert second["data"][tls.TLS_CRT] != first["data"][tls.TLS_CRT]
    assert second["data"][tls.CA_CRT] == first["data"][tls.CA_CRT]


async def test_a_certificate_that_the_user_brought_is_left_alone(kube: Kube, namespace: str) -> None:
    pair = tls.make_ca(now=datetime.now(UTC))
    authority = tls.make_ca(now=datetime.now(UTC)).certificate.decode()
    data = {"tls.crt": pair.certificate.decode(), "tls.key": pair.key.decode(), "ca.crt": authority}
    brought = await kube.create(
        SECRETS, {"metadata": {"name": "tls", "namespace": namespace}, "type": "kubernetes.io/tls", "stringData": data}
    )
    trusted = await tls.ensure_certificate(kube, secret="tls", namespace=namespace, dns_names=["kinema-server"])
    assert trusted == authority
    assert await kube.get(SECRETS, "tls", namespace=namespace) == brought
