# SPDX-License-Identifier: Apache-2.0
"""What a user may set for each stage.

The same models serve twice. In a job only the fields that the user wrote count; `plan` lays them over the defaults of
the family and of these models, and the result goes into the stage's config.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from kinema_api.attention import Attention
from kinema_api.base import LabelMap, Model, Name, ObjectName, Quantity, QuantityMap, Text, Word, rules
from kinema_api.buckets import Bucket, Geometry
from kinema_api.layout import Layout
from kinema_api.lora import Lora
from kinema_api.objective import Objective
from kinema_api.packing import Packing
from kinema_api.pool import Toleration
from kinema_api.recompute import Recompute
from kinema_api.reserved import DOMAINS, ENV, KEY, KEYS, LABEL, OWNED
from kinema_api.schedule import Schedule
from kinema_api.validation import Validation

_RAW = Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})


class EnvVar(Model):
    """A variable of the stage's container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (f"!self.name.matches('^({ENV})$')", "is set by Kinema or by what it runs under; choose another name")
        )
    )

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Its name. Those that Kinema, training-operator or torchrun set (KINEMA_*, KUBEFLOW_*, PET_*, MASTER_*, RANK,
    WORLD_SIZE, ...) are refused."""
    value: Text = ""
    """Its value."""


_OWNED = f"keys of {', '.join(DOMAINS)}, and {', '.join(KEYS)}, belong to controllers; choose other keys"
_SYNTAX = "keys are [DOMAIN/]NAME with letters, digits, '-', '_' and '.'"
_VALUES = "values have up to 63 letters, digits, '-', '_' and '.'"


def _each(field: str, condition: str, message: str) -> tuple[str, str]:
    """A rule for every key of a map that may be left out."""
    return f"!has(self.{field}) || self.{field}.all(key, {condition})", f"{field}: {message}"


class PodTemplate(Model):
    """Additions to a stage's pods.

    What makes a stage run (image, command, config, devices, volumes, security) is not here: nothing here can break it.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            *(_each(field, f"!key.matches('^({OWNED})$')", _OWNED) for field in ("labels", "annotations")),
            *(
                _each(field, f"key.matches('^({KEY})$')", _SYNTAX)
                for field in ("labels", "annotations", "nodeSelector")
            ),
            *(
                _each(field, f"self.{field}[key].matches('^({LABEL})$')", _VALUES)
                for field in ("labels", "nodeSelector")
            ),
        )
    )

    labels: LabelMap = Field(default_factory=dict)
    """Labels of the pods; those of kinema.dev and of training-operator are refused."""
    annotations: LabelMap = Field(default_factory=dict)
    """Annotations of the pods."""
    node_selector: LabelMap = Field(default_factory=dict)
    """Labels that the node must carry, beside those of the pool."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=16)
    """Taints that the pods tolerate, beside those of the pool."""
    affinity: Annotated[dict[str, Any], _RAW] | None = None
    """Kubernetes' affinity, as in a pod."""
    priority_class_name: ObjectName | None = None
    """The PriorityClass of the pods."""
    env: list[EnvVar] = Field(default_factory=list, max_length=64)
    """Variables of the container."""
    termination_grace_period_seconds: int | None = Field(default=None, ge=1, le=86_400)
    """Time between SIGTERM and SIGKILL, in which training writes a checkpoint; 300 for train and 30 for the others when
    left out."""
    scratch: Quantity | None = None
    """Size limit of the pod's local scratch space, where what lies on s3:// or hf:// is staged, for instance 200Gi;
    all that the node has when left out."""


class StageSettings(Model):
    """What every stage has."""

    enabled: bool = True
    """Set to false to leave the stage out. A stage that later ones need cannot be left out."""
    pool: Name | None = None
    """The TrainingPool to run on; `defaults.pool` when left out. check and prepare need no accelerator and no pool."""
    resources: QuantityMap | None = None
    """Requests and limits of one pod beside its accelerators, for instance {cpu: "4", memory: 16Gi}; the pool's when
    left out."""
    retries: int | None = Field(default=None, ge=0, le=100)
    """Attempts after the first failed one; `policy.restarts.limit` when left out."""
    timeout_seconds: int | None = Field(default=None, ge=1, le=31_536_000)
    """Longest time of one attempt, from the moment that all its pods run; a longer one has failed. None when left
    out."""
    stall_seconds: int | None = Field(default=None, ge=10, le=86_400)
    """Time without any movement that is taken for a hang; follows the run's own step time when left out."""
    pod_template: PodTemplate = Field(default_factory=PodTemplate)
    """Additions to the stage's pods, over those of `defaults.podTemplate`."""


