# SPDX-License-Identifier: Apache-2.0
"""Ends attempts: well, by a failure, or because they were stopped. Pure, see `decide`."""

from __future__ import annotations

from kinema_api.exits import FailureClass, Termination
from kinema_api.locations import for_user, join
from kinema_api.names import Stage, artifact_folder
from kinema_api.pipeline import SHARED_STAGES
from kinema_api.status import Attempt, AttemptState, StageState
from kinema_operator.draft import Draft, keys_of
from kinema_operator.failures import NO_RESULT, Failure
from kinema_operator.observed import Child
from kinema_operator.stall import progress_of
from kinema_operator.status import parse_time, shorten, timestamp
from kinema_operator.stop import Stop
from kinema_operator.usage import accelerators, accounted, added

ARTIFACT_EXISTS = "ArtifactExists"
LOG_LIMIT = 4096


def succeed(draft: Draft, stage: Stage, attempt: Attempt, found: Child) -> None:
    """The child has ended well: take over what it left."""
    result = _result(found)
    if stage is Stage.CHECK and (result is None or keys_of(result.keys) is None):
        fail(draft, stage, attempt, NO_RESULT, found)
        return
    said = shorten(for_user(result.message)) if result else ""
    skipped = result is not None and result.reason == ARTIFACT_EXISTS
    ended = attempt.model_copy(
        update={
            "uid": found.uid,
            "state": AttemptState.SUCCEEDED,
            "finished_at": timestamp(draft.now),
            "exit_code": 0,
            "reason": result.reason if result else "",
            "message": said,
        }
    )
    _account(draft, stage, ended, found)
    draft.set_attempt(
        stage,
        ended,
        state=StageState.SKIPPED if skipped else StageState.SUCCEEDED,
        reason=ARTIFACT_EXISTS if skipped else "Completed",
        message=said,
        artifact=for_user(result.artifact) if result and result.artifact else None,
        counts=result.counts if result else {},
    )
    verb = "StageSkipped" if skipped else "StageSucceeded"
    draft.tell(verb, f"{stage}: {said or ('its artifact exists' if skipped else 'done')}")
    if stage is Stage.CHECK and result is not None:
        _keep_keys(draft, result)


def _keep_keys(draft: Draft, result: Termination) -> None:
    """Freeze what check resolved, and skip every shared stage whose artifact is there."""
    draft.resolved = draft.resolved.model_copy(update={"keys": result.keys, "pins": result.pins})
    for stage in sorted(SHARED_STAGES & set(draft.stages), key=list(Stage).index):
        if stage.value not in result.existing:
            continue
        artifact = join(draft.spec.storage.uri, artifact_folder(stage, result.keys[stage.value]))
        message = f"{artifact} exists already"
        draft.set_stage(
            stage, state=StageState.SKIPPED, reason=ARTIFACT_EXISTS, message=shorten(message), artifact=artifact
        )
        draft.tell("StageSkipped", f"{stage}: {message}")


def fail(draft: Draft, stage: Stage, attempt: Attempt, failure: Failure, found: Child | None) -> None:
    """The attempt has failed: another one follows if that can help and the limit allows it."""
    said = shorten(for_user(failure.message))
    ended = attempt.model_copy(
        update={
            "state": AttemptState.FAILED,
            "finished_at": timestamp(draft.now),
            "exit_code": failure.exit_code,
            "failure": failure.kind,
            "reason": failure.reason,
            "message": said,
            "node": failure.node,
            "log_tail": for_user(failure.log_tail)[-LOG_LIMIT:],
            "stacks": for_user(failure.stacks) if failure.stacks else None,
        }
    )
    failures = draft.stages[stage].failures + 1
    spent = failures > draft.limit(stage)
    final = spent or not failure.consequence.retry
    why = _why(ended)
    if failure.consequence.retry and spent:
        why += f"; that was the last of {failures} attempts"
    _account(draft, stage, ended, found)
    draft.restarts += 1
    draft.set_attempt(
        stage,
        ended,
        state=StageState.FAILED if final else StageState.RUNNING,
        reason=failure.reason,
        message=shorten(why),
        failures=failures,
    )
    draft.tell("AttemptFailed", f"{stage}: {why}", warning=True)
    if not final:
        draft.look_again(draft.backoff(failures))


def recall(draft: Draft, stage: Stage, failed: Attempt) -> None:
    """While the next attempt is waited for the stage says why the last one failed, also after a pause."""
    draft.set_stage(stage, state=StageState.RUNNING, reason=failed.reason, message=shorten(_why(failed)))


def _why(failed: Attempt) -> str:
    return f"attempt {failed.number} failed ({failed.reason}): {failed.message}"


def stop(draft: Draft, stage: Stage, attempt: Attempt, demand: Stop, found: Child | None) -> None:
    """The attempt must not go on: its child is deleted once the status says why."""
    ended = attempt.model_copy(
        update={
            "state": demand.attempt,
            "finished_at": timestamp(draft.now),
            "failure": demand.failure,
            "reason": demand.reason,
            "message": shorten(demand.message),
        }
    )
    _account(draft, stage, ended, found)
    draft.set_attempt(stage, ended)
    if demand.attempt is AttemptState.FAILED:
        draft.restarts += 1
        draft.set_stage(stage, failures=draft.stages[stage].failures + 1)
    draft.tell("AttemptStopped", f"{stage}: attempt {attempt.number}: {demand.message}")


def overdue(seconds: int) -> Failure:
    """The attempt took too long."""
    return Failure(FailureClass.TIMEOUT, "Timeout", f"it took longer than the stage's timeoutSeconds ({seconds})")


def stalled(message: str) -> Failure:
    """The attempt does not move, and its own watchdog does not say so."""
    return Failure(FailureClass.STALLED, "Stalled", message)


def _account(draft: Draft, stage: Stage, ended: Attempt, found: Child | None) -> None:
    """Put the attempt's time into the ledger."""
    pods = found.pods if found is not None else ()
    began = [pod.started_at for pod in pods]
    ran_from = max((at for at in began if at is not None), default=None) if all(began) else None
    if ran_from is None and ended.running_at is not None:
        ran_from = parse_time(ended.running_at)
    told = next((pod.termination.seconds for pod in pods if pod.termination and pod.termination.seconds), None)
    progress = progress_of(ended, stage, draft.progress)
    seconds = accounted(ended, ran_from=ran_from, told=told, progress=progress)
    draft.usage = added(draft.usage, seconds, accelerators(draft.plan(stage, ended.number)))


def _result(found: Child) -> Termination | None:
    """What the pods of a succeeded child left; the first pod that says something speaks for all."""
    said = [end.termination for end in found.pods if end.termination is not None and end.termination.code == 0]
    return next((termination for termination in said if termination.artifact or termination.keys), None) or (
        said[0] if said else None
    )
