# SPDX-License-Identifier: Apache-2.0
"""Which event makes the operator look at which job, and how kopf is held to watching."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import kopf
import pytest
from yarl import URL

from kinema_kube import Resource
from kinema_kube.resources import JOBS, PYTORCH_JOBS, TRAINING_POOLS, VIDEO_TRAINING_JOBS
from kinema_operator.informer import Endless, kopf_settings, note, registry
from kinema_operator.queue import Queue
from kinema_operator.store import WATCHED, Store
from kinema_operator.watches import DEAD_SECONDS, Watches

from tests.unit.operator.clock import Clock
from tests.unit.operator.fakes import FakeKube, child, job, pool

Raw = dict[str, Any]


class Informed:
    def __init__(self) -> None:
        clock = Clock()
        self.store, self.queue = Store(), Queue(later=clock.later, clock=clock)

    def note(self, resource: Resource, item: Raw, kind: str | None = "MODIFIED") -> list[str]:
        """The keys that an event adds."""
        note(resource, kind, item, store=self.store, queue=self.queue)

        async def drain() -> list[str]:
            keys = []
            while len(self.queue):
                key, _ = await self.queue.get()
                self.queue.done(key)
                keys.append(key)
            return keys

        return asyncio.run(drain())


def test_a_job_is_looked_at_when_it_appears_changes_and_goes() -> None:
    informed = Informed()
    assert informed.note(VIDEO_TRAINING_JOBS, job(), None) == ["u-1"]
    assert informed.note(VIDEO_TRAINING_JOBS, job(version=11, status={"phase": "Running"})) == ["u-1"]
    assert informed.note(VIDEO_TRAINING_JOBS, job(version=12), "DELETED") == ["u-1"]
    assert informed.store.job("u-1") is None


def test_only_the_first_progress_of_an_attempt_makes_somebody_look() -> None:
    informed = Informed()
    informed.note(VIDEO_TRAINING_JOBS, job())

    def told(version: int, percentage: int) -> list[str]:
        progress = {"stage": "train", "attempt": 1, "percentage": percentage}
        return informed.note(VIDEO_TRAINING_JOBS, job(version=version, status={"progress": progress}))

    assert told(11, 1) == ["u-1"]
    assert told(12, 2) == []


@pytest.mark.parametrize(("resource", "kind"), [(JOBS, "Job"), (PYTORCH_JOBS, "PyTorchJob")])
def test_a_child_concerns_its_owner(resource: Resource, kind: str) -> None:
    informed = Informed()
    assert informed.note(resource, child(kind=kind), "ADDED") == ["u-1"]
    assert informed.note(resource, child(kind=kind, version=21), "MODIFIED") == []
    assert informed.note(resource, child(kind=kind, version=22, status={"ready": 1})) == ["u-1"]
    assert informed.note(resource, child(kind=kind, version=23), "DELETED") == ["u-1"]


def test_an_object_without_owner_concerns_nobody() -> None:
    stray = child()
    del stray["metadata"]["ownerReferences"]
    assert Informed().note(JOBS, stray, "ADDED") == []


def test_a_pool_concerns_jobs_that_have_not_started() -> None:
    informed = Informed()
    informed.note(VIDEO_TRAINING_JOBS, job("waiting", uid="u-waiting"))
    informed.note(VIDEO_TRAINING_JOBS, job("started", uid="u-started", status={"resolved": {"pools": {}}}))
    assert informed.note(TRAINING_POOLS, pool(), "ADDED") == ["u-waiting"]


def test_children_are_filtered_on_the_server_and_nothing_else_is() -> None:
    settings = kopf_settings()

    def selectors(resource: Resource) -> list[str]:
        real = kopf.Resource(
            resource.group, resource.version, resource.plural, kind=resource.kind, namespaced=resource.namespaced
        )
        return settings.watching.label_selectors.collect(real)

    assert {resource.plural: selectors(resource) for resource in WATCHED} == {
        "videotrainingjobs": [],
        "trainingpools": [],
        "jobs": ["kinema.dev/job-uid"],
        "pytorchjobs": ["kinema.dev/job-uid"],
    }


def test_kopf_writes_nothing_and_never_gives_up() -> None:
    settings = kopf_settings()
    assert not settings.posting.enabled
    assert settings.peering.standalone
    # `timeoutSeconds=240.0` is refused by the API server.
    assert isinstance(settings.watching.server_timeout, int)
    waits = list(itertools.islice(Endless(), 200))
    assert all(0 < wait <= 30 for wait in waits)
    assert not hasattr(settings.networking.error_backoffs, "__len__")


def test_every_handler_is_one_of_events() -> None:
    clock = Clock()
    found = registry(
        resources=WATCHED,
        store=Store(),
        queue=Queue(later=clock.later, clock=clock),
        watches=Watches(),
        kube=FakeKube().kube,
        traces=list,
    )
    assert len(found._watching.get_all_handlers()) == len(WATCHED)
    for other in (found._changing, found._spawning, found._indexing, found._webhooks):
        assert list(other.get_all_handlers()) == []


def test_a_silent_watch_is_dead_in_the_end() -> None:
    clock = Clock()
    watches = Watches(["jobs", "videotrainingjobs"], clock=clock)
    clock.advance(DEAD_SECONDS)
    assert watches.dead() == []
    watches.beat("jobs")
    watches.beat("unheard-of")
    clock.advance(1)
    assert watches.dead() == ["videotrainingjobs"]
    assert set(watches.ages(clock())) == {"jobs", "videotrainingjobs"}


def test_a_dead_watch_is_not_hidden_by_those_of_other_namespaces() -> None:
    clock = Clock()
    watches = Watches(clock=clock)
    for namespace in ("team", "other"):
        watches.expect("jobs", namespace)
    watches.expect("trainingpools")
    clock.advance(DEAD_SECONDS + 1)
    watches.beat("jobs", "team")
    watches.beat("trainingpools")
    assert watches.dead() == ["other/jobs"]


def test_over_all_namespaces_an_object_of_any_is_a_sign_of_life() -> None:
    clock = Clock()
    watches = Watches(["jobs"], clock=clock)
    clock.advance(DEAD_SECONDS + 1)
    watches.beat("jobs", "team")
    assert watches.dead() == []


@pytest.mark.parametrize("path", ["/apis/batch/v1/namespaces/team/jobs", "/apis/kinema.dev/v1alpha1/trainingpools"])
def test_a_watch_that_opens_is_known_by_its_path(path: str) -> None:
    clock = Clock()
    watches = Watches(["team/jobs", "other/jobs", "trainingpools"], clock=clock)
    clock.advance(DEAD_SECONDS + 1)
    done: Any = SimpleNamespace(response=SimpleNamespace(status=200), url=URL(f"http://api{path}?watch=true"))
    opened: Any = watches.trace().on_request_end[0]
    asyncio.run(opened(None, SimpleNamespace(), done))
    alive = {"team/jobs", "other/jobs", "trainingpools"} - set(watches.dead())
    assert alive == {"team/jobs" if "namespaces" in path else "trainingpools"}
