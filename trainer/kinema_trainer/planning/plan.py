# SPDX-License-Identifier: Apache-2.0
"""`kinema-trainer plan`: what a training will take, told without a device, weights or data.

Parameters and memory come from `kinema_trainer.planning.rehearsal`: the engine's own step on fake tensors, its
collectives over a fake process group of the run's size. Operations are the family's formula. Time needs
one measured step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from kinema_api import fit, geometry, refusal
from kinema_api.buckets import Geometry
from kinema_api.catalogue import Entry, entry
from kinema_api.exits import Exit, StageError
from kinema_api.job import JobSpec, Task
from kinema_api.layout import Sizes
from kinema_api.memory import Work, estimate, gib
from kinema_api.operations import Operations
from kinema_api.pipeline import settings_of
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.quantity import bytes_of
from kinema_api.refusal import PlanError
from kinema_api.settings import ClipVideo, TrainSettings
from kinema_api.stage import TrainConfig, load_config


@dataclass(frozen=True)
class Request:
    """What is planned.

    Args:
        model: the catalogue entry.
        task: what the model is given.
        settings: of the train stage.
        video: geometries of the clips.
        world: processes.
        notes: what was chosen where nothing is named.
    """

    model: Entry
    task: Task
    settings: TrainSettings
    video: ClipVideo
    world: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a training takes. Bytes, numbers, operations and tokens are of one process unless they say otherwise."""

    model: str
    world: int
    layout: str
    parameters: int
    """Of the whole model."""
    own_parameters: int
    trained_parameters: int
    memory: dict[str, int]
    """Bytes at the peak, by what holds them."""
    memory_total: int
    checkpoint_host: int
    """Bytes of the host's memory that a copy of the state takes while a checkpoint is written beside the loop."""
    clips: str
    """Those of the largest forward pass."""
    samples_per_step: int
    """Over all processes; where clips are packed, if each pack were full of the largest."""
    tokens_per_step: int
    """Over all processes."""
    model_tflop_per_step: float
    hardware_tflop_per_step: float
    """With what is computed again."""
    steps: int
    seconds: float | None = None
    """Of the whole run, checkpoints and validation left out; None without a measured step."""
    tflops_per_second: float | None = None
    notes: list[str] = field(default_factory=list)


