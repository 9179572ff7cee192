# SPDX-License-Identifier: Apache-2.0
"""Carries out a decision: create, write the status, delete, tell.

Every step may be the last one before a crash. Creating twice is creating once, since names follow from the status;
the status is written only if the job is still the one that was decided about; nothing is deleted before the status
that says why.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from kinema_api.names import API_VERSION, JOB_KIND
from kinema_kube import Kube
from kinema_kube.errors import (
    AlreadyExistsError,
    BadRequestError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeError,
    NotFoundError,
    ServerError,
)
from kinema_kube.resources import EVENTS, VIDEO_TRAINING_JOBS
from kinema_operator.observe import RESOURCE_OF
from kinema_operator.observed import ChildKind, Decision, Deletion, Event, EventType, Raw
from kinema_operator.patch import merge_patch
from kinema_operator.status import shorten
from kinema_operator.store import Store, owner_uid, version

log = logging.getLogger(__name__)

MANAGER = "kinema-operator"
"""Field manager, and the source of Events."""
WEBHOOK_AWAY = re.compile(r"failed calling webhook", re.IGNORECASE)
"""How the API server begins to say so, as an internal error."""
PROGRESS = "progress"
"""The one key of the status that is the server's."""


class JobGoneError(Exception):
    """The job, or its namespace, is no more: there is nothing left to do."""


class StaleError(Exception):
    """The job has changed since it was decided about: look again."""


class NameTakenError(Exception):
    """An object of another owner holds the name of a child."""

    def __init__(self, kind: ChildKind, name: str) -> None:
        super().__init__(f"{kind.value} {name} belongs to somebody else")
        self.kind = kind
        self.name = name


