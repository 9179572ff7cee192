# SPDX-License-Identifier: Apache-2.0
"""What the watches have seen: jobs by uid, their children by owner, pools by name.

Events and full lists arrive independently, and an object that we wrote ourselves is put here before its event comes.
Resource versions of one resource grow (Kubernetes guarantees their order since 1.35, and etcd always has), so that an
older sight never replaces a newer one.

Objects are kept as compressed JSON: as Python's own objects a thousand idle jobs would take more memory than the rest
of the operator.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kinema_api.names import ANNOTATION_CONFIG, ANNOTATION_SERVER_CA
from kinema_kube.resources import JOBS, PYTORCH_JOBS, TRAINING_POOLS, VIDEO_TRAINING_JOBS, Resource
from kinema_operator.observed import Raw
from kinema_operator.status import parse_time

WATCHED = (VIDEO_TRAINING_JOBS, TRAINING_POOLS, JOBS, PYTORCH_JOBS)
CHILDREN = (JOBS, PYTORCH_JOBS)

_HEAVY_ANNOTATIONS = (ANNOTATION_CONFIG, ANNOTATION_SERVER_CA, "kubectl.kubernetes.io/last-applied-configuration")


@dataclass(frozen=True, slots=True)
class Kept:
    """One object."""

    version: int
    essence: bytes
    """A digest of what can decide something."""
    owner: str
    """Uid of the job that controls it; empty when none does."""
    phase: str
    """Of a job; empty before its first status."""
    finished: str
    """When a job ended; empty while it has not."""
    resolved: bool
    """Whether what a job depends on is frozen."""
    packed: bytes

    @classmethod
    def of(cls, item: Raw) -> Kept:
        """Pack an object."""
        status: Raw = item.get("status") or {}
        return cls(
            version=version(item),
            essence=hashlib.blake2b(_json(essence(item)), digest_size=16).digest(),
            owner=owner_uid(item),
            phase=sys.intern(str(status.get("phase") or "")),
            finished=str(status.get("finishedAt") or ""),
            resolved=bool(status.get("resolved")),
            packed=zlib.compress(_json(item), 1),
        )

    def item(self) -> Raw:
        """The object, new at each call."""
        found: Raw = json.loads(zlib.decompress(self.packed))
        return found


def _json(item: Raw) -> bytes:
    return json.dumps(item, separators=(",", ":"), sort_keys=True).encode()


class Store:
    """Every object that matters, as it was seen last."""

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[str, Kept]] = {resource: {} for resource in WATCHED}
        self._owned: dict[str, dict[str, Resource]] = {}
        self._gone: set[str] | None = None
        """Uids deleted since a list began; None while none is under way."""
        self._known: dict[Resource, int] = {}
        """The newest version that was known of each when the list began."""

    def job(self, uid: str) -> Raw | None:
        """A job; None when it does not exist, as far as is known."""
        kept = self._objects[VIDEO_TRAINING_JOBS].get(uid)
        return kept.item() if kept is not None else None

    def jobs(self) -> Iterator[Raw]:
        """Every job; the store may change meanwhile."""
        for kept in list(self._objects[VIDEO_TRAINING_JOBS].values()):
            yield kept.item()

    def phases(self) -> Counter[str]:
        """How many jobs are in each phase; empty before the first status."""
        return Counter(kept.phase for kept in self._objects[VIDEO_TRAINING_JOBS].values())

    def active(self, *, ended_after: float) -> list[tuple[str, int]]:
        """Uid and version of the jobs that have not ended, or did so after a Unix time."""
        return [
            (uid, kept.version)
            for uid, kept in self._objects[VIDEO_TRAINING_JOBS].items()
            if not kept.finished or parse_time(kept.finished).timestamp() > ended_after
        ]

    def unresolved(self) -> list[str]:
        """Uids of the jobs that have nothing frozen yet."""
        return [uid for uid, kept in self._objects[VIDEO_TRAINING_JOBS].items() if not kept.resolved]

    def pools(self) -> dict[str, Raw]:
        """Every pool, by name."""
        pools = (kept.item() for kept in self._objects[TRAINING_POOLS].values())
        return {pool["metadata"]["name"]: pool for pool in pools}

    def children(self, uid: str) -> list[tuple[Resource, Raw]]:
        """The children that a job owns, by name."""
        owned = self._owned.get(uid, {}).items()
        found = [(resource, self._objects[resource][child].item()) for child, resource in owned]
        return sorted(found, key=lambda item: str(item[1]["metadata"]["name"]))

    def put(self, resource: Resource, seen: Raw) -> bool:
        """Keep an object; returns whether it is news that can decide something."""
        uid = seen["metadata"]["uid"]
        before = self._objects[resource].get(uid)
        if self._gone is not None and uid in self._gone:
            return False
        if before is not None and version(seen) < before.version:
            return False
        kept = Kept.of(slim(resource, seen))
        self._objects[resource][uid] = kept
        if resource in CHILDREN:
            self._disown(uid, before)
            if kept.owner:
                self._owned.setdefault(kept.owner, {})[uid] = resource
        return before is None or before.essence != kept.essence

    def discard(self, resource: Resource, uid: str) -> None:
        """Forget an object that was deleted."""
        if self._gone is not None:
            self._gone.add(uid)
        self._disown(uid, self._objects[resource].pop(uid, None))

    def begin(self) -> None:
        """A full list begins: from now on deletions are remembered, so that an older page brings nothing back."""
        self._gone = set()
        self._known = {
            resource: max((item.version for item in objects.values()), default=0)
            for resource, objects in self._objects.items()
        }

    def replace(self, resource: Resource, listed: Iterable[Raw], *, at: int) -> None:
        """Keep what was listed at resource version `at`, and what was seen later; forget the rest.

        A list that is older than what was known when it began comes from an etcd that was restored from a backup, whose
        versions begin anew: then it alone counts.
        """
        if at < self._known[resource]:
            for uid in list(self._objects[resource]):
                self._disown(uid, self._objects[resource].pop(uid))
        alive = set()
        for item in listed:
            alive.add(item["metadata"]["uid"])
            self.put(resource, item)
        ghosts = [uid for uid, item in self._objects[resource].items() if uid not in alive and item.version <= at]
        for uid in ghosts:
            self.discard(resource, uid)

    def end(self) -> None:
        """The full list is over."""
        self._gone = None

    def _disown(self, uid: str, child: Kept | None) -> None:
        owned = self._owned.get(child.owner) if child is not None else None
        if child is not None and owned is not None:
            owned.pop(uid, None)
            if not owned:
                del self._owned[child.owner]


def version(item: Raw) -> int:
    """The resource version as a number."""
    return int(item["metadata"].get("resourceVersion") or 0)


def owner_uid(item: Raw) -> str:
    """The uid of the job that controls an object; empty when none does."""
    for owner in item["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == VIDEO_TRAINING_JOBS.kind:
            return str(owner["uid"])
    return ""


def slim(resource: Resource, seen: Raw) -> Raw:
    """A copy without what nobody reads: managed fields, configs in annotations, pod templates of children."""
    metadata = {key: value for key, value in seen["metadata"].items() if key != "managedFields"}
    annotations = metadata.get("annotations")
    if annotations:
        metadata["annotations"] = {key: value for key, value in annotations.items() if key not in _HEAVY_ANNOTATIONS}
    kept = {**seen, "metadata": metadata}
    if resource in CHILDREN:
        kept["spec"] = _size(seen.get("spec") or {})
    return kept


def _size(spec: Raw) -> Raw:
    """How many pods a child wants."""
    replicas: dict[str, Any] = spec.get("pytorchReplicaSpecs") or {}
    return {
        **{key: spec[key] for key in ("parallelism", "completions", "suspend") if key in spec},
        **({"runPolicy": {"suspend": True}} if (spec.get("runPolicy") or {}).get("suspend") else {}),
        **(
            {"pytorchReplicaSpecs": {role: {"replicas": item.get("replicas", 1)} for role, item in replicas.items()}}
            if replicas
            else {}
        ),
    }


def essence(item: Raw) -> Raw:
    """An object without what changes all the time and decides nothing: its version, and how far a stage says it is.

    That an attempt says so at all is kept: from then on the job is known to move.
    """
    metadata = {key: value for key, value in item["metadata"].items() if key != "resourceVersion"}
    status = {key: value for key, value in (item.get("status") or {}).items() if key != "lastReconcileTime"}
    if told := status.get("progress"):
        status["progress"] = {key: told.get(key) for key in ("stage", "attempt")}
    return {**item, "metadata": metadata, "status": status}
