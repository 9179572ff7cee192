# SPDX-License-Identifier: Apache-2.0
"""One walk along a job's pipeline: from what is seen of its children to what follows. Pure, see `decide`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from kinema_api.exits import Termination
from kinema_api.job import JobSpec
from kinema_api.keys import Keys
from kinema_api.locations import for_user, join
from kinema_api.names import Stage, artifact_folder, child_name, run_folder
from kinema_api.plan import SHARED_STAGES, pipeline, stage_settings
from kinema_api.settings import Stages
from kinema_api.stage import JobRef
from kinema_api.status import Attempt, AttemptState, JobStatus, Phase, Resolved, StageState, StageStatus
from kinema_operator.failures import CHILD_DELETED, NO_RESULT, Failure, classify
from kinema_operator.manifests import AttemptPlan, child
from kinema_operator.observed import Child, Decision, Deletion, Event, EventType, Observed, Platform, PodEnd, Raw
from kinema_operator.status import parse_time, shorten, stored, timestamp, with_conditions, write_status

ARTIFACT_EXISTS = "ArtifactExists"
BACKOFF_LIMIT = 300.0
"""Longest wait before another attempt, seconds."""
LOOK_AGAIN = 2.0
"""Seconds until something that has no watch event is looked at again."""
WAIT_CHECK = 30.0
"""Seconds after which a child without a running pod is looked at again."""


class Walk:
    """One walk along the pipeline; lives for one decision."""

    def __init__(
        self,
        job: Raw,
        spec: JobSpec,
        resolved: Resolved,
        before: JobStatus,
        observed: Observed,
        platform: Platform,
        now: datetime,
    ) -> None:
        self.job = job
        self.spec = spec
        self.resolved = resolved
        self.before = before
        self.observed = observed
        self.platform = platform
        self.now = now
        metadata = job["metadata"]
        self.ref = JobRef(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])
        self.settings = Stages.stored(resolved.stages)
        self.stages: dict[Stage, StageStatus] = {
            stage: StageStatus(name=stage, state=StageState.PENDING) for stage in pipeline(self.settings)
        } | {status.name: status for status in before.stages}
        self.create: list[Raw] = []
        self.delete: list[Deletion] = []
        self.events: list[Event] = []
        self.requeue_after: float | None = None

    def decision(self) -> Decision:
        """Walk to the first stage that is not done, and say what follows."""
        self._remove_superfluous()
        current = None
        for stage in pipeline(self.settings):
            self._advance(stage)
            if not self.stages[stage].state.done:
                current = stage
                break
        status = self._status(current)
        written = write_status(status)
        return Decision(
            create=tuple(self.create),
            status=None if written == stored(self.job) else written,
            delete=tuple(self.delete),
            events=tuple(self.events),
            requeue_after=self.requeue_after,
        )

    # -- one stage ---------------------------------------------------------------------------------------------------

    def _advance(self, stage: Stage) -> None:
        status = self.stages[stage]
        if status.state.done or status.state is StageState.FAILED:
            return
        if not status.attempts:
            self._start(stage)
            return
        last = status.attempts[-1]
        if last.state is AttemptState.RUNNING:
            self._follow(stage, last)
        elif last.state is AttemptState.FAILED:
            # Never in the decision that records the failure: only then are stray pods of the attempt looked for.
            self._retry(stage, last)

    def _follow(self, stage: Stage, attempt: Attempt) -> None:
        """Look at the child of the running attempt."""
        found = self._child(stage, attempt.number)
        if found is None or (attempt.uid and found.uid != attempt.uid):
            self._fail(stage, attempt, CHILD_DELETED)
        elif not found.finished:
            self._wait(stage, attempt, found)
        elif any(pod.live for pod in found.pods):
            self._outwait(stage, attempt, next(pod for pod in found.pods if pod.live))
        elif found.succeeded:
            self._succeed(stage, attempt, found)
        else:
            self._fail(stage, attempt, classify(found))

    def _wait(self, stage: Stage, attempt: Attempt, found: Child) -> None:
        if found.deleting:
            self._look_again(LOOK_AGAIN)
        elif found.waiting or not attempt.uid:
            self._look_again(WAIT_CHECK)
        message = f"waits: {found.waiting}" if found.waiting else ""
        self._set_attempt(stage, attempt.model_copy(update={"uid": found.uid}), message=shorten(message))

    def _outwait(self, stage: Stage, attempt: Attempt, pod: PodEnd) -> None:
        where = f"pod {pod.name}" + (f" on node {pod.node}" if pod.node else "")
        message = f"waits: {where} still ends; if its node is gone for good, delete the Node"
        self._set_attempt(stage, attempt, message=message)
        self._look_again(LOOK_AGAIN)

    def _succeed(self, stage: Stage, attempt: Attempt, found: Child) -> None:
        result = _result(found)
        if stage is Stage.CHECK and (result is None or _keys(result.keys) is None):
            self._fail(stage, attempt, NO_RESULT)
            return
        skipped = result is not None and result.reason == ARTIFACT_EXISTS
        ended = attempt.model_copy(
            update={
                "uid": found.uid,
                "state": AttemptState.SUCCEEDED,
                "finished_at": timestamp(self.now),
                "exit_code": 0,
                "reason": result.reason if result else "",
                "message": shorten(for_user(result.message)) if result else "",
            }
        )
        self._set_attempt(
            stage,
            ended,
            state=StageState.SKIPPED if skipped else StageState.SUCCEEDED,
            reason=ARTIFACT_EXISTS if skipped else "Completed",
            message=ended.message,
            artifact=for_user(result.artifact) if result and result.artifact else None,
            counts=result.counts if result else {},
        )
        verb = "StageSkipped" if skipped else "StageSucceeded"
        self._tell(verb, f"{stage}: {ended.message or ('its artifact exists' if skipped else 'done')}")
        if stage is Stage.CHECK and result is not None:
            self._keep_keys(result)

    def _keep_keys(self, result: Termination) -> None:
        """Freeze the keys that check resolved, and skip every shared stage whose artifact is there."""
        self.resolved = self.resolved.model_copy(update={"keys": result.keys})
        for stage in sorted(SHARED_STAGES & set(self.stages), key=list(Stage).index):
            if stage.value not in result.existing:
                continue
            artifact = join(self.spec.storage.uri, artifact_folder(stage, result.keys[stage.value]))
            message = f"{artifact} exists already"
            self.stages[stage] = self.stages[stage].model_copy(
                update={
                    "state": StageState.SKIPPED,
                    "reason": ARTIFACT_EXISTS,
                    "message": shorten(message),
                    "artifact": artifact,
                }
            )
            self._tell("StageSkipped", f"{stage}: {message}")

    def _fail(self, stage: Stage, attempt: Attempt, failure: Failure) -> None:
        said = for_user(failure.message)
        ended = attempt.model_copy(
            update={
                "state": AttemptState.FAILED,
                "finished_at": timestamp(self.now),
                "exit_code": failure.exit_code,
                "reason": failure.reason,
                "message": shorten(said),
            }
        )
        spent = len(self.stages[stage].attempts) > self._retries(stage)
        final = spent or not failure.retryable
        why = f"attempt {attempt.number} failed ({failure.reason}): {said}"
        if failure.retryable and spent:
            why += f"; that was the last of {len(self.stages[stage].attempts)} attempts"
        self._set_attempt(
            stage,
            ended,
            state=StageState.FAILED if final else StageState.RUNNING,
            reason=failure.reason,
            message=shorten(why),
        )
        self._tell("AttemptFailed", f"{stage}: {why}", warning=True)
        if not final:
            self._look_again(self._backoff(attempt.number))

    def _retry(self, stage: Stage, last: Attempt) -> None:
        """Start the next attempt once the wait after the last failure is over."""
        assert last.finished_at is not None
        due = parse_time(last.finished_at) + timedelta(seconds=self._backoff(last.number))
        left = (due - self.now).total_seconds()
        if left > 0:
            self._look_again(left)
        elif self.observed.stray_pods:
            self._look_again(LOOK_AGAIN)
        else:
            self._start(stage)

    def _start(self, stage: Stage) -> None:
        status = self.stages[stage]
        number = len(status.attempts) + 1
        name = child_name(job=self.ref.name, stage=stage, attempt=number)
        if name in self.observed.foreign:
            message = f"waits: {name} exists and is not this job's: it is being deleted, or delete or rename it"
            self.stages[stage] = status.model_copy(update={"message": message})
            self._look_again(LOOK_AGAIN)
            return
        plan = AttemptPlan(
            job=self.ref,
            spec=self.spec,
            resolved=self.resolved,
            keys=_keys(self.resolved.keys),
            stage=stage,
            number=number,
            platform=self.platform,
        )
        self.create.append(child(plan))
        if name in self.observed.refused:
            # Tried again all the same; the attempt counts from when its child exists.
            message = shorten(f"waits: {self.observed.refused[name]}")
            self.stages[stage] = status.model_copy(update={"reason": "CreateRefused", "message": message})
            return
        attempt = Attempt(number=number, child=name, state=AttemptState.RUNNING, started_at=timestamp(self.now))
        self.stages[stage] = status.model_copy(
            update={
                "state": StageState.RUNNING,
                "reason": "Started",
                "message": "",
                "attempts": [*status.attempts, attempt],
            }
        )
        self._tell("StageStarted", f"{stage}: attempt {number}, {plan.resolved.images[stage.value]}")

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _remove_superfluous(self) -> None:
        """Delete children that no recorded attempt explains and that the next decision would not create."""
        for found in self.observed.children:
            status = self.stages.get(found.stage)
            attempts = len(status.attempts) if status is not None else 0
            if (
                status is None
                or found.attempt > attempts + 1
                or (found.attempt < attempts and not found.finished and not found.deleting)
            ):
                self.delete.append(Deletion(found.kind, found.name, found.uid))

    def _child(self, stage: Stage, attempt: int) -> Child | None:
        return next((c for c in self.observed.children if c.stage is stage and c.attempt == attempt), None)

    def _retries(self, stage: Stage) -> int:
        retries = stage_settings(self.settings, stage).retries
        return self.spec.policy.restarts.limit if retries is None else retries

    def _backoff(self, failures: int) -> float:
        """Seconds between a failure and the next attempt."""
        return min(BACKOFF_LIMIT, self.spec.policy.restarts.backoff_seconds * 2.0 ** (failures - 1))

    def _set_attempt(self, stage: Stage, attempt: Attempt, **update: object) -> None:
        status = self.stages[stage]
        attempts = [*status.attempts[:-1], attempt]
        self.stages[stage] = status.model_copy(update={"attempts": attempts, **update})

    def _look_again(self, seconds: float) -> None:
        self.requeue_after = seconds if self.requeue_after is None else min(self.requeue_after, seconds)

    def _tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.events.append(Event(EventType.WARNING if warning else EventType.NORMAL, reason, shorten(message)))

    # -- the job as a whole ------------------------------------------------------------------------------------------

    def _status(self, current: Stage | None) -> JobStatus:
        stages = [self.stages[stage] for stage in pipeline(self.settings)]
        failed = current is not None and self.stages[current].state is StageState.FAILED
        phase = Phase.SUCCEEDED if current is None else Phase.FAILED if failed else Phase.RUNNING
        reason, message = self._sentence(current, phase)
        failures = sum(attempt.state is AttemptState.FAILED for stage in stages for attempt in stage.attempts)
        folder = run_folder(namespace=self.ref.namespace, name=self.ref.name, uid=self.ref.uid)
        status = self.before.model_copy(
            update={
                "phase": phase,
                "stage": current or stages[-1].name,
                "restarts": failures,
                "message": message,
                "started_at": self.before.started_at or timestamp(self.now),
                "finished_at": timestamp(self.now) if phase.terminal else None,
                "stages": stages,
                "resolved": self.resolved,
                "workspace": join(self.spec.storage.uri, folder),
            }
        )
        if phase.terminal:
            self._tell(f"Job{phase}", message, warning=failed)
        return with_conditions(status, reason=reason, message=message, accepted=True, now=self.now)

    def _sentence(self, current: Stage | None, phase: Phase) -> tuple[str, str]:
        """The job's reason and message."""
        if current is None:
            return "Completed", shorten(f"done; results are in {self._last_artifact()}")
        status = self.stages[current]
        if phase is Phase.FAILED:
            return status.reason, shorten(f"{current}: {status.message}")
        attempt = f"attempt {len(status.attempts)} of at most {self._retries(current) + 1}"
        said = f"{current}: {status.message}" if status.message else f"{current}: {attempt} runs"
        return "StageRunning", shorten(said)

    def _last_artifact(self) -> str:
        artifacts = [status.artifact for status in self.stages.values() if status.artifact]
        return artifacts[-1] if artifacts else "the workspace"


def _result(found: Child) -> Termination | None:
    """What the pods of a succeeded child left; the first pod that says something speaks for all."""
    said = [end.termination for end in found.pods if end.termination is not None and end.termination.code == 0]
    return next((termination for termination in said if termination.artifact or termination.keys), None) or (
        said[0] if said else None
    )


def _keys(found: Mapping[str, str]) -> Keys | None:
    """The keys that check left; None when one is missing."""
    names = [field for field in Keys.model_fields if found.get(field)]
    return Keys.stored(found) if len(names) == len(Keys.model_fields) else None
