# SPDX-License-Identifier: Apache-2.0
"""The store under events that are late, doubled or lost."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from kinema_kube.resources import JOBS, PYTORCH_JOBS, TRAINING_POOLS, VIDEO_TRAINING_JOBS
from kinema_operator.store import Store

from tests.unit.operator.fakes import child, job, pool

Raw = dict[str, Any]


def names(store: Store, uid: str) -> list[str]:
    return [item["metadata"]["name"] for _, item in store.children(uid)]


def test_children_are_found_by_the_uid_of_their_owner() -> None:
    store = Store()
    store.put(JOBS, child("wan-prepare-1", uid="c-2", stage="prepare"))
    store.put(JOBS, child("wan-check-1", uid="c-1"))
    store.put(PYTORCH_JOBS, child("wan-train-1", uid="c-3", stage="train", kind="PyTorchJob"))
    store.put(JOBS, child("wan-check-1", uid="c-9", owner="u-old"))
    assert names(store, "u-1") == ["wan-check-1", "wan-prepare-1", "wan-train-1"]
    assert names(store, "u-old") == ["wan-check-1"]
    assert names(store, "nobody") == []


def test_an_owner_of_the_same_name_is_no_owner() -> None:
    store = Store()
    stray = child()
    stray["metadata"]["ownerReferences"][0]["controller"] = False
    store.put(JOBS, stray)
    assert names(store, "u-1") == []


def test_a_deleted_child_is_gone() -> None:
    store = Store()
    store.put(JOBS, child())
    store.discard(JOBS, "c-1")
    assert names(store, "u-1") == []
    store.discard(JOBS, "c-1")


def test_an_older_sight_does_not_replace_a_newer_one() -> None:
    store = Store()
    store.put(VIDEO_TRAINING_JOBS, job(version=12, status={"phase": "Running"}))
    assert not store.put(VIDEO_TRAINING_JOBS, job(version=9, status={"phase": "Pending"}))
    found = store.job("u-1")
    assert found is not None and found["status"]["phase"] == "Running"


def test_versions_are_numbers_not_words() -> None:
    store = Store()
    store.put(VIDEO_TRAINING_JOBS, job(version=99))
    assert store.put(VIDEO_TRAINING_JOBS, job(version=100, status={"phase": "Running"}))


def test_progress_alone_is_kept_but_is_no_news() -> None:
    store = Store()
    status: Raw = {"phase": "Running", "progress": {"stage": "train", "percentage": 3}}
    assert store.put(VIDEO_TRAINING_JOBS, job(version=10, status=status))
    moved: Raw = {"phase": "Running", "progress": {"stage": "train", "percentage": 4}}
    assert not store.put(VIDEO_TRAINING_JOBS, job(version=11, status=moved))
    found = store.job("u-1")
    assert found is not None
    # The next status must be written against this version.
    assert found["metadata"]["resourceVersion"] == "11"
    assert found["status"]["progress"]["percentage"] == 4


def test_the_first_progress_of_an_attempt_is_news() -> None:
    store = Store()
    for version, told in enumerate(
        ({}, {"stage": "features", "attempt": 1}, {"stage": "train", "attempt": 1}, {"stage": "train", "attempt": 2})
    ):
        status: Raw = {"phase": "Running", **({"progress": {**told, "percentage": version}} if told else {})}
        assert store.put(VIDEO_TRAINING_JOBS, job(version=10 + version, status=status)), told


@pytest.mark.parametrize(
    "change",
    [
        {"status": {"phase": "Failed"}},
        {"spec": {"policy": {"restarts": {"limit": 0}}}},
        {"metadata": {"deletionTimestamp": "2026-11-01T11:00:00Z"}},
    ],
    ids=["status", "spec", "deletion"],
)
def test_everything_else_is_news(change: Raw) -> None:
    store = Store()
    store.put(VIDEO_TRAINING_JOBS, job(version=10))
    after = job(version=11)
    for key, value in change.items():
        after[key] = {**after.get(key, {}), **value}
    assert store.put(VIDEO_TRAINING_JOBS, after)


def test_our_own_write_is_no_news_when_its_event_comes() -> None:
    store = Store()
    assert store.put(JOBS, child())
    assert not store.put(JOBS, child())


def test_heavy_parts_are_dropped() -> None:
    store = Store()
    store.put(JOBS, child())
    store.put(VIDEO_TRAINING_JOBS, job())
    kept = json.dumps([store.children("u-1")[0][1], store.job("u-1")])
    assert "stage-config" not in kept
    assert "managedFields" not in kept


def test_a_list_removes_ghosts_and_keeps_what_came_later() -> None:
    store = Store()
    store.put(JOBS, child("ghost", uid="c-ghost", version=20))
    store.begin()
    store.put(JOBS, child("fresh", uid="c-fresh", version=31))
    store.replace(JOBS, [child("listed", uid="c-listed", version=25)], at=30)
    store.end()
    assert names(store, "u-1") == ["fresh", "listed"]


def test_a_list_older_than_what_was_known_comes_from_a_backup_and_alone_counts() -> None:
    store = Store()
    store.put(JOBS, child("lost", uid="c-lost", version=900))
    store.put(JOBS, child("kept", uid="c-kept", version=800))
    store.begin()
    store.replace(JOBS, [child("kept", uid="c-kept", version=25)], at=30)
    store.end()
    assert names(store, "u-1") == ["kept"]
    assert store.put(JOBS, {**child("kept", uid="c-kept", version=31), "status": {"active": 1}})


def test_a_deletion_during_a_list_is_final() -> None:
    store = Store()
    store.put(JOBS, child())
    store.begin()
    store.discard(JOBS, "c-1")
    store.replace(JOBS, [child()], at=30)
    store.end()
    assert names(store, "u-1") == []


def test_pools_are_found_by_name() -> None:
    store = Store()
    store.put(TRAINING_POOLS, pool("cpu"))
    store.put(TRAINING_POOLS, pool("h100"))
    assert sorted(store.pools()) == ["cpu", "h100"]
    store.discard(TRAINING_POOLS, "pool-cpu")
    assert sorted(store.pools()) == ["h100"]


def test_what_is_handed_out_is_a_copy() -> None:
    store = Store()
    store.put(VIDEO_TRAINING_JOBS, job(status={"phase": "Running"}))
    found = store.job("u-1")
    assert found is not None
    found["status"]["phase"] = "Failed"
    again = store.job("u-1")
    assert again is not None and again["status"]["phase"] == "Running"


def test_jobs_are_counted_by_phase_and_by_what_is_frozen() -> None:
    store = Store()
    store.put(VIDEO_TRAINING_JOBS, job("a", uid="u-1"))
    store.put(VIDEO_TRAINING_JOBS, job("b", uid="u-2", status={"phase": "Pending"}))
    store.put(VIDEO_TRAINING_JOBS, job("c", uid="u-3", status={"phase": "Running", "resolved": {"images": {"x": "y"}}}))
    store.put(VIDEO_TRAINING_JOBS, job("d", uid="u-4", status={"phase": "Running"}))
    assert store.phases() == {"": 1, "Pending": 1, "Running": 2}
    assert sorted(store.unresolved()) == ["u-1", "u-2", "u-4"]


def test_a_job_that_goes_while_all_are_looked_at_disturbs_nobody() -> None:
    store = Store()
    for number in range(3):
        store.put(VIDEO_TRAINING_JOBS, job(f"job-{number}", uid=f"u-{number}"))
    seen = []
    for found in store.jobs():
        seen.append(found["metadata"]["name"])
        store.discard(VIDEO_TRAINING_JOBS, "u-1")
    assert seen[0] == "job-0" and seen[-1] == "job-2"


def test_an_idle_job_takes_a_fraction_of_its_size() -> None:
    store = Store()
    status = {"phase": "Suspended", "message": "suspended by spec.policy.suspend", "stages": [{"name": "check"}] * 40}
    one = job(status=status)
    tracemalloc.start()
    try:
        for number in range(100):
            store.put(VIDEO_TRAINING_JOBS, {**one, "metadata": {**one["metadata"], "uid": f"u-{number}"}})
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / 100 < len(json.dumps(one))
