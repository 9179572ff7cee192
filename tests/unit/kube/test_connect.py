# SPDX-License-Identifier: Apache-2.0
"""How a connection is configured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kinema_kube import connect

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

SERVER = "https://kubernetes.example.com:6443"


def kubeconfig(folder: Path, **cluster: str) -> Path:
    path = folder / "config"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "a", "cluster": {"server": SERVER, **cluster}}],
        "users": [{"name": "a", "user": {"token": "secret"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def proxy(path: Path) -> str | None:
    async with connect(kubeconfig=path) as kube:
        found: str | None = kube.api.configuration.proxy
        assert kube.api.rest_client.proxy == found
        return found


async def test_the_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    assert await proxy(kubeconfig(tmp_path)) == "http://proxy.example.com:3128"


async def test_a_server_named_in_no_proxy_is_asked_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    monkeypatch.setenv("NO_PROXY", ".example.com")
    assert await proxy(kubeconfig(tmp_path)) is None


async def test_the_proxy_of_the_kubeconfig_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    path = kubeconfig(tmp_path, **{"proxy-url": "http://other.example.com:3128"})
    assert await proxy(path) == "http://other.example.com:3128"


async def test_without_a_proxy_there_is_none(tmp_path: Path) -> None:
    assert await proxy(kubeconfig(tmp_path)) is None


async def test_a_request_reads_no_environment(tmp_path: Path) -> None:
    async with connect(kubeconfig=kubeconfig(tmp_path)) as kube:
        session = kube.api.rest_client._create_pool_manager()
        try:
            assert session.trust_env is False
            # None waits for another one's connection either.
            assert session.connector is not None and session.connector.limit == 0
        finally:
            await session.close()
