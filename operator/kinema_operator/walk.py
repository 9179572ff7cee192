# SPDX-License-Identifier: Apache-2.0
"""One walk along a job's pipeline: from what is seen of its children to what follows. Pure, see `decide`."""

from __future__ import annotations

from datetime import timedelta

from kinema_api.names import Stage, child_name
from kinema_api.pipeline import pipeline
from kinema_api.status import Attempt, AttemptState, Progress, StageState
from kinema_operator import closing
from kinema_operator.draft import Draft
from kinema_operator.failures import CHILD_DELETED
from kinema_operator.manifests import child
from kinema_operator.observed import Child, PodEnd
from kinema_operator.stall import limit_of, movement, progress_of
from kinema_operator.status import parse_time, shorten, timestamp
from kinema_operator.stop import Stop
from kinema_operator.verdicts import classify

LOOK_AGAIN = 2.0
"""Seconds until something that has no watch event is looked at again."""
WAIT_CHECK = 30.0
"""Seconds after which a child without a running pod is looked at again."""


def walk(draft: Draft, demand: Stop | None) -> Stage | None:
    """Walk to the first stage that is not done, and return it; None when all are.

    Args:
        draft: takes what follows.
        demand: why nothing may run, if so.
    """
    current = None
    for stage in pipeline(draft.settings):
        _advance(draft, stage, demand)
        if not draft.stages[stage].state.done:
            current = stage
            break
    _remove_unexplained(draft, current, demand)
    return current


def _advance(draft: Draft, stage: Stage, demand: Stop | None) -> None:
    status = draft.stages[stage]
    if status.state.done or status.state is StageState.FAILED:
        return
    last = status.attempts[-1] if status.attempts else None
    if last is not None and last.state is AttemptState.RUNNING:
        _follow(draft, stage, last, demand)
    elif demand is None:
        # Never in the decision that ends an attempt: only then are stray pods of it looked for.
        _start_when_due(draft, stage, last)


def _follow(draft: Draft, stage: Stage, attempt: Attempt, demand: Stop | None) -> None:
    """Look at the child of the running attempt. One that has finished by itself counts as it finished."""
    found = draft.child(stage, attempt.number)
    if found is not None and attempt.uid and found.uid != attempt.uid:
        found = None
    live = next((pod for pod in found.pods if pod.live), None) if found is not None and found.finished else None
    if found is not None and found.finished and live is None:
        if found.succeeded:
            closing.succeed(draft, stage, attempt, found)
        else:
            closing.fail(draft, stage, attempt, classify(found), found)
    elif demand is not None and (live is None or demand.final):
        closing.stop(draft, stage, attempt, demand, found)
    elif found is None:
        closing.fail(draft, stage, attempt, CHILD_DELETED, None)
    elif live is not None:
        _outwait(draft, stage, attempt, live)
    else:
        _await(draft, stage, attempt, found)


def _outwait(draft: Draft, stage: Stage, attempt: Attempt, pod: PodEnd) -> None:
    where = f"pod {pod.name}" + (f" on node {pod.node}" if pod.node else "")
    draft.set_attempt(stage, attempt, message=draft.wait(f"{where} still ends"))
    draft.look_again(LOOK_AGAIN)


def _await(draft: Draft, stage: Stage, attempt: Attempt, found: Child) -> None:
    """The child has not finished: see that it runs, moves, and does not take too long."""
    if found.running and attempt.running_at is None:
        attempt = attempt.model_copy(update={"running_at": timestamp(draft.now)})
    attempt = attempt.model_copy(update={"uid": found.uid})
    if found.deleting:
        message = draft.wait(f"{found.name} is being deleted and its pods still end")
        draft.set_attempt(stage, attempt, message=message)
        draft.look_again(LOOK_AGAIN)
        return
    if found.waiting:
        draft.look_again(WAIT_CHECK)
    draft.set_attempt(stage, attempt, message=draft.wait(found.waiting) if found.waiting else "")
    if _overdue(draft, stage, attempt):
        return
    settings = draft.stage_settings(stage)
    pushed = progress_of(attempt, stage, draft.progress)
    moves = movement(
        attempt=attempt,
        running=found.running,
        progress=pushed,
        last_log=found.last_log,
        limit=limit_of(settings, pushed),
        now=draft.now,
    )
    draft.movement = moves
    if moves.stalled:
        closing.fail(draft, stage, attempt, closing.stalled(moves.message), None)
    elif moves.look_again is not None:
        draft.look_again(moves.look_again)


