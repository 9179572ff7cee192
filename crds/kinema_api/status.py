# SPDX-License-Identifier: Apache-2.0
"""The status of a `VideoTrainingJob`: what the operator answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from kinema_api.base import Model, ShortText, Text, Word
from kinema_api.exits import FailureClass
from kinema_api.names import Stage


class Phase(Word):
    """Where a job stands as a whole."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


class ConditionStatus(Word):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    """One observed truth about the job."""

    type: Annotated[str, Field(max_length=64)]
    """Accepted, Running, Suspended, Progressing, Succeeded or Failed."""
    status: ConditionStatus
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=64)]
    """One CamelCase word, for programs."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """One sentence, for people."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""
    observed_generation: int = 0
    """The generation of the spec it speaks about."""


class StageState(Word):
    """Where a stage stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    SKIPPED = "Skipped"
    FAILED = "Failed"

    @property
    def done(self) -> bool:
        """Whether later stages may start."""
        return self in (StageState.SUCCEEDED, StageState.SKIPPED)


class AttemptState(Word):
    """Where an attempt stands."""

    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"
    """Ended on request: suspended, cancelled or retried. It counts as no failure."""


class Attempt(Model):
    """One run of a stage: one child object."""

    number: int = Field(ge=1)
    """Counts from 1."""
    child: Annotated[str, Field(max_length=63)]
    """Name of the Job or PyTorchJob."""
    uid: Annotated[str, Field(max_length=64)] = ""
    """Its uid, once it exists."""
    state: AttemptState
    """Where it stands."""
    started_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When it was created."""
    running_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """Since when all its pods run; its timeout counts from here."""
    finished_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When it ended."""
    exit_code: int | None = None
    """Exit code of the container that decided the end."""
    failure: FailureClass | None = None
    """The class of its failure."""
    reason: ShortText = ""
    """One CamelCase word: why it ended."""
    message: Text = ""
    """What the container said when it ended."""
    node: Annotated[str, Field(max_length=253)] = ""
    """The node of the pod that decided a failure."""
    log_tail: Text = ""
    """The last lines of that pod's log, when it failed."""
    stacks: Annotated[str, Field(max_length=1024)] | None = None
    """Where the stacks of all threads lie, when it stalled."""


class StageStatus(Model):
    """Where one stage stands."""

    name: Stage
    """The stage."""
    state: StageState
    """Where it stands."""
    reason: ShortText = ""
    """One CamelCase word: why, for instance ArtifactExists."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """One sentence, for people."""
    artifact: Annotated[str, Field(max_length=1024)] | None = None
    """Where its result lies."""
    counts: Annotated[dict[str, int], Field(max_length=32)] = Field(default_factory=dict)
    """What it did, for instance {clips: 4, encoded: 2}."""
    failures: int = Field(default=0, ge=0)
    """Failed attempts since the stage was last asked for; their limit is `policy.restarts.limit`."""
    attempts: list[Attempt] = Field(default_factory=list, max_length=101)
    """The newest runs of the stage."""


class Progress(Model):
    """What the running stage says of itself; written by the server, at most every 15 s."""

    stage: Stage
    """The stage that speaks."""
    attempt: int = 1
    """Its attempt."""
    percent: Annotated[str, Field(max_length=8)] = ""
    """For people, for instance 42%."""
    percentage: int = Field(default=0, ge=0, le=100)
    """For programs."""
    step: int | None = None
    """Optimizer step, or clip."""
    total_steps: int | None = None
    """The last step."""
    loss: Annotated[str, Field(max_length=32)] | None = None
    """Training loss of the last step."""
    eta: Annotated[str, Field(max_length=32)] | None = None
    """For people, for instance 3h12m."""
    eta_seconds: int | None = None
    """Seconds that are left of the stage."""
    metrics: Annotated[dict[str, Annotated[str, Field(max_length=64)]], Field(max_length=64)] = Field(
        default_factory=dict
    )
    """All that the stage sent."""
    updated_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] = ""
    """When it was sent."""


class Seconds(Model):
    """How long pods did what, in whole seconds."""

    productive: int = Field(default=0, ge=0)
    """Work that is in a published result or a complete checkpoint."""
    queued: int = Field(default=0, ge=0)
    """From the creation of a child until its pods run; no accelerator is held."""
    starting: int = Field(default=0, ge=0)
    """From then until the stage's own work begins: interpreter, imports, model load, rendezvous; and ending the pod."""
    data: int = Field(default=0, ge=0)
    """Waiting for data."""
    checkpoint: int = Field(default=0, ge=0)
    """Waiting for checkpoints."""
    lost: int = Field(default=0, ge=0)
    """Work done since the last complete checkpoint of an attempt that failed, and what else it does not account for."""


class Usage(Model):
    """What the job used; complete attempts only."""

    seconds: Seconds = Field(default_factory=Seconds)
    """Wall seconds of attempts, by what they went to."""
    accelerator_hours: Annotated[dict[str, Annotated[str, Field(max_length=32)]], Field(max_length=8)] = Field(
        default_factory=dict
    )
    """The same but queued, times the accelerators that were held, in hours with three decimals, for instance
    {productive: "12.250", lost: "0.125"}. Empty on a cpu pool."""


class Resolved(Model):
    """What the job depends on, frozen when it starts, so that an upgrade disturbs nothing."""

    model: Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
    """The catalogue entry."""
    pools: Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
    """The spec of every pool used, by name."""
    images: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]
    """The image of each stage."""
    stages: Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
    """The settings of each stage with every default filled in."""
    keys: Annotated[dict[str, Annotated[str, Field(max_length=64)]], Field(max_length=16)] = Field(default_factory=dict)
    """The artifact key of each shared stage, once `check` found them."""
    pins: Annotated[dict[str, Annotated[str, Field(max_length=128)]], Field(max_length=4)] = Field(default_factory=dict)
    """What a moving name stood for when `check` looked, for instance {weights: <commit>}."""


class JobStatus(Model):
    """What the operator answers."""

    observed_generation: int = 0
    """The generation of the spec that this status answers."""
    phase: Phase = Phase.PENDING
    """Where the job stands: Pending, Running, Suspended, Succeeded, Failed or Cancelled."""
    stage: Stage | None = None
    """The stage that runs, or that the job ended in."""
    restarts: int = 0
    """Failed attempts over all stages."""
    retry: int = 0
    """The last `policy.retry.number` that was served."""
    diagnosis: Annotated[str, Field(max_length=1024)] = ""
    """What is wrong, why, and what to do about it, in one sentence; empty while all is well."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """One sentence: where the job stands and, when it failed, what to do."""
    started_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When the first stage started."""
    finished_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When the job ended."""
    suspended_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """Since when the job is suspended; null while it is not."""
    suspended_seconds: int = 0
    """Earlier time in suspension; the deadline leaves it out."""
    usage: Usage = Field(default_factory=Usage)
    """What the job used."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)
    """Accepted, Running, Suspended, Progressing, Succeeded and Failed, with reasons."""
    stages: Annotated[
        list[StageStatus],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    """Where each stage stands, in order."""
    resolved: Resolved | None = None
    """What the job depends on, frozen when it started."""
    progress: Progress | None = None
    """What the running stage says of itself."""
    workspace: Annotated[str, Field(max_length=1024)] | None = None
    """The job's own folder: checkpoints, metrics.jsonl, samples."""

    def condition(self, kind: str) -> Condition | None:
        """The condition of a type; None when it was never set."""
        return next((condition for condition in self.conditions if condition.type == kind), None)
