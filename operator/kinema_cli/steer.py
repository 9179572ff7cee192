# SPDX-License-Identifier: Apache-2.0
"""Suspends, resumes, cancels and retries jobs."""

from __future__ import annotations

from collections.abc import Sequence

from kinema_api.names import Stage
from kinema_cli.cluster import FAILED, MANAGER, Where, find_job, run
from kinema_cli.commands.options import Output
from kinema_cli.errors import CommandError
from kinema_cli.printing import clean, listed, names, note, say, structured
from kinema_cli.show import stay
from kinema_kube import Kube
from kinema_kube.actions import Action, ActionError, patch
from kinema_kube.client import Object
from kinema_kube.errors import ConflictError
from kinema_kube.resources import VIDEO_TRAINING_JOBS

_DONE = {Action.SUSPEND: "suspended", Action.RESUME: "resumed", Action.CANCEL: "cancelled", Action.RETRY: "retried"}
_TRIES = 5


def steer(
    where: Where,
    action: Action,
    jobs: Sequence[str],
    *,
    stage: Stage | None = None,
    follow: bool = False,
    output: Output = Output.TEXT,
) -> int:
    """Ask something of jobs; 1 when one of them cannot do it."""
    if follow and len(jobs) != 1:
        raise CommandError("--follow stays with one job: name one")
    namespace, code, done = where.namespace, 0, list[Object]()

    async def work(kube: Kube) -> int:
        failed = 0
        for name in jobs:
            try:
                found, changed = await _ask(kube, action, name, namespace=namespace, stage=stage)
            except (ActionError, CommandError) as error:
                note(f"kinema: {error}")
                failed = FAILED
                continue
            done.append(found)
            if output in (Output.TEXT, Output.WIDE):
                say(f"job {namespace}/{name} {_DONE[action]}" if changed else f"job {namespace}/{name}: nothing to do")
        return failed

    code = run(where, work)
    if output in (Output.JSON, Output.YAML):
        say(structured(listed(done) if len(jobs) > 1 else clean(done[0]) if done else {}, output))
    elif output is Output.NAME:
        for line in names(VIDEO_TRAINING_JOBS, done):
            say(line)
    if follow and not code:
        return stay(where, jobs[0], namespace=namespace)
    return code


async def _ask(kube: Kube, action: Action, name: str, *, namespace: str, stage: Stage | None) -> tuple[Object, bool]:
    """The job after it was asked, and whether that changed anything."""
    for left in reversed(range(_TRIES)):
        job = await find_job(kube, name, namespace=namespace)
        wanted = patch(job, action, stage=stage)
        if wanted is None:
            return job, False
        try:
            changed = await kube.merge_patch(
                VIDEO_TRAINING_JOBS,
                name,
                wanted,
                namespace=namespace,
                resource_version=job["metadata"]["resourceVersion"],
                manager=MANAGER,
            )
        except ConflictError:
            # Its status was written in between, so that it may have to be decided anew.
            if not left:
                raise
        else:
            return changed, True
    raise AssertionError("the last try raises or returns")
