# SPDX-License-Identifier: Apache-2.0
"""Effects in their order, each of which may find that the world has moved on."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema_kube.errors import ForbiddenError, InvalidError, NotFoundError, ServerError
from kinema_kube.resources import EVENTS, JOBS, VIDEO_TRAINING_JOBS
from kinema_operator.execute import (
    Done,
    JobGoneError,
    NameTakenError,
    RefusedError,
    StaleError,
    event_of,
    execute,
)
from kinema_operator.observed import ChildKind, Decision, Deletion, Event, EventType
from kinema_operator.patch import merge_patch
from kinema_operator.store import Store

from tests.unit.operator.fakes import FakeKube, child, job, merged

Raw = dict[str, Any]

NEWS = Event(EventType.NORMAL, "StageStarted", "check: attempt 1")


class World:
    """A job in the API server and in the store."""

    def __init__(self, status: Raw | None = None) -> None:
        self.fake = FakeKube()
        self.store = Store()
        self.job = self.fake.put(VIDEO_TRAINING_JOBS, job(status=status))
        self.store.put(VIDEO_TRAINING_JOBS, self.job)

    def execute(self, *, defer: bool = False, **decision: Any) -> Done:
        decided = Decision(**decision)
        return asyncio.run(execute(job=self.job, decision=decided, kube=self.fake.kube, store=self.store, defer=defer))

    @property
    def status(self) -> Raw:
        found = self.fake.objects["videotrainingjobs", "team", "wan"].get("status", {})
        assert isinstance(found, dict)
        return found

    def children(self) -> list[str]:
        return [item["metadata"]["name"] for _, item in self.store.children("u-1")]


def test_order_create_status_delete_tell() -> None:
    world = World()
    world.fake.put(JOBS, child("wan-old-1", uid="c-old"))
    done = world.execute(
        create=(child(),),
        status={"phase": "Running"},
        delete=(Deletion(ChildKind.JOB, "wan-old-1", "c-old"),),
        events=(NEWS,),
    )
    assert [(verb, plural) for verb, plural, _ in world.fake.calls] == [
        ("create", "jobs"),
        ("patch", "videotrainingjobs"),
        ("delete", "jobs"),
        ("create", "events"),
    ]
    assert done.changed and done.created == 1


def test_words_wait_where_a_child_was_created_and_others_wait_for_theirs() -> None:
    world = World()
    done = world.execute(create=(child(),), status={"phase": "Running"}, events=(NEWS,), defer=True)
    assert done.deferred and [(verb, plural) for verb, plural, _ in world.fake.calls] == [("create", "jobs")]
    # Nothing was created: nothing is gained by waiting.
    done = world.execute(status={"phase": "Running"}, events=(NEWS,), defer=True)
    assert not done.deferred and world.status == {"phase": "Running"}


def test_what_was_written_is_in_the_store_before_its_event_comes() -> None:
    world = World()
    world.execute(create=(child(),), status={"phase": "Running"})
    kept = world.store.job("u-1")
    assert kept is not None and kept["status"] == {"phase": "Running"}
    assert world.children() == ["wan-check-1"]


def test_a_decision_to_do_nothing_does_nothing() -> None:
    world = World()
    assert not world.execute().changed
    assert world.fake.calls == []


def test_creating_twice_is_creating_once() -> None:
    world = World()
    world.fake.put(JOBS, child())
    world.execute(create=(child(),), status={"phase": "Running"})
    assert world.children() == ["wan-check-1"]
    assert world.status == {"phase": "Running"}


def test_a_name_that_somebody_else_holds_leaves_the_status_alone() -> None:
    world = World()
    world.fake.put(JOBS, child(owner="u-old", uid="c-old"))
    with pytest.raises(NameTakenError) as taken:
        world.execute(create=(child(),), status={"phase": "Running"}, events=(NEWS,))
    assert (taken.value.kind, taken.value.name) == (ChildKind.JOB, "wan-check-1")
    assert world.status == {}
    assert world.fake.verbs("events") == []


REFUSALS = [
    ForbiddenError("exceeded quota: gpus", status=403),
    InvalidError("spec.template: Required value", status=422),
    NotFoundError("the server could not find the requested resource", status=404),
    ServerError('Internal error occurred: failed calling webhook "v.example": connection refused', status=500),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_refusal_says_why(error: Any) -> None:
    world = World()
    world.fake.trouble["create", "jobs"] = [error]
    with pytest.raises(RefusedError, match=error.message):
        world.execute(create=(child(),), status={"phase": "Running"})
    assert world.status == {}


ENDINGS = [
    ForbiddenError("forbidden", status=403, details={"causes": [{"reason": "NamespaceTerminating"}]}),
    NotFoundError('namespaces "team" not found', status=404, details={"kind": "namespaces"}),
]


@pytest.mark.parametrize("error", ENDINGS, ids=["terminating", "gone"])
def test_a_namespace_that_ends_ends_the_work(error: Any) -> None:
    world = World()
    world.fake.trouble["create", "jobs"] = [error]
    with pytest.raises(JobGoneError):
        world.execute(create=(child(),), status={"phase": "Running"})


def test_an_api_server_that_fails_is_tried_again_by_the_caller() -> None:
    world = World()
    world.fake.trouble["create", "jobs"] = [ServerError("boom", status=500)]
    with pytest.raises(ServerError):
        world.execute(create=(child(),))


def test_progress_is_not_touched() -> None:
    progress = {"stage": "train", "percentage": 40}
    world = World({"phase": "Running", "message": "old", "progress": progress})
    world.execute(status={"phase": "Succeeded"})
    assert world.status == {"phase": "Succeeded", "progress": progress}


def test_a_job_that_changed_meanwhile_is_read_again_and_nothing_is_deleted_or_told() -> None:
    world = World({"phase": "Pending"})
    world.fake.put(VIDEO_TRAINING_JOBS, job(status={"phase": "Pending", "progress": {"percentage": 1}}))
    with pytest.raises(StaleError):
        world.execute(
            status={"phase": "Running"}, delete=(Deletion(ChildKind.JOB, "wan-check-1", "c-1"),), events=(NEWS,)
        )
    assert world.fake.verbs("jobs") == [] and world.fake.verbs("events") == []
    kept = world.store.job("u-1")
    assert kept is not None and kept["status"]["progress"] == {"percentage": 1}


def test_a_job_that_came_back_from_a_backup_is_taken_as_it_is_now() -> None:
    world = World({"phase": "Running"})
    restored = job(version=3, status={"phase": "Pending"})
    world.fake.put(VIDEO_TRAINING_JOBS, restored)
    with pytest.raises(StaleError):
        world.execute(status={"phase": "Succeeded"})
    kept = world.store.job("u-1")
    assert kept is not None and kept["status"] == {"phase": "Pending"}


def test_a_job_of_the_same_name_is_another_job() -> None:
    world = World()
    world.fake.put(VIDEO_TRAINING_JOBS, job(uid="u-2"))
    with pytest.raises(JobGoneError):
        world.execute(status={"phase": "Running"})
    assert world.status == {}
    assert world.store.job("u-1") is None


def test_a_deleted_job_ends_the_work() -> None:
    world = World()
    world.fake.objects.clear()
    with pytest.raises(JobGoneError):
        world.execute(status={"phase": "Running"})


@pytest.mark.parametrize("present", [None, "c-newer"])
def test_a_child_that_is_gone_or_replaced_is_not_deleted(present: str | None) -> None:
    world = World()
    if present:
        world.fake.put(JOBS, child(uid=present))
    world.execute(delete=(Deletion(ChildKind.JOB, "wan-check-1", "c-1"),))
    assert (("jobs", "team", "wan-check-1") in world.fake.objects) is bool(present)


def test_an_event_that_cannot_be_posted_stops_nothing() -> None:
    world = World()
    world.fake.trouble["create", "events"] = [ForbiddenError("no", status=403)]
    world.execute(status={"phase": "Running"}, events=(NEWS, NEWS))
    assert len([key for key in world.fake.objects if key[0] == EVENTS.plural]) == 1


def test_an_event_is_one_line_of_bounded_length() -> None:
    posted = event_of(job(), Event(EventType.WARNING, "Failed", "line\nline " + "x" * 5000), now=datetime.now(UTC))
    assert "\n" not in posted["message"]
    assert len(posted["message"]) <= 1024
    assert posted["involvedObject"]["uid"] == "u-1"


def test_a_merge_patch_removes_by_null_and_replaces_lists_whole() -> None:
    before = {"a": 1, "gone": 2, "deep": {"x": 1, "y": 2}, "list": [1, 2], "same": {"k": "v"}}
    after = {"a": 1, "deep": {"x": 3}, "list": [2], "same": {"k": "v"}, "new": []}
    assert merge_patch(before, after) == {"gone": None, "deep": {"x": 3, "y": None}, "list": [2], "new": []}


VALUES = st.recursive(
    st.integers(0, 3) | st.sampled_from("xyz"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


@given(before=OBJECTS, after=OBJECTS)
def test_a_merge_patch_leads_from_any_state_to_any_other(before: Raw, after: Raw) -> None:
    assert merged(before, merge_patch(before, after)) == after


def test_the_uid_of_a_new_child_goes_into_the_status_that_tells_of_it() -> None:
    world = World()
    attempts = [{"number": 1, "child": "wan-check-1", "state": "Running"}]
    told = {"phase": "Running", "stages": [{"name": "check", "attempts": attempts}, {"name": "prepare"}]}
    world.execute(create=(child(),), status=told)
    assert world.status["stages"][0]["attempts"][0]["uid"] == "c-1"
    assert world.status["stages"][1] == {"name": "prepare"}
    assert "uid" not in attempts[0]
