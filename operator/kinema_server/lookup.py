# SPDX-License-Identifier: Apache-2.0
"""Finds a job, and the pod of one of its attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from kinema_api.names import JOB_KIND, LABEL_ATTEMPT, LABEL_JOB_UID, LABEL_STAGE, Stage
from kinema_kube import Kube
from kinema_kube.client import Object
from kinema_kube.resources import PODS, VIDEO_TRAINING_JOBS
from kinema_server.refusal import Refusal

_INDEX = "batch.kubernetes.io/job-completion-index"
_REPLICA_TYPE, _REPLICA_INDEX = "training.kubeflow.org/replica-type", "training.kubeflow.org/replica-index"


async def find_job(kube: Kube, *, namespace: str, name: str) -> Object:
    """A job.

    Raises:
        Refusal: 404, there is none.
    """
    job = await kube.find(VIDEO_TRAINING_JOBS, name, namespace=namespace)
    if job is None:
        raise Refusal(HTTPStatus.NOT_FOUND, f"there is no {JOB_KIND} {name!r} in namespace {namespace!r}")
    return job


def status_of(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """The status of a job; empty before the operator has looked at it."""
    status: Mapping[str, Any] = job.get("status") or {}
    return status


def attempt_of(job: Mapping[str, Any], *, stage: Stage | None, attempt: int | None) -> tuple[str, int]:
    """The stage and the number of an attempt: what is left out is what runs, or ran last.

    Raises:
        Refusal: 404, there is no such attempt.
    """
    status = status_of(job)
    wanted = stage.value if stage is not None else status.get("stage")
    name = job["metadata"]["name"]
    stages = {item["name"]: item for item in status.get("stages") or []}
    numbers = [item["number"] for item in stages.get(wanted, {}).get("attempts") or []]
    if not numbers:
        raise Refusal(HTTPStatus.NOT_FOUND, f"stage {wanted or 'check'} of job {name!r} has not started yet")
    if attempt is not None and attempt not in numbers:
        have = ", ".join(map(str, sorted(numbers)))
        raise Refusal(HTTPStatus.NOT_FOUND, f"stage {wanted} of job {name!r} has no attempt {attempt}; it has {have}")
    return str(wanted), attempt if attempt is not None else max(numbers)


async def find_pod(kube: Kube, job: Mapping[str, Any], *, stage: str, attempt: int, rank: int) -> Object:
    """The pod of an attempt with a rank; the newest, where one took another's place.

    Raises:
        Refusal: 404, there is none, or none any more.
    """
    metadata = job["metadata"]
    labels = {LABEL_JOB_UID: metadata["uid"], LABEL_STAGE: stage, LABEL_ATTEMPT: str(attempt)}
    pods = await kube.list(PODS, namespace=metadata["namespace"], labels=labels)
    mine = [pod for pod in pods if rank_of(pod) == rank]
    if not mine:
        raise Refusal(HTTPStatus.NOT_FOUND, _no_pod(pods, stage=stage, attempt=attempt, rank=rank))
    return max(mine, key=lambda pod: pod["metadata"].get("creationTimestamp") or "")


def rank_of(pod: Mapping[str, Any]) -> int:
    """The place of a pod among those of its attempt: the node's rank, or the worker's index."""
    metadata = pod["metadata"]
    found = {**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}
    if found.get(_REPLICA_TYPE) == "worker":
        return int(found.get(_REPLICA_INDEX) or 0) + 1
    return int(found.get(_INDEX) or 0)


def _no_pod(pods: Sequence[Mapping[str, Any]], *, stage: str, attempt: int, rank: int) -> str:
    what = f"attempt {attempt} of {stage}"
    if not pods:
        return f"{what} has no pod: it is not made yet, or was deleted with its log"
    return f"{what} has no pod of rank {rank}; it has {', '.join(map(str, sorted(map(rank_of, pods))))}"
