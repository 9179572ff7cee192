# SPDX-License-Identifier: Apache-2.0
"""Which cluster, and how images and a workspace get there: the local one, or that of KUBECONFIG."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kinema_cluster.build import KUBERNETES, ensure
from kinema_cluster.errors import ClusterError
from kinema_cluster.full import WORKSPACE, FullCluster
from kinema_demo.errors import DemoError
from kinema_demo.install import namespace as namespace_object
from kinema_demo.kubectl import Kubectl
from kinema_demo.steps import Say
from kinema_images import build as image_build
from kinema_images import paths as image_paths
from kinema_images.errors import ImageError

IMAGES = ("control-plane", "stage", "wan2.1")
PYTORCH_JOBS = "pytorchjobs.kubeflow.org"


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster that is up, and the namespace to work in."""

    kubectl: Kubectl
    cluster: FullCluster | None
    """The local one; None for a cluster of the user's."""

    @property
    def local(self) -> bool:
        """Whether it is the local cluster."""
        return self.cluster is not None

    def usage(self, command: str, *, namespace: str | None = None) -> str:
        """How the user types a kubectl command for it."""
        where = namespace or self.kubectl.namespace
        kubectl = "tools/cluster kubectl" if self.local else "kubectl"
        return f"{kubectl} {command}" + ("" if where == "default" else f" -n {where}")


def find(say: Say, *, namespace: str = "default", storage_class: str | None = None, push: str | None = None) -> Target:
    """The cluster of KUBECONFIG if that is set, else the local one, started if need be; with a workspace's claim.

    Raises:
        DemoError: the cluster cannot be used as it is.
    """
    given = os.environ.get("KUBECONFIG")
    local = FullCluster(progress=say)
    if given and given != str(local.kubeconfig):
        if not push:
            raise DemoError(
                f"KUBECONFIG names a cluster of your own ({given}), which pulls images from a registry: name one that"
                " it can read and you can write, `make demo PUSH=registry.example.com/kinema`; or `unset KUBECONFIG`,"
                " and a local cluster is started"
            )
        return _given(given, say, namespace=namespace, storage_class=storage_class)
    local.up()
    kubectl = Kubectl(binary=str(KUBERNETES.binary("kubectl")), kubeconfig=local.kubeconfig, namespace=namespace)
    kubectl.apply(namespace_object(namespace))
    if namespace != "default":
        local.add_volume(WORKSPACE, namespace=namespace)
    return Target(kubectl=kubectl, cluster=local)


def _given(kubeconfig: str, say: Say, *, namespace: str, storage_class: str | None) -> Target:
    if not any(Path(name).is_file() for name in kubeconfig.split(os.pathsep)):
        raise DemoError(f"KUBECONFIG names {kubeconfig}, which is no file")
    binary = shutil.which("kubectl")
    if not binary:
        ensure(KUBERNETES, progress=say)
        binary = str(KUBERNETES.binary("kubectl"))
    kubectl = Kubectl(binary=binary, kubeconfig=Path(kubeconfig), namespace=namespace)
    version = json.loads(kubectl.run("version", "-o", "json"))["serverVersion"]["gitVersion"]
    say(f"Kubernetes {version} of KUBECONFIG")
    if kubectl.attempt("get", "crd", PYTORCH_JOBS).returncode:
        raise DemoError(
            "the cluster has no PyTorchJobs: install Kubeflow's training-operator v1.9.3 first, "
            "https://github.com/kubeflow/training-operator"
        )
    if kubectl.attempt("get", "namespace", namespace).returncode:
        kubectl.apply(namespace_object(namespace))
    if kubectl.get("pvc", WORKSPACE) is None:
        kubectl.apply(_claim(storage_class))
    return Target(kubectl=kubectl, cluster=None)


def _claim(storage_class: str | None) -> dict[str, object]:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "20Gi"}}}
    chosen = {"storageClassName": storage_class} if storage_class else {}
    metadata = {"name": WORKSPACE}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": {**spec, **chosen}}


def images(target: Target, say: Say, *, push: str | None = None) -> Mapping[str, str]:
    """Build what is out of date and bring it to the cluster; references by the names of images/.

    Raises:
        DemoError: an image cannot be built.
    """
    try:
        built = image_build.build(image_build.Order(names=IMAGES, push=push), say=say)
        if target.cluster is None:
            # By content: under a tag that stays, nodes would keep what they pulled before.
            return {name: f"{push}/{name}:{built[name].reference.rpartition(':')[2]}" for name in IMAGES}
        say("loading them into the cluster")
        target.cluster.load_image(image_paths.layout())
    except (ImageError, ClusterError) as error:
        raise DemoError(str(error)) from error
    return {name: built[name].reference for name in IMAGES}
