# SPDX-License-Identifier: Apache-2.0
"""The pod template of an attempt."""

from __future__ import annotations

from typing import Any

from kinema_api.locations import claim_of, mount_path
from kinema_api.mounts import claims, secrets, staged
from kinema_api.names import (
    ANNOTATION_CONFIG,
    ANNOTATION_SERVER_CA,
    CONFIG_DIR,
    CONFIG_PATH,
    CONTAINER,
    ENV_ACCELERATOR,
    ENV_NODE,
    ENV_SCRATCH,
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_JOB_UID,
    LABEL_STAGE,
    MANAGED_BY,
    MANAGER,
    METRICS_PORT,
    PROGRESS_AUDIENCE,
    PROGRESS_DIR,
    SCRATCH_DIR,
    SECRETS_DIR,
    VERSION,
    Stage,
)
from kinema_api.pipeline import grace_seconds
from kinema_api.pool import PoolSpec
from kinema_api.progress import ENV_CA, ENV_TOKEN, ENV_URL
from kinema_api.quantity import times
from kinema_operator.manifests.attempt import AttemptPlan
from kinema_operator.manifests.placement import placement
from kinema_operator.manifests.profiles import collective_env, device_env

Raw = dict[str, Any]

USER = 65532
"""The user of our images."""
TOKEN_SECONDS = 3600
SECRET_MODE = 0o440
"""Readable by the pod's group, which is fsGroup, and by nobody else."""
CPU_STAGE_RESOURCES = {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}}


def labels(plan: AttemptPlan) -> dict[str, str]:
    """The labels of a child and of its pods."""
    return {
        LABEL_JOB: plan.job.name,
        LABEL_JOB_UID: plan.job.uid,
        LABEL_STAGE: plan.stage.value,
        LABEL_ATTEMPT: str(plan.number),
        MANAGED_BY: MANAGER,
    }


def template(plan: AttemptPlan) -> Raw:
    """The pod template: metadata and spec. What makes a stage run wins over the pool, and the pool over the user."""
    pool, added = plan.pool, plan.additions
    annotations = {ANNOTATION_CONFIG: plan.config}
    if plan.platform.server_url:
        annotations[ANNOTATION_SERVER_CA] = plan.platform.server_ca
    return {
        "metadata": {
            "labels": {**added.labels, **(pool.labels if pool else {}), **labels(plan)},
            "annotations": {**added.annotations, **(pool.annotations if pool else {}), **annotations},
        },
        "spec": _spec(plan, pool),
    }


def _spec(plan: AttemptPlan, pool: PoolSpec | None) -> Raw:
    defaults = plan.spec.defaults
    spec: Raw = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds(plan.stage, plan.additions),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(plan, pool)],
        "volumes": _volumes(plan, pool),
    }
    if defaults.service_account_name:
        spec["serviceAccountName"] = defaults.service_account_name
    if defaults.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in defaults.image_pull_secrets]
    return {**spec, **placement(plan, pool)}


def _container(plan: AttemptPlan, pool: PoolSpec | None) -> Raw:
    return {
        "name": CONTAINER,
        "image": plan.resolved.images[plan.stage.value],
        "imagePullPolicy": plan.platform.pull_policy,
        "command": ["kinema-stage", plan.stage.value, "--config", CONFIG_PATH],
        "env": _env(plan, pool),
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}],
        "resources": _resources(plan, pool),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # A stage that was killed wrote no message: the end of its log takes the place.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(plan, pool),
    }


def _env(plan: AttemptPlan, pool: PoolSpec | None) -> list[Raw]:
    """The user's variables, then those of the contract and the pool; a name that both have is not the user's."""
    fixed = _fixed_env(plan, pool)
    taken = {variable["name"] for variable in fixed}
    return [*(variable.wire() for variable in plan.additions.env if variable.name not in taken), *fixed]


