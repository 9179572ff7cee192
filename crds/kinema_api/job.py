# SPDX-License-Identifier: Apache-2.0
"""`VideoTrainingJob`: what a user asks for; `status` holds what the operator answers."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from kinema_api.base import Model, ModelName, Name, ObjectName, Word, rules
from kinema_api.inputs import Dataset, Storage, Weights
from kinema_api.locations import HF_ADDRESS, LEAVES_ITS_ROOT, PVC_ADDRESS, S3_ADDRESS
from kinema_api.names import Stage
from kinema_api.settings import PodTemplate, Stages


class Task(Word):
    """What becomes a video: text, and for i2v the first frame, flf2v the first and last, v2v the leading ones."""

    T2V = "t2v"
    I2V = "i2v"
    FLF2V = "flf2v"
    V2V = "v2v"

    @property
    def images(self) -> int:
        """Frames that the image encoder sees: the first of the clip, or the first and the last."""
        return {"i2v": 1, "flf2v": 2}.get(self.value, 0)


class ModelSpec(Model):
    """The model to train."""

    name: ModelName
    """A model of the catalogue, for instance wan2.1-t2v-1.3b."""
    task: Task | None = None
    """What the model does; its first task in the catalogue when left out."""
    weights: Weights
    """The pretrained weights to start from."""


class EngineName(Word):
    """Who runs the training loop."""

    NATIVE = "native"


class Backend(Word):
    """How the native engine spreads a model."""

    FSDP2 = "fsdp2"


class Engine(Model):
    """Who runs the training loop, and how it spreads the model."""

    name: EngineName = EngineName.NATIVE
    """native: Kinema's own trainer."""
    backend: Backend = Backend.FSDP2
    """fsdp2: PyTorch's fully sharded data parallel."""


class Defaults(Model):
    """What stages use where they say nothing else."""

    pool: Name
    """The TrainingPool to run on."""
    nodes: int = Field(default=1, ge=1, le=100)
    """Pods of the train stage, one a node."""
    devices_per_node: int | None = Field(default=None, ge=1, le=64)
    """Accelerators of a training pod; all of the pool's node when left out."""
    service_account_name: ObjectName | None = None
    """The account of the job's pods; the namespace's default when left out."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list, max_length=16)
    """Names of image pull secrets in the job's namespace."""
    pod_template: PodTemplate = Field(default_factory=PodTemplate)
    """Additions to the pods of every stage; those of a stage win."""


class Restarts(Model):
    """What follows a failed attempt."""

    limit: int = Field(default=3, ge=0, le=100)
    """Attempts of a stage after the first failed one, whatever the cause."""
    backoff_seconds: int = Field(default=10, ge=0, le=300)
    """Wait before the next attempt; doubles with each failure, up to 5 minutes."""


class Cleanup(Word):
    """Which children (Jobs and PyTorchJobs, with their pods and logs) are deleted when the job has ended."""

    NONE = "none"
    SUCCEEDED = "succeeded"
    ALL = "all"


class Retry(Model):
    """A request to run a job that has ended again, from a stage on."""

    number: int = Field(ge=1, le=1000)
    """Rises with each request; a number that was served already does nothing."""
    stage: Stage | None = None
    """The first stage to run again; the one that failed when left out. Earlier stages keep their results, and training
    goes on from its last complete checkpoint."""


class Policy(Model):
    """How the job behaves over time. The only part of a job that may change while it runs."""

    suspend: bool = False
    """Stop what runs and start nothing until it is false again; training goes on from its last complete checkpoint."""
    cancel: bool = False
    """End the job for good: what runs is stopped, what was published stays."""
    retry: Retry | None = None
    """Run a job that has ended again, from a stage on."""
    deadline_seconds: int | None = Field(default=None, ge=1, le=31_536_000)
    """Longest time from the start of the first stage, suspended time left out, after which the job fails."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=31_536_000)
    """Time after the job's end after which the job and its children are deleted; the workspace stays. Never when left
    out."""
    cleanup: Cleanup = Cleanup.NONE
    """none: children stay until the job is deleted. succeeded: those that ended well go with the job's end. all: every
    child goes."""
    restarts: Restarts = Field(default_factory=Restarts)
    """What follows a failed attempt."""


_IMMUTABLE = ("model", "dataset", "storage", "defaults")
_FIXED = "is fixed once the job exists: create a new job, it reuses every artifact that still fits"


class JobSpec(Model):
    """What a user asks for."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *((f"self.{field} == oldSelf.{field}", f"{field} {_FIXED}") for field in _IMMUTABLE),
            *(
                (f"has(self.{f}) == has(oldSelf.{f}) && (!has(self.{f}) || self.{f} == oldSelf.{f})", f"{f} {_FIXED}")
                for f in ("engine", "stages")
            ),
            (
                f"has(self.dataset.uri) ? self.dataset.uri.matches('^({PVC_ADDRESS}|{S3_ADDRESS})$')"
                " : has(self.dataset.format) && self.dataset.format == 'mock'",
                "dataset.uri: write pvc://CLAIM/PATH or s3://BUCKET/PREFIX",
            ),
            (
                "!(has(self.dataset.format) && self.dataset.format == 'mock' && has(self.dataset.uri))",
                "dataset.uri: a mock lies nowhere; remove uri, or write another format",
            ),
            (
                f"self.storage.uri.matches('^({PVC_ADDRESS}|{S3_ADDRESS})$')",
                "storage.uri: write pvc://CLAIM/PATH or s3://BUCKET/PREFIX",
            ),
            (
                f"self.model.weights.uri.matches('^({PVC_ADDRESS}|{S3_ADDRESS}|{HF_ADDRESS})$')",
                "model.weights.uri: write pvc://CLAIM/PATH, s3://BUCKET/PREFIX or hf://ORGANISATION/REPOSITORY",
            ),
            *(
                (
                    f"{guard}!self.{field}.uri.matches('{LEAVES_ITS_ROOT}')",
                    f"{field}.uri: the path may not contain '..', and in a bucket neither '.' nor '//'",
                )
                for field, guard in (("dataset", "!has(self.dataset.uri) || "), ("storage", ""), ("model.weights", ""))
            ),
            (
                "!has(self.model.weights.revision) || self.model.weights.uri.startsWith('hf://')",
                "model.weights.revision is for hf:// addresses",
            ),
            (
                "!(has(oldSelf.policy) && has(oldSelf.policy.cancel) && oldSelf.policy.cancel)"
                " || (has(self.policy) && has(self.policy.cancel) && self.policy.cancel)",
                "policy.cancel cannot be taken back: create a new job, it reuses every artifact that still fits",
            ),
        )
    )

    model: ModelSpec
    """The model to train."""
    dataset: Dataset
    """The videos to learn from."""
    storage: Storage
    """The workspace."""
    engine: Engine = Field(default_factory=Engine)
    """Who runs the training loop."""
    defaults: Defaults
    """What stages use where they say nothing else."""
    stages: Stages = Field(default_factory=Stages)
    """Settings of each stage; what is left out follows the family."""
    policy: Policy = Field(default_factory=Policy)
    """How the job behaves over time."""