class RefusedError(Exception):
    """The API server does not want a child: quota, Pod Security, a webhook, a kind that is not installed."""

    def __init__(self, kind: ChildKind, name: str, why: str) -> None:
        super().__init__(f"{kind.value} {name} cannot be created: {why}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Done:
    """What a decision has changed."""

    created: int
    written: Raw | None
    """The job as it is after its status was written; None when the status was left alone."""
    deferred: bool = False
    """Whether all but the children waits for another look."""

    @property
    def changed(self) -> bool:
        """Whether what was decided from is out of date."""
        return self.created > 0 or self.written is not None


async def execute(*, job: Raw, decision: Decision, kube: Kube, store: Store, defer: bool = False) -> Done:
    """Carry out a decision about a job; what is written goes into the store at once.

    Args:
        job: the job that was decided about.
        decision: what to do.
        kube: the API server.
        store: what is known of it.
        defer: leave all but children to the next look where there are any, as if this one had been broken off there.

    Raises:
        JobGoneError: nothing was left to do.
        StaleError: the job has changed meanwhile.
        NameTakenError: the name of a child is not free.
        RefusedError: the API server does not want a child.
        KubeError: the API server failed.
    """
    created: dict[str, str] = {}
    for body in decision.create:
        created[body["metadata"]["name"]] = await _create(job, body, kube, store)
    if created and defer:
        return Done(created=len(created), written=None, deferred=True)
    written = None
    if decision.status is not None:
        written = await _write(job, _named(decision.status, created), decision.progress, kube, store)
    for deletion in decision.delete:
        await _delete(job, deletion, kube)
    await tell(job=job, events=decision.events, kube=kube)
    if decision.delete_job:
        await _delete_job(job, kube, store)
    return Done(created=len(created), written=written)


def _named(status: Raw, created: Mapping[str, str]) -> Raw:
    """The status with the uids of the children that were created for it, which would else take another write.

    Args:
        status: as it was decided, before the children were there.
        created: uids of children by name.
    """

    def named(attempt: Raw) -> Raw:
        uid = created.get(attempt["child"])
        return attempt | {"uid": uid} if uid and not attempt.get("uid") else attempt

    if not created or "stages" not in status:
        return status
    stages = [
        {**stage, "attempts": [named(attempt) for attempt in stage["attempts"]]} if "attempts" in stage else stage
        for stage in status["stages"]
    ]
    return {**status, "stages": stages}


async def _create(job: Raw, body: Raw, kube: Kube, store: Store) -> str:
    """Create a child, or find it created already; its uid."""
    kind = ChildKind(body["kind"])
    resource = RESOURCE_OF[kind]
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    try:
        child = await kube.create(resource, body, manager=MANAGER)
        log.info("created %s %s", kind.value, name)
    except AlreadyExistsError:
        # Created before a crash or by a request whose answer was lost; or the name is held by a job of the past.
        found = await kube.find(resource, name, namespace=namespace)
        if found is None or owner_uid(found) != job["metadata"]["uid"]:
            raise NameTakenError(kind, name) from None
        if found["metadata"].get("deletionTimestamp"):
            # Of an attempt that was given up before it was written down: its name is free when its pods are gone.
            store.put(resource, found)
            raise StaleError(f"{kind.value} {name} is being deleted") from None
        child = found
    except (ForbiddenError, NotFoundError) as error:
        if _namespace_ends(error):
            raise JobGoneError(f"namespace {namespace} is being deleted") from None
        raise RefusedError(kind, name, error.message) from error
    except (BadRequestError, InvalidError) as error:
        raise RefusedError(kind, name, error.message) from error
    except ServerError as error:
        # A webhook that must be asked and does not answer, such as that of a training-operator which is away.
        if not WEBHOOK_AWAY.search(error.message):
            raise
        raise RefusedError(kind, name, error.message) from error
    store.put(resource, child)
    return str(child["metadata"]["uid"])


def _namespace_ends(error: KubeError) -> bool:
    causes = error.details.get("causes") or ()
    ending = any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
    return ending or (isinstance(error, NotFoundError) and error.details.get("kind") == "namespaces")


async def _write(job: Raw, status: Raw, progress: Raw | None, kube: Kube, store: Store) -> Raw:
    """Write the status, unless the job is no longer the one that was decided about."""
    metadata = job["metadata"]
    held: Raw = job.get("status") or {}
    kept = {} if progress is None or PROGRESS not in held else {PROGRESS: held[PROGRESS]}
    before = {**{key: value for key, value in held.items() if key != PROGRESS}, **kept}
    after = {key: value for key, value in status.items() if key != PROGRESS}
    if progress is not None:
        after[PROGRESS] = progress
    try:
        written = await kube.merge_patch(
            VIDEO_TRAINING_JOBS,
            metadata["name"],
            {"status": merge_patch(before, after)},
            namespace=metadata["namespace"],
            subresource="status",
            resource_version=metadata["resourceVersion"],
            uid=metadata["uid"],
            manager=MANAGER,
        )
    except NotFoundError:
        store.discard(VIDEO_TRAINING_JOBS, metadata["uid"])
        raise JobGoneError(f"job {metadata['name']} is gone") from None
    except ConflictError:
        await refresh(job=job, kube=kube, store=store)
        raise StaleError(f"job {metadata['name']} has changed") from None
    store.put(VIDEO_TRAINING_JOBS, written)
    return written


async def refresh(*, job: Raw, kube: Kube, store: Store) -> None:
    """Ask for the job as it is now, since its watch may lag behind.

    Raises:
        JobGoneError: there is none of that uid.
    """
    metadata = job["metadata"]
    now = await kube.find(VIDEO_TRAINING_JOBS, metadata["name"], namespace=metadata["namespace"])
    if now is None or now["metadata"]["uid"] != metadata["uid"]:
        store.discard(VIDEO_TRAINING_JOBS, metadata["uid"])
        raise JobGoneError(f"job {metadata['name']} is gone")
    if version(now) < version(job):
        # Older than what was known before it was asked for: etcd was restored from a backup.
        store.discard(VIDEO_TRAINING_JOBS, metadata["uid"])
    store.put(VIDEO_TRAINING_JOBS, now)


async def _delete(job: Raw, deletion: Deletion, kube: Kube) -> None:
    try:
        # Foreground: the child stays until its pods are gone, so that nobody takes its end for the end of its pods.
        await kube.delete(
            RESOURCE_OF[deletion.kind],
            deletion.name,
            namespace=job["metadata"]["namespace"],
            propagation="Foreground",
            uid=deletion.uid,
        )
        log.info("deleted %s %s", deletion.kind.value, deletion.name)
    except (NotFoundError, ConflictError):
        log.debug("%s %s is gone already", deletion.kind.value, deletion.name)


async def _delete_job(job: Raw, kube: Kube, store: Store) -> None:
    """Delete the job with all it owns, if nobody has changed it meanwhile."""
    metadata = job["metadata"]
    try:
        await kube.delete(
            VIDEO_TRAINING_JOBS,
            metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            resource_version=metadata["resourceVersion"],
        )
        log.info("deleted the job: its time after the end is over")
    except NotFoundError:
        raise JobGoneError(f"job {metadata['name']} is gone") from None
    except ConflictError:
        await refresh(job=job, kube=kube, store=store)
        raise StaleError(f"job {metadata['name']} has changed") from None


async def tell(*, job: Raw, events: Iterable[Event], kube: Kube) -> None:
    """Post Events about a job. They are news, not state: one that cannot be posted is logged and given up."""
    for event in events:
        level = logging.WARNING if event.type is EventType.WARNING else logging.INFO
        log.log(level, "%s: %s", event.reason, event.message)
        try:
            await kube.create(EVENTS, event_of(job, event, now=datetime.now(UTC)), strict=False)
        except KubeError as error:
            log.warning("the Event %s could not be posted: %s", event.reason, error)


def event_of(job: Raw, event: Event, *, now: datetime) -> Raw:
    """The Event as the API server wants it."""
    metadata = job["metadata"]
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{secrets.token_hex(8)}", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": JOB_KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion", ""),
        },
        "type": event.type.value,
        "reason": event.reason,
        "message": shorten(event.message),
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
