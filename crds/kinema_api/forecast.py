# SPDX-License-Identifier: Apache-2.0
"""What a job will take before anything is booked: pods, memory, time, accelerator-hours, cost; pure.

The command line and the server tell the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pydantic.alias_generators import to_camel

from kinema_api import fit, geometry, operations, peaks
from kinema_api.catalogue import Entry, entry
from kinema_api.job import JobSpec
from kinema_api.layout import AXES, Sizes
from kinema_api.names import Stage
from kinema_api.pipeline import DEVICE_STAGES, pipeline, pool_of, settings_of
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.settings import ClipVideo, Precision, Stages, TrainSettings

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
    """In words, axes of size 1 left out."""
    axes: Mapping[str, int]
    """The size of each axis of the layout."""
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
    need = fit.needed(model, train, sizes=sizes, passes=fit.works(model, train, video), place=place)
    step = _step(model, train, video, sizes)
    bill = _bill(pace, pool, train, work=step.operations, devices=place.world)
    return Forecast(
        model=model.name,
        stages=tuple(_stage(spec, stages, stage) for stage in pipeline(stages)),
        pool=name,
        accelerator=pool.accelerator.value,
        devices=place.world,
        layout=str(sizes),
        axes={axis: sizes.size(axis) for axis in AXES},
        layout_reason=_why(model, spec, pools),
        memory=need.parts(),
        memory_total=need.total,
        device_memory=place.memory,
        clip=step.clip,
        samples_per_step=step.clips,
        tokens_per_step=step.tokens,
        tflop_per_step=step.operations / 1e12,
        steps=train.steps,
        step_seconds=bill.step_seconds,
        seconds=bill.seconds,
        pace=bill.pace,
        accelerator_hours=bill.hours,
        cost=bill.cost,
        currency=pool.prices.currency if pool.prices else "",
        price_per_hour=bill.price_per_hour,
        notes=tuple(_notes(pool, stages)),
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """An optimizer step full of the largest clips."""

    clip: str
    clips: int
    tokens: int
    operations: float


def _step(model: Entry, train: TrainSettings, video: ClipVideo, sizes: Sizes) -> _Step:
    largest = max(geometry.geometries(video), key=lambda shape: geometry.tokens(shape, model))
    heaviest = max(fit.works(model, train, video), key=lambda work: work.tokens)
    tokens, clips = geometry.tokens(largest, model), heaviest.clips * train.accumulate * sizes.data
    forward = operations.forward(model, tokens=tokens)
    one = operations.training(forward, train, layers=model.transformer.layers)
    return _Step(clip=str(largest), clips=clips, tokens=clips * tokens, operations=clips * one.hardware)


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


@dataclass(frozen=True, slots=True)
class _Bill:
    """The time of a training, and what it costs."""

    step_seconds: float | None
    pace: str
    seconds: float | None
    hours: float | None
    """Of accelerators."""
    price_per_hour: float | None
    """Of all of them."""
    cost: float | None


def _bill(pace: Pace, pool: PoolSpec, train: TrainSettings, *, work: float, devices: int) -> _Bill:
    step, told = _seconds(pace, pool, train, work=work, devices=devices)
    seconds = None if step is None else step * train.steps
    counted = pool.accelerator is not Accelerator.CPU
    hours = seconds * devices / 3600 if counted and seconds is not None else None
    price = pool.prices.device_hour if counted and pool.prices is not None else None
    return _Bill(
        step_seconds=step,
        pace=told,
        seconds=seconds,
        hours=hours,
        price_per_hour=None if price is None else price * devices,
        cost=None if hours is None or price is None else hours * price,
    )


def _seconds(
    pace: Pace, pool: PoolSpec, train: TrainSettings, *, work: float, devices: int
) -> tuple[float | None, str]:
    """Seconds of a step, and where they come from."""
    if pace.step_seconds is not None:
        return pace.step_seconds, "as measured"
    peak = peaks.Peak(pace.peak, "given") if pace.peak is not None else _peak(pool)
    if pool.accelerator is Accelerator.CPU and pace.peak is None:
        return None, "unknown on a cpu pool: give the seconds of a measured step"
    if peak is None:
        return None, "unknown: nothing names the pool's device; give the seconds of a measured step, or the peak"
    if train.precision is Precision.FP32 and pace.peak is None:
        return None, "unknown in fp32: give the seconds of a measured step"
    told = f"{pace.mfu:.0%} of {peak.operations / 1e12:.5g} TFLOP/s a device ({peak.device})".replace("%", " %")
    return work / (devices * peak.operations * pace.mfu), f"assumed: {told}"


def _peak(pool: PoolSpec) -> peaks.Peak | None:
    """Of a pool's device, by the values of its selector and its description."""
    return peaks.peak_of(*pool.node_selector.values(), pool.description)


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
