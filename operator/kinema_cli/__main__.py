# SPDX-License-Identifier: Apache-2.0
"""`kinema`: the command line, also found by kubectl as `kubectl kinema`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from kinema_cli.commands import care, jobs, local, look, results, steer
from kinema_cli.commands.options import COMPLETE
from kinema_cli.errors import CommandError

PLUGIN = "kubectl-kinema"
"""The name under which kubectl finds it."""

app = typer.Typer(
    name="kinema",
    help="Train video-generation models on Kubernetes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # What draws help in boxes takes half a second to import.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"kinema {version('kinema-operator')}")
        raise typer.Exit()


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train video-generation models on Kubernetes."""


for _name, _function in (
    ("submit", jobs.submit),
    ("list", jobs.list_jobs),
    ("get", jobs.get),
    ("logs", look.logs),
    ("why", jobs.why),
    ("plan", look.plan),
    ("suspend", steer.suspend),
    ("resume", steer.resume),
    ("cancel", steer.cancel),
    ("retry", steer.retry),
    ("loss", results.loss),
    ("samples", results.samples),
    ("models", look.models),
    ("pools", look.pools),
    ("doctor", care.doctor),
    ("report", care.report),
    ("run", local.run),
    ("gc", local.gc),
    ("completion", care.completion),
):
    app.command(_name)(_function)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    name = "kubectl kinema" if os.path.basename(sys.argv[0]) == PLUGIN else "kinema"
    if os.environ.get(COMPLETE):
        # What typer does for its own --install-completion, in whose place there is a command.
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        arguments = None if arguments is None else list(arguments)
        app(args=arguments, prog_name=name, complete_var=COMPLETE)
    except CommandError as error:
        print(f"kinema: {error}", file=sys.stderr)
        return error.code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
