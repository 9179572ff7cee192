# SPDX-License-Identifier: Apache-2.0
"""The conditions of a job: which there are, every reason they can have, and how they follow from its phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from kinema_api.status import Condition, ConditionStatus, JobStatus, Phase
from kinema_operator.status import shorten, timestamp

TYPES: Mapping[str, str] = MappingProxyType(
    {
        "Accepted": "the operator can carry out the spec",
        "Running": "an attempt of a stage runs, waits to run, or follows soon",
        "Suspended": "the job is paused by `spec.policy.suspend`, and nothing of it runs",
        "Progressing": "the running attempt moves; Unknown where that cannot be seen, which harms nobody",
        "Succeeded": "every stage is done",
        "Failed": "the job has ended without success",
    }
)
"""Every type of condition, and what it says when it is True."""

REASONS: Mapping[str, str] = MappingProxyType(
    {
        # Spec
        "Accepted": "the spec can be carried out",
        "InvalidSpec": "the spec has a field that this version of the operator does not know",
        "UnknownModel": "the catalogue has no such model",
        "UnknownPool": "the cluster has no such TrainingPool; the job waits for it",
        "TaskNotSupported": "the model cannot do the task",
        "NoImage": "the operator knows no image for the model and accelerator; the job waits for it",
        "NotEnoughNodes": "the pool has too few nodes; the job waits",
        "NotEnoughDevices": "a node of the pool has too few devices; the job waits",
        "InvalidVideo": "frames or size do not fit the model",
        "InvalidMasks": "clean frames do not fit the task, or their shares add up to more than 1",
        "InvalidLora": "low-rank additions are asked for where the model has no such layer",
        "InvalidPacking": "packs cannot hold every clip",
        "InvalidAttention": "the pool's accelerator, or the number format, has no such kernel of attention",
        "InvalidSchedule": "the schedule does not fit the number of steps",
        "InvalidLayout": "the processes cannot be laid out as asked; the message has the nearest layout that works",
        "DoesNotFit": "the model does not fit into the memory of the pool's devices",
        "InvalidAddress": "an address cannot be used",
        "InvalidPodTemplate": "a pod template would break what the stage relies on",
        "SampleNotSupported": "the model's pipeline cannot generate what the task asks for",
        "StageRequired": "a disabled stage is needed by a later one",
        # Phases
        "StageRunning": "a stage runs, or its next attempt follows",
        "SuspendRequested": "`spec.policy.suspend` is true",
        "NotSuspended": "`spec.policy.suspend` is false, or something still ends",
        "Completed": "every stage is done",
        "Cancelled": "`spec.policy.cancel` was set",
        "DeadlineExceeded": "the job took longer than `spec.policy.deadlineSeconds`",
        "Forbidden": "the operator lacks a right that it needs for the job; the message names it",
        "Retried": "`spec.policy.retry` asked for another run",
        # Movement
        "ProgressPushed": "the stage says how far it is",
        "LogMoves": "pushed progress is old, but the pods write log lines",
        "NoProgressData": "the stage has not said how far it is",
        "NoLogData": "pushed progress is old and the pods' log cannot be read",
        "NotRunning": "no attempt runs with all its pods",
        # Failures of attempts
        "InternalError": "a bug, or an error that the stage could not name",
        "InvalidInput": "the spec or what it names is wrong",
        "DataError": "the dataset has nothing usable",
        "StorageError": "the workspace cannot be read or written, or is full",
        "WeightsError": "weights are missing, truncated or of another shape",
        "LossNotFinite": "the loss is not finite",
        "DeviceOutOfMemory": "the accelerator's memory did not suffice",
        "HostOutOfMemory": "a pod used more memory than its limit",
        "CommunicationError": "a collective or the rendezvous failed, and no member says why",
        "Stalled": "nothing moved for too long",
        "Interrupted": "something outside stopped the stage",
        "Timeout": "the attempt took longer than its stage's `timeoutSeconds`",
        "Killed": "the process was killed, and nobody says by whom",
        "PodFailed": "the pod failed before its container ran",
        "PodsGone": "the pods are gone and left no word",
        "ChildDeleted": "the attempt's Job or PyTorchJob was deleted from outside",
        "NoResult": "the stage ended well but left no result",
        "Evicted": "the node took the pod off",
        "NodeLost": "the node is gone or does not answer",
        "NodeShutdown": "the node shut down",
        "NodeRefused": "kubelet found no room for the pod after all",
        "Preempted": "the scheduler gave the place to a pod of higher priority",
        "ImagePull": "the image could not be pulled",
        "ContainerNotStarted": "the container could not be made or started",
        "NameNotResolved": "a name could not be resolved",
        "ScratchFull": "the pod's own disk space did not suffice",
    }
)
"""Every reason, and what it means."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a condition says."""

    status: ConditionStatus
    reason: str
    message: str = ""


def with_conditions(
    status: JobStatus,
    *,
    reason: str,
    message: str,
    now: datetime,
    accepted: bool = True,
    progressing: Truth | None = None,
) -> JobStatus:
    """The status with every condition following from its phase.

    Args:
        status: the status.
        reason: why the job is in its phase.
        message: the same in a sentence.
        now: the time.
        accepted: the spec can be carried out.
        progressing: what is known of the running attempt's movement; None when none runs.
    """
    phase = status.phase
    suspended = phase is Phase.SUSPENDED
    truths = {
        "Accepted": Truth(_of(accepted), "Accepted" if accepted else reason, "" if accepted else message),
        "Running": Truth(_of(phase is Phase.RUNNING), reason, message),
        "Suspended": Truth(_of(suspended), reason if suspended else "NotSuspended", message if suspended else ""),
        "Progressing": progressing or Truth(ConditionStatus.UNKNOWN, "NotRunning"),
        "Succeeded": Truth(_of(phase is Phase.SUCCEEDED), reason, message),
        "Failed": Truth(_of(phase in (Phase.FAILED, Phase.CANCELLED)), reason, message),
    }
    conditions = [_condition(status, kind, truth, now) for kind, truth in truths.items()]
    return status.model_copy(update={"conditions": conditions})


def _of(holds: bool) -> ConditionStatus:
    return ConditionStatus.TRUE if holds else ConditionStatus.FALSE


def _condition(status: JobStatus, kind: str, truth: Truth, now: datetime) -> Condition:
    """The condition, keeping its transition time while its status stays."""
    before = status.condition(kind)
    unchanged = before is not None and before.status is truth.status
    return Condition(
        type=kind,
        status=truth.status,
        reason=truth.reason,
        message=shorten(truth.message),
        last_transition_time=before.last_transition_time if before is not None and unchanged else timestamp(now),
        observed_generation=status.observed_generation,
    )


def page() -> str:
    """The reference page, docs/conditions.md."""
    types = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in TYPES.items())
    reasons = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in REASONS.items())
    return (
        "# Conditions of a VideoTrainingJob\n\n"
        "`kubectl wait --for=condition=Succeeded vtj/NAME` waits for one of them; `status.diagnosis` says in one\n"
        "sentence what keeps a job from going on, and what to do.\n\n"
        f"| condition | True when |\n|---|---|\n{types}\n\n"
        f"| reason | meaning |\n|---|---|\n{reasons}\n"
    )
