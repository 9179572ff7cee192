# SPDX-License-Identifier: Apache-2.0
"""`kinema loss` and `kinema samples`: what a training has left in its workspace."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kinema_api.names import Stage
from kinema_cli.cluster import FAILED, Where, find_job, run
from kinema_cli.commands.options import Output
from kinema_cli.errors import CommandError
from kinema_cli.gc import size_text
from kinema_cli.logs import attempt_of, pods_of
from kinema_cli.printing import console, note, say, show, structured, width
from kinema_cli.server import ServerAddress, ServerError, asked, data, job_path
from kinema_cli.view.chart import Series, chart
from kinema_cli.view.table import Column, table
from kinema_kube import Kube
from kinema_kube.client import Object
from kinema_kube.errors import KubeError
from kinema_kube.streams import log_lines

_SAMPLES = (
    Column("STEP", right=True),
    Column("SEED", need=2, right=True),
    Column("SIZE", need=1, right=True),
    Column("FILE"),
    Column("PROMPT", need=3, prose=True),
)
_CONTAINER = "pytorch"
_CHUNK = 1 << 16


def loss(where: Where, name: str, address: ServerAddress, *, metric: str, points: int, output: Output) -> int:
    """Draw the loss, or another number, over the steps."""
    namespace = where.namespace

    async def work(kube: Kube) -> Series:
        job = await find_job(kube, name, namespace=namespace)
        try:
            found = await data(kube, address, f"{job_path(namespace, name)}/history", {"points": str(points)})
            return series_of(found, metric)
        except ServerError as error:
            series = await _from_log(kube, job, metric)
            if series is None:
                raise
            note(f"{error}; drawn from the log of the training that runs")
            return series

    series = run(where, work)
    if not series.values:
        raise CommandError(f"job {name} has no {metric} yet: `kinema get {name}` says how far it is", code=FAILED)
    if output in (Output.JSON, Output.YAML):
        points_ = [{"step": s, metric: v} for s, v in zip(series.steps, series.values, strict=True)]
        say(structured(points_, output))
        return 0
    screen = console()
    show(chart(series, title=f"{metric} of {namespace}/{name}", width=width(screen) or 80), screen=screen)
    return 0


def series_of(found: Mapping[str, Any], metric: str) -> Series:
    """One number of a history; steps at which it was not finite are left out.

    Raises:
        CommandError: the history has no such number.
    """
    all_series = {str(item["name"]): item for item in found.get("series") or []}
    if metric not in all_series:
        if not all_series:
            return Series(metric, [], [])
        raise CommandError(f"--metric {metric}: the history has {', '.join(all_series)}")
    item = all_series[metric]
    pairs = [(step, value) for step, value in zip(item["steps"], item["values"], strict=True) if value is not None]
    return Series(metric, [step for step, _ in pairs], [float(value) for _, value in pairs])


async def _from_log(kube: Kube, job: Object, metric: str) -> Series | None:
    """The number from the log of the newest training pod of rank 0; None where there is none."""
    try:
        stage, attempt = attempt_of(job, stage=Stage.TRAIN.value, attempt=None)
        pods = await pods_of(kube, job, stage=stage, attempt=attempt["number"])
        if not pods:
            return None
        metadata, by_step = pods[0]["metadata"], dict[int, float]()
        lines = log_lines(kube, metadata["name"], namespace=metadata["namespace"], container=_CONTAINER, follow=False)
        async for line in lines:
            if (point := _point(line.partition(" ")[2], metric)) is not None:
                by_step[point[0]] = point[1]
    except (CommandError, KubeError):
        return None
    return Series(metric, list(by_step), list(by_step.values())) if by_step else None


def _point(line: str, metric: str) -> tuple[int, float] | None:
    try:
        found: Any = json.loads(line)
        step, value = found["step"], float(found[metric])
    except (ValueError, KeyError, TypeError):
        return None
    return (step, value) if isinstance(step, int) and math.isfinite(value) else None


def samples(where: Where, name: str, address: ServerAddress, *, folder: Path | None, step: str, output: Output) -> int:
    """List the videos that a job made, or download them."""
    namespace = where.namespace

    async def work(kube: Kube) -> list[dict[str, Any]]:
        await find_job(kube, name, namespace=namespace)
        path = f"{job_path(namespace, name)}/samples"
        found: list[dict[str, Any]] = (await data(kube, address, path)).get("items") or []
        chosen = [item for item in found if not step or str(item["round"]) == step]
        if step and found and not chosen:
            rounds = ", ".join(dict.fromkeys(str(item["round"]) for item in found))
            raise CommandError(f"--step {step}: there are samples of {rounds}", code=FAILED)
        for item in chosen if folder is not None else ():
            assert folder is not None
            place = await _download(kube, address, path, item, folder)
            if output in (Output.TEXT, Output.WIDE):
                say(str(place))
        return chosen

    found = run(where, work)
    if output in (Output.JSON, Output.YAML):
        say(structured(found, output))
    elif output is Output.NAME:
        for item in found:
            say(_place(item))
    elif not found:
        note(f"job {name} has no samples yet: they come while training (validation) and at its end (stage sample)")
    elif folder is None:
        screen = console()
        rows = [
            (item["round"], item.get("seed"), size_text(item.get("size") or 0), item["file"], item.get("prompt"))
            for item in found
        ]
        show(table(_SAMPLES, rows, width=width(screen)), screen=screen)
    return 0


def _place(item: Mapping[str, Any]) -> str:
    return f"{item['round']}/{item['file']}"


async def _download(kube: Kube, address: ServerAddress, path: str, item: Mapping[str, Any], folder: Path) -> Path:
    """Write one file, and say where; a broken download leaves nothing behind."""
    parts = [str(item["round"]), str(item["file"])]
    if any(part in ("", ".", "..") or "/" in part or os.sep in part for part in parts):
        raise CommandError(f"the server names a sample {'/'.join(parts)}, which is no place for a file", code=FAILED)
    place = folder.joinpath(*parts)
    temporary = place.with_name(f".{place.name}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        async with asked(kube, address, f"{path}/{quote(parts[0], safe='')}/{quote(parts[1], safe='')}") as answer:
            with temporary.open("wb") as file:
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    file.write(chunk)
        temporary.replace(place)
    except OSError as error:
        raise CommandError(f"{place} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return place
