# SPDX-License-Identifier: Apache-2.0
"""`logs`, `plan`, `models` and `pools`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kinema_cli.commands import options as o


def logs(
    name: o.Name,
    stage: o.StageName = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="The newest when left out.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="The pod's place among those of the attempt.")] = 0,
    everyone: Annotated[bool, typer.Option("--all", help="All pods, each line after its pod's name.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the pod ends.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Only the last lines, so many of each pod.")] = None,
    since: Annotated[str, typer.Option(help="Only lines since then: 10m, 2h, or a time (UTC).")] = "",
    grep: Annotated[str, typer.Option(help="Only lines in which this regular expression is found.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Lines as the pod wrote them (JSON).")] = False,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Print what a stage writes: the one that runs, or ran last."""
    from kinema_cli.cluster import Where
    from kinema_cli.logs import Wanted
    from kinema_cli.logs import logs as run

    wanted = Wanted(o.stage_of(stage), attempt, rank, everyone, follow, tail, since, grep, raw)
    raise typer.Exit(run(Where(kubeconfig, context, namespace), name, wanted))


def plan(
    file: o.JobFile,
    pool_file: Annotated[
        list[Path] | None, typer.Option("--pool-file", help="TrainingPools of a file; the cluster's otherwise.")
    ] = None,
    step_seconds: Annotated[float | None, typer.Option(min=0.001, help="A measured step, for the time.")] = None,
    peak_tflops: Annotated[float | None, typer.Option(min=0.001, help="Peak of one device, where unknown.")] = None,
    mfu: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the peak that is assumed.")] = 0.4,
    output: o.OutputFormat = o.Output.TEXT,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Say what a job will take: memory, time, accelerator-hours, cost. Nothing is booked."""
    from kinema_api.forecast import Pace
    from kinema_cli.cluster import Where
    from kinema_cli.planning import plan as run

    pace = Pace(step_seconds, None if peak_tflops is None else peak_tflops * 1e12, mfu)
    where = Where(kubeconfig, context)
    raise typer.Exit(run(where, file, pool_files=tuple(pool_file or ()), pace=pace, output=output))


def models(name: o.ModelName = None, output: o.OutputFormat = o.Output.TEXT) -> None:
    """Show the models that can be trained."""
    from kinema_cli.offers import models as run

    raise typer.Exit(run(name, output=output))


def pools(output: o.OutputFormat = o.Output.TEXT, context: o.Context = None, kubeconfig: o.Kubeconfig = None) -> None:
    """Show the pools that jobs can run on."""
    from kinema_cli.cluster import Where
    from kinema_cli.offers import pools as run

    raise typer.Exit(run(Where(kubeconfig, context), output=output))
