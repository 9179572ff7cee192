# SPDX-License-Identifier: Apache-2.0
"""Names that cross process boundaries: API group, stages, labels, annotations, children, container paths."""

from __future__ import annotations

from kinema_api.base import Word

GROUP = "kinema.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
JOB_KIND, JOB_PLURAL = "VideoTrainingJob", "videotrainingjobs"
POOL_KIND, POOL_PLURAL = "TrainingPool", "trainingpools"

JOB_NAME_MAX = 36
"""A pod is `<job>-<stage>-<attempt>-worker-99` and must stay a DNS label of 63 characters."""


class Stage(Word):
    """One step of the pipeline, in the order in which they run."""

    CHECK = "check"
    PREPARE = "prepare"
    FEATURES = "features"
    CONVERT = "convert"
    TRAIN = "train"
    EXPORT = "export"
    SAMPLE = "sample"


LABEL_JOB = f"{GROUP}/job"
LABEL_JOB_UID = f"{GROUP}/job-uid"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_ATTEMPT = f"{GROUP}/attempt"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "kinema"

ANNOTATION_CONFIG = f"{GROUP}/stage-config"
"""The stage config as JSON, on the pod template; the downward API shows it to the container as a file."""
ANNOTATION_SERVER_CA = f"{GROUP}/server-ca"
"""The PEM certificates that the pod trusts when it posts progress."""

ANNOTATION_PROFILE = f"{GROUP}/profile"
"""On a job: asks its training to profile a few steps, for instance `steps=3`.

`kinema_trainer.numbers.wish` has the format.
"""
HEADER_PROFILE = "Kinema-Profile"
"""The header by which the server's answer to a progress post passes that annotation on."""

HEADER_TOKEN = "Kinema-Token"
"""The header that carries a caller's token through the API server's proxy, which takes `Authorization` away."""

PROGRESS_AUDIENCE = "progress.kinema.dev"

CONTAINER = "pytorch"
"""The name that training-operator requires of a PyTorchJob's container; every stage uses it."""
METRICS_PORT = 9464
CONFIG_DIR = "/etc/kinema"
CONFIG_PATH = f"{CONFIG_DIR}/stage.json"
PROGRESS_DIR = "/var/run/secrets/kinema"
ENV_ACCELERATOR = "KINEMA_ACCELERATOR"
"""What the pod holds, a value of `pool.Accelerator`: a stage that finds something else ends at once."""
ENV_NODE = "KINEMA_NODE"
"""The node that a training pod runs on."""
VOLUMES_DIR = "/kinema/volumes"
SECRETS_DIR = "/kinema/secrets"
"""Where a pod sees the Secrets of its job, a folder each; `ENV_SECRETS` names another root on a laptop."""
ENV_SECRETS = "KINEMA_SECRETS_DIR"
SCRATCH_DIR = "/kinema/scratch"
"""Local space of a pod, where what lies in object storage is staged; `ENV_SCRATCH` names another one on a laptop."""
ENV_SCRATCH = "KINEMA_SCRATCH_DIR"
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LIMIT = 4096
"""Bytes that kubelet keeps of a termination message."""


def child_name(*, job: str, stage: Stage, attempt: int) -> str:
    """The name of the one child object that runs an attempt of a stage."""
    return f"{job}-{stage}-{attempt}"


def run_folder(*, namespace: str, name: str, uid: str) -> str:
    """The job's private folder in its workspace; the uid keeps jobs of the same name apart."""
    return f"jobs/{namespace}/{name}-{uid[:8]}"


def artifact_folder(stage: Stage, key: str) -> str:
    """The folder of a shared artifact in the workspace."""
    return f"artifacts/{stage}/{key}"
