# SPDX-License-Identifier: Apache-2.0
"""Failures as data: one table from the class of a failure to what follows, one from what is seen to its class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kinema_api.exits import Exit, FailureClass


@dataclass(frozen=True, slots=True)
class Consequence:
    """What follows a failed attempt."""

    retry: bool
    """Another attempt can help without a change by the user; it goes on from the last complete checkpoint."""
    fix: str = ""
    """What to do about it; empty where the failure's own sentence says it."""
    avoid_node: bool = False
    """The node may be the cause: one on which two attempts failed is avoided."""


CONSEQUENCES: Mapping[FailureClass, Consequence] = MappingProxyType(
    {
        FailureClass.INFRASTRUCTURE: Consequence(
            retry=True, fix="if it happens again, look at the node and cordon it", avoid_node=True
        ),
        FailureClass.PREEMPTED: Consequence(
            retry=True, fix="it starts again when there is room; a higher scheduling priority helps"
        ),
        FailureClass.HOST_OUT_OF_MEMORY: Consequence(retry=True, fix="raise the stage's resources.memory"),
        FailureClass.DEVICE_OUT_OF_MEMORY: Consequence(
            retry=False,
            fix="lower the batch, the frames or the size, shard over more devices, or recompute activations",
        ),
        FailureClass.USER: Consequence(retry=False),
        FailureClass.DATA: Consequence(retry=False),
        FailureClass.NUMERICS: Consequence(retry=False, fix="lower the learning rate, or warm up for longer"),
        FailureClass.STORAGE: Consequence(retry=True),
        FailureClass.STALLED: Consequence(
            retry=True, fix="the stacks and the log tail of the attempt show where it hung", avoid_node=True
        ),
        FailureClass.COMMUNICATION: Consequence(
            retry=True, fix="if it happens again, look at the fabric between the nodes"
        ),
        FailureClass.TIMEOUT: Consequence(retry=True, fix="raise timeoutSeconds of the stage if it makes progress"),
        FailureClass.INTERNAL: Consequence(
            retry=True, fix="the log tail of the attempt shows the error", avoid_node=True
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    kind: FailureClass
    reason: str
    """One CamelCase word."""
    message: str
    """One sentence for the user."""
    exit_code: int | None = None
    node: str = ""
    """The node of the pod that decided it."""
    log_tail: str = ""
    stacks: str | None = None

    @property
    def consequence(self) -> Consequence:
        """What follows."""
        return CONSEQUENCES[self.kind]


@dataclass(frozen=True, slots=True)
class Cause:
    """A class with the word that names it more closely."""

    kind: FailureClass
    reason: str


EXITS: Mapping[Exit, Cause] = MappingProxyType(
    {
        Exit.INTERNAL: Cause(FailureClass.INTERNAL, "InternalError"),
        Exit.USER: Cause(FailureClass.USER, "InvalidInput"),
        Exit.DATA: Cause(FailureClass.DATA, "DataError"),
        Exit.STORAGE: Cause(FailureClass.STORAGE, "StorageError"),
        Exit.WEIGHTS: Cause(FailureClass.DATA, "WeightsError"),
        Exit.NUMERICS: Cause(FailureClass.NUMERICS, "LossNotFinite"),
        Exit.OUT_OF_MEMORY: Cause(FailureClass.DEVICE_OUT_OF_MEMORY, "DeviceOutOfMemory"),
        Exit.COMMUNICATION: Cause(FailureClass.COMMUNICATION, "CommunicationError"),
        Exit.STALLED: Cause(FailureClass.STALLED, "Stalled"),
        Exit.HOST_OUT_OF_MEMORY: Cause(FailureClass.HOST_OUT_OF_MEMORY, "HostOutOfMemory"),
        Exit.INTERRUPTED: Cause(FailureClass.INFRASTRUCTURE, "Interrupted"),
    }
)
"""What a stage says by its exit code."""

_INFRASTRUCTURE = FailureClass.INFRASTRUCTURE

POD_REASONS: Mapping[str, Cause] = MappingProxyType(
    {
        word: cause
        for cause, words in (
            (EXITS[Exit.HOST_OUT_OF_MEMORY], ("OOMKilled",)),
            (Cause(_INFRASTRUCTURE, "Evicted"), ("Evicted", "TerminationByKubelet", "EvictionByEvictionAPI")),
            (Cause(_INFRASTRUCTURE, "NodeLost"), ("NodeLost", "DeletionByTaintManager", "DeletionByPodGC")),
            (Cause(_INFRASTRUCTURE, "NodeShutdown"), ("NodeShutdown", "Shutdown", "Terminated")),
            (Cause(FailureClass.PREEMPTED, "Preempted"), ("Preempting", "PreemptionByScheduler")),
            (Cause(_INFRASTRUCTURE, "NodeRefused"), ("UnexpectedAdmissionError", "NodeAffinity")),
            (Cause(_INFRASTRUCTURE, "ImagePull"), ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")),
            (
                Cause(_INFRASTRUCTURE, "ContainerNotStarted"),
                ("StartError", "ContainerCannotRun", "CreateContainerError"),
            ),
            (Cause(FailureClass.USER, "ContainerNotStarted"), ("CreateContainerConfigError",)),
        )
        for word in words
    }
)
"""What Kubernetes says of a pod: its own reason, that of its disruption, or that of its container."""

NODE_REFUSED = re.compile(r"^(OutOf\S+|\w*AdmissionError)$")
"""kubelet's word for a pod that does not fit after all, for instance OutOfnvidia.com/gpu."""
SCRATCH_FULL = re.compile(r"(ephemeral|emptyDir).*exceeds|exceeds.*(ephemeral|emptyDir)", re.IGNORECASE)
NAME_CONTAINERS = frozenset({"init-pytorch"})
"""Init containers that wait for the name of the gang's master to resolve."""

LOG_PATTERNS: tuple[tuple[re.Pattern[str], Cause], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), cause)
    for pattern, cause in (
        (
            r"(CUDA|NPU|HIP|XPU) out of memory|torch\.(cuda\.)?OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY",
            EXITS[Exit.OUT_OF_MEMORY],
        ),
        (
            r"can(no|')t allocate memory|std::bad_alloc|(?m:^MemoryError)|DataLoader worker .* Killed",
            EXITS[Exit.HOST_OUT_OF_MEMORY],
        ),
        (r"No space left on device|Disk quota exceeded|Read-only file system", EXITS[Exit.STORAGE]),
        (r"Temporary failure in name resolution|Name or service not known", Cause(_INFRASTRUCTURE, "NameNotResolved")),
        (
            r"nccl\w*Error|NCCL error|HCCL\w* (error|fail)|Connection (reset|closed) by peer|DistNetworkError"
            r"|DistBackendError|Broken pipe",
            EXITS[Exit.COMMUNICATION],
        ),
    )
)
"""What the end of a log tells of a process that could not name its failure itself; the first that fits counts."""

CHILD_DELETED = Failure(_INFRASTRUCTURE, "ChildDeleted", "its child object was deleted from outside")
NO_RESULT = Failure(FailureClass.INTERNAL, "NoResult", "it ended well, but its pod left no result")
