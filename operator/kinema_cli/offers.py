# SPDX-License-Identifier: Apache-2.0
"""`kinema models` and `kinema pools`: what there is to train, and where."""

from __future__ import annotations

from kinema_api.catalogue import UnknownModelError, entry, model_names
from kinema_cli import clock
from kinema_cli.cluster import Where, run
from kinema_cli.commands.options import Output
from kinema_cli.errors import CommandError
from kinema_cli.printing import console, listed, names, note, say, show, structured, width
from kinema_cli.view import catalogue as view
from kinema_kube.resources import TRAINING_POOLS


def models(name: str | None, *, output: Output) -> int:
    """Show the catalogue, or one model of it."""
    try:
        found = [entry(chosen) for chosen in ([name] if name else model_names())]
    except UnknownModelError as error:
        raise CommandError(str(error)) from None
    if output in (Output.JSON, Output.YAML):
        wires = [model.wire() for model in found]
        say(structured(wires[0] if name else wires, output))
    elif output is Output.NAME:
        for model in found:
            say(model.name)
    else:
        screen = console()
        show(view.model(found[0]) if name else view.models(found, width=width(screen)), screen=screen)
    return 0


def pools(where: Where, *, output: Output) -> int:
    """Show the cluster's pools."""
    found = sorted(run(where, lambda kube: kube.list(TRAINING_POOLS)), key=lambda pool: str(pool["metadata"]["name"]))
    if output in (Output.JSON, Output.YAML):
        say(structured(listed(found), output))
    elif output is Output.NAME:
        for line in names(TRAINING_POOLS, found):
            say(line)
    elif not found:
        note("this cluster has no pools: an administrator applies a TrainingPool, see examples/pools")
    else:
        screen = console()
        show(view.pools(found, now=clock.now(), width=width(screen)), screen=screen)
    return 0
