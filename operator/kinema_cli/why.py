# SPDX-License-Identifier: Apache-2.0
"""Reads what is known of a job that does not do what it should."""

from __future__ import annotations

from kinema_cli import clock
from kinema_cli.cluster import Where, find_job, run
from kinema_cli.commands.options import Output
from kinema_cli.printing import console, note, say, show, structured, width
from kinema_cli.view import why as view
from kinema_kube import Kube
from kinema_kube.client import Object, Objects
from kinema_kube.errors import ForbiddenError
from kinema_kube.resources import EVENTS


def explain(where: Where, name: str, *, output: Output) -> int:
    """Say why a job stands where it stands."""
    namespace, now = where.namespace, clock.now()

    async def read(kube: Kube) -> tuple[Object, Objects | None]:
        job = await find_job(kube, name, namespace=namespace)
        return job, await events_of(kube, job)

    job, events = run(where, read)
    if events is None:
        note("events are left out: you may not list events in this namespace")
    if output in (Output.JSON, Output.YAML):
        say(structured(told(job, events or [], options=where.options), output))
        return 0
    screen = console()
    show(view.why(job, events or [], now=now, options=where.options, width=width(screen)), screen=screen)
    return 0


def told(job: Object, events: Objects, *, options: str = "") -> Object:
    """The same for programs."""
    status, found = job.get("status") or {}, view.cause(job)
    return {
        "name": job["metadata"]["name"],
        "namespace": job["metadata"].get("namespace"),
        "phase": status.get("phase") or "Pending",
        "stage": status.get("stage"),
        "cause": found.what if found else None,
        "fix": found.fix if found else None,
        "conditions": status.get("conditions") or [],
        "events": [
            {"time": view.when(event), **{key: event.get(key) for key in ("type", "reason", "message")}}
            for event in sorted(events, key=view.when)
        ],
        "next": list(view.following(job, options)),
    }


async def events_of(kube: Kube, job: Object) -> Objects | None:
    """The events about a job; None where they may not be read."""
    metadata = job["metadata"]
    fields = f"involvedObject.uid={metadata['uid']}"
    try:
        return await kube.list(EVENTS, namespace=metadata["namespace"], fields=fields)
    except ForbiddenError:
        return None
