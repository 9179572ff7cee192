# SPDX-License-Identifier: Apache-2.0
"""Which attempt a pod may speak for.

The way up is by uid at every step: token -> pod -> Job or PyTorchJob -> VideoTrainingJob. A name alone proves nothing,
since a deleted job's name is free again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from kinema_api import names
from kinema_api.names import Stage
from kinema_kube import Kube, Resource
from kinema_kube.resources import JOBS, PODS, PYTORCH_JOBS, VIDEO_TRAINING_JOBS
from kinema_server.refusal import Refusal, forbidden
from kinema_server.reviews import Identity

POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"

_CHILDREN: Mapping[tuple[str, str], Resource] = {(kind.api_version, kind.kind): kind for kind in (JOBS, PYTORCH_JOBS)}


@dataclass(frozen=True, slots=True)
class Target:
    """The attempt that a post is about."""

    namespace: str
    job: str
    stage: Stage
    attempt: int

    @property
    def child(self) -> str:
        """The name of the child object that runs it."""
        return names.child_name(job=self.job, stage=self.stage, attempt=self.attempt)


async def speaks_for(kube: Kube, identity: Identity, target: Target) -> str:
    """The uid of the job, when the token's pod runs the attempt.

    Raises:
        Refusal: 403, the token belongs to something else; 404, the job is gone.
    """
    if identity.account_namespace != target.namespace:
        raise forbidden(f"the token is not of a service account of namespace {target.namespace!r}")
    pod_name, pod_uid = identity.only(POD_NAME), identity.only(POD_UID)
    if not pod_name or not pod_uid:
        raise forbidden("the token is not bound to a pod")
    pod = await kube.find(PODS, pod_name, namespace=target.namespace)
    if pod is None or pod["metadata"]["uid"] != pod_uid:
        raise forbidden(f"the pod {pod_name!r} that the token is bound to is gone")
    child = await _child(kube, pod, target)
    return await _job(kube, child, target)


async def _child(kube: Kube, pod: Mapping[str, Any], target: Target) -> Mapping[str, Any]:
    owner = _controller(pod) or {}
    resource = _CHILDREN.get((owner.get("apiVersion", ""), owner.get("kind", "")))
    refused = forbidden(f"pod {pod['metadata']['name']!r} does not run {target.child!r}")
    if resource is None or owner["name"] != target.child:
        raise refused
    child = await kube.find(resource, target.child, namespace=target.namespace)
    if child is None or child["metadata"]["uid"] != owner["uid"]:
        raise refused
    return child


async def _job(kube: Kube, child: Mapping[str, Any], target: Target) -> str:
    owner = _controller(child) or {}
    group = owner.get("apiVersion", "").partition("/")[0]
    if (group, owner.get("kind"), owner.get("name")) != (names.GROUP, names.JOB_KIND, target.job):
        raise forbidden(f"{target.child!r} does not belong to {names.JOB_KIND} {target.job!r}")
    job = await kube.find(VIDEO_TRAINING_JOBS, target.job, namespace=target.namespace)
    if job is None:
        raise Refusal(HTTPStatus.NOT_FOUND, f"there is no {names.JOB_KIND} {target.job!r} in {target.namespace!r}")
    uid: str = job["metadata"]["uid"]
    if uid != owner["uid"]:
        raise forbidden(f"{target.child!r} belongs to an earlier {names.JOB_KIND} of the name {target.job!r}")
    return uid


def _controller(obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
    owners = obj["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)
