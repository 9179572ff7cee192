# SPDX-License-Identifier: Apache-2.0
"""A child whose attempt never got into the status, because the operator died or was refused in between."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinema_api.names import Stage
from kinema_api.status import AttemptState

from tests.unit.decide.story import Story, job

pytestmark = pytest.mark.unit


def unwritten(stage: Stage) -> Story:
    """The first child of a stage exists, and the status is that of before."""
    story = Story(job=job(policy={"restarts": {"backoffSeconds": 0}}))
    if stage is Stage.CHECK:
        for manifest in story.ask().create:
            story._create(manifest)
        return story
    story.reach(stage)
    before = story.job["status"]["stages"][1]
    story.job["status"]["stages"][1] = {**before, "state": "Pending", "attempts": []}
    return story


@pytest.mark.parametrize("stage", [Stage.CHECK, Stage.PREPARE])
def test_it_is_taken_over_and_never_created_again(stage: Stage) -> None:
    story = unwritten(stage)
    found = story.children[f"wan-{stage.value}-1"]
    assert story.ask().create == (), "should somebody delete it just now, another one would run beside its pods"
    story.step()
    (attempt,) = next(entry for entry in story.status.stages if entry.name is stage).attempts
    assert (attempt.number, attempt.uid, attempt.state) == (1, found.uid, AttemptState.RUNNING)


def test_a_refusal_of_the_past_does_not_hide_it() -> None:
    story = unwritten(Stage.CHECK)
    story.refused = {"wan-check-1": "exceeded quota"}
    story.step()
    assert len(story.status.stages[0].attempts) == 1


def test_deleted_while_its_pods_live_it_is_waited_for() -> None:
    story = unwritten(Stage.CHECK)
    story.children.clear()
    story.stray_pods = True
    decision = story.step()
    assert decision.create == () and decision.requeue_after == pytest.approx(2)
    assert "pods of an earlier attempt of check still end" in story.status.message
    story.stray_pods = False
    assert [item["metadata"]["name"] for item in story.step().create] == ["wan-check-1"]


def test_it_is_kept_while_pods_of_another_are_waited_for() -> None:
    story = unwritten(Stage.CHECK)
    story.stray_pods = True
    story.step()
    assert story.deleted == []


def test_one_that_has_ended_already_counts() -> None:
    story = unwritten(Stage.PREPARE)
    story.children["wan-prepare-1"] = replace(story.children["wan-prepare-1"], finished=True, succeeded=True)
    story.settle()
    assert story.status.stage is Stage.FEATURES
    assert len(story.status.stages[1].attempts) == 1