def make(request: Request, *, rank: int = 0, whole: bool = False, step_seconds: float | None = None) -> Plan:
    """Plan a training.

    Args:
        request: what is planned.
        rank: the process whose memory is told; they are alike but for rounding.
        whole: rehearse every block of the model.
        step_seconds: a measured step.

    Raises:
        StageError: the layout cannot work.
    """
    # torch is slow to import: what is refused is refused before.
    model, settings = request.model, request.settings
    try:
        sizes = fit.check(model, settings, request.video, fit.Place(world=request.world))
    except fit.FitError as error:
        raise StageError(Exit.USER, str(error)) from None
    from kinema_trainer.models import adapter
    from kinema_trainer.numbers.counting import operations
    from kinema_trainer.planning.rehearsal import rehearse, total

    clips, heavy = largest_pass(request), heaviest_pass(request, sizes)
    found = rehearse(model, settings, task=request.task, clips=heavy, world=request.world, rank=rank, whole=whole)
    family, vae = adapter(model), model.vae
    one = Operations()
    for clip in clips:
        plane = (vae.latent_frames(clip.frames), clip.height // vae.spatial, clip.width // vae.spatial)
        one += operations(family, model, settings, (vae.channels, *plane))
    passes = settings.accumulate * sizes.data
    tokens = sum(geometry.tokens(clip, model) for clip in clips)
    parts = {part.value: size for part, size in found.peak.items() if size}
    seconds = None if step_seconds is None else step_seconds * settings.steps
    mine = one.model * passes / request.world
    return Plan(
        model=model.name,
        world=request.world,
        layout=str(sizes),
        parameters=model.transformer.parameters,
        own_parameters=found.parameters,
        trained_parameters=found.trained,
        memory=parts,
        memory_total=total(found.peak),
        checkpoint_host=_copied(settings, trained=found.trained) if settings.checkpoint.asynchronous else 0,
        clips=f"{_said(clips)} (frames x height x width)",
        samples_per_step=len(clips) * passes,
        tokens_per_step=tokens * passes,
        model_tflop_per_step=mine / 1e12,
        hardware_tflop_per_step=one.hardware * passes / request.world / 1e12,
        steps=settings.steps,
        seconds=seconds,
        tflops_per_second=None if step_seconds is None else mine / 1e12 / step_seconds,
        notes=[*_notes(settings), *([f"memory is that of a pass of {_said(heavy)}"] if heavy != clips else [])],
    )


def largest_pass(request: Request) -> list[Geometry]:
    """The clips of the forward pass that has most tokens; of several such, of the longest clips, which take longest."""
    return _pass(request, lambda work: (work.tokens, -work.clips))


def heaviest_pass(request: Request, sizes: Sizes) -> list[Geometry]:
    """The clips of the forward pass that takes most memory: many short ones may, with a caption each."""
    return _pass(request, lambda work: estimate(request.model, request.settings, sizes=sizes, work=work).total)


def _pass(request: Request, size: Callable[[Work], Any]) -> list[Geometry]:
    """The clips of the largest of the passes that each geometry makes."""
    works = fit.works(request.model, request.settings, request.video)
    shape, work = max(zip(geometry.geometries(request.video), works, strict=True), key=lambda pair: size(pair[1]))
    return [shape] * work.clips


def _said(clips: Sequence[Geometry]) -> str:
    return f"{len(clips)} x {clips[0]}"


def _copied(settings: TrainSettings, *, trained: int) -> int:
    """Weights, two moments and the moving average, in float32."""
    return 4 * trained * (3 + settings.ema.enabled)


def _notes(settings: TrainSettings) -> list[str]:
    notes = [
        "memory counts tensors: the device's context, its communication library's buffers and what its allocator cannot"
        " join come on top"
    ]
    if settings.compile:
        notes.append("planned as if not compiled: a compiled block keeps no more")
    if settings.recompute.offload:
        notes.append("what is offloaded lies in the host's memory, and counts here as if it lay on the device")
    return notes


def table(plan: Plan) -> str:
    """The plan for people."""
    rows: list[tuple[str, str]] = [
        ("model", f"{plan.model}, {plan.parameters:,} parameters"),
        ("layout", f"{plan.layout} ({plan.world} processes)"),
        ("a process has", f"{plan.own_parameters:,} parameters, and trains {plan.trained_parameters:,}"),
        ("forward pass", plan.clips),
        ("a step takes", f"{plan.samples_per_step:,} clips, {plan.tokens_per_step:,} tokens"),
        ("operations", f"{plan.model_tflop_per_step:,.5g} TFLOP a device and step"),
        ("", f"{plan.hardware_tflop_per_step:,.5g} with what is computed again"),
        ("memory", f"{gib(plan.memory_total)} at the peak"),
    ]
    rows += [("", f"{gib(size):>10} {name}") for name, size in sorted(plan.memory.items(), key=lambda part: -part[1])]
    if plan.checkpoint_host:
        rows.append(("host memory", f"{gib(plan.checkpoint_host)} for a checkpoint on its way"))
    if plan.seconds is not None:
        hours = plan.seconds / 3600
        rows.append(("time", f"{hours:,.4g} h for {plan.steps:,} steps, {hours * plan.world:,.4g} device hours"))
        rows.append(("", f"{plan.tflops_per_second:,.4g} TFLOP/s of the model on each device"))
    rows += [("note", note) for note in plan.notes]
    return "\n".join(f"{name:<14} {text}".rstrip() for name, text in rows)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.USER, f"{self.prog}: {message}\n")


