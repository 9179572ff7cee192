# SPDX-License-Identifier: Apache-2.0
"""What policy and diagnosis need from the API server: logs, queues, and the deletion of a job."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from kinema_kube.resources import JOBS, PYTORCH_JOBS, VIDEO_TRAINING_JOBS
from kinema_operator.execute import StaleError, execute
from kinema_operator.observed import Decision
from kinema_operator.pods import log_time
from kinema_operator.store import Store

from tests.unit.operator.fakes import FakeKube, child, job, running
from tests.unit.operator.test_observe import look

pytestmark = pytest.mark.unit


def test_the_time_of_a_log_line_is_read_with_its_nanoseconds() -> None:
    written = log_time("2026-11-01T10:00:00.123456789Z step 42\n")
    assert written == datetime(2026, 11, 1, 10, 0, 0, 123456, tzinfo=UTC)
    assert log_time("") is None and log_time("no time here") is None


def test_a_child_that_a_queue_holds_back_says_so() -> None:
    store, fake = Store(), FakeKube()
    held = child()
    held["spec"]["suspend"] = True
    store.put(JOBS, held)
    (found,) = look(store, fake, job(status=running()), after=60).observed.children
    assert found.queued and found.waiting.startswith("Queued: Job wan-check-1")


def test_a_pytorchjob_that_nobody_looks_at_says_so() -> None:
    store, fake = Store(), FakeKube()
    store.put(PYTORCH_JOBS, child("wan-train-1", stage="train", kind="PyTorchJob"))
    (found,) = look(store, fake, job(status=running("train")), after=90).observed.children
    assert found.waiting == "NoStatus: nobody has looked at PyTorchJob wan-train-1"


@pytest.mark.parametrize("changed", [False, True])
def test_a_job_is_deleted_only_if_nobody_has_changed_it(changed: bool) -> None:
    store, fake = Store(), FakeKube()
    seen = fake.put(VIDEO_TRAINING_JOBS, job())
    if changed:
        fake.put(VIDEO_TRAINING_JOBS, job())
    work = execute(job=seen, decision=Decision(delete_job=True), kube=fake.kube, store=store)
    if changed:
        with pytest.raises(StaleError):
            asyncio.run(work)
    else:
        asyncio.run(work)
    assert bool(fake.objects) is changed
