# SPDX-License-Identifier: Apache-2.0
"""The Go programs of the cluster, each built once from its pinned go.mod into the cache."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kinema_cluster.errors import ClusterError
from kinema_cluster.paths import GO_TOOLS, cache

Progress = Callable[[str], None]
GO_MINIMUM = (1, 26)


@dataclass(frozen=True, slots=True)
class Program:
    """One binary of a tool."""

    package: str
    minutes: float
    """About how long a cold build takes on two cores, told to the user who waits."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A folder under tools/go and the programs it builds."""

    name: str
    module: str
    programs: Mapping[str, Program]
    version_variables: tuple[str, ...] = ()
    """Go variables set to the module's version, `v` included."""
    manifests: str = ""
    """A folder of the module that is copied beside the binaries."""
    fixed_version: str = ""
    flags: tuple[str, ...] = field(default=("-mod=readonly", "-trimpath", "-buildvcs=false"))

    @property
    def folder(self) -> Path:
        return GO_TOOLS / self.name

    @property
    def version(self) -> str:
        """The version that go.mod pins, with its `v`."""
        return self.fixed_version or pinned_version((self.folder / "go.mod").read_text(), self.module)

    def ldflags(self) -> str:
        return " ".join(["-s", "-w", *(f"-X {name}={self.version}" for name in self.version_variables)])

    def home(self) -> Path:
        """Where the binaries are; the name changes with every pin, source or flag."""
        return cache() / "bin" / f"{self.name}-{self.version}-{build_key(self)}"

    def binary(self, program: str) -> Path:
        return self.home() / program


KUBERNETES = Tool(
    name="kubernetes",
    module="k8s.io/kubernetes",
    programs={
        "kube-apiserver": Program("k8s.io/kubernetes/cmd/kube-apiserver", 4),
        "kubectl": Program("k8s.io/kubernetes/cmd/kubectl", 0.5),
        "kube-controller-manager": Program("k8s.io/kubernetes/cmd/kube-controller-manager", 1),
        "kube-scheduler": Program("k8s.io/kubernetes/cmd/kube-scheduler", 0.2),
        "kubelet": Program("k8s.io/kubernetes/cmd/kubelet", 0.5),
        "kube-proxy": Program("k8s.io/kubernetes/cmd/kube-proxy", 0.2),
    },
    version_variables=("k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion"),
)
TRAINING_OPERATOR = Tool(
    name="training-operator",
    module="github.com/kubeflow/training-operator",
    programs={"training-operator": Program("github.com/kubeflow/training-operator/cmd/training-operator.v1", 3)},
    manifests="manifests/base",
)
COREDNS = Tool(
    name="coredns",
    module="github.com/coredns/coredns",
    programs={"coredns": Program(".", 1)},
)
KWOK = Tool(
    name="kwok",
    module="sigs.k8s.io/kwok",
    programs={"kwok": Program("sigs.k8s.io/kwok/cmd/kwok", 2)},
    manifests="kustomize/stage",
    version_variables=("sigs.k8s.io/kwok/pkg/consts.Version",),
)
HELM = Tool(
    name="helm",
    module="helm.sh/helm/v3",
    programs={"helm": Program("helm.sh/helm/v3/cmd/helm", 2)},
    version_variables=("helm.sh/helm/v3/internal/version.version",),
)
NODE = Tool(
    name="node",
    module="",
    fixed_version="v1",
    programs={"pause": Program("./pause", 0.1), "waitname": Program("./waitname", 0.1)},
)
TOOLS = {tool.name: tool for tool in (KUBERNETES, NODE, TRAINING_OPERATOR, COREDNS, KWOK, HELM)}


def pinned_version(go_mod: str, module: str) -> str:
    """The version of `module` that the text of a go.mod requires."""
    found = re.search(rf"^(?:require)?\s*{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if not found:
        raise ClusterError(f"go.mod requires no {module}: add it with `go get -tool`")
    return found.group(1)


def build_key(tool: Tool) -> str:
    """Twelve digits over all that decides what a tool's binaries are."""
    digest = hashlib.sha256()
    for path in sorted(tool.folder.rglob("*")):
        if path.is_file() and path.suffix in {".mod", ".sum", ".go"}:
            digest.update(str(path.relative_to(tool.folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update("\0".join([tool.ldflags(), *tool.flags, *sorted(tool.programs), tool.manifests]).encode())
    return digest.hexdigest()[:12]


def environment() -> dict[str, str]:
    """The environment of every `go` command: the user's proxy settings, nothing else that could change a build."""
    dropped = {"GOFLAGS", "GOOS", "GOARCH", "GOEXPERIMENT", "GOBIN", "GOAMD64"}
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return kept | {
        "CGO_ENABLED": "0",
        "GOFLAGS": "",
        "GOWORK": "off",
        "GOCACHE": str(compiled()),
    }


def compiled() -> Path:
    """Go's build cache: gigabytes, that the tools of one build share, and that an interrupted build can use again."""
    return cache() / "go-build"


def parse_go_version(text: str) -> tuple[int, int]:
    """`go version go1.26.8 linux/amd64` is (1, 26)."""
    found = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def find_go() -> str:
    """The `go` command, new enough."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    wanted = ".".join(map(str, GO_MINIMUM))
    if not go:
        raise ClusterError(f"the cluster's programs are built from source: install Go {wanted} or newer (`go` in PATH)")
    text = subprocess.run([go, "version"], capture_output=True, text=True, check=True).stdout
    if parse_go_version(text) < GO_MINIMUM:
        raise ClusterError(f"{go} is {text.split()[2]}: the cluster's programs need Go {wanted} or newer")
    return go


def ensure(*tools: Tool, progress: Progress = print) -> None:
    """Build what the cache lacks of these tools. Two callers at once build once."""
    if all(tool.home().is_dir() for tool in tools):
        return
    with _locked(progress):
        for tool in tools:
            if not tool.home().is_dir():
                _build(tool, progress)
        shutil.rmtree(compiled(), ignore_errors=True)


@contextlib.contextmanager
def _locked(progress: Progress) -> Iterator[None]:
    folder = cache() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(tool: Tool, progress: Progress) -> None:
    go = find_go()
    home = tool.home()
    # Finished programs stay in the partial folder, so that an interrupted build goes on where it was.
    partial = home.with_name(f".{home.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for name, program in tool.programs.items():
        if (partial / name).exists():
            continue
        progress(f"building {name} {tool.version} (about {_minutes(program.minutes)} on two cores, once) ...")
        started = time.monotonic()
        unfinished = partial / f"{name}.unfinished"
        command = [go, "build", *tool.flags, "-ldflags", tool.ldflags(), "-o", str(unfinished), program.package]
        _go(tool, command)
        unfinished.rename(partial / name)
        progress(f"built {name} {tool.version} in {time.monotonic() - started:.0f} s")
    if tool.manifests:
        listed = _go(tool, [go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", tool.module])
        source = Path(listed.strip()) / tool.manifests
        shutil.rmtree(partial / "manifests", ignore_errors=True)
        shutil.copytree(source, partial / "manifests", copy_function=shutil.copyfile)
        for path in [partial / "manifests", *(partial / "manifests").rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    partial.rename(home)


def _go(tool: Tool, command: list[str]) -> str:
    done = subprocess.run(
        ["nice", "-n", "5", *command], cwd=tool.folder, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise ClusterError(f"{' '.join(command)} failed in {tool.folder}:\n{last}")
    return done.stdout


def _minutes(minutes: float) -> str:
    return f"{minutes:g} min" if minutes >= 1 else f"{minutes * 60:.0f} s"
