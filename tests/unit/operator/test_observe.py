# SPDX-License-Identifier: Apache-2.0
"""What is read from raw objects, and when the API server is asked."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinema_api.names import Stage
from kinema_kube.errors import ForbiddenError, ServerError
from kinema_kube.resources import EVENTS, JOBS, PODS, PYTORCH_JOBS, TRAINING_POOLS, VIDEO_TRAINING_JOBS
from kinema_operator.observe import PATIENCE, View, child_of, observe
from kinema_operator.observed import ChildKind
from kinema_operator.pods import end_of, termination_of, waiting_of
from kinema_operator.sighting import Sighting
from kinema_operator.store import Store

from tests.unit.operator.fakes import FakeKube, child, job, pool, running

Raw = dict[str, Any]
DATA = Path(__file__).parent / "data"
START = datetime(2026, 11, 1, 10, tzinfo=UTC)


def cases(name: str) -> list[Any]:
    return [pytest.param(case, id=case["case"]) for case in yaml.safe_load((DATA / name).read_text())]


def look(
    store: Store, fake: FakeKube, raw: Raw, *, after: float = 5, doubt: bool = False, pushed: Sighting | None = None
) -> View:
    now = START + timedelta(seconds=after)
    seen = pushed or Sighting()
    return asyncio.run(observe(job=raw, store=store, kube=fake.kube, foreign=(), now=now, pushed=seen, doubt=doubt))


def pod(name: str, *, of: str = "c-1", stage: str = "check", **status: Any) -> Raw:
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "labels": child(stage=stage)["metadata"]["labels"],
            "ownerReferences": [{"uid": of, "controller": True}],
        },
        "spec": {"nodeName": "node-1"},
        "status": status,
    }


@pytest.mark.parametrize("case", cases("pods.yaml"))
def test_the_end_of_a_pod(case: Raw) -> None:
    end, expected = end_of(case["pod"]), dict(case["end"])
    keys = expected.pop("keys")
    assert {name: getattr(end, name) for name in expected} == expected
    assert (end.termination.keys if end.termination else None) == keys


@pytest.mark.parametrize("case", cases("waiting.yaml"))
def test_why_pods_wait(case: Raw) -> None:
    assert waiting_of(case["pods"]) == case["waiting"]


def test_a_cut_termination_message_is_no_termination() -> None:
    assert termination_of('{"code":0,"message":"' + "x" * 4000) is None
    assert termination_of("[" * 4096) is None


@pytest.mark.parametrize("order", [1, -1])
def test_conditions_are_read_by_type_whatever_their_order(order: int) -> None:
    conditions = [
        {"type": "Created", "status": "True"},
        {"type": "Succeeded", "status": "True", "message": "done"},
        {"type": "Running", "status": "False"},
        {"type": "Failed", "status": "False", "message": "no"},
    ][::order]
    raw = child("wan-train-1", stage="train", kind="PyTorchJob", status={"conditions": conditions})
    found = child_of(PYTORCH_JOBS, raw)
    assert found is not None
    assert (found.kind, found.stage, found.finished, found.succeeded) == (
        ChildKind.PYTORCH_JOB,
        Stage.TRAIN,
        True,
        True,
    )


def test_a_job_that_is_about_to_fail_has_not_ended() -> None:
    found = child_of(JOBS, child(status={"conditions": [{"type": "FailureTarget", "status": "True"}]}))
    assert found is not None and not found.finished


def test_a_failed_child_carries_the_word_of_its_controller() -> None:
    failed = {"type": "Failed", "status": "True", "message": "Job has reached the specified backoff limit"}
    found = child_of(JOBS, child(status={"conditions": [failed]}))
    assert found is not None and found.finished and not found.succeeded
    assert found.message == "Job has reached the specified backoff limit"


def test_a_child_with_broken_labels_is_left_alone() -> None:
    raw = child()
    raw["metadata"]["labels"]["kinema.dev/attempt"] = "first"
    store, fake = Store(), FakeKube()
    store.put(JOBS, raw)
    assert look(store, fake, job()).observed.children == ()


def test_a_quiet_job_costs_no_request() -> None:
    store, fake = Store(), FakeKube()
    store.put(JOBS, child(status={"active": 1, "ready": 1}))
    view = look(store, fake, job(status=running()), after=3600)
    assert [found.name for found in view.observed.children] == ["wan-check-1"]
    assert fake.calls == []
    assert view.look_again is None


def test_a_running_attempt_whose_child_is_not_in_the_store_is_asked_for() -> None:
    store, fake = Store(), FakeKube()
    fake.put(JOBS, child(status={"ready": 1}))
    view = look(store, fake, job(status=running()))
    assert [found.uid for found in view.observed.children] == ["c-1"]
    assert fake.verbs("jobs") == ["get"]
    assert len(store.children("u-1")) == 1


@pytest.mark.parametrize("present", [None, child(owner="u-old", uid="c-old")], ids=["gone", "another owner's"])
def test_a_child_that_is_nowhere_does_not_exist(present: Raw | None) -> None:
    store, fake = Store(), FakeKube()
    if present is not None:
        fake.put(JOBS, present)
    assert look(store, fake, job(status=running())).observed.children == ()


def test_the_train_stage_is_asked_for_as_a_pytorchjob() -> None:
    store, fake = Store(), FakeKube()
    fake.put(PYTORCH_JOBS, child("wan-train-1", stage="train", kind="PyTorchJob"))
    view = look(store, fake, job(status=running("train")))
    assert [found.kind for found in view.observed.children] == [ChildKind.PYTORCH_JOB]


def test_an_api_server_that_does_not_answer_is_no_missing_child() -> None:
    store, fake = Store(), FakeKube()
    fake.trouble["get", "jobs"] = [ServerError("etcd leader changed", status=500)]
    with pytest.raises(ServerError):
        look(store, fake, job(status=running()))


COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}]}
ENDED = {"name": "pytorch", "state": {"terminated": {"exitCode": 0, "message": '{"code":0}'}}}


def test_pods_are_listed_when_an_end_is_not_recorded_yet() -> None:
    store, fake = Store(), FakeKube()
    store.put(JOBS, child(status=COMPLETE))
    fake.put(PODS, pod("b", phase="Succeeded", containerStatuses=[ENDED]))
    fake.put(PODS, pod("a", phase="Failed"))
    fake.put(PODS, pod("of-an-older-child-of-that-name", of="c-0", phase="Failed"))
    (found,) = look(store, fake, job(status=running())).observed.children
    assert [end.name for end in found.pods] == ["a", "b"]
    assert found.pods[1].termination is not None


def test_pods_are_not_listed_when_the_end_is_recorded() -> None:
    store, fake = Store(), FakeKube()
    store.put(JOBS, child(status=COMPLETE))
    (found,) = look(store, fake, job(status=running(state="Succeeded"))).observed.children
    assert found.pods == ()
    assert fake.calls == []


def test_a_child_that_ended_before_its_attempt_was_written_down() -> None:
    """The operator crashed between creating the child and writing the status."""
    store, fake = Store(), FakeKube()
    store.put(JOBS, child(status=COMPLETE))
    fake.put(PODS, pod("a", phase="Succeeded", containerStatuses=[ENDED]))
    (found,) = look(store, fake, job()).observed.children
    assert [end.name for end in found.pods] == ["a"]


def test_nobody_asks_why_a_young_child_waits() -> None:
    store, fake = Store(), FakeKube()
    store.put(JOBS, child(status={"active": 1}))
    view = look(store, fake, job(status=running()), after=5)
    assert fake.calls == []
    assert view.look_again == PATIENCE - 5


def test_the_scheduler_tells_why_an_old_child_waits() -> None:
    store, fake = Store(), FakeKube()
    store.put(JOBS, child(status={"active": 1}))
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
    fake.put(PODS, pod("a", phase="Pending", conditions=[unschedulable]))
    view = look(store, fake, job(status=running()), after=30)
    assert view.observed.children[0].waiting == "a: Unschedulable: no GPU"
    assert view.look_again == 15


def test_a_child_that_waits_for_hours_is_asked_about_less_often() -> None:
    store, fake = Store(), FakeKube()
    store.put(JOBS, child(status={"active": 1}))
    fake.put(PODS, pod("a", phase="Pending"))
    assert look(store, fake, job(status=running()), after=7200).look_again == 120


@pytest.mark.parametrize(("workers", "waits"), [(1, True), (2, False)])
def test_a_gang_waits_until_all_of_its_pods_run(workers: int, waits: bool) -> None:
    store, fake = Store(), FakeKube()
    counts = {"Master": {"active": 1}, "Worker": {"active": workers}}
    store.put(PYTORCH_JOBS, child("wan-train-1", stage="train", kind="PyTorchJob", status={"replicaStatuses": counts}))
    fake.put(PODS, pod("wan-train-1-worker-1", stage="train", phase="Pending"))
    view = look(store, fake, job(status=running("train")), after=60)
    assert bool(view.observed.children[0].waiting) is waits


def test_a_child_without_pods_waits_for_what_its_events_say() -> None:
    store, fake = Store(), FakeKube()
    store.put(JOBS, child())
    event = {
        "metadata": {"name": "e", "namespace": "team"},
        "reason": "FailedCreate",
        "message": "pods is forbidden:\nexceeded quota",
        "lastTimestamp": "2026-11-01T10:00:10Z",
    }
    fake.put(EVENTS, event)
    (found,) = look(store, fake, job(status=running()), after=30).observed.children
    assert found.waiting == "FailedCreate: pods is forbidden: exceeded quota"


def test_a_gang_whose_workers_cannot_be_made_waits_for_what_its_events_say() -> None:
    store, fake = Store(), FakeKube()
    counts = {"Master": {"active": 1}, "Worker": {}}
    store.put(PYTORCH_JOBS, child("wan-train-1", stage="train", kind="PyTorchJob", status={"replicaStatuses": counts}))
    fake.put(PODS, pod("wan-train-1-master-0", stage="train", phase="Running"))
    (found,) = look(store, fake, job(status=running("train")), after=60).observed.children
    assert found.waiting == ""
    event = {"metadata": {"name": "e", "namespace": "team"}, "reason": "FailedCreatePod", "message": "exceeded quota"}
    fake.put(EVENTS, event)
    (found,) = look(store, fake, job(status=running("train")), after=60).observed.children
    assert found.waiting == "FailedCreatePod: exceeded quota"


def test_events_that_may_not_be_read_stop_nothing() -> None:
    store, fake = Store(), FakeKube()
    store.put(JOBS, child())
    fake.trouble["list", "events"] = [ForbiddenError("events is forbidden", status=403)]
    (found,) = look(store, fake, job(status=running()), after=30).observed.children
    assert found.waiting == "no pod yet"


@pytest.mark.parametrize(("phase", "stray"), [("Running", True), ("Failed", False)])
def test_pods_that_outlive_a_failed_attempt_are_seen(phase: str, stray: bool) -> None:
    store, fake = Store(), FakeKube()
    fake.put(PODS, pod("a", of="deleted", phase=phase))
    assert look(store, fake, job(status=running(state="Failed"))).observed.stray_pods is stray


@pytest.mark.parametrize("status", [{}, running(), running(state="Failed")], ids=["new", "running", "failed"])
@pytest.mark.parametrize(("owner", "stray"), [("deleted", True), ("c-1", False)])
def test_in_doubt_pods_without_their_child_are_strays(status: Raw, owner: str, stray: bool) -> None:
    """Of an attempt that the status never knew of: the operator died before it could write."""
    store, fake = Store(), FakeKube()
    made = child(stage="check", attempt=2)
    store.put(JOBS, made)
    unwritten = pod("a", of=owner, phase="Running")
    unwritten["metadata"]["labels"] = made["metadata"]["labels"]
    fake.put(PODS, unwritten)
    assert look(store, fake, job(status=status), doubt=True).observed.stray_pods is stray


def test_without_doubt_nobody_asks_for_the_pods_of_a_new_job() -> None:
    store, fake = Store(), FakeKube()
    assert not look(store, fake, job()).observed.stray_pods
    assert fake.verbs("pods") == []


def test_pools_that_this_version_does_not_understand_are_left_out() -> None:
    store, fake = Store(), FakeKube()
    store.put(TRAINING_POOLS, pool("cpu"))
    strange = pool("strange")
    strange["spec"]["accelerator"] = "abacus"
    store.put(TRAINING_POOLS, strange)
    store.put(VIDEO_TRAINING_JOBS, job())
    assert sorted(look(store, fake, job()).observed.pools) == ["cpu"]


def test_a_moved_clock_makes_no_stall_of_work_that_moves() -> None:
    store, fake = Store(), FakeKube()
    clock = [0.0]
    seen = Sighting(lambda: clock[0])
    raw = {
        **child("wan-train-1", stage="train", kind="PyTorchJob"),
        "status": {"replicaStatuses": {"Master": {"active": 1}, "Worker": {"active": 2}}},
    }
    store.put(PYTORCH_JOBS, raw)
    fake.put(PODS, pod("wan-train-1-master-0", stage="train", phase="Running"))
    fake.logs["wan-train-1-master-0"] = f"{START + timedelta(seconds=8):%Y-%m-%dT%H:%M:%SZ} step 3"

    def last_log(*, pushed: int, after: float) -> datetime | None:
        status = running("train")
        status["stages"][0]["attempts"][0]["runningAt"] = "2026-11-01T10:00:00Z"
        status["progress"] = {"stage": "train", "attempt": 1, "updatedAt": f"2026-11-01T10:00:0{pushed}Z"}
        status["resolved"] = {"model": {}, "pools": {}, "images": {}, "stages": {"train": {"stallSeconds": 30}}}
        (found,) = look(store, fake, job(status=status), after=after, pushed=seen).observed.children
        return found.last_log

    assert last_log(pushed=1, after=5) is None, "nothing is old, so nobody asks"
    clock[0] = 10.0
    # An hour later by the clock, ten seconds later in truth: the new progress is not old, though its time is.
    assert last_log(pushed=9, after=3610) == START + timedelta(seconds=3610)
    clock[0] = 80.0
    assert last_log(pushed=9, after=3680) == START + timedelta(seconds=3610), "it was seen to stand still for 70 s"
    clock[0] = 80_000.0
    assert last_log(pushed=9, after=3690) == START + timedelta(seconds=8), "so the log's own time counts"