class Video(Model):
    """The geometry of a training clip."""

    frames: int = Field(default=81, ge=1, le=1025)
    """Frames of a clip: 4n+1, since the video VAE encodes the first frame alone and then four at a time."""
    height: int = Field(default=480, ge=16, le=4320)
    """Pixels; must divide by the VAE's stride times the patch (16 for Wan 2.1)."""
    width: int = Field(default=832, ge=16, le=7680)
    """Pixels; must divide by the VAE's stride times the patch (16 for Wan 2.1)."""
    fps: float = Field(default=16, ge=1, le=120)
    """Frames a second that a clip is sampled at; a source of a higher rate is thinned, never interpolated."""
    clips_per_video: int = Field(default=0, ge=0, le=100_000)
    """At most this many clips of one video, evenly spread; 0 takes all that fit."""


class ClipVideo(Video):
    """The geometries of training clips: one, or those of buckets."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.buckets) || size(self.buckets) == 0"
                " || !(has(self.frames) || has(self.height) || has(self.width))",
                "buckets take the place of frames, height and width: remove those",
            ),
        )
    )

    buckets: list[Bucket] = Field(default_factory=list, max_length=64)
    """Several geometries in place of frames, height and width. A clip goes into the bucket of the largest frame that
    its source fills, among those into the longest, and falls through to the next where `keep` says so."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Decides which clips a bucket keeps."""

    @model_serializer(mode="wrap")
    def _without_what_buckets_replace(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        return {name: value for name, value in data.items() if not (self.buckets and name in Geometry._fields)}


class CheckSettings(StageSettings):
    """Validates inputs before any accelerator is booked."""


class PrepareSettings(StageSettings):
    """Walks the dataset, probes each video and cuts it into clips."""

    video: ClipVideo = Field(default_factory=ClipVideo)
    """The geometry of a clip, or several."""


class FeatureDtype(Word):
    """The number format of stored features."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class FeaturesSettings(StageSettings):
    """Encodes every clip once: VAE latents and text embeddings, in WebDataset shards."""

    workers: int = Field(default=1, ge=1, le=1000)
    """Pods that encode side by side, one device each."""
    clips_per_shard: int = Field(default=64, ge=1, le=10_000)
    """Samples of one tar file; also what a killed worker may lose."""
    dtype: FeatureDtype = FeatureDtype.FLOAT32
    """The number format in which the encoders run and features are stored."""


class ConvertSettings(StageSettings):
    """Turns the diffusers weights into the trainer's sharded checkpoint, and verifies every tensor."""


class Optimizer(Model):
    """AdamW."""

    learning_rate: float = Field(default=9e-5, gt=0, le=1)
    """Peak learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0, le=1)
    """Term added to the denominator."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Decoupled weight decay of matrices; norms, biases and tables have none."""
    clip_norm: float = Field(default=1.0, ge=0, le=1e6)
    """Largest global gradient norm; 0 clips nothing."""


class Precision(Word):
    """bf16: parameters and gradients in fp32, computation in bfloat16. fp32: all in float32."""

    BF16 = "bf16"
    FP32 = "fp32"


class Checkpoint(Model):
    """When state is saved and what is kept."""

    every_steps: int = Field(default=500, ge=1, le=1_000_000)
    """Steps between two checkpoints; a failure loses at most so many, and those made while the last one was written."""
    keep: int = Field(default=3, ge=1, le=1000)
    """The newest complete checkpoints that are kept."""
    asynchronous: bool = True
    """Write while training goes on."""


class Ema(Model):
    """An exponential moving average of the weights; export and sample use it when it is on."""

    enabled: bool = False
    """Keep the average (one more copy of the weights, sharded)."""
    decay: float = Field(default=0.9999, gt=0, lt=1)
    """Share of the old average that a step keeps."""


class TrainSettings(StageSettings):
    """Trains the transformer over the encoded clips."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.steps) || !has(self.schedule) || !has(self.schedule.warmupSteps)"
                " || self.schedule.warmupSteps < self.steps",
                "schedule.warmupSteps must be below steps",
            ),
            (
                "!(has(self.packing) && has(self.batchPerDevice))",
                "packing fills a forward pass by tokens: remove batchPerDevice",
            ),
        )
    )

    nodes: int | None = Field(default=None, ge=1, le=100)
    """Pods, one a node; `defaults.nodes` when left out."""
    devices_per_node: int | None = Field(default=None, ge=1, le=64)
    """Accelerators, and processes, of a pod; `defaults.devicesPerNode` when left out."""
    steps: int = Field(default=10_000, ge=1, le=100_000_000)
    """Optimizer steps of the whole run."""
    layout: Layout = Field(default_factory=Layout)
    """How model and data are spread over the processes; all axes are 1 but `shard` when left out, and with `lora` but
    `replicate` if a whole copy of the model fits into the pool's `deviceMemory`."""
    batch_per_device: int = Field(default=1, ge=1, le=4096)
    """Clips of one forward pass of one copy of the model; a copy may span several devices, see `layout`."""
    accumulate: int = Field(default=1, ge=1, le=4096)
    """Forward passes of one optimizer step; a step takes batchPerDevice x accumulate x replicate x shard clips."""
    packing: Packing | None = None
    """Put clips of unequal length side by side into one forward pass, in place of batches of equal ones."""
    seed: int = Field(default=1234, ge=0, le=2**31 - 1)
    """Seed of data order, noise and timesteps."""
    precision: Precision = Precision.BF16
    """Number format of the computation."""
    recompute: Recompute = Field(default_factory=Recompute)
    """What is kept for the backward pass, and where."""
    compile: bool = False
    """Compile the model's repeated block with torch.compile: once, at the first steps."""
    attention: Attention = Attention.NATIVE
    """Who computes attention: native (torch picks), flash, efficient, cudnn, math, npu. What the pool's accelerator
    does not have is refused."""
    deterministic: bool = False
    """Only kernels that give the same bits every time; slower on an accelerator. What has no such kernel fails."""
    lora: Lora = Field(default_factory=Lora)
    """Train low-rank additions in place of the weights."""
    objective: Objective = Field(default_factory=Objective)
    """What is learned."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """AdamW's numbers."""
    schedule: Schedule = Field(default_factory=Schedule)
    """The learning rate over steps."""
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    """When state is saved and what is kept."""
    ema: Ema = Field(default_factory=Ema)
    """A moving average of the weights."""
    validation: Validation = Field(default_factory=Validation)
    """Clips that are held out, and videos that are generated, to see how training goes."""
    log_every: int = Field(default=1, ge=1, le=10_000)
    """Steps between two log lines."""


class ExportSettings(StageSettings):
    """Writes a folder that diffusers' pipeline loads."""


class SampleSettings(StageSettings):
    """Generates videos with the exported pipeline."""

    prompts: list[Text] = Field(default_factory=list, max_length=64)
    """What to generate; the first captions of the dataset when left out."""
    seeds: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(default_factory=lambda: [0], max_length=64)
    """One video for each prompt and seed."""
    negative_prompt: Text = ""
    """What guidance leads away from."""
    steps: int = Field(default=50, ge=1, le=1000)
    """Denoising steps."""
    guidance: float = Field(default=5.0, ge=1, le=100)
    """Scale of classifier-free guidance; 1 is none."""
    shift: float = Field(default=3.0, ge=0.01, le=100)
    """Flow shift of the sampler (Wan: 3 at 480p, 5 at 720p)."""
    fps: float = Field(default=16, ge=1, le=120)
    """Frames a second of the written mp4."""
    video: Video | None = None
    """The geometry to generate; that of the training clips when left out."""


def _always(stage: str) -> tuple[str, str]:
    return (
        f"!has(self.{stage}) || !has(self.{stage}.enabled) || self.{stage}.enabled",
        f"{stage}.enabled: later stages need {stage}; remove the line",
    )


class Stages(Model):
    """The settings of each stage; what is left out follows the family."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *(_always(stage) for stage in ("check", "prepare", "features", "convert", "train")),
            (
                "!(has(self.export) && has(self.export.enabled) && !self.export.enabled)"
                " || (has(self.sample) && has(self.sample.enabled) && !self.sample.enabled)",
                "sample needs export: enable export, or disable sample too",
            ),
        )
    )

    check: CheckSettings = Field(default_factory=CheckSettings)
    """Validates inputs before any accelerator is booked."""
    prepare: PrepareSettings = Field(default_factory=PrepareSettings)
    """Walks the dataset, probes each video and cuts it into clips."""
    features: FeaturesSettings = Field(default_factory=FeaturesSettings)
    """Encodes every clip once into VAE latents and text embeddings."""
    convert: ConvertSettings = Field(default_factory=ConvertSettings)
    """Turns diffusers weights into the trainer's sharded checkpoint."""
    train: TrainSettings = Field(default_factory=TrainSettings)
    """Trains the transformer."""
    export: ExportSettings = Field(default_factory=ExportSettings)
    """Writes a folder that diffusers' pipeline loads."""
    sample: SampleSettings = Field(default_factory=SampleSettings)
    """Generates videos with the exported pipeline."""
