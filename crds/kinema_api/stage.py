# SPDX-License-Identifier: Apache-2.0
"""The config of a stage: all that `kinema-stage STAGE --config stage.json` needs to know.

Addresses in a config are as the process sees them (`file:///...`); the operator has turned claims into mounts.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from kinema_api.base import Model
from kinema_api.buckets import Bucket
from kinema_api.catalogue import Entry
from kinema_api.inputs import Dataset, Storage, Weights
from kinema_api.job import Task
from kinema_api.names import Stage, artifact_folder, run_folder
from kinema_api.pool import Accelerator
from kinema_api.settings import (
    ClipVideo,
    ConvertSettings,
    ExportSettings,
    FeaturesSettings,
    PrepareSettings,
    SampleSettings,
    TrainSettings,
)


class JobRef(Model):
    """The job that a stage works for."""

    namespace: str
    """Its namespace; `local` on a laptop."""
    name: str
    """Its name."""
    uid: str
    """Its uid."""


class StageConfig(Model):
    """What every stage knows."""

    schema_version: Literal[1] = 1
    """Raised when an older stage could misread a config."""
    job: JobRef
    """The job that the stage works for."""
    attempt: int = 1
    """Counts from 1."""
    workspace: Storage
    """Root of the workspace."""
    model: Entry
    """The catalogue entry."""
    task: Task
    """What the model is trained to do."""

    @property
    def run(self) -> str:
        """The job's private folder, relative to the workspace."""
        return run_folder(namespace=self.job.namespace, name=self.job.name, uid=self.job.uid)


class TrainingPlace(Model):
    """What the job trains on."""

    world: int
    """Processes of the training."""
    accelerator: Accelerator
    """Of what kind."""
    memory: int | None = None
    """Bytes of one device, as far as the pool says."""
    name: str = ""
    """Whose device, for a sentence."""


class CheckConfig(StageConfig):
    """Validate inputs, probe the workspace, resolve keys, report which artifacts exist."""

    stage: Literal[Stage.CHECK] = Stage.CHECK
    dataset: Dataset
    """The videos."""
    weights: Weights
    """The pretrained pipeline folder."""
    prepare: PrepareSettings
    """What decides the prepare key."""
    features: FeaturesSettings
    """What decides the features key."""
    train: TrainSettings | None = None
    """What has to fit into `place`; nothing is asked when left out."""
    place: TrainingPlace | None = None
    """What the job trains on."""


class PrepareConfig(StageConfig):
    """Cut the dataset into clips; publishes `artifacts/prepare/<key>`."""

    stage: Literal[Stage.PREPARE] = Stage.PREPARE
    key: str
    """The artifact's key."""
    dataset: Dataset
    """The videos."""
    settings: PrepareSettings
    """The geometry of a clip."""


class FeaturesConfig(StageConfig):
    """Encode clips; publishes `artifacts/features/<key>`. Its worker index is JOB_COMPLETION_INDEX."""

    stage: Literal[Stage.FEATURES] = Stage.FEATURES
    key: str
    """The artifact's key."""
    dataset: Dataset
    """The videos that the clips are cut from."""
    prepare_key: str
    """The manifest of clips."""
    encoder_key: str
    """Digest of what turns a clip into features: encoder weights, number format, geometry of text."""
    weights: Weights
    """The pretrained pipeline folder."""
    settings: FeaturesSettings
    """Workers, shard size, number format."""


class ConvertConfig(StageConfig):
    """Turn the pretrained transformer into a sharded checkpoint; publishes `artifacts/convert/<key>`."""

    stage: Literal[Stage.CONVERT] = Stage.CONVERT
    key: str
    """The artifact's key."""
    weights: Weights
    """The pretrained pipeline folder."""
    settings: ConvertSettings
    """Nothing yet but what every stage has."""


class TrainConfig(StageConfig):
    """Train; writes `jobs/.../checkpoints/step-XXXXXXXX`, metrics.jsonl and TensorBoard files."""

    stage: Literal[Stage.TRAIN] = Stage.TRAIN
    features_key: str
    """The encoded clips."""
    convert_key: str
    """The weights to start from."""
    nodes: int
    """Pods of the gang."""
    devices_per_node: int
    """Processes of a pod."""
    weights: Weights | None = None
    """The pretrained pipeline folder, whose encoders are needed where training generates videos; None elsewhere."""
    buckets: list[Bucket] = Field(default_factory=list)
    """The geometries of clips, with the batch of each; empty where there is one geometry."""
    settings: TrainSettings
    """Everything else."""
    video: ClipVideo | None = None
    """The geometries of the clips, for what has to be known before the features are read."""


class ExportConfig(StageConfig):
    """Write a pipeline folder from the last checkpoint: `jobs/.../export`."""

    stage: Literal[Stage.EXPORT] = Stage.EXPORT
    weights: Weights
    """The pretrained pipeline folder, whose other parts are copied."""
    ema: bool
    """Export the moving average in place of the weights."""
    settings: ExportSettings
    """Nothing yet but what every stage has."""


class SampleConfig(StageConfig):
    """Generate videos with the exported pipeline: `jobs/.../samples`."""

    stage: Literal[Stage.SAMPLE] = Stage.SAMPLE
    prepare_key: str
    """The manifest whose first captions are prompts when the settings have none."""
    dataset: Dataset | None = None
    """The videos, whose first frames a task that is given frames begins with; None for the other tasks."""
    settings: SampleSettings
    """Prompts, seeds and sampler; `video` is filled in."""


AnyStageConfig = Annotated[
    CheckConfig | PrepareConfig | FeaturesConfig | ConvertConfig | TrainConfig | ExportConfig | SampleConfig,
    Field(discriminator="stage"),
]

_ADAPTER: TypeAdapter[AnyStageConfig] = TypeAdapter(AnyStageConfig)


def load_config(text: str | bytes) -> AnyStageConfig:
    """Read a stage config.

    A running job keeps its images when the operator is upgraded, so a config may be of a newer version than its
    reader: unknown fields are left out. What an older reader would misread raises `schemaVersion`.

    Raises:
        pydantic.ValidationError: a field is missing or out of range.
    """
    return _ADAPTER.validate_json(text, extra="ignore")


def artifact_of(config: AnyStageConfig) -> str:
    """Where a stage's result lies, relative to the workspace."""
    match config:
        case PrepareConfig() | FeaturesConfig() | ConvertConfig():
            return artifact_folder(config.stage, config.key)
        case TrainConfig():
            return f"{config.run}/checkpoints"
        case ExportConfig():
            return f"{config.run}/export"
        case SampleConfig():
            return f"{config.run}/samples"
        case CheckConfig():
            return config.run
