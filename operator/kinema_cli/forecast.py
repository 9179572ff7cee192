# SPDX-License-Identifier: Apache-2.0
"""What a job will take before anything is booked: pods, memory, time, accelerator-hours, cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pydantic.alias_generators import to_camel

from kinema_api import fit, geometry
from kinema_api.catalogue import Entry, entry
from kinema_api.job import JobSpec
from kinema_api.names import Stage
from kinema_api.pipeline import DEVICE_STAGES, pipeline, pool_of, settings_of
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.recompute import RecomputeMode
from kinema_api.settings import Precision, Stages, TrainSettings

PEAKS: Mapping[tuple[str, ...], float] = {
    ("H100", "PCIE"): 756e12,
    ("H800", "PCIE"): 756e12,
    ("H100", "NVL"): 835.5e12,
    ("H200", "NVL"): 835.5e12,
    ("H100",): 989.4e12,
    ("H200",): 989.4e12,
    ("H800",): 989.4e12,
    ("A100",): 312e12,
    ("A800",): 312e12,
    ("B200",): 2250e12,
    ("GB200",): 2500e12,
    ("GB300",): 2500e12,
}
"""Dense bfloat16 operations a second, from the vendors' data sheets, by words of a device's name; the first counts."""
MFU = 0.4
"""The share of the peak that is assumed where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast training is taken to be."""

    step_seconds: float | None = None
    """Measured; it wins over the others."""
    peak: float | None = None
    """Operations a second of a device; found by its name when None."""
    mfu: float = MFU


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Where a stage runs."""

    stage: str
    pool: str
    """Empty where any node will do."""
    pods: int
    devices: int
    """Accelerators of a pod; processes on a cpu pool."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a job will take. Memory is of one device, everything else of the whole training."""

    model: str
    stages: tuple[StagePlan, ...]
    pool: str
    accelerator: str
    devices: int
    layout: str
    layout_reason: str
    memory: Mapping[str, int]
    """Bytes by what holds them."""
    memory_total: int
    device_memory: int | None
    """Bytes that a device of the pool has; None where the pool does not say."""
    clip: str
    samples_per_step: int
    tokens_per_step: int
    tflop_per_step: float
    """What is computed, what is computed again included."""
    steps: int
    step_seconds: float | None
    seconds: float | None
    pace: str
    """Where the time of a step comes from; or what is missing to tell it."""
    accelerator_hours: float | None
    cost: float | None
    currency: str
    price_per_hour: float | None
    """Of all devices of the training."""
    notes: tuple[str, ...] = field(default=())

    def wire(self) -> dict[str, object]:
        """For programs."""
        return {to_camel(name): value for name, value in asdict(self).items()}


