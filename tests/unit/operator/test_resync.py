# SPDX-License-Identifier: Apache-2.0
"""Full comparisons against lists that are long, old or refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kinema_kube import Resource
from kinema_kube.errors import ForbiddenError, GoneError, NotFoundError, ServerError
from kinema_kube.resources import JOBS, PYTORCH_JOBS, TRAINING_POOLS, VIDEO_TRAINING_JOBS
from kinema_operator.metrics import Metrics
from kinema_operator.queue import Queue
from kinema_operator.resync import NewKindError, Resync
from kinema_operator.store import WATCHED, Store
from kinema_operator.watches import DEAD_SECONDS, Watches

from tests.unit.operator.clock import Clock
from tests.unit.operator.fakes import FakeKube, child, job, pool


class Setup:
    def __init__(self, *, namespaces: tuple[str, ...] = (), seconds: float = 300) -> None:
        self.fake, self.store = FakeKube(), Store()
        self.clock = Clock()
        self.queue = Queue(later=self.clock.later, clock=self.clock)
        self.metrics = Metrics()
        self.watches = Watches(["team/jobs", "other/jobs"], clock=self.clock)
        self.resync = Resync(
            kube=self.fake.kube,
            store=self.store,
            queue=self.queue,
            metrics=self.metrics,
            watches=self.watches,
            namespaces=namespaces,
            seconds=seconds,
        )
        self.fake.put(VIDEO_TRAINING_JOBS, job())
        self.fake.put(TRAINING_POOLS, pool())
        self.fake.put(JOBS, child())
        unrelated = child("somebody-elses", uid="c-x")
        unrelated["metadata"]["labels"] = {}
        self.fake.put(JOBS, unrelated)

    def once(self) -> tuple[Resource, ...]:
        return asyncio.run(self.resync.once())

    def children(self) -> list[str]:
        return [item["metadata"]["name"] for _, item in self.store.children("u-1")]


def test_the_store_holds_everything_and_every_job_is_looked_at() -> None:
    setup = Setup()
    assert setup.once() == WATCHED
    assert setup.store.job("u-1") is not None
    assert list(setup.store.pools()) == ["cpu"]
    assert setup.children() == ["wan-check-1"]
    assert len(setup.queue) == 1


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_jobs_that_have_ended_are_left_in_peace(phase: str) -> None:
    setup = Setup()
    setup.fake.put(VIDEO_TRAINING_JOBS, job(status={"phase": phase, "observedGeneration": 1}))
    setup.fake.put(JOBS, child(status={"conditions": [{"type": "Complete", "status": "True"}]}))
    setup.once()
    assert len(setup.queue) == 0


LEFT_TO_DO: dict[str, dict[str, Any]] = {
    "an edit": {"generation": 2},
    "a time to live": {"policy": {"ttlSecondsAfterFinished": 60}},
    "a cleanup": {"policy": {"cleanup": "all"}},
    "a child that runs": {"child": {"active": 1}},
}


@pytest.mark.parametrize("left", LEFT_TO_DO.values(), ids=LEFT_TO_DO.keys())
def test_jobs_that_have_ended_are_looked_at_while_something_is_left_to_do(left: dict[str, Any]) -> None:
    """The operator may have been away when the job was edited, or when its child had to be deleted."""
    setup = Setup()
    ended = job(status={"phase": "Failed", "observedGeneration": 1})
    ended["metadata"]["generation"] = left.get("generation", 1)
    ended["spec"]["policy"] = left.get("policy", {})
    setup.fake.put(VIDEO_TRAINING_JOBS, ended)
    if "child" in left:
        setup.fake.put(JOBS, child(status=left["child"]))
    setup.once()
    assert len(setup.queue) == 1


def test_ghosts_go() -> None:
    setup = Setup()
    setup.once()
    setup.fake.objects = {key: item for key, item in setup.fake.objects.items() if key[0] != "jobs"}
    setup.once()
    assert setup.children() == []


def test_many_objects_come_in_chunks_and_what_happens_between_them_counts() -> None:
    setup = Setup()
    setup.fake.page_size = 2
    for number in range(2, 7):
        setup.fake.put(JOBS, child(f"wan-check-{number}", uid=f"c-{number}", attempt=number))

    def meanwhile(resource: Resource, token: str) -> None:
        if resource is JOBS and token:
            setup.store.discard(JOBS, "uid-gone")
            setup.store.discard(JOBS, "c-2")
            setup.store.put(JOBS, child("wan-check-9", uid="c-9", attempt=9, version=10**6))

    setup.fake.before_page = meanwhile
    setup.once()
    assert setup.children() == ["wan-check-1", *(f"wan-check-{number}" for number in (3, 4, 5, 6, 9))]


def test_a_list_that_became_too_old_is_read_in_one_piece() -> None:
    setup = Setup()
    setup.fake.page_size = 1
    setup.fake.put(JOBS, child("wan-check-2", uid="c-2", attempt=2))
    aged = iter([True])

    def age(resource: Resource, token: str) -> None:
        if resource is JOBS and token and next(aged, False):
            raise GoneError("too old", status=410)

    setup.fake.before_page = age
    setup.once()
    assert setup.children() == ["wan-check-1", "wan-check-2"]


def test_only_the_namespaces_that_are_served_are_listed() -> None:
    setup = Setup(namespaces=("team", "other"))
    elsewhere = job(uid="u-far")
    elsewhere["metadata"]["namespace"] = "far"
    setup.fake.put(VIDEO_TRAINING_JOBS, elsewhere)
    setup.once()
    assert setup.store.job("u-1") is not None
    assert setup.store.job("u-far") is None
    assert setup.fake.verbs("trainingpools") == ["list"]


def forbidden() -> Any:
    return ForbiddenError("jobs is forbidden", status=403)


def test_a_namespace_that_is_refused_is_empty_as_long_as_another_answers(caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(namespaces=("other", "team"))
    elsewhere = job(uid="u-other")
    elsewhere["metadata"]["namespace"] = "other"
    setup.fake.put(VIDEO_TRAINING_JOBS, elsewhere)
    setup.once()
    assert setup.store.job("u-other") is not None

    setup.fake.trouble["list", "videotrainingjobs"] = [forbidden()]
    assert setup.once() == WATCHED
    assert setup.store.job("u-other") is None
    assert setup.store.job("u-1") is not None
    assert "namespace other cannot be read" in caplog.text
    assert setup.metrics.registry.get_sample_value("kinema_namespaces_refused") == 1

    setup.once()
    assert setup.store.job("u-other") is not None
    assert setup.metrics.registry.get_sample_value("kinema_namespaces_refused") == 0


def test_nobody_is_alive_in_a_namespace_that_is_refused_and_none_need_be() -> None:
    setup = Setup(namespaces=("other", "team"))
    setup.fake.trouble["list", "jobs"] = [forbidden()]
    setup.once()
    setup.clock.advance(DEAD_SECONDS + 1)
    assert setup.watches.dead() == ["team/jobs"]
    # Once it is back its watch gets the time that any other has.
    setup.once()
    assert setup.watches.dead() == ["team/jobs"]
    setup.clock.advance(DEAD_SECONDS + 1)
    assert setup.watches.dead() == ["team/jobs", "other/jobs"]


def test_a_comparison_fails_when_every_namespace_is_refused() -> None:
    setup = Setup(namespaces=("other", "team"))
    setup.fake.trouble["list", "videotrainingjobs"] = [forbidden(), forbidden()]
    with pytest.raises(ForbiddenError):
        setup.once()
    missing: Any = NotFoundError("the server could not find the requested resource", status=404)
    setup.fake.trouble["list", "pytorchjobs"] = [forbidden(), missing]
    assert PYTORCH_JOBS not in setup.once()


def test_a_failed_comparison_leaves_the_store_as_it_was() -> None:
    setup = Setup()
    setup.once()
    setup.fake.trouble["list", "jobs"] = [ServerError("boom", status=500)]
    with pytest.raises(ServerError):
        setup.once()
    assert setup.children() == ["wan-check-1"]


def test_pytorchjobs_may_not_be_installed_but_jobs_must() -> None:
    setup = Setup()
    missing: Any = NotFoundError("the server could not find the requested resource", status=404)
    setup.fake.trouble["list", "pytorchjobs"] = [missing]
    assert setup.once() == tuple(resource for resource in WATCHED if resource is not PYTORCH_JOBS)
    setup.fake.trouble["list", "videotrainingjobs"] = [missing]
    with pytest.raises(NotFoundError):
        setup.once()


def test_a_kind_that_is_installed_later_makes_the_operator_start_anew() -> None:
    setup = Setup(seconds=0.001)
    with pytest.raises(NewKindError, match=r"pytorchjobs\.kubeflow\.org has been installed"):
        asyncio.run(asyncio.wait_for(setup.resync.forever(served=WATCHED[:3]), timeout=30))


def test_a_comparison_that_never_succeeds_is_a_trouble() -> None:
    assert Setup().resync.troubles() == []
    assert Setup(seconds=-1000).resync.troubles() != []
