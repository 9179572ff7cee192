# SPDX-License-Identifier: Apache-2.0
"""From the store, and where that is not enough from the API server, to what `decide` sees."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from kinema_api.names import CONTAINER, LABEL_ATTEMPT, LABEL_JOB_UID, LABEL_STAGE, Stage
from kinema_api.pipeline import stage_settings
from kinema_api.pool import PoolSpec
from kinema_api.settings import Stages
from kinema_api.status import Attempt, AttemptState, JobStatus, StageStatus
from kinema_kube import Kube, Resource
from kinema_kube.errors import ForbiddenError, KubeError, NotFoundError
from kinema_kube.resources import EVENTS, JOBS, PODS, PYTORCH_JOBS
from kinema_operator.observed import Child, ChildKind, Observed, Raw
from kinema_operator.pods import condition, end_of, log_time, silent, time_of, waiting_of
from kinema_operator.sighting import Sighting
from kinema_operator.stall import limit_of, moved_at, progress_of
from kinema_operator.status import read_progress, read_status
from kinema_operator.store import Store, owner_uid, slim

log = logging.getLogger(__name__)

RESOURCE_OF: Mapping[ChildKind, Resource] = {ChildKind.JOB: JOBS, ChildKind.PYTORCH_JOB: PYTORCH_JOBS}
KIND_OF: Mapping[Resource, ChildKind] = {resource: kind for kind, resource in RESOURCE_OF.items()}

_SUCCESS: Mapping[Resource, str] = {JOBS: "Complete", PYTORCH_JOBS: "Succeeded"}
"""The condition by which a kind says that it has ended well."""

PATIENCE = 20.0
"""Seconds that a child may be without a running pod before somebody asks why."""
UNHEARD = 60.0
"""Seconds after which a PyTorchJob without any status has nobody who looks at it."""
LOOK_AGAIN = (15.0, 120.0)
"""Seconds between two questions: a quarter of the child's age, within these bounds."""


@dataclass(frozen=True, slots=True)
class View:
    """What was observed, and when a child that waits should be looked at again."""

    observed: Observed
    look_again: float | None = None


async def observe(
    *,
    job: Raw,
    store: Store,
    kube: Kube,
    foreign: Collection[str],
    now: datetime,
    pushed: Sighting,
    doubt: bool = False,
) -> View:
    """Everything about one job at one moment.

    Args:
        job: the job.
        store: what the watches have seen.
        kube: for what the watches cannot tell: pods, and children that should be there.
        foreign: names of children that objects of other owners hold.
        now: the time.
        pushed: remembers, from one look at this job to the next, which progress was pushed last.
        doubt: a child may have been created that the status does not know of; should it be gone again, only its pods
            can tell.

    Raises:
        KubeError: the API server does not answer.
    """
    raw = store.children(job["metadata"]["uid"])
    raw += await _missing(job, {item["metadata"]["name"] for _, item in raw}, store, kube)
    status = read_status(job)
    recorded = _recorded(status)
    children: list[Child] = []
    again: list[float] = []
    for resource, item in raw:
        child = child_of(resource, item)
        if child is None:
            continue
        if child.finished:
            if (child.stage, child.attempt) not in recorded:
                child = replace(child, pods=tuple(end_of(pod) for pod in await _pods(kube, item, child)))
        elif child.running:
            child = replace(child, last_log=await _last_log(kube, job, status, item, child, now, pushed))
        elif not child.deleting:
            age = max(0.0, (now - child.created_at).total_seconds())
            if age >= PATIENCE:
                child = replace(child, waiting=await _waiting(kube, resource, item, child, age))
            again.append(PATIENCE - age if age < PATIENCE else min(max(age / 4, LOOK_AGAIN[0]), LOOK_AGAIN[1]))
        children.append(child)
    observed = Observed(
        children=tuple(children),
        foreign=frozenset(foreign),
        stray_pods=await _stray(job, status, kube, alive={child.uid for child in children}, doubt=doubt),
        pools=pools_of(store),
    )
    return View(observed=observed, look_again=min(again, default=None))