class _AnyImage(dict[str, str]):
    """Which images there are is the operator's business, and no part of a plan."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return key


def forecast(spec: JobSpec, pools: Mapping[str, PoolSpec], pace: Pace) -> Forecast:
    """What a job will take.

    Raises:
        PlanError: it cannot run as it is written, or on none of the pools.
    """
    resolved = freeze(spec=spec, pools=pools, images=_AnyImage())
    model, stages = entry(spec.model.name), Stages.stored(resolved.stages)
    train, video = stages.train, stages.prepare.video
    name = train.pool or spec.defaults.pool
    pool = pools[name]
    place = fit.place_of(train, pool, name=name)
    sizes = fit.check(model, train, video, place)
    passes = fit.works(model, train, video)
    need = fit.needed(model, train, sizes=sizes, passes=passes, place=place)
    largest = max(geometry.geometries(video), key=lambda shape: geometry.tokens(shape, model))
    heaviest = max(passes, key=lambda work: work.tokens)
    clip_tokens = geometry.tokens(largest, model)
    clips = heaviest.clips * train.accumulate * sizes.data
    work = clips * operations(model, train, tokens=clip_tokens)
    seconds, told = _step(pace, pool, train, work=work, devices=place.world)
    whole = None if seconds is None else seconds * train.steps
    hours = None if whole is None or pool.accelerator is Accelerator.CPU else whole * place.world / 3600
    price = None if pool.prices is None or pool.accelerator is Accelerator.CPU else pool.prices.device_hour
    return Forecast(
        model=model.name,
        stages=tuple(_stage(spec, stages, stage) for stage in pipeline(stages)),
        pool=name,
        accelerator=pool.accelerator.value,
        devices=place.world,
        layout=str(sizes),
        layout_reason=_why(model, spec, pools),
        memory=need.parts(),
        memory_total=need.total,
        device_memory=place.memory,
        clip=str(largest),
        samples_per_step=clips,
        tokens_per_step=clips * clip_tokens,
        tflop_per_step=work / 1e12,
        steps=train.steps,
        step_seconds=seconds,
        seconds=whole,
        pace=told,
        accelerator_hours=hours,
        cost=None if hours is None or price is None else hours * price,
        currency=pool.prices.currency if pool.prices else "",
        price_per_hour=None if price is None else price * place.world,
        notes=tuple(_notes(pool, stages)),
    )


def _why(model: Entry, spec: JobSpec, pools: Mapping[str, PoolSpec]) -> str:
    """Why a layout was chosen where none is named."""
    stages = settings_of(spec, model)
    name = stages.train.pool or spec.defaults.pool
    devices = stages.train.devices_per_node or pools[name].devices_per_node
    train = stages.train.model_copy(update={"devices_per_node": devices})
    return fit.choose(model, train, stages.prepare.video, fit.place_of(train, pools[name], name=name)).why


def _stage(spec: JobSpec, stages: Stages, stage: Stage) -> StagePlan:
    pods = {Stage.TRAIN: stages.train.nodes or 1, Stage.FEATURES: stages.features.workers}.get(stage, 1)
    devices = (stages.train.devices_per_node or 1) if stage is Stage.TRAIN else 1 if stage in DEVICE_STAGES else 0
    return StagePlan(stage.value, pool_of(spec, stages, stage) or "", pods, devices)


def operations(model: Entry, train: TrainSettings, *, tokens: int) -> float:
    """Operations of training on one clip: three forward passes, and what is computed again.

    A multiply-add counts twice, attention is full; as the trainer counts them. Low-rank training leaves out the
    gradients of frozen matrices.
    """
    dims, text, hidden = model.transformer, model.text_length, model.transformer.hidden
    image, features = (0, 0) if model.image is None else (model.image.given, model.image.width)
    keys = text + image
    pairs = 4 * tokens * hidden * (tokens + keys)
    matrices = (8 + 4) * tokens * hidden**2 + 4 * keys * hidden**2 + 4 * tokens * hidden * dims.ffn
    ends = 2 * tokens * hidden * math.prod(dims.patch) * (dims.in_channels + model.vae.channels)
    caption = 2 * text * (dims.text_dim * hidden + hidden**2)
    pictures = 2 * image * (features**2 + features * hidden)
    blocks = dims.layers * (pairs + matrices)
    whole = 3.0 * (blocks + ends + caption + pictures)
    if train.lora.enabled:
        whole -= (whole - 3.0 * dims.layers * pairs) / 3
    return whole + _again(train, blocks=blocks, pairs=dims.layers * pairs, layers=dims.layers)


def _again(train: TrainSettings, *, blocks: float, pairs: float, layers: int) -> float:
    match train.recompute.mode:
        case RecomputeMode.NONE:
            return 0.0
        case RecomputeMode.INTERVAL:
            return blocks * math.ceil(layers / train.recompute.every) / layers
        case RecomputeMode.SELECTIVE:
            kept = {"attention": pairs, "matmul": blocks - pairs}
            return max(0.0, blocks - sum(kept.get(name, 0.0) for name in train.recompute.save))
        case _:
            return float(blocks)


def peak_of(pool: PoolSpec) -> tuple[float | None, str]:
    """The peak of a pool's device and its name, by the words of its selector, its name and its description."""
    text = " ".join((*pool.node_selector.values(), pool.description)).upper().replace("-", " ").replace("_", " ")
    words = set(text.split())
    if "MIG" in words:
        return None, ""
    found = next(((peak, name) for name, peak in PEAKS.items() if words.issuperset(name)), None)
    return (found[0], " ".join(found[1])) if found else (None, "")


def _step(pace: Pace, pool: PoolSpec, train: TrainSettings, *, work: float, devices: int) -> tuple[float | None, str]:
    """Seconds of a step, and where they come from."""
    if pace.step_seconds is not None:
        return pace.step_seconds, "as measured"
    peak, name = (pace.peak, "given") if pace.peak is not None else peak_of(pool)
    if pool.accelerator is Accelerator.CPU and pace.peak is None:
        return None, "unknown on a cpu pool: give a measured step by --step-seconds"
    if peak is None:
        return None, "unknown: nothing names the pool's device; give --step-seconds, or --peak-tflops"
    if train.precision is Precision.FP32 and pace.peak is None:
        return None, "unknown in fp32: give a measured step by --step-seconds"
    told = f"assumed: {pace.mfu:.0%} of {peak / 1e12:.5g} TFLOP/s a device ({name})".replace("%", " %")
    return work / (devices * peak * pace.mfu), told


def _notes(pool: PoolSpec, stages: Stages) -> list[str]:
    found = ["time and cost are of training alone: encoding, export and sampling come on top"]
    if pool.device_memory is None:
        found.append("the pool does not say deviceMemory: whether the training fits was not checked")
    else:
        found.append("memory counts tensors: context and communication buffers take some GiB more")
    if pool.prices is None:
        found.append("the pool names no prices: cost is unknown")
    if stages.train.packing is not None:
        found.append("clips are packed: clips a step are those of packs full of the largest")
    return found
