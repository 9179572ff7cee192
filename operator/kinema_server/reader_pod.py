# SPDX-License-Identifier: Apache-2.0
"""The pod that reads a job's workspace: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kinema_api.inputs import Storage
from kinema_api.locations import claim_of, in_container, mount_path
from kinema_api.names import (
    ANNOTATION_CONFIG,
    API_VERSION,
    CONFIG_DIR,
    CONFIG_PATH,
    ENV_SCRATCH,
    JOB_KIND,
    LABEL_JOB,
    MANAGED_BY,
    MANAGER,
    SCRATCH_DIR,
    SECRETS_DIR,
    Stage,
    run_folder,
)
from kinema_api.reading import READER_PORT, ReaderConfig

Raw = dict[str, Any]

ANNOTATION_DIGEST = "kinema.dev/reader-token-digest"
CONTAINER = "reader"
_USER = 65532
_LONGEST_SECONDS = 86_400
"""A reader that somebody asks for ever is made anew once a day."""


class NoReaderError(ValueError):
    """There is nothing to read yet; the message says why."""


def name_of(job: Mapping[str, Any]) -> str:
    """The name of a job's reader; the uid keeps those of jobs of the same name apart."""
    metadata = job["metadata"]
    return f"{metadata['name']}-reader-{metadata['uid'][:8]}"


def manifest(job: Mapping[str, Any], *, digest: str, idle_seconds: int) -> Raw:
    """The pod that reads a job's workspace, with the job's account and volumes, mounted for reading.

    Args:
        job: as it is stored.
        digest: SHA-256 of the token that its requests carry.
        idle_seconds: for how long it waits for the next request.

    Raises:
        NoReaderError: the job has not started.
    """
    metadata, status = job["metadata"], job.get("status") or {}
    image = ((status.get("resolved") or {}).get("images") or {}).get(Stage.CHECK.value)
    if not image:
        raise NoReaderError(f"job {metadata['name']!r} has not started: there is nothing to read yet")
    try:
        storage = Storage.stored(job["spec"]["storage"])
    except ValidationError as error:
        raise NoReaderError(f"job {metadata['name']!r}: its storage cannot be read: {error}") from error
    inside = storage.model_copy(update={"uri": in_container(storage.uri)})
    run = run_folder(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])
    config = ReaderConfig(workspace=inside, run=run, token_digest=digest, idle_seconds=idle_seconds)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name_of(job),
            "namespace": metadata["namespace"],
            # Not the label of the job's uid: by that one the operator finds the pods of attempts.
            "labels": {
                LABEL_JOB: metadata["name"],
                MANAGED_BY: MANAGER,
                "app.kubernetes.io/component": CONTAINER,
            },
            "annotations": {
                ANNOTATION_CONFIG: config.model_dump_json(by_alias=True, exclude_none=True),
                ANNOTATION_DIGEST: digest,
            },
            "ownerReferences": [
                {"apiVersion": API_VERSION, "kind": JOB_KIND, "name": metadata["name"], "uid": metadata["uid"]}
            ],
        },
        "spec": _spec(job["spec"], storage, image=image),
    }


def _spec(spec: Mapping[str, Any], storage: Storage, *, image: str) -> Raw:
    defaults = spec.get("defaults") or {}
    pod: Raw = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": _LONGEST_SECONDS,
        "terminationGracePeriodSeconds": 5,
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
        "containers": [_container(storage, image=image)],
        "volumes": _volumes(storage),
    }
    if account := defaults.get("serviceAccountName"):
        pod["serviceAccountName"] = account
    if secrets := defaults.get("imagePullSecrets"):
        pod["imagePullSecrets"] = [{"name": secret} for secret in secrets]
    return pod


def _container(storage: Storage, *, image: str) -> Raw:
    mounts: list[Raw] = [
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "scratch", "mountPath": SCRATCH_DIR},
    ]
    claim = claim_of(storage.uri)
    if claim is not None:
        mounts.append({"name": "workspace", "mountPath": mount_path(claim.name), "readOnly": True})
    if storage.secret_ref is not None:
        mounts.append({"name": "secret", "mountPath": f"{SECRETS_DIR}/{storage.secret_ref.name}", "readOnly": True})
    return {
        "name": CONTAINER,
        "image": image,
        "command": ["python", "-m", "kinema_stage.reader", "--config", CONFIG_PATH],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": ENV_SCRATCH, "value": SCRATCH_DIR}],
        "ports": [{"name": "http", "containerPort": READER_PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _volumes(storage: Storage) -> list[Raw]:
    annotation = {"fieldPath": f"metadata.annotations['{ANNOTATION_CONFIG}']"}
    volumes: list[Raw] = [
        {"name": "config", "downwardAPI": {"items": [{"path": "stage.json", "fieldRef": annotation}]}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "scratch", "emptyDir": {}},
    ]
    claim = claim_of(storage.uri)
    if claim is not None:
        volumes.append({"name": "workspace", "persistentVolumeClaim": {"claimName": claim.name, "readOnly": True}})
    if storage.secret_ref is not None:
        secret = {"secretName": storage.secret_ref.name, "optional": True, "defaultMode": 0o440}
        volumes.append({"name": "secret", "secret": secret})
    return volumes