def _overdue(draft: Draft, stage: Stage, attempt: Attempt) -> bool:
    """End the attempt when it has run for longer than its stage may."""
    limit = draft.stage_settings(stage).timeout_seconds
    if limit is None or attempt.running_at is None:
        return False
    left = (parse_time(attempt.running_at) + timedelta(seconds=limit) - draft.now).total_seconds()
    if left > 0:
        draft.look_again(left)
        return False
    closing.fail(draft, stage, attempt, closing.overdue(limit), None)
    return True


def _start_when_due(draft: Draft, stage: Stage, last: Attempt | None) -> None:
    """Start the next attempt once the wait after a failure is over and nothing of the last attempt lives."""
    failures = draft.stages[stage].failures
    if last is not None and last.state is AttemptState.FAILED and failures and last.finished_at:
        wait = draft.backoff(failures)
        left = wait - (draft.now - parse_time(last.finished_at)).total_seconds()
        # With more left than the whole wait the clock was put back, and the time of the failure tells nothing.
        if 0 < left <= wait:
            draft.look_again(left)
            closing.recall(draft, stage, last)
            return
    number = last.number + 1 if last is not None else 1
    old = [c for c in draft.observed.children if c.stage is stage and c.attempt < number and not c.finished]
    again = draft.child(stage, number)
    if draft.observed.stray_pods or old or (again is not None and again.deleting):
        cause = f"pods of an earlier attempt of {stage} still end"
        draft.set_stage(stage, message=draft.wait(cause))
        draft.look_again(LOOK_AGAIN)
        return
    _start(draft, stage, number)


def _start(draft: Draft, stage: Stage, number: int) -> None:
    name = child_name(job=draft.ref.name, stage=stage, attempt=number)
    if name in draft.observed.foreign:
        cause = f"{name} exists and is not this job's"
        draft.set_stage(stage, message=draft.wait(cause))
        draft.look_again(LOOK_AGAIN)
        return
    plan = draft.plan(stage, number)
    made = draft.child(stage, number)
    if made is None:
        draft.create.append(child(plan))
        if name in draft.observed.refused:
            # Tried again all the same; the attempt counts from when its child exists.
            draft.set_stage(stage, reason="CreateRefused", message=draft.wait(draft.observed.refused[name]))
            return
    # One that exists was created, but the status was not written. Were it created again, and deleted by somebody just
    # now, there would be two.
    uid = made.uid if made is not None else ""
    attempt = Attempt(number=number, child=name, uid=uid, state=AttemptState.RUNNING, started_at=timestamp(draft.now))
    draft.add_attempt(stage, attempt, state=StageState.RUNNING, reason="Started", message="")
    avoids = f", not on {', '.join(plan.avoid)} if possible" if plan.avoid else ""
    draft.tell("StageStarted", shorten(f"{stage}: attempt {number}, {plan.resolved.images[stage.value]}{avoids}"))
    if draft.progress is not None and draft.progress.stage is not stage:
        # The columns must not show the last stage's end as this one's; the loss stays worth seeing.
        draft.fresh = Progress(stage=stage, attempt=number, loss=draft.progress.loss)


def _remove_unexplained(draft: Draft, current: Stage | None, demand: Stop | None) -> None:
    """Delete children that no running attempt explains and that no later decision would create."""
    for found in draft.observed.children:
        status = draft.stages.get(found.stage)
        attempts = status.attempts if status is not None else []
        recorded = next((attempt for attempt in attempts if attempt.number == found.attempt), None)
        following = attempts[-1].number + 1 if attempts else 1
        if recorded is not None:
            explained = found.finished or recorded.state is AttemptState.RUNNING
        elif found.attempt == following and status is not None:
            # Created, but the status was not written: it becomes the next attempt, unless nothing may run.
            explained = found.finished or (demand is None and found.stage is current)
        else:
            explained = found.finished and status is not None and found.attempt < following
        if not explained:
            draft.remove(found)