def child_of(resource: Resource, item: Raw) -> Child | None:
    """A child as `decide` sees it; None when somebody has taken its labels away."""
    metadata: Raw = item["metadata"]
    labels: Raw = metadata.get("labels") or {}
    try:
        stage, attempt = Stage(labels.get(LABEL_STAGE, "")), int(labels.get(LABEL_ATTEMPT, ""))
    except ValueError:
        log.warning(
            "%s %s/%s: labels %s and %s are broken; it is left alone",
            resource.kind, metadata.get("namespace"), metadata["name"], LABEL_STAGE, LABEL_ATTEMPT,
        )  # fmt: skip
        return None
    succeeded, failed = condition(item, _SUCCESS[resource]), condition(item, "Failed")
    return Child(
        kind=KIND_OF[resource],
        name=metadata["name"],
        uid=metadata["uid"],
        stage=stage,
        attempt=attempt,
        created_at=time_of(metadata.get("creationTimestamp")) or datetime.now(UTC),
        finished=bool(succeeded or failed),
        succeeded=bool(succeeded) and not failed,
        deleting=bool(metadata.get("deletionTimestamp")),
        message=str((failed or succeeded).get("message") or ""),
        running=runs(resource, item),
        queued=_suspended(item),
    )


def finished(resource: Resource, item: Raw) -> bool:
    """Whether a child has ended."""
    return bool(condition(item, _SUCCESS[resource]) or condition(item, "Failed"))


def _suspended(item: Raw) -> bool:
    """Whether a queue holds a child back."""
    spec: Raw = item.get("spec") or {}
    return bool(spec.get("suspend") or (spec.get("runPolicy") or {}).get("suspend"))


def runs(resource: Resource, item: Raw) -> bool:
    """Whether a child gets on: one pod of a Job runs, all pods of a gang run."""
    status: Raw = item.get("status") or {}
    if resource is JOBS:
        return bool(status.get("ready"))
    spec: Raw = (item.get("spec") or {}).get("pytorchReplicaSpecs") or {}
    counts: Raw = status.get("replicaStatuses") or {}
    # training-operator counts pods in phase Running as active, and a finished pod needs no waiting for.
    return bool(spec) and all(
        sum((counts.get(role) or {}).get(state) or 0 for state in ("active", "succeeded")) >= want.get("replicas", 1)
        for role, want in spec.items()
    )


def pools_of(store: Store) -> dict[str, PoolSpec]:
    """Every pool that this version understands."""
    found: dict[str, PoolSpec] = {}
    for name, pool in store.pools().items():
        try:
            found[name] = PoolSpec.model_validate(pool.get("spec") or {})
        except ValidationError as error:
            log.warning("TrainingPool %s is left out: %s", name, error)
    return found


def _attempts(job: Raw) -> Iterator[tuple[Stage, Raw]]:
    for stage in (job.get("status") or {}).get("stages") or ():
        for attempt in stage.get("attempts") or ():
            yield Stage(stage["name"]), attempt


def _recorded(status: JobStatus) -> set[tuple[Stage, int]]:
    """Attempts whose end is in the status."""
    return {
        (stage.name, attempt.number)
        for stage in status.stages
        for attempt in stage.attempts
        if attempt.state is not AttemptState.RUNNING
    }


async def _missing(job: Raw, present: set[str], store: Store, kube: Kube) -> list[tuple[Resource, Raw]]:
    """Children that the status calls running and that the store lacks: asked for, since a watch may lag behind."""
    found = []
    for stage, attempt in _attempts(job):
        if attempt.get("state") != "Running" or attempt["child"] in present:
            continue
        resource = PYTORCH_JOBS if stage is Stage.TRAIN else JOBS
        item = await kube.find(resource, attempt["child"], namespace=job["metadata"]["namespace"])
        if item is not None and owner_uid(item) == job["metadata"]["uid"]:
            store.put(resource, item)
            found.append((resource, slim(resource, item)))
    return found


async def _stray(job: Raw, status: JobStatus, kube: Kube, *, alive: Collection[str], doubt: bool) -> bool:
    """Whether pods run that stand in the way of the next attempt: of one that is over, or of a child that is gone.

    Asked only where there can be any: after a failure or a stop, and in doubt.
    """
    current = next((stage for stage in status.stages if not stage.state.done), None)
    last = current.attempts[-1] if current is not None and current.attempts else None
    over = last is not None and last.state in (AttemptState.FAILED, AttemptState.STOPPED)
    if status.phase.terminal or not (over or doubt):
        return False
    labels = {LABEL_JOB_UID: job["metadata"]["uid"]}
    if current is not None and not doubt:
        labels[LABEL_STAGE] = current.name.value
    pods = await kube.list(PODS, namespace=job["metadata"]["namespace"], labels=labels)
    # A newer attempt than the last known one was made, but the status could not be written: with its child it is none.
    return any(end_of(pod).live and (_older(pod, current, last) or not _owned(pod, alive)) for pod in pods)


