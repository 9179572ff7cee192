# SPDX-License-Identifier: Apache-2.0
"""A course as text, for --dry-run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml

from kinema_api.names import Stage
from kinema_api.pipeline import DEVICE_STAGES
from kinema_api.settings import StageSettings
from kinema_cli.course import Course
from kinema_cli.process import command

_COMMON = frozenset(StageSettings.model_fields)


def describe(course: Course, stages: Sequence[Stage], *, python: str) -> str:
    """What would run, a paragraph a stage."""
    return "\n".join(_lines(course, stages, python)) + "\n"


def _lines(course: Course, stages: Sequence[Stage], python: str) -> Iterator[str]:
    spec = course.spec
    yield f"job        {course.job.namespace}/{course.job.name}"
    yield f"model      {spec.model.name}, weights {spec.model.weights.uri}"
    yield f"dataset    {spec.dataset.uri}"
    yield f"workspace  {spec.storage.uri}"
    yield f"run        {course.folder}"
    yield f"machine    {course.machine.accelerator}, {course.devices} of {course.asked} devices that the job asks for"
    for stage in stages:
        settings = course.of(stage)
        devices = course.devices if stage is Stage.TRAIN else 1
        yield ""
        yield f"{stage}:" + (f" {devices} x {course.machine.accelerator}" if stage in DEVICE_STAGES else "")
        yield f"  {' '.join(command(python, stage, f'{stage}.json'))}"
        shown = settings.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=set(_COMMON))
        if shown:
            yield from (f"  {line}" for line in yaml.safe_dump(shown, sort_keys=False).splitlines())
