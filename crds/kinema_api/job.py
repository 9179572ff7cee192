# SPDX-License-Identifier: Apache-2.0
"""`VideoTrainingJob`: what a user asks for, and what the operator answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from kinema_api.base import Model, ModelName, Name, ObjectName, ShortText, Text, Uri, Word, rules
from kinema_api.names import Stage
from kinema_api.settings import Stages


class Task(Word):
    """What the model turns into a video."""

    T2V = "t2v"
    I2V = "i2v"


class Weights(Model):
    """Where the pretrained weights lie."""

    uri: Uri
    """A folder in diffusers' layout (model_index.json, transformer, vae, text_encoder, tokenizer), for instance
    pvc://models/Wan2.1-T2V-1.3B-Diffusers."""


class ModelSpec(Model):
    """The model to train."""

    name: ModelName
    """A model of the catalogue, for instance wan2.1-t2v-1.3b."""
    task: Task | None = None
    """What the model does; its first task in the catalogue when left out."""
    weights: Weights
    """The pretrained weights to start from."""


class DatasetFormat(Word):
    """How videos and captions are listed."""

    FOLDER = "folder"
    CSV = "csv"
    JSONL = "jsonl"


class Captions(Model):
    """Where a csv or jsonl dataset keeps its columns."""

    video_column: ShortText = "video"
    """Column with the video's path, relative to the listing file."""
    caption_column: ShortText = "caption"
    """Column with the caption."""


class Dataset(Model):
    """The videos to learn from."""

    uri: Uri
    """folder: a folder of videos, each with a caption beside it (NAME.txt, or NAME.json with the key caption).
    csv, jsonl: the listing file."""
    format: DatasetFormat = DatasetFormat.FOLDER
    """folder, csv or jsonl."""
    captions: Captions = Field(default_factory=Captions)
    """Column names of csv and jsonl."""


class Storage(Model):
    """The workspace: all that stages read and write."""

    uri: Uri
    """A root on a volume that every node can mount (ReadWriteMany), for instance pvc://training/kinema. Jobs that share
    a workspace share prepared data."""


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


class Restarts(Model):
    """What follows a failed attempt."""

    limit: int = Field(default=3, ge=0, le=100)
    """Attempts of a stage after the first failed one, whatever the cause."""
    backoff_seconds: int = Field(default=10, ge=0, le=300)
    """Wait before the next attempt; doubles with each failure, up to 5 minutes."""


class Policy(Model):
    """How the job behaves over time. The only part of a job that may change while it runs."""

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
            *(
                (f"self.{field}.uri.startsWith('pvc://')", f"{field}.uri: write pvc://CLAIM/PATH")
                for field in ("dataset", "storage", "model.weights")
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


class Phase(Word):
    """Where a job stands as a whole."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def terminal(self) -> bool:
        """Whether the job has ended for good."""
        return self in (Phase.SUCCEEDED, Phase.FAILED)


class ConditionStatus(Word):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    """One observed truth about the job."""

    type: Annotated[str, Field(max_length=64)]
    """Accepted, Running, Succeeded or Failed."""
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
    finished_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When it ended."""
    exit_code: int | None = None
    """Exit code of the container that decided the end."""
    reason: ShortText = ""
    """One CamelCase word: why it ended."""
    message: Text = ""
    """What the container said when it ended."""


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
    attempts: list[Attempt] = Field(default_factory=list, max_length=101)
    """Every run of the stage."""


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


class JobStatus(Model):
    """What the operator answers."""

    observed_generation: int = 0
    """The generation of the spec that this status answers."""
    phase: Phase = Phase.PENDING
    """Where the job stands: Pending, Running, Succeeded or Failed."""
    stage: Stage | None = None
    """The stage that runs, or that the job ended in."""
    restarts: int = 0
    """Failed attempts over all stages."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """One sentence: where the job stands and, when it failed, what to do."""
    started_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When the first stage started."""
    finished_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When the job ended."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)
    """Accepted, Running, Succeeded and Failed, with reasons."""
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