def _older(pod: Raw, current: StageStatus | None, last: Attempt | None) -> bool:
    """Whether a pod is of an attempt of the current stage that is over."""
    if current is None or last is None or last.state not in (AttemptState.FAILED, AttemptState.STOPPED):
        return False
    label = (pod["metadata"].get("labels") or {}).get(LABEL_STAGE)
    return label == current.name.value and _number(pod) <= last.number


def _owned(pod: Raw, alive: Collection[str]) -> bool:
    return any(owner.get("uid") in alive for owner in pod["metadata"].get("ownerReferences") or ())


def _number(pod: Raw) -> int:
    label = str((pod["metadata"].get("labels") or {}).get(LABEL_ATTEMPT, ""))
    return int(label) if label.isdecimal() else 0


async def _last_log(
    kube: Kube, job: Raw, status: JobStatus, item: Raw, child: Child, now: datetime, sighting: Sighting
) -> datetime | None:
    """The newest log line of a child's pods; None when it need not be known yet, or may not be.

    Never longer ago than we have seen the pushed progress stand still ourselves: what is old by the clock alone may be
    the work of a clock that was moved.
    """
    stage = next((stage for stage in status.stages if stage.name is child.stage), None)
    attempt = next((a for a in stage.attempts if a.number == child.attempt), None) if stage is not None else None
    if attempt is None or status.resolved is None:
        return None
    progress = progress_of(attempt, child.stage, read_progress(job))
    pushed = moved_at(attempt, progress)
    still = sighting.age((child.uid, progress and progress.updated_at))
    limit = limit_of(stage_settings(Stages.stored(status.resolved.stages), child.stage), progress)
    if pushed is None or (now - pushed).total_seconds() < limit:
        return None
    newest: list[datetime] = []
    for pod in await _pods(kube, item, child):
        metadata = pod["metadata"]
        try:
            text = await kube.log(metadata["name"], namespace=metadata["namespace"], container=CONTAINER)
        except KubeError as error:
            # Also a 500, or no answer in time: the API server asks the kubelet of a node that may be gone.
            log.warning("pod %s: its log cannot be read, so that a stall cannot be told: %s", metadata["name"], error)
            return None
        written = log_time(text)
        if written is not None:
            newest.append(written)
    return max(*newest, now - timedelta(seconds=still)) if newest else None


async def _pods(kube: Kube, item: Raw, child: Child) -> list[Raw]:
    """The pods of a child, by name."""
    labels = item["metadata"].get("labels") or {}
    selector = {key: labels[key] for key in (LABEL_JOB_UID, LABEL_STAGE, LABEL_ATTEMPT)}
    pods = await kube.list(PODS, namespace=item["metadata"]["namespace"], labels=selector)
    return sorted(
        (
            pod
            for pod in pods
            if any(owner.get("uid") == child.uid for owner in pod["metadata"].get("ownerReferences") or ())
        ),
        key=lambda pod: str(pod["metadata"]["name"]),
    )


async def _waiting(kube: Kube, resource: Resource, item: Raw, child: Child, age: float) -> str:
    """Why not all pods of a child run."""
    if child.queued:
        return f"Queued: {child.kind.value} {child.name} is suspended until its queue admits it"
    pods = await _pods(kube, item, child)
    said = waiting_of(pods)
    quiet = silent(pods)
    if said and quiet is None:
        return said
    # Pods are missing, or only say that they start: Events say why (quota, Pod Security, a webhook, volumes).
    told = await _warning(kube, item, child.uid if quiet is None else quiet["metadata"].get("uid", ""))
    if told:
        return told if quiet is None else f"{quiet['metadata']['name']}: {told}"
    if resource is PYTORCH_JOBS and age >= UNHEARD and not pods and not (item.get("status") or {}).get("conditions"):
        return f"NoStatus: nobody has looked at PyTorchJob {child.name}"
    return said or ("" if pods else "no pod yet")


async def _warning(kube: Kube, item: Raw, uid: str) -> str:
    """The newest warning about an object; empty when there is none or it may not be read."""
    selector = f"involvedObject.uid={uid},type=Warning"
    try:
        events = await kube.list(EVENTS, namespace=item["metadata"]["namespace"], fields=selector)
    except (ForbiddenError, NotFoundError) as error:
        log.warning(
            "why %s waits is not known in full, since Events cannot be read: %s", item["metadata"]["name"], error
        )
        return ""
    events.sort(key=lambda event: str(event.get("lastTimestamp") or event["metadata"].get("creationTimestamp") or ""))
    last = events[-1] if events else {}
    return " ".join(f"{last.get('reason', '')}: {last.get('message', '')}".split())[:512] if last else ""
