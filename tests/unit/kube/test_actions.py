# SPDX-License-Identifier: Apache-2.0
"""Which patch each action is, and when it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from kinema_api.names import Stage
from kinema_api.status import Phase
from kinema_kube.actions import Action, ActionError, patch

pytestmark = pytest.mark.unit


def job(phase: str | None = None, *, policy: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    stages = [{"name": "check"}, {"name": "train"}]
    made: dict[str, Any] = {"metadata": {"name": "wan"}, "spec": {"policy": policy} if policy is not None else {}}
    return made if phase is None else {**made, "status": {"phase": phase, "stages": stages, **status}}


def policy(**fields: Any) -> dict[str, Any]:
    return {"spec": {"policy": fields}}


@pytest.mark.parametrize(
    ("state", "action", "expected"),
    [
        (job(), Action.SUSPEND, policy(suspend=True)),
        (job("Running", policy={"suspend": False}), Action.SUSPEND, policy(suspend=True)),
        (job("Suspended", policy={"suspend": True}), Action.SUSPEND, None),
        (job("Suspended", policy={"suspend": True}), Action.RESUME, policy(suspend=False)),
        (job("Running"), Action.RESUME, None),
        (job("Running"), Action.CANCEL, policy(cancel=True)),
        (job("Cancelled", policy={"cancel": True}), Action.CANCEL, None),
        (job("Failed"), Action.RETRY, policy(retry={"number": 1, "stage": None})),
        (job("Failed", retry=4), Action.RETRY, policy(retry={"number": 5, "stage": None})),
        (
            job("Failed", policy={"retry": {"number": 6, "stage": "check"}}, retry=6),
            Action.RETRY,
            policy(retry={"number": 7, "stage": None}),
        ),
        # Asked for already, and not served yet.
        (job("Failed", policy={"retry": {"number": 2}}, retry=1), Action.RETRY, None),
    ],
)
def test_an_action_is_a_patch_of_the_policy(
    state: dict[str, Any], action: Action, expected: dict[str, Any] | None
) -> None:
    assert patch(state, action) == expected


def test_a_retry_may_name_its_first_stage() -> None:
    expected = policy(retry={"number": 1, "stage": "train"})
    assert patch(job("Succeeded"), Action.RETRY, stage=Stage.TRAIN) == expected
    waiting = job("Failed", policy={"retry": {"number": 1, "stage": "check"}})
    assert patch(waiting, Action.RETRY, stage=Stage.TRAIN) == policy(retry={"number": 2, "stage": "train"})


@pytest.mark.parametrize(
    ("state", "action", "stage", "why"),
    [
        (job("Succeeded"), Action.SUSPEND, None, "has ended"),
        (job("Running", policy={"cancel": True}), Action.SUSPEND, None, "is being cancelled"),
        (job("Failed"), Action.CANCEL, None, "has ended"),
        (job("Running"), Action.RETRY, None, "has not ended"),
        (job(), Action.RETRY, None, "has not ended"),
        (job("Cancelled"), Action.RETRY, None, "create a new job"),
        (job("Failed", policy={"cancel": True}), Action.RETRY, None, "create a new job"),
        (job("Failed"), Action.RETRY, Stage.SAMPLE, "it has check, train"),
        (job("Succeeded"), Action.RETRY, None, "name the first stage"),
        (job("Running"), Action.SUSPEND, Stage.TRAIN, "takes no stage"),
    ],
)
def test_what_makes_no_sense_is_refused(state: dict[str, Any], action: Action, stage: Stage | None, why: str) -> None:
    with pytest.raises(ActionError, match=why):
        patch(state, action, stage=stage)


def test_every_phase_has_an_answer_to_every_action() -> None:
    for phase in Phase:
        for action in Action:
            try:
                made = patch(job(phase.value), action)
            except ActionError as refused:
                assert "'wan'" in str(refused)
            else:
                assert made is None or set(made["spec"]) == {"policy"}
