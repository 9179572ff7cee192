# SPDX-License-Identifier: Apache-2.0
"""`kinema gc` in a cluster: a Job of the light stage image frees what no job of the workspace refers to."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kinema_api.garbage import GarbageConfig, GarbageResult
from kinema_api.inputs import Storage
from kinema_api.locations import claim_of, in_container, mount_path
from kinema_api.names import ANNOTATION_CONFIG, CONFIG_DIR, CONFIG_PATH, MANAGED_BY, MANAGER, Stage, run_folder
from kinema_api.status import Phase
from kinema_cli.cluster import MANAGER as WRITER
from kinema_cli.cluster import Where, run
from kinema_cli.errors import CommandError
from kinema_cli.gc import folders_of, result_of, same
from kinema_kube import Kube
from kinema_kube.errors import NotFoundError
from kinema_kube.resources import JOBS, PODS, VIDEO_TRAINING_JOBS

Raw = dict[str, Any]
_USER = 65532
_POLL_SECONDS = 2.0
_PATIENCE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Sharers:
    """What the jobs of a workspace refer to, and how their light pods look."""

    keep: tuple[str, ...]
    image: str | None
    spec: Mapping[str, Any]
    """The spec of the job in the namespace whose account the pod takes; empty where there is none."""


def sharers(jobs: Iterable[Raw], storage: Storage, *, namespace: str) -> Sharers:
    """Read the jobs that share a workspace.

    A claim of the same name in another namespace may be another volume; its jobs protect what they refer to all the
    same, which costs nothing but space.

    Raises:
        CommandError: a job that has not ended does not say yet what it refers to.
    """
    mine = [job for job in jobs if _shares(job, storage)]
    waiting = sorted(_name(job) for job in mine if not _keys(job) and not _ended(job))
    if waiting:
        raise CommandError(
            f"{', '.join(waiting)} may need any artifact and has not said yet which: try again when its check stage is"
            " done, or cancel it",
            code=1,
        )
    keep = {folder for job in mine for folder in (_run(job), *folders_of(_keys(job)))}
    images = [image for job in mine if (image := _resolved(job).get("images", {}).get(Stage.CHECK.value))]
    own = [job["spec"] for job in mine if job["metadata"]["namespace"] == namespace]
    return Sharers(keep=tuple(sorted(keep)), image=images[-1] if images else None, spec=own[-1] if own else {})


def manifest(*, name: str, namespace: str, config: GarbageConfig, image: str, spec: Mapping[str, Any]) -> Raw:
    """The Job that collects.

    Args:
        name: its name.
        namespace: where the workspace's claim lies.
        config: with the workspace as the pod sees it.
        image: the light stage image.
        spec: of the job whose account and pull secrets it takes.

    Raises:
        CommandError: the workspace is not on a claim.
    """
    claim, defaults = config.storage.uri, spec.get("defaults", {})
    found = claim_of(claim)
    if found is None:
        raise CommandError(f"{claim}: this version collects workspaces on volumes only, pvc://CLAIM/PATH")
    inside = config.model_copy(
        update={"storage": config.storage.model_copy(update={"uri": in_container(claim), "secret_ref": None})}
    )
    pod: Raw = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(image, claim=found.name)],
        "volumes": [
            {
                "name": "config",
                "downwardAPI": {
                    "items": [
                        {
                            "path": "stage.json",
                            "fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION_CONFIG}']"},
                        }
                    ]
                },
            },
            {"name": "workspace", "persistentVolumeClaim": {"claimName": found.name}},
        ],
    }
    if account := defaults.get("serviceAccountName"):
        pod["serviceAccountName"] = account
    if secrets := defaults.get("imagePullSecrets"):
        pod["imagePullSecrets"] = [{"name": secret} for secret in secrets]
    labels = {MANAGED_BY: MANAGER}
    annotations = {ANNOTATION_CONFIG: inside.model_dump_json(by_alias=True, exclude_none=True)}
    return {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": 3600,
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod},
        },
    }


def _container(image: str, *, claim: str) -> Raw:
    return {
        "name": "gc",
        "image": image,
        "command": ["python", "-m", "kinema_stage.gc", "--config", CONFIG_PATH],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "workspace", "mountPath": mount_path(claim)},
        ],
    }


def run_there(config: GarbageConfig, where: Where, *, image: str | None) -> GarbageResult:
    """Collect a workspace of the cluster; its jobs are read anew each time.

    Raises:
        CommandError: the cluster cannot be reached, refuses, or the collection failed.
    """
    namespace = where.namespace
    return run(where, lambda kube: _collect(kube, config, namespace=namespace, image=image))


async def _collect(kube: Kube, config: GarbageConfig, *, namespace: str, image: str | None) -> GarbageResult:
    found = sharers(await kube.list(VIDEO_TRAINING_JOBS), config.storage, namespace=namespace)
    chosen = image or found.image
    if chosen is None:
        raise CommandError(f"no job of {config.storage.uri} says which image to use: add --image, the stage image")
    name = f"kinema-gc-{uuid.uuid4().hex[:8]}"
    body = manifest(
        name=name,
        namespace=namespace,
        config=config.model_copy(update={"keep": list(found.keep)}),
        image=chosen,
        spec=found.spec,
    )
    await kube.create(JOBS, body, manager=WRITER)
    try:
        return await _result(kube, name, namespace=namespace)
    finally:
        await kube.delete(JOBS, name, namespace=namespace)


async def _result(kube: Kube, name: str, *, namespace: str) -> GarbageResult:
    due = time.monotonic() + _PATIENCE_SECONDS
    while True:
        status = (await kube.get(JOBS, name, namespace=namespace)).get("status", {})
        if status.get("succeeded") or status.get("failed"):
            break
        if time.monotonic() > due:
            raise CommandError(f"job {namespace}/{name} did not end within {_PATIENCE_SECONDS:.0f} s", code=1)
        await asyncio.sleep(_POLL_SECONDS)
    pods = await kube.list(PODS, namespace=namespace, labels={"job-name": name})
    try:
        path = PODS.path(namespace=namespace, name=pods[0]["metadata"]["name"], subresource="log")
        log = (await kube.raw(path)).decode(errors="replace")
    except (IndexError, NotFoundError):
        raise CommandError(f"the pod of job {namespace}/{name} is gone, and its log with it", code=1) from None
    if status.get("failed"):
        raise CommandError((log.strip().splitlines() or ["its pod failed and left no log"])[-1], code=1)
    return result_of(log)


def _shares(job: Raw, storage: Storage) -> bool:
    return same(Storage.stored(job["spec"]["storage"]), storage)


def _resolved(job: Raw) -> Mapping[str, Any]:
    return job.get("status", {}).get("resolved") or {}


def _keys(job: Raw) -> Mapping[str, str]:
    return _resolved(job).get("keys") or {}


def _ended(job: Raw) -> bool:
    phase = job.get("status", {}).get("phase")
    return phase in set(Phase) and Phase(phase).terminal


def _run(job: Raw) -> str:
    metadata = job["metadata"]
    return run_folder(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])


def _name(job: Raw) -> str:
    return f"{job['metadata']['namespace']}/{job['metadata']['name']}"
