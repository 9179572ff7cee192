# SPDX-License-Identifier: Apache-2.0
"""`doctor`, `report` and `completion`."""

from __future__ import annotations

from typing import Annotated

import typer

from kinema_cli.commands import options as o


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings count as failures.")] = False,
    system: o.SystemNamespace = o.SYSTEM_NAMESPACE,
    output: o.OutputFormat = o.Output.TEXT,
    namespace: o.Namespace = None,
    context: o.Context = None,
    kubeconfig: o.Kubeconfig = None,
) -> None:
    """See whether the installation is sound, a line a check; 1 when it is not."""
    from kinema_cli.cluster import Where
    from kinema_cli.doctor import doctor as run

    where = Where(kubeconfig, context, namespace)
    raise typer.Exit(run(where, system=system, output=output, strict=strict))
