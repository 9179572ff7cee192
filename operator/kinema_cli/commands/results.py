# SPDX-License-Identifier: Apache-2.0
"""`loss` and `samples`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kinema_cli.commands import options as o

_Authority = Annotated[
    str | None, typer.Option("--server-ca", envvar="KINEMA_SERVER_CA", help="Certificates that sign the server.")
]


def loss(
    name: o.Name,
    metric: Annotated[str, typer.Option(help="Another number of the history, for instance grad_norm.")] = "loss",
    points: Annotated[int, typer.Option(min=3, max=5000, help="At most so many.")] = 500,
    output: o.OutputFormat = o.Output.TEXT,
    server: o.ServerUrl = None,
    token: o.ServerToken = None,
    server_ca: _Authority = None,
    system: o.SystemNamespace = o.SYSTEM_NAMESPACE,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """Draw the training loss over the steps."""
    from kinema_cli.cluster import Where
    from kinema_cli.history import loss as run
    from kinema_cli.server import ServerAddress

    address = ServerAddress(server, token, system, server_ca)
    where = Where(kubeconfig, context, namespace)
    raise typer.Exit(run(where, name, address, metric=metric, points=points, output=output))


def samples(
    name: o.Name,
    download: Annotated[Path | None, typer.Option("--download", "-d", help="Write them into this folder.")] = None,
    step: Annotated[str, typer.Option(help="Only those made at this step of the training, or `final`.")] = "",
    output: o.OutputFormat = o.Output.TEXT,
    server: o.ServerUrl = None,
    token: o.ServerToken = None,
    server_ca: _Authority = None,
    system: o.SystemNamespace = o.SYSTEM_NAMESPACE,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """List the videos that a job made, or download them."""
    from kinema_cli.cluster import Where
    from kinema_cli.history import samples as run
    from kinema_cli.server import ServerAddress

    address = ServerAddress(server, token, system, server_ca)
    where = Where(kubeconfig, context, namespace)
    raise typer.Exit(run(where, name, address, folder=download, step=step, output=output))