def _fixed_env(plan: AttemptPlan, pool: PoolSpec | None) -> list[Raw]:
    env: list[Raw] = [{"name": "HOME", "value": "/tmp"}]
    if staged(plan.spec):
        env.append({"name": ENV_SCRATCH, "value": SCRATCH_DIR})
    if plan.platform.server_url:
        job = plan.job
        path = f"namespaces/{job.namespace}/videotrainingjobs/{job.name}/stages/{plan.stage}/attempts/{plan.number}"
        env += [
            {"name": ENV_URL, "value": f"{plan.platform.server_url}/{VERSION}/{path}/progress"},
            {"name": ENV_CA, "value": f"{PROGRESS_DIR}/ca.crt"},
            {"name": ENV_TOKEN, "value": f"{PROGRESS_DIR}/token"},
        ]
    if pool is not None and plan.devices:
        env.append({"name": ENV_ACCELERATOR, "value": pool.accelerator.value})
        env += device_env(pool)
        if plan.stage is Stage.TRAIN:
            env += collective_env(pool)
            env.append({"name": ENV_NODE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})
    return env


def _resources(plan: AttemptPlan, pool: PoolSpec | None) -> Raw:
    """Requests and limits: memory and devices are limited to what is requested, CPU is never throttled."""
    asked = plan.settings.resources
    if asked is None:
        if pool is None:
            return CPU_STAGE_RESOURCES
        asked = {name: times(value, max(1, plan.devices)) for name, value in pool.per_device.items()}
    requests = dict(asked)
    if pool is not None and plan.devices:
        if pool.device_resource is not None:
            requests[pool.device_resource] = str(plan.devices)
        if plan.stage is Stage.TRAIN and plan.nodes > 1:
            requests.update(pool.fabric.resources)
    limits = {name: value for name, value in requests.items() if name != "cpu"}
    return {kind: values for kind, values in (("requests", requests), ("limits", limits)) if values}


def _volumes(plan: AttemptPlan, pool: PoolSpec | None) -> list[Raw]:
    volumes: list[Raw] = [
        {"name": "config", "downwardAPI": {"items": [_from_annotation(ANNOTATION_CONFIG, "stage.json")]}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if plan.platform.server_url:
        token = {"audience": PROGRESS_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
        ca = {"items": [_from_annotation(ANNOTATION_SERVER_CA, "ca.crt")]}
        sources: list[Raw] = [{"serviceAccountToken": token}, {"downwardAPI": ca}]
        volumes.append({"name": "progress", "projected": {"sources": sources}})
    for number, claim in enumerate(claims(plan.spec)):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    for number, name in enumerate(secrets(plan.spec)):
        # Optional: the stage says in one sentence what is missing, where kubelet would only let the pod wait.
        secret = {"secretName": name, "optional": True, "defaultMode": SECRET_MODE}
        volumes.append({"name": f"secret-{number}", "secret": secret})
    if staged(plan.spec):
        limit = plan.additions.scratch
        volumes.append({"name": "scratch", "emptyDir": {"sizeLimit": limit} if limit else {}})
    if pool is not None and plan.devices:
        if pool.shared_memory:
            volumes.append({"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": pool.shared_memory}})
        volumes += [{"name": f"host-{path.name}", "hostPath": {"path": path.path}} for path in pool.host_paths]
    return volumes


def _mounts(plan: AttemptPlan, pool: PoolSpec | None) -> list[Raw]:
    mounts: list[Raw] = [
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if plan.platform.server_url:
        mounts.append({"name": "progress", "mountPath": PROGRESS_DIR, "readOnly": True})
    workspace = claim_of(plan.spec.storage.uri)
    for number, claim in enumerate(claims(plan.spec)):
        mount: Raw = {"name": f"claim-{number}", "mountPath": mount_path(claim)}
        if workspace is None or claim != workspace.name:
            mount["readOnly"] = True
        mounts.append(mount)
    for number, name in enumerate(secrets(plan.spec)):
        mounts.append({"name": f"secret-{number}", "mountPath": f"{SECRETS_DIR}/{name}", "readOnly": True})
    if staged(plan.spec):
        mounts.append({"name": "scratch", "mountPath": SCRATCH_DIR})
    if pool is not None and plan.devices:
        if pool.shared_memory:
            mounts.append({"name": "dshm", "mountPath": "/dev/shm"})
        mounts += [
            {"name": f"host-{path.name}", "mountPath": path.path, "readOnly": path.read_only}
            for path in pool.host_paths
        ]
    return mounts


def _from_annotation(annotation: str, path: str) -> Raw:
    return {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
