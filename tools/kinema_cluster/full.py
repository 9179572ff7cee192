# SPDX-License-Identifier: Apache-2.0
"""The full cluster: one real node on this machine. `up` brings it about from any state, `down` removes all of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinema_cluster import addons, build, components, images, leftovers, network, packages
from kinema_cluster.api import APPLY, condition
from kinema_cluster.build import Progress
from kinema_cluster.certificates import issue
from kinema_cluster.components import DNS_SERVICE, DOMAIN, NODE, Plane, Ports
from kinema_cluster.dns import resolves
from kinema_cluster.errors import ClusterError
from kinema_cluster.network import ADDRESS
from kinema_cluster.paths import FULL_STATE, MARKER, Layout, cache
from kinema_cluster.record import Record, boot_id, load, locked, write_atomically
from kinema_cluster.supervisor import Supervisor

COMPONENTS = (
    "containerd",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)
TOOLS = (build.KUBERNETES, build.NODE, build.TRAINING_OPERATOR, build.COREDNS)
DEPLOYMENTS = {"coredns": "kube-system", "training-operator": addons.NAMESPACE}
WORKSPACE = "kinema-workspace"


class FullCluster:
    """The one full cluster of the machine, under a state folder."""

    def __init__(self, state: Path = FULL_STATE, *, progress: Progress = print) -> None:
        self.layout = Layout(state.resolve())
        self.plane = Plane(layout=self.layout, host=ADDRESS, ports=Ports(), nodes_are_real=True)
        self.progress = progress

    @property
    def kubeconfig(self) -> Path:
        return self.layout.kubeconfig

    def up(self, *, workspace: Path | None = None) -> None:
        """Have the cluster running and healthy; does nothing where it already is."""
        self._require_root("up")
        packages.ensure(packages.FULL, progress=self.progress)
        build.ensure(*TOOLS, progress=self.progress)
        with locked(MARKER):
            self._claim_machine()
            record = load(self.layout.record)
            if record and not record.living():
                self.progress("clearing what the last cluster left ...")
                self._clear(record)
                record = None
            if record and self.healthy(record):
                self.progress("the cluster is up already")
                return
            self._bring_up(record or self._new_record(workspace))

    def down(self) -> None:
        """Remove the cluster: processes, mounts, links, rules and files; loaded images stay in the cache."""
        self._require_root("down")
        with locked(MARKER):
            record = load(self.layout.record)
            if not record:
                if self.layout.root.exists() and any(self.layout.root.iterdir()):
                    raise ClusterError(f"{self.layout.root} holds files of something else, no cluster.json")
                self.progress("no cluster is up")
                return
            self._clear(record)
            MARKER.unlink(missing_ok=True)

    def healthy(self, record: Record) -> bool:
        """Whether every process lives with the wanted command line and everything answers."""
        living = record.living()
        wanted = self._commands()
        return (
            record.ready
            and record.details.get("addons") == addons.fingerprint(upstream())
            and all(name in living and living[name].argv == tuple(argv) for name, argv in wanted.items())
            and all(state == "ok" for state in self.health().values())
        )

    def health(self) -> dict[str, str]:
        """What answers and what does not: `ok`, or what is wrong."""
        try:
            api = Supervisor(plane=self.plane, record=self._empty_record()).api()
        except FileNotFoundError:
            return {"API server": "has no certificates"}
        if not api.ready():
            return {"API server": "does not answer"}
        found = {"API server": "ok"}
        try:
            node = api.get(f"/api/v1/nodes/{NODE}")
            found[f"node {NODE}"] = "ok" if condition(node, "Ready") else "not Ready"
            for name, namespace in DEPLOYMENTS.items():
                deployment = api.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
                found[name] = "ok" if rolled_out(deployment) else "not available"
            # Its Deployment is available a moment before kube-proxy leads to it, and until then nothing can be created.
            found["webhook"] = addons.webhook_trouble(api) or "ok"
        except OSError as error:
            found["API server"] = str(error)
        name = f"kubernetes.default.svc.{DOMAIN}"
        found["DNS"] = "ok" if resolves(name, server=DNS_SERVICE) else f"{name} does not resolve at {DNS_SERVICE}"
        return found

    def load_image(self, source: str | Path, *, name: str | None = None) -> list[str]:
        """Bring an OCI archive, an OCI folder or an image of buildah's storage into the cluster."""
        self._require_up()
        return images.load(source, socket=self.layout.containerd_socket, store=store(), name=name)

    def add_volume(self, claim: str, *, namespace: str = "default") -> Path:
        """A folder of this machine as a bound ReadWriteMany claim; returns the folder."""
        supervisor = self._require_up()
        path = self.layout.root / "volumes" / namespace / claim
        self._make_shared(path)
        objects = addons.static_volume(name=f"{namespace}-{claim}", claim=claim, namespace=namespace, path=path)
        supervisor.api().apply(objects)
        return path

    def set_resources(self, resources: dict[str, str]) -> None:
        """Advertise extended resources on the node, such as nvidia.com/gpu=8."""
        body = {"status": {"capacity": resources, "allocatable": resources}}
        self._require_up().api().request(
            "PATCH", f"/api/v1/nodes/{NODE}/status", body, content_type="application/merge-patch+json"
        )

    def stop(self, component: str, *, grace: float = 5) -> None:
        """End one component, as a crash would with no grace; pods stay as they are. `start` or `up` brings it back."""
        with locked(MARKER):
            supervisor = self._require_up()
            self._known(component)
            supervisor.stop([component], grace=grace)

    def start(self, component: str) -> None:
        """Start one component again; does nothing where it runs."""
        with locked(MARKER):
            supervisor = self._require_up()
            supervisor.ensure(component, self._known(component))

    def _known(self, component: str) -> Sequence[str]:
        commands = self._commands()
        if component not in commands:
            raise ClusterError(f"no component {component!r}. There are: {', '.join(commands)}")
        return commands[component]

    def _require_root(self, command: str) -> None:
        if os.geteuid() != 0:
            raise ClusterError(f"the full cluster needs root: run `sudo tools/cluster {command}`")

    def _require_up(self) -> Supervisor:
        record = load(self.layout.record)
        if not record or not record.living():
            raise ClusterError("no cluster is up: run `tools/cluster up`")
        return Supervisor(plane=self.plane, record=record)

    def _claim_machine(self) -> None:
        """The machine's one full cluster is this one, or there is none, or it is dead and is cleared."""
        if MARKER.exists():
            other = Path(json.loads(MARKER.read_text())["state"])
            if other != self.layout.root:
                record = load(Layout(other).record)
                if record and record.living():
                    raise ClusterError(
                        f"this machine has a full cluster already, in {other}, and can have only one. Use it "
                        f"(KUBECONFIG={Layout(other).kubeconfig}) or end it: tools/cluster down --state-dir {other}"
                    )
                if record:
                    self.progress(f"clearing what the cluster in {other} left ...")
                    FullCluster(other, progress=self.progress)._clear(record)
        elif not self.layout.record.exists() and network.has_rules():
            raise ClusterError(
                "iptables has chains of another Kubernetes or CNI on this machine (KUBE-* or CNI-*): a second node "
                "would break it. Use that cluster through KUBECONFIG, or remove it first"
            )
        if self.layout.root.exists() and any(self.layout.root.iterdir()) and not self.layout.record.exists():
            raise ClusterError(f"{self.layout.root} holds files of something else: choose another --state-dir")
        write_atomically(MARKER, json.dumps({"state": str(self.layout.root)}), mode=0o644)

    def _empty_record(self) -> Record:
        return Record(path=self.layout.record, kind="full", boot=boot_id())

    def _new_record(self, workspace: Path | None) -> Record:
        record = self._empty_record()
        record.details = {
            "sysctls": network.read_sysctls(),
            "absent": leftovers.absent(),
            "workspace": str(workspace.resolve() if workspace else self.layout.workspace),
        }
        self.layout.root.mkdir(parents=True, exist_ok=True, mode=0o711)
        record.save()
        return record

    def _commands(self) -> dict[str, Sequence[str]]:
        return {
            "containerd": components.containerd(self.plane),
            "etcd": components.etcd(self.plane),
            "kube-apiserver": components.api_server(self.plane),
            "kube-controller-manager": components.controller_manager(self.plane),
            "kube-scheduler": components.scheduler(self.plane),
            "kubelet": components.kubelet(self.plane),
            "kube-proxy": components.kube_proxy(self.plane),
        }

    def _bring_up(self, record: Record) -> None:
        record.ready = False
        record.save()
        supervisor = Supervisor(plane=self.plane, record=record)
        self._write_files(supervisor)
        network.add_address()
        network.write_sysctls({"net/ipv4/ip_forward": "1"})
        self.progress("starting etcd, kube-apiserver and containerd ...")
        supervisor.start_api_server()
        self._start_containerd(supervisor)
        self._load_own_images()
        supervisor.wait_for_api_server()
        self.progress("starting controllers, kubelet and kube-proxy ...")
        supervisor.start_controllers()
        supervisor.ensure("kubelet", components.kubelet(self.plane))
        supervisor.ensure("kube-proxy", components.kube_proxy(self.plane))
        self._apply_addons(supervisor)
        self._wait_until_healthy(supervisor)
        record.details["addons"] = addons.fingerprint(upstream())
        record.ready = True
        record.save()
        self._link_programs()

    def _write_files(self, supervisor: Supervisor) -> None:
        pki = self.layout.pki
        supervisor.make_credentials()
        for identity in components.node_identities(self.plane.host):
            issue(pki, identity)
        for name in ("kubelet", "kube-proxy"):
            supervisor.write_kubeconfig(self.layout.config / f"{name}.kubeconfig", name)
        addons.make_webhook_certificate(pki)
        resolv_conf = "".join(f"nameserver {server}\n" for server in upstream())
        supervisor.write_config("resolv.conf", resolv_conf)
        (self.layout.config / "resolv.conf").chmod(0o644)
        kubelet = components.kubelet_config(self.plane, resolv_conf=str(self.layout.config / "resolv.conf"))
        supervisor.write_config("kubelet.json", kubelet)
        supervisor.write_config("kube-proxy.json", components.kube_proxy_config(self.plane))
        supervisor.write_config("cni/10-kinema.conflist", components.cni_config(self.plane))
        containerd = components.containerd_config(
            self.plane, store=str(store()), pause_image=addons.image_names()["pause"]
        )
        supervisor.write_config("containerd.toml", containerd)
        self._make_shared(Path(supervisor.record.details["workspace"]))

    def _make_shared(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o777)

    def _start_containerd(self, supervisor: Supervisor) -> None:
        first = "containerd" not in supervisor.record.processes
        supervisor.ensure("containerd", components.containerd(self.plane))

        def answers() -> bool:
            with contextlib.suppress(ClusterError):
                images.ctr(self.layout.containerd_socket, "version")
                return True
            return False

        supervisor.wait("containerd did not answer", answers, seconds=60, needs=["containerd"])
        if first:
            remove_containers(self.layout)

    def _load_own_images(self) -> None:
        have = images.loaded(self.layout.containerd_socket)
        for name, image in addons.image_names().items():
            if image not in have:
                archive = self.layout.root / f"{name}.tar"
                addons.write_image(name, archive)
                images.load(archive, socket=self.layout.containerd_socket, store=store())
                archive.unlink()

    def _apply_addons(self, supervisor: Supervisor) -> None:
        api = supervisor.api()
        folder = self.layout.config / "training-operator"
        addons.write_training_operator(folder, pki=self.layout.pki)
        supervisor.wait(
            "the default namespaces were not there",
            lambda: api.get("/api/v1/namespaces/kube-system") is not None,
            seconds=30,
            needs=["kube-apiserver"],
        )
        workspace = Path(supervisor.record.details["workspace"])
        volume = addons.static_volume(name=WORKSPACE, claim=WORKSPACE, namespace="default", path=workspace)
        self.progress("applying CoreDNS, training-operator and the workspace volume ...")
        api.apply([*addons.coredns(upstream()), *volume])
        api.kubectl("apply", *APPLY, "-k", str(folder))

    def _wait_until_healthy(self, supervisor: Supervisor) -> None:
        self.progress("waiting for the node, DNS and training-operator ...")
        last: dict[str, str] = {}

        def settled() -> bool:
            last.update(self.health())
            return all(state == "ok" for state in last.values())

        try:
            supervisor.wait("the cluster was not healthy", settled, seconds=180, needs=COMPONENTS)
        except ClusterError as error:
            wrong = "; ".join(f"{name}: {state}" for name, state in last.items() if state != "ok")
            raise ClusterError(f"{error}\nNot ok: {wrong}") from error

    def _link_programs(self) -> None:
        """`kubectl` under one path for users, whatever its version."""
        link = cache() / "bin" / "kubectl"
        unfinished = link.with_name(f".kubectl.{os.getpid()}")
        unfinished.symlink_to(build.KUBERNETES.binary("kubectl"))
        unfinished.replace(link)

    def _clear(self, record: Record) -> None:
        supervisor = Supervisor(plane=self.plane, record=record)
        supervisor.stop(["kubelet", "kube-proxy", "kube-controller-manager", "kube-scheduler"], grace=2)
        leftovers.kill_containers(self.layout)
        if "containerd" in record.living():
            remove_containers(self.layout)
        # etcd's data is deleted next: nobody need end gracefully.
        supervisor.stop(grace=1)
        leftovers.kill_containers(self.layout)
        leftovers.remove_shim_sockets(self.layout)
        leftovers.unmount([self.layout.root, store()])
        leftovers.remove_cgroups()
        leftovers.remove_links()
        network.clean_rules()
        network.remove_address()
        network.write_sysctls(record.details["sysctls"])
        leftovers.remove_elsewhere(record.details["absent"])
        # containerd's own notes on pods of this cluster lie beside its images.
        for name in ("sandboxes", "containers"):
            shutil.rmtree(store() / "io.containerd.grpc.v1.cri" / name, ignore_errors=True)
        for entry in self.layout.root.iterdir():
            if entry != self.layout.record:
                leftovers.remove(entry)
        # The record goes last: whatever failed before, the next `down` still knows what there is to clear.
        self.layout.record.unlink()
        self.layout.root.rmdir()


def store() -> Path:
    """Where containerd keeps images, also when the cluster is down."""
    return cache() / "containerd"


def rolled_out(deployment: Any) -> bool:
    """Whether the newest generation of a Deployment is what serves."""
    status = (deployment or {}).get("status") or {}
    return (
        condition(deployment, "Available")
        and status.get("observedGeneration") == deployment["metadata"]["generation"]
        and status.get("updatedReplicas", 0) == status.get("replicas", 0) == status.get("readyReplicas", 0)
    )


def upstream() -> list[str]:
    """The host's name servers; behind systemd-resolved those that it asks."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        with contextlib.suppress(FileNotFoundError):
            if servers := addons.upstream_servers(Path(path).read_text()):
                return servers
    return []


def remove_containers(layout: Layout) -> None:
    """Delete every container that containerd knows; their processes are dead already."""
    socket = layout.containerd_socket
    if tasks := images.ctr(socket, "tasks", "list", "--quiet").split():
        with contextlib.suppress(ClusterError):
            images.ctr(socket, "tasks", "delete", "--force", *tasks)
    if containers := images.ctr(socket, "containers", "list", "--quiet").split():
        with contextlib.suppress(ClusterError):
            images.ctr(socket, "containers", "delete", *containers)
