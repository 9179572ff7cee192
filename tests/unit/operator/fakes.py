# SPDX-License-Identifier: Apache-2.0
"""An API server in memory: versions, uids, preconditions and merge patches as the real one has them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from kinema_api.names import LABEL_ATTEMPT, LABEL_JOB_UID, LABEL_STAGE
from kinema_kube import Kube, Page, Resource
from kinema_kube.errors import AlreadyExistsError, ConflictError, KubeError, NotFoundError
from kinema_kube.resources import PODS

Raw = dict[str, Any]


class FakeKube:
    """Objects by resource, namespace and name; every call is kept in `calls`."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str | None, str], Raw] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.trouble: dict[tuple[str, str], list[KubeError]] = {}
        """Errors to raise, by verb and plural, one a call."""
        self.logs: dict[str, str] = {}
        """What the container of each pod wrote."""
        self.before_page: Callable[[Resource, str], None] = lambda resource, token: None
        self.page_size = 0
        self._versions = itertools.count(100)

    @property
    def kube(self) -> Kube:
        return cast(Kube, self)

    def put(self, resource: Resource, item: Raw) -> Raw:
        """Place an object as if somebody else had written it."""
        kept = copy.deepcopy(item)
        metadata = kept["metadata"]
        metadata.setdefault("uid", f"uid-{metadata['name']}")
        metadata["resourceVersion"] = str(next(self._versions))
        self.objects[self._key(resource, metadata.get("namespace"), metadata["name"])] = kept
        return copy.deepcopy(kept)

    def verbs(self, plural: str = "") -> list[str]:
        return [verb for verb, resource, _ in self.calls if not plural or resource == plural]

    async def find(self, resource: Resource, name: str, *, namespace: str | None = None) -> Raw | None:
        self._call("get", resource, name)
        return copy.deepcopy(self.objects.get(self._key(resource, namespace, name)))

    async def list(
        self, resource: Resource, *, namespace: str | None = None, labels: Any = "", fields: str = ""
    ) -> Any:
        self._call("list", resource, "")
        return [copy.deepcopy(item) for item in self._select(resource, namespace, labels)]

    async def page(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: Any = "",
        limit: int = 500,
        token: str = "",
    ) -> Page:
        self.before_page(resource, token)
        self._call("list", resource, token)
        found = self._select(resource, namespace, labels)
        version = token.split("/")[1] if token else str(next(self._versions))
        start = int(token.split("/")[0]) if token else 0
        size = self.page_size if self.page_size and limit else max(1, len(found))
        end = start + size
        return Page(
            items=copy.deepcopy(found[start:end]),
            token=f"{end}/{version}" if end < len(found) else "",
            remaining=None,
            resource_version=version,
        )

    async def create(self, resource: Resource, body: Raw, **_: Any) -> Raw:
        name, namespace = body["metadata"]["name"], body["metadata"].get("namespace")
        self._call("create", resource, name)
        if self._key(resource, namespace, name) in self.objects:
            raise AlreadyExistsError(f"{resource.plural} {name!r} already exists", status=409)
        return self.put(resource, body)

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        patch: Raw,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        resource_version: str | None = None,
        uid: str | None = None,
        manager: str = "",
    ) -> Raw:
        self._call("patch", resource, name)
        key = self._key(resource, namespace, name)
        if key not in self.objects:
            raise NotFoundError(f"{resource.plural} {name!r} not found", status=404)
        held = self.objects[key]
        if resource_version not in (None, held["metadata"]["resourceVersion"]) or uid not in (
            None,
            held["metadata"]["uid"],
        ):
            raise ConflictError("the object has been modified", status=409)
        return self.put(resource, merged(held, patch))

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        propagation: str = "Background",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> None:
        self._call("delete", resource, name)
        key = self._key(resource, namespace, name)
        if key not in self.objects:
            raise NotFoundError(f"{resource.plural} {name!r} not found", status=404)
        if uid not in (None, self.objects[key]["metadata"]["uid"]):
            raise ConflictError("the UID in the precondition does not match", status=409)
        if resource_version not in (None, self.objects[key]["metadata"]["resourceVersion"]):
            raise ConflictError("the ResourceVersion in the precondition does not match", status=409)
        del self.objects[key]

    async def log(self, pod: str, *, namespace: str, container: str, lines: int = 1) -> str:
        self._call("get", replace(PODS, plural="pods/log"), pod)
        return self.logs.get(pod, "")

    def _select(self, resource: Resource, namespace: str | None, labels: Any) -> Any:
        wanted = labels if isinstance(labels, dict) else {}
        exists = labels if isinstance(labels, str) else ""
        return [
            item
            for (plural, where, _), item in sorted(self.objects.items(), key=lambda entry: str(entry[0]))
            if plural == resource.plural
            and namespace in (None, where)
            and wanted.items() <= (item["metadata"].get("labels") or {}).items()
            and (not exists or exists in (item["metadata"].get("labels") or {}))
        ]

    def _call(self, verb: str, resource: Resource, name: str) -> None:
        self.calls.append((verb, resource.plural, name))
        waiting = self.trouble.get((verb, resource.plural))
        if waiting:
            raise waiting.pop(0)

    @staticmethod
    def _key(resource: Resource, namespace: str | None, name: str) -> tuple[str, str | None, str]:
        return resource.plural, namespace if resource.namespaced else None, name


