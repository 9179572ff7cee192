# SPDX-License-Identifier: Apache-2.0
"""What `decide` sees and what it answers: frozen data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from kinema_api.exits import Termination
from kinema_api.names import Stage
from kinema_api.pool import PoolSpec

Raw = dict[str, Any]
"""An object of the Kubernetes API as JSON data."""


class ChildKind(Enum):
    """The kinds of child that carry an attempt."""

    JOB = "Job"
    PYTORCH_JOB = "PyTorchJob"


@dataclass(frozen=True, slots=True)
class PodEnd:
    """How one pod of an attempt stands, seen when its child has ended."""

    name: str
    node: str
    live: bool
    """A container may still run: the pod is neither Succeeded nor Failed, and not gone."""
    failed: bool
    exit_code: int | None
    """Of the stage's container; None when it never ran."""
    reason: str
    """OOMKilled, Error, Evicted, NodeLost, ... or empty."""
    message: str
    """What Kubernetes says about the pod, not the container."""
    finished_at: datetime | None
    termination: Termination | None
    """What the container left in its termination log; None when it left nothing readable."""
    started_at: datetime | None = None
    """When the stage's container started."""
    init: str = ""
    """The init container that failed."""
    log_tail: str = ""
    """The last lines of the container's log, when it failed."""


@dataclass(frozen=True, slots=True)
class Child:
    """A Job or PyTorchJob that the job's uid owns."""

    kind: ChildKind
    name: str
    uid: str
    stage: Stage
    attempt: int
    created_at: datetime
    finished: bool
    succeeded: bool
    deleting: bool
    message: str = ""
    """What the child's own controller says of its end."""
    running: bool = False
    """All pods that it needs run."""
    queued: bool = False
    """A queue holds it back: it is suspended, and has no pods."""
    last_log: datetime | None = None
    """The newest log line of its pods; looked for only when its pushed progress is old. None: unknown."""
    pods: tuple[PodEnd, ...] = ()
    """Listed only when the child has ended and its end is not in the status yet."""
    waiting: str = ""
    """Why no pod of it runs, when it waits for long: the scheduler's or kubelet's sentence."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything about one job at one moment."""

    children: tuple[Child, ...]
    """Complete: a child that the status calls running and that is not here does not exist."""
    foreign: frozenset[str] = frozenset()
    """Names that the next children need and that objects of other owners still hold."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Names of children that the API server refused when they were last tried, and why."""
    denied: str = ""
    """A right that the operator lacked when it looked last, in the words of the API server."""
    stray_pods: bool = False
    """Pods of an attempt that is over still run, or of a child that is gone."""
    pools: Mapping[str, PoolSpec] = field(default_factory=dict)
    """Every pool of the cluster."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What the operator's settings say; the same for every job."""

    images: Mapping[str, str]
    """`stage`, and `<family>/<accelerator>`."""
    server_url: str
    """Root of the server's address, for instance https://kinema-server.kinema-system.svc; empty: no progress."""
    server_ca: str
    """PEM certificates that sign the server."""
    pull_policy: str = "IfNotPresent"


class EventType(Enum):
    """The two kinds of Kubernetes Events."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Event:
    """One Event about the job."""

    type: EventType
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Deletion:
    """A child to delete, by uid, so that nothing newer of the same name is hit."""

    kind: ChildKind
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one job, in this order: create, write the status, delete, the job last."""

    create: tuple[Raw, ...] = ()
    """Children that must exist. One that exists already under this owner is as it should be."""
    status: Raw | None = None
    """The whole status but `progress`; None when it already says so."""
    progress: Raw | None = None
    """The progress of a stage that begins, written with the status; None leaves it to the server."""
    delete: tuple[Deletion, ...] = ()
    """Children that must go."""
    delete_job: bool = False
    """The job itself must go, if it is still exactly the one that was decided about."""
    events: tuple[Event, ...] = ()
    """What to tell, once the status is written."""
    requeue_after: float | None = None
    """Seconds after which to look again without being told."""
