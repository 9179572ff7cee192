# SPDX-License-Identifier: Apache-2.0
"""Lists jobs and shows one, once or as they change."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group
from rich.live import Live
from rich.text import Text

from kinema_api.status import Phase
from kinema_cli import clock
from kinema_cli.cluster import Where, find_job, run
from kinema_cli.commands.options import Output
from kinema_cli.ends import DETACHED
from kinema_cli.errors import CommandError
from kinema_cli.follow import detached, follow
from kinema_cli.printing import clean, console, group, listed, names, note, say, show, structured, width
from kinema_cli.streams import changes
from kinema_cli.view.jobs import listing
from kinema_cli.view.tree import tree
from kinema_kube import Kube
from kinema_kube.client import Object, Objects
from kinema_kube.resources import VIDEO_TRAINING_JOBS

_STRUCTURED = (Output.JSON, Output.YAML)


@dataclass(frozen=True, slots=True)
class Query:
    """Which jobs, and how they are shown."""

    namespace: str | None
    """All when None."""
    phase: str | None
    labels: str
    output: Output

    @property
    def fields(self) -> str:
        """The field selector.

        Raises:
            CommandError: there is no such phase.
        """
        if not self.phase:
            return ""
        known = {phase.value.lower(): phase.value for phase in Phase}
        if self.phase.lower() not in known:
            raise CommandError(f"--phase {self.phase}: write one of {', '.join(known.values())}")
        return f"status.phase={known[self.phase.lower()]}"


def show_list(where: Where, query: Query, *, watch: bool) -> int:
    """List jobs; the exit code."""
    fields = query.fields
    if not watch:
        found = run(
            where,
            lambda kube: kube.list(VIDEO_TRAINING_JOBS, namespace=query.namespace, labels=query.labels, fields=fields),
        )
        _print(sorted(found, key=_key), query)
        return 0
    if query.output in _STRUCTURED:
        raise CommandError(f"--watch prints lines: leave out --output {query.output}")
    try:
        run(where, lambda kube: _watch(kube, query, fields))
    except KeyboardInterrupt:
        return DETACHED
    return 0


def _key(job: Object) -> tuple[str, str]:
    return job["metadata"].get("namespace") or "", job["metadata"]["name"]


def _print(found: Objects, query: Query) -> None:
    if query.output in _STRUCTURED:
        say(structured(listed(found), query.output))
    elif query.output is Output.NAME:
        for line in names(VIDEO_TRAINING_JOBS, found):
            say(line)
    elif not found:
        where = f"in namespace {query.namespace}" if query.namespace else "in any namespace"
        note(f"no jobs {where}" + (" that fit" if query.phase or query.labels else ""))
    else:
        screen = console()
        show(_lines(found, query, width(screen)), screen=screen)


def _lines(found: Objects, query: Query, wide: int | None) -> list[Text]:
    return listing(
        found,
        now=clock.now(),
        wide=query.output is Output.WIDE,
        namespaces=query.namespace is None,
        width=wide,
    )


async def _watch(kube: Kube, query: Query, fields: str) -> None:
    screen, known = console(), dict[str, Object]()
    seen = changes(kube, VIDEO_TRAINING_JOBS, namespace=query.namespace, labels=query.labels, fields=fields, note=note)
    if not screen.is_terminal:
        heads = True
        async for change in seen:
            lines = (
                names(VIDEO_TRAINING_JOBS, [change.object])
                if query.output is Output.NAME
                else _lines([change.object], query, width(screen))[0 if heads else 1 :]
            )
            heads = False
            show(lines, screen=screen)
        return

    def draw() -> Group:
        return group(_lines(sorted(known.values(), key=_key), query, width(screen)))

    with Live(console=screen, get_renderable=draw, refresh_per_second=2) as live:
        async for change in seen:
            uid = change.object["metadata"]["uid"]
            if change.kind == "DELETED":
                known.pop(uid, None)
            else:
                known[uid] = change.object
            live.refresh()


def show_one(where: Where, name: str, *, output: Output, watch: bool) -> int:
    """Show a job; with `watch` the exit code tells its end."""
    namespace = where.namespace
    if watch:
        if output not in (Output.TEXT, Output.WIDE):
            raise CommandError(f"--watch prints lines: leave out --output {output}")
        return stay(where, name, namespace=namespace)
    job = run(where, lambda kube: find_job(kube, name, namespace=namespace))
    if output in _STRUCTURED:
        say(structured(clean(job), output))
    elif output is Output.NAME:
        say(names(VIDEO_TRAINING_JOBS, [job])[0])
    else:
        screen = console()
        show(tree(job, now=clock.now(), width=width(screen)), screen=screen)
    return 0


def stay(where: Where, name: str, *, namespace: str) -> int:
    """Follow a job to its end, or to Ctrl-C."""

    async def work(kube: Kube) -> int:
        await find_job(kube, name, namespace=namespace)
        return await follow(kube, name, namespace=namespace)

    try:
        return run(where, work)
    except KeyboardInterrupt:
        note(detached(name, where))
        return DETACHED
