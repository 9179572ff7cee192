# SPDX-License-Identifier: Apache-2.0
"""What people ask of a job: in their own name, and only with their own rights."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.kube.fake import Answer, Request, status
from tests.unit.server.conftest import JOB, World

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

BASE = "/v1alpha1/namespaces/team/videotrainingjobs/wan"
PLAN = "/v1alpha1/namespaces/team/plan"


def stands(world: World, phase: str, **policy: Any) -> None:
    world.fake.objects[JOB] |= {"status": {"phase": phase}, "spec": {"policy": policy}}


async def act(world: World, action: str, body: Any = None) -> Any:
    headers = {"Authorization": "Bearer good"}
    return await world.client.post(f"{BASE}/{action}", json=body, headers=headers)


@pytest.mark.parametrize(
    ("action", "phase", "before", "after"),
    [
        ("suspend", "Running", {}, {"suspend": True}),
        ("resume", "Suspended", {"suspend": True}, {"suspend": False}),
        ("cancel", "Running", {}, {"cancel": True}),
        ("retry", "Failed", {"retry": {"number": 2, "stage": "check"}}, {"retry": {"number": 3}}),
    ],
)
async def test_an_action_changes_the_policy_in_the_callers_name(
    world: World, action: str, phase: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    stands(world, phase, **before)
    world.fake.objects[JOB]["status"]["retry"] = 2
    answer = await act(world, action)
    assert (answer.status_code, answer.json()["name"]) == (200, "wan")
    assert world.fake.objects[JOB]["spec"]["policy"] == after
    (change,) = world.fake.sent("PATCH")
    assert change.headers["authorization"] == "Bearer good"
    assert change.body["metadata"]["resourceVersion"]
    verbs = [request.body["spec"]["resourceAttributes"]["verb"] for request in world.fake.sent("POST", "subjectaccess")]
    assert verbs == ["get", "patch"]


async def test_what_is_so_already_changes_nothing(world: World) -> None:
    stands(world, "Suspended", suspend=True)
    assert (await act(world, "suspend")).status_code == 200
    assert world.fake.sent("PATCH") == []


async def test_a_retry_may_name_its_first_stage(world: World) -> None:
    stands(world, "Succeeded")
    assert (await act(world, "retry")).status_code == 409
    assert (await act(world, "retry", {"stage": "posttrain"})).status_code == 422
    assert (await act(world, "retry", {"stage": "train"})).status_code == 200
    assert world.fake.objects[JOB]["spec"]["policy"]["retry"] == {"number": 1, "stage": "train"}


async def test_what_a_job_cannot_do_is_a_conflict(world: World) -> None:
    stands(world, "Succeeded")
    answer = await act(world, "cancel")
    assert (answer.status_code, answer.json()["reason"]) == (409, "Conflict")
    assert "has ended" in answer.json()["detail"]


async def test_who_may_not_patch_changes_nothing(world: World) -> None:
    stands(world, "Running")
    world.denied = "patch"
    answer = await act(world, "cancel")
    assert answer.status_code == 403
    assert "may not patch videotrainingjobs.kinema.dev 'wan'" in answer.json()["detail"]
    assert world.fake.sent("PATCH") == []


async def test_the_api_server_has_the_last_word(world: World) -> None:
    stands(world, "Running")

    def refuse(request: Request) -> Answer | None:
        return (403, status(403, "Forbidden", "a policy forbids it")) if request.method == "PATCH" else None

    world.fake.hooks.insert(0, refuse)
    answer = await act(world, "suspend")
    assert (answer.status_code, answer.json()["detail"]) == (403, "a policy forbids it")


async def test_a_change_that_crosses_another_is_decided_anew(world: World) -> None:
    stands(world, "Running")

    def cross(request: Request) -> Answer | None:
        if request.method == "PATCH":
            world.fake.hooks.remove(cross)
            world.fake.put(JOB, {**world.fake.objects[JOB], "status": {"phase": "Succeeded"}})
        return None

    world.fake.hooks.insert(0, cross)
    assert (await act(world, "cancel")).status_code == 409


SPEC = {
    "model": {"name": "wan2.1-t2v-1.3b", "weights": {"uri": "pvc://models/wan"}},
    "dataset": {"uri": "pvc://data/clips"},
    "storage": {"uri": "pvc://training/kinema"},
    "defaults": {"pool": "a100", "nodes": 2},
}
POOL = {"accelerator": "nvidia", "devicesPerNode": 8, "deviceMemory": "80Gi", "prices": {"deviceHour": 2}}


async def plan(world: World, spec: Any, *, pools: Any = POOL, query: str = "") -> Any:
    items = [{"metadata": {"name": "a100"}, "spec": pools}] if pools else []
    world.fake.objects["/apis/kinema.dev/v1alpha1/trainingpools"] = {"items": items}
    body = {"apiVersion": "kinema.dev/v1alpha1", "kind": "VideoTrainingJob", "spec": spec}
    return await world.client.post(PLAN + query, json=body, headers={"Authorization": "Bearer good"})


async def test_a_plan_says_what_a_job_needs_and_creates_nothing(world: World) -> None:
    answer = await plan(world, SPEC)
    assert answer.status_code == 200
    found = answer.json()
    assert (found["accepted"], found["message"]) == (True, "")
    train = next(stage for stage in found["stages"] if stage["stage"] == "train")
    assert train == {"stage": "train", "pool": "a100", "pods": 2, "devices": 8}
    assert found["training"]["processes"] == 16
    assert found["training"]["pricePerHour"] == 32
    assert 0 < found["training"]["memory"]["total"] < found["training"]["deviceMemory"]
    assert found["training"]["cost"] is None, "nothing names the pool's device"
    (tried,) = world.fake.sent("POST", "videotrainingjobs")
    assert (tried.query["dryRun"], tried.headers["authorization"]) == ("All", "Bearer good")


async def test_a_plan_tells_time_and_cost(world: World) -> None:
    spec = {**SPEC, "stages": {"train": {"steps": 1000}}}
    measured = (await plan(world, spec, query="?stepSeconds=3.6")).json()["training"]
    assert (measured["seconds"], measured["acceleratorHours"], measured["cost"]) == (3600, 16, 32)
    assert measured["pace"] == "as measured"
    known = {**POOL, "description": "8 x A100 80 GB"}
    assumed = (await plan(world, spec, pools=known, query="?mfu=0.5")).json()["training"]
    assert assumed["pace"] == "assumed: 50 % of 312 TFLOP/s a device (A100)"
    assert assumed["stepSeconds"] == pytest.approx(assumed["tflopPerStep"] / (16 * 312 * 0.5))
    assert (await plan(world, spec, query="?mfu=nan")).status_code == 422


@pytest.mark.parametrize(
    ("spec", "pools", "reason", "why"),
    [
        ({}, POOL, "Invalid", "spec.model"),
        (SPEC, None, "UnknownPool", "there is no TrainingPool a100"),
        (SPEC, {**POOL, "devicesPerNode": 1, "deviceMemory": "1Gi"}, "DoesNotFit", "needs"),
        ({**SPEC, "model": {**SPEC["model"], "name": "sora"}}, POOL, "UnknownModel", "sora"),  # type: ignore[dict-item]
    ],
)
async def test_a_job_that_cannot_be_is_refused_by_its_plan(
    world: World, spec: Any, pools: Any, reason: str, why: str
) -> None:
    found = (await plan(world, spec, pools=pools)).json()
    assert (found["accepted"], found["reason"]) == (False, reason)
    assert why in found["message"]


async def test_what_the_api_server_refuses_is_told_as_it_told_it(world: World) -> None:
    def refuse(request: Request) -> Answer | None:
        return (422, status(422, "Invalid", "spec.storage.uri: no")) if request.query.get("dryRun") else None

    world.fake.hooks.insert(0, refuse)
    found = (await plan(world, SPEC)).json()
    assert (found["accepted"], found["reason"], found["message"]) == (False, "Invalid", "spec.storage.uri: no")


async def test_who_may_not_create_gets_no_plan(world: World) -> None:
    world.denied = "create"
    assert (await plan(world, SPEC)).status_code == 403
