# SPDX-License-Identifier: Apache-2.0
"""A job's pipeline on this machine: the operator's plan, with the machine as every pool and one node."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass

from kinema_api.catalogue import entry
from kinema_api.configs import stage_config
from kinema_api.job import JobSpec
from kinema_api.keys import Keys
from kinema_api.names import Stage, run_folder
from kinema_api.overrides import merged
from kinema_api.pipeline import DEVICE_STAGES, grace_seconds, pipeline, pool_of, settings_of, stage_settings
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.refusal import PlanError
from kinema_api.settings import PodTemplate, Stages, StageSettings
from kinema_api.stage import AnyStageConfig, JobRef
from kinema_api.status import Resolved
from kinema_cli import machine as machines
from kinema_cli.errors import CommandError
from kinema_cli.jobfile import JobFile
from kinema_cli.machine import Machine

_NAMES = uuid.UUID("6f0c2f1e-1a1c-5a39-9f43-7d8a35b4f3c1")


@dataclass(frozen=True, slots=True)
class Course:
    """What runs here, and how."""

    job: JobRef
    spec: JobSpec
    resolved: Resolved
    machine: Machine
    asked: int
    """Devices, over all nodes, that the job asks for."""

    @property
    def settings(self) -> Stages:
        """The settings of every stage, folded to this machine."""
        return Stages.stored(self.resolved.stages)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that run, in order."""
        return pipeline(self.settings)

    @property
    def devices(self) -> int:
        """Training processes."""
        return self.settings.train.devices_per_node or 1

    @property
    def folder(self) -> str:
        """The job's private folder, relative to the workspace."""
        return run_folder(namespace=self.job.namespace, name=self.job.name, uid=self.job.uid)

    def of(self, stage: Stage) -> StageSettings:
        """The settings of a stage."""
        return stage_settings(self.settings, stage)

    def template(self, stage: Stage) -> PodTemplate:
        """What the user adds to the stage's pods; its variables count here too."""
        return merged(self.spec.defaults.pod_template, self.of(stage).pod_template)

    def grace(self, stage: Stage) -> int:
        """Seconds between SIGTERM and SIGKILL."""
        return grace_seconds(stage, self.template(stage))

    def accelerator(self, stage: Stage) -> Accelerator:
        """What the stage computes on."""
        return self.machine.accelerator if stage in DEVICE_STAGES else Accelerator.CPU

    def retries(self, stage: Stage) -> int:
        """Attempts after the first failed one."""
        retries = self.of(stage).retries
        return self.spec.policy.restarts.limit if retries is None else retries

    def config(self, stage: Stage, *, attempt: int, keys: Keys | None) -> AnyStageConfig:
        """The config of an attempt."""
        return stage_config(
            stage=stage, spec=self.spec, resolved=self.resolved, job=self.job, attempt=attempt, keys=keys
        )


def plan(file: JobFile, spec: JobSpec, *, machine: Machine, devices: int | None) -> Course:
    """The pipeline of a job whose addresses are local ones.

    Args:
        file: whose job it is.
        spec: the job with local addresses.
        machine: what stands for every pool.
        devices: training processes; what the job asks of a node when left out.

    Raises:
        CommandError: the job cannot run as it is written.
    """
    try:
        asked = settings_of(spec, entry(spec.model.name)).train
        wanted = devices or asked.devices_per_node or machine.count or 1
        pool = machines.pool(machine, devices=wanted)
        total = (asked.nodes or 1) * (asked.devices_per_node or wanted)
        resolved = freeze(spec=_one_node(spec, wanted), pools=_pools(spec, pool), images=_images(spec, machine))
    except PlanError as error:
        raise CommandError(f"{error} ({error.reason})") from None
    except ValueError as error:
        raise CommandError(f"spec.model.name: {error} (UnknownModel)") from None
    return Course(
        job=JobRef(namespace=file.namespace, name=file.name, uid=uid_of(file, spec)),
        spec=spec,
        resolved=resolved.model_copy(update={"stages": _folded(Stages.stored(resolved.stages), total).wire()}),
        machine=machine,
        asked=total,
    )


def uid_of(file: JobFile, spec: JobSpec) -> str:
    """The same for each run of a job over a workspace, so that a second run finds the work of the first."""
    return str(
        uuid.uuid5(_NAMES, "\n".join((file.namespace, file.name, spec.storage.uri, spec.storage.endpoint or "")))
    )


def selected(course: Course, *, only: Stage | None, first: Stage | None) -> tuple[Stage, ...]:
    """The stages to run; `check` always comes first, since it finds the keys.

    Raises:
        CommandError: both options are given, or a stage is not part of the job.
    """
    if only is not None and first is not None:
        raise CommandError("--stage runs one stage and --from runs all from one on: give one of them")
    for option, stage in (("--stage", only), ("--from", first)):
        if stage is not None and stage not in course.stages:
            have = ", ".join(stage.value for stage in course.stages)
            raise CommandError(f"{option} {stage}: the job leaves it out (enabled: false); it has {have}")
    order = list(Stage)
    chosen = [
        stage
        for stage in course.stages
        if stage is Stage.CHECK
        or (stage is only if only is not None else first is None or order.index(stage) >= order.index(first))
    ]
    return tuple(chosen)


def _pools(spec: JobSpec, pool: PoolSpec) -> dict[str, PoolSpec]:
    """One pool under every name that a job uses."""
    names = {spec.defaults.pool, *(pool_of(spec, spec.stages, stage) for stage in Stage)}
    return {name: pool for name in names if name is not None}


def _images(spec: JobSpec, machine: Machine) -> dict[str, str]:
    """No image runs here: this environment stands for each."""
    return {name: "this environment" for name in ("stage", f"{entry(spec.model.name).family}/{machine.accelerator}")}


def _one_node(spec: JobSpec, devices: int) -> JobSpec:
    train = spec.stages.train.model_copy(update={"nodes": 1, "devices_per_node": devices})
    return spec.model_copy(update={"stages": spec.stages.model_copy(update={"train": train})})


def _folded(stages: Stages, asked: int) -> Stages:
    """One features worker; a training step adds up more passes, and so takes as many clips as on all the nodes."""
    passes = stages.train.accumulate * max(1, math.ceil(asked / (stages.train.devices_per_node or 1)))
    return stages.model_copy(
        update={
            "train": stages.train.model_copy(update={"accumulate": passes}),
            "features": stages.features.model_copy(update={"workers": 1}),
        }
    )