def read(
    path: Path, *, devices_per_node: int | None = None, nodes: int | None = None, memory: int | None = None
) -> Request:
    """What a job file or the config of a train stage asks for.

    Args:
        path: the file.
        devices_per_node: in place of what it says.
        nodes: likewise.
        memory: bytes of one device, in place of what the job's pool says.

    Raises:
        StageError: it is neither, or does not say on how many devices.
    """
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]
    except (OSError, yaml.YAMLError) as error:
        raise StageError(Exit.USER, f"cannot read {path}: {error}") from None
    try:
        job = next((one for one in documents if one.get("kind") == "VideoTrainingJob"), None)
        pool = next((one for one in documents if one.get("kind") == "TrainingPool"), None)
        if job is not None:
            of_pool = None if pool is None else PoolSpec.model_validate(pool["spec"])
            spec = JobSpec.model_validate(job["spec"])
            return _of_job(spec, of_pool, devices_per_node=devices_per_node, nodes=nodes, memory=memory)
        config = load_config(json.dumps(documents[0] if documents else {}))
    except (ValidationError, ValueError, KeyError, AttributeError) as error:
        raise StageError(Exit.USER, f"{path} is neither a job nor a train stage's config: {error}") from None
    if not isinstance(config, TrainConfig):
        raise StageError(Exit.USER, f"{path} is the config of stage {config.stage}, not of train")
    return Request(
        model=config.model,
        task=config.task,
        settings=config.settings,
        video=config.video or ClipVideo(),
        world=(nodes or config.nodes) * (devices_per_node or config.devices_per_node),
    )


def _of_job(
    spec: JobSpec, pool: PoolSpec | None, *, devices_per_node: int | None, nodes: int | None, memory: int | None
) -> Request:
    try:
        model = entry(spec.model.name)
        stages = settings_of(spec, model)
        refusal.check(spec, stages, model)
    except PlanError as error:
        raise StageError(Exit.USER, str(error)) from None
    devices = devices_per_node or stages.train.devices_per_node or (None if pool is None else pool.devices_per_node)
    if devices is None:
        raise StageError(
            Exit.USER, "the pool decides how many devices a node has: give --devices-per-node, or add the TrainingPool"
        )
    if memory is None and pool is not None and pool.device_memory is not None:
        memory = bytes_of(pool.device_memory)
    place = fit.Place(
        world=(nodes or stages.train.nodes or 1) * devices,
        accelerator=Accelerator.NVIDIA if pool is None else pool.accelerator,
        memory=memory,
    )
    chosen = fit.choose(model, stages.train, stages.prepare.video, place)
    return Request(
        model=model,
        task=spec.model.task or model.tasks[0],
        settings=chosen.train,
        video=stages.prepare.video,
        world=place.world,
        notes=(chosen.why,) if chosen.why else (),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = _Parser(prog="kinema-trainer", description="Plan a training without a device.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    command = commands.add_parser("plan", help="parameters, memory, operations, tokens and time of a training")
    command.add_argument("file", type=Path, help="a job, with its pool if it has one, or the config of a train stage")
    command.add_argument("--nodes", type=int, help="in place of what the file says")
    command.add_argument("--devices-per-node", type=int, help="in place of what the file or its pool says")
    command.add_argument("--device-memory", help="of one device, for instance 80Gi: what does not fit is refused")
    command.add_argument("--step-seconds", type=float, help="a measured step: gives the time of the run")
    command.add_argument("--rank", type=int, default=0, help="the process whose step is rehearsed")
    command.add_argument("--whole", action="store_true", help="rehearse every block: slower, and nothing is inferred")
    command.add_argument("-o", "--output", choices=["table", "json"], default="table")
    options = parser.parse_args(arguments)
    try:
        memory = _memory(options.device_memory)
        request = read(options.file, devices_per_node=options.devices_per_node, nodes=options.nodes, memory=memory)
        if memory is not None:
            _check_memory(request, memory)
        plan = make(request, rank=options.rank, whole=options.whole, step_seconds=options.step_seconds)
    except StageError as error:
        print(f"kinema-trainer: {error}", file=sys.stderr)
        return int(error.code)
    print(json.dumps(asdict(plan), indent=2) if options.output == "json" else table(plan))
    if memory is not None and plan.memory_total > memory:
        print(f"kinema-trainer: {gib(plan.memory_total)} do not fit into {gib(memory)}", file=sys.stderr)
        return int(Exit.USER)
    return int(Exit.OK)


def _memory(written: str | None) -> int | None:
    try:
        return None if written is None else bytes_of(written)
    except ValueError as error:
        raise StageError(Exit.USER, f"--device-memory: {error}") from None


def _check_memory(request: Request, memory: int) -> None:
    place = fit.Place(world=request.world, accelerator=Accelerator.NVIDIA, memory=memory)
    try:
        fit.check(request.model, request.settings, request.video, place)
    except fit.FitError as error:
        raise StageError(Exit.USER, str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
