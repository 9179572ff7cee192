# SPDX-License-Identifier: Apache-2.0
"""What to do about a job that waits: known words of scheduler, kubelet and API server, and the fix of each. Pure."""

from __future__ import annotations

import re

FIXES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), fix)
    for pattern, fix in (
        (
            r"violates PodSecurity",
            "let the administrator set the TrainingPool's security to what the namespace enforces, or relax the"
            " namespace's label pod-security.kubernetes.io/enforce",
        ),
        (
            r"exceeded quota|ResourceQuota|failed quota",
            "delete what the namespace no longer needs, or let the administrator raise its ResourceQuota",
        ),
        (
            r"could not find the requested resource|404 page not found|no matches for kind|NoStatus",
            "let the administrator install Kubeflow's training-operator, or see why it does not run",
        ),
        (
            r"failed calling webhook .*training-operator",
            "let the administrator see why Kubeflow's training-operator does not run; it goes on when that does",
        ),
        (
            r"failed calling webhook",
            "let the administrator see why the service behind that webhook does not answer",
        ),
        (
            r"Queued:",
            "it starts when its queue admits it: see `kubectl get workloads` for its place",
        ),
        (
            r"ErrImagePull|ImagePullBackOff|InvalidImageName|ErrImageNeverPull",
            "check the image's name in status.resolved.images, that the node can reach the registry, and"
            " defaults.imagePullSecrets",
        ),
        (
            r"serviceaccount .* not found|service account .* not found",
            "create the account that defaults.serviceAccountName names, in the job's namespace",
        ),
        (
            r"CreateContainerConfigError",
            "create the ConfigMap or Secret that it names in the job's namespace",
        ),
        (
            r"persistentvolumeclaim \S+ not found|persistentvolumeclaims? .* is being deleted",
            "create that PersistentVolumeClaim in the job's namespace, or correct the pvc:// address in a new job",
        ),
        (
            r"unbound immediate PersistentVolumeClaims|volume node affinity conflict|FailedMount|FailedAttachVolume"
            r"|MountVolume|AttachVolume|Multi-Attach",
            "see `kubectl describe pvc`: the volume must exist, be bound, and be ReadWriteMany if several nodes use it",
        ),
        (
            r"NodeNotReady|node\.kubernetes\.io/(unreachable|not-ready)|still ends?\b",
            "if the node is gone for good, delete its Node object; else bring it back",
        ),
        (
            r"Insufficient|Too many pods",
            "wait until other jobs end, ask for fewer nodes or devices, or let the administrator add nodes to the pool",
        ),
        (
            r"untolerated taint|had taint|had untolerated",
            "let the administrator add the taint to the TrainingPool's tolerations, or take it off the nodes",
        ),
        (
            r"didn't match Pod's node (affinity|selector)|unschedulable",
            "let the administrator compare the TrainingPool's nodeSelector with the labels of the nodes, and uncordon"
            " nodes that are cordoned",
        ),
        (
            r"denied the request|admission webhook",
            "the message names the rule of this cluster that the pod breaks; podTemplate adds labels and annotations",
        ),
        (
            r"is forbidden",
            "let the administrator give the operator the right that it names: the chart has it",
        ),
        (
            r"exists and is not this job's",
            "wait until it is deleted, or delete or rename it",
        ),
    )
)
"""The first pattern that fits says what to do; more particular ones come first."""

OTHERWISE = "see `kubectl describe` of its pods"


def fix_for(cause: str) -> str:
    """What to do about something that is waited for."""
    return next((fix for pattern, fix in FIXES if pattern.search(cause)), OTHERWISE)


def joined(cause: str, fix: str) -> str:
    """One sentence of a cause and its fix; a fix that the cause names already is not said again."""
    cause = cause.rstrip(" .;")
    return f"{cause}; {fix}" if fix and fix not in cause else cause