def merged(target: Raw, patch: Raw) -> Raw:
    """RFC 7396."""
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result


def job(name: str = "wan", *, uid: str = "u-1", version: int = 10, status: Raw | None = None) -> Raw:
    """A VideoTrainingJob as the API server returns it."""
    return {
        "apiVersion": "kinema.dev/v1alpha1",
        "kind": "VideoTrainingJob",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": uid,
            "generation": 1,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-11-01T10:00:00Z",
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {
            "model": {"name": "wan2.1-tiny", "weights": {"uri": "pvc://ws/weights"}},
            "dataset": {"uri": "pvc://ws/videos"},
            "storage": {"uri": "pvc://ws/kinema"},
            "defaults": {"pool": "cpu"},
        },
        **({"status": status} if status is not None else {}),
    }


def pool(name: str = "cpu") -> Raw:
    """A TrainingPool."""
    return {
        "apiVersion": "kinema.dev/v1alpha1",
        "kind": "TrainingPool",
        "metadata": {"name": name, "uid": f"pool-{name}", "resourceVersion": "5"},
        "spec": {"accelerator": "cpu", "devicesPerNode": 2, "nodes": 4},
    }


def child(
    name: str = "wan-check-1",
    *,
    uid: str = "c-1",
    owner: str = "u-1",
    stage: str = "check",
    attempt: int = 1,
    version: int = 20,
    kind: str = "Job",
    created: str = "2026-11-01T10:00:00Z",
    status: Raw | None = None,
) -> Raw:
    """A Job or PyTorchJob that a job owns."""
    pods = {"metadata": {"annotations": {"kinema.dev/stage-config": "{}" * 100}}}
    spec: Raw = (
        {"parallelism": 1, "completions": 1, "template": pods}
        if kind == "Job"
        else {
            "pytorchReplicaSpecs": {
                "Master": {"replicas": 1, "template": pods},
                "Worker": {"replicas": 2, "template": pods},
            }
        }
    )
    return {
        "apiVersion": "batch/v1" if kind == "Job" else "kubeflow.org/v1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": created,
            "labels": {LABEL_JOB_UID: owner, LABEL_STAGE: stage, LABEL_ATTEMPT: str(attempt)},
            "ownerReferences": [
                {"kind": "VideoTrainingJob", "name": "wan", "uid": owner, "controller": True},
            ],
        },
        "spec": spec,
        "status": status or {},
    }


def running(stage: str = "check", *, number: int = 1, uid: str = "c-1", state: str = "Running") -> Raw:
    """A status in which an attempt of a stage is as said."""
    attempt: Raw = {
        "number": number,
        "child": f"wan-{stage}-{number}",
        "uid": uid,
        "state": state,
        "startedAt": "2026-11-01T10:00:00Z",
    }
    return {"phase": "Running", "stages": [{"name": stage, "state": "Running", "attempts": [attempt]}]}
