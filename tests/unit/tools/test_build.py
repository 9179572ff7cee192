# SPDX-License-Identifier: Apache-2.0
"""Which binaries are built, and when they are built again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kinema_cluster import build
from kinema_cluster.errors import ClusterError

VERSIONS = {
    "kubernetes": "v1.36.3",
    "training-operator": "v1.9.3",
    "helm": "v3.22.0",
    "coredns": "v1.15.0",
    "kwok": "v0.8.0",
}


@pytest.mark.parametrize(("name", "version"), VERSIONS.items())
def test_each_tool_is_pinned(name: str, version: str) -> None:
    assert build.TOOLS[name].version == version
    assert (build.TOOLS[name].folder / "go.sum").read_text().count(f" {version} h1:") >= 1


def test_kubernetes_replaces_its_31_staging_modules_at_one_version() -> None:
    lines = (build.KUBERNETES.folder / "go.mod").read_text().splitlines()
    replaced = [line.split() for line in lines if "=>" in line]
    assert len(replaced) == 31
    assert {line[-1] for line in replaced} == {"v0.36.3"}
    assert all(line[0] == line[2] for line in replaced)


@pytest.mark.parametrize(("one", "other"), [(build.KWOK, build.KUBERNETES), (build.HELM, build.COREDNS)])
def test_what_two_tools_share_is_compiled_once(one: build.Tool, other: build.Tool) -> None:
    """Who raises one of them raises the other: at two versions the same libraries are compiled twice."""
    libraries = ("k8s.io/api", "k8s.io/apimachinery", "k8s.io/client-go", "golang.org/x/net", "golang.org/x/sys")
    pins = [
        {name: build.pinned_version((tool.folder / "go.mod").read_text(), name) for name in libraries}
        for tool in (one, other)
    ]
    assert pins[0] == pins[1]


def test_the_binary_knows_its_version() -> None:
    assert "-X k8s.io/component-base/version.gitVersion=v1.36.3" in build.KUBERNETES.ldflags()


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> build.Tool:
    monkeypatch.setattr(build, "GO_TOOLS", tmp_path / "go")
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "go" / "hello"
    folder.mkdir(parents=True)
    (folder / "go.mod").write_text("module example/hello\n\nrequire example/one v1.2.3\n")
    return build.Tool(name="hello", module="example/one", programs={"hello": build.Program("./hello", 1)})


def test_a_changed_pin_is_another_folder(tool: build.Tool) -> None:
    first = tool.home()
    assert first.name.startswith("hello-v1.2.3-")
    assert tool.home() == first
    (tool.folder / "go.sum").write_text("example/one v1.2.3 h1:other=\n")
    assert tool.home() != first


def test_a_missing_pin_says_which(tool: build.Tool) -> None:
    (tool.folder / "go.mod").write_text("module example/hello\n")
    with pytest.raises(ClusterError, match="requires no example/one"):
        tool.home()


def fake_go(tmp_path: Path, script: str) -> str:
    path = tmp_path / "go-command"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# Finds the word after -o and makes that file; says so in a log.
COMPILE = 'mkdir -p "$GOCACHE/ab"; while [ "$1" != -o ]; do shift; done; echo built >> {log}; echo binary > "$2"'


def test_two_callers_build_once(tool: build.Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    go = fake_go(tmp_path, COMPILE.format(log=log))
    monkeypatch.setattr(build, "find_go", lambda: go)
    said: list[str] = []
    callers = [threading.Thread(target=build.ensure, args=(tool,), kwargs={"progress": said.append}) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert log.read_text() == "built\n"
    assert tool.binary("hello").read_text() == "binary\n"
    assert not build.compiled().exists()
    assert any("building hello v1.2.3" in line for line in said)


def test_a_failed_build_leaves_no_binary_and_shows_the_compiler(
    tool: build.Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = fake_go(tmp_path, 'echo "undefined: thing" >&2; exit 1')
    monkeypatch.setattr(build, "find_go", lambda: go)
    with pytest.raises(ClusterError, match="undefined: thing"):
        build.ensure(tool, progress=lambda line: None)
    assert not tool.home().exists()


def test_go_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "go").write_text("#!/bin/sh\necho go version go1.19.8 linux/amd64\n")
    (tmp_path / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ClusterError, match=r"go1\.19\.8.*need Go 1\.26"):
        build.find_go()


@pytest.mark.parametrize(
    ("text", "version"),
    [("go version go1.26.8 linux/amd64", (1, 26)), ("go version go1.27rc1 linux/arm64", (1, 27)), ("", (0, 0))],
)
def test_go_version(text: str, version: tuple[int, int]) -> None:
    assert build.parse_go_version(text) == version
