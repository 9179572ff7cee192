# SPDX-License-Identifier: Apache-2.0
"""The arguments and options that commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

STAGES = ("check", "prepare", "features", "convert", "train", "export", "sample")
"""The stages, spelt out: `--help` must not wait for the models; a test compares."""


class Output(StrEnum):
    """How a result is printed."""

    TEXT = "text"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


def _stages(incomplete: str) -> list[str]:
    return [stage for stage in STAGES if stage.startswith(incomplete)]


def _jobs(ctx: typer.Context, incomplete: str) -> list[str]:
    from kinema_cli.complete import job_names

    return job_names(ctx.params, incomplete)


def _models(incomplete: str) -> list[str]:
    from kinema_api.catalogue import model_names

    return [name for name in model_names() if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.", autocompletion=_jobs)]
Names = Annotated[list[str], typer.Argument(metavar="JOB...", help="Names of jobs.", autocompletion=_jobs)]
JobFile = Annotated[Path, typer.Argument(metavar="FILE", help="The job file, as kubectl applies it; - reads stdin.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="The namespace; that of the kubeconfig's context otherwise.")
]
Context = Annotated[str | None, typer.Option("--context", help="A context of the kubeconfig; its current one.")]
Kubeconfig = Annotated[
    Path | None, typer.Option("--kubeconfig", help="The kubeconfig; $KUBECONFIG or ~/.kube/config otherwise.")
]
OutputFormat = Annotated[Output, typer.Option("--output", "-o", help="How to print it.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Stay, and show what changes.")]
Selector = Annotated[str, typer.Option("--selector", "-l", help="Only jobs with these labels, as kubectl takes them.")]
StageName = Annotated[
    str | None, typer.Option("--stage", metavar="STAGE", help=f"One of {', '.join(STAGES)}.", autocompletion=_stages)
]
ModelName = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A model, to see all of it.", autocompletion=_models)
]
ServerUrl = Annotated[
    str | None,
    typer.Option("--server", envvar="KINEMA_SERVER", help="The server's address; through the API server otherwise."),
]
ServerToken = Annotated[
    str | None,
    typer.Option("--token", envvar="KINEMA_TOKEN", help="A token for the server; that of the kubeconfig otherwise."),
]
SystemNamespace = Annotated[
    str, typer.Option("--system-namespace", envvar="KINEMA_SYSTEM_NAMESPACE", help="Where Kinema is installed.")
]
SYSTEM_NAMESPACE = "kinema-system"
COMPLETE = "_KINEMA_COMPLETE"
"""The variable by which a shell asks what may come next."""


def stage_of(name: str | None, *, option: str = "--stage") -> str | None:
    """A stage as it was named.

    Raises:
        CommandError: there is no such stage.
    """
    from kinema_cli.errors import CommandError

    if name is None or name in STAGES:
        return name
    raise CommandError(f"{option} {name}: there is no such stage; write one of {', '.join(STAGES)}")
