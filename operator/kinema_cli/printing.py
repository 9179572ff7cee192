# SPDX-License-Identifier: Apache-2.0
"""Where results go: lines for people, JSON, YAML or names for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from rich.console import Console, Group
from rich.text import Text

from kinema_cli.commands.options import Output
from kinema_kube.client import Object
from kinema_kube.resources import Resource

_NO_LIMIT = 100_000
"""Width of what is piped: nothing is cut that a program may read."""


def console(*, stderr: bool = False) -> Console:
    """The terminal, or what takes its place; there colours are left out and lines are as long as they are."""
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return Console(file=stream, highlight=False, soft_wrap=False)
    return Console(file=stream, highlight=False, width=_NO_LIMIT, no_color=True, force_terminal=False)


def width(screen: Console) -> int | None:
    """Characters of a line; None where there is no limit. $COLUMNS sets one for a pipe as well."""
    if screen.is_terminal:
        return screen.width
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) > 0 else None


def show(lines: Iterable[Text | str], *, screen: Console | None = None) -> None:
    """Print lines as they are; what is longer than the terminal goes on in the next line of it."""
    screen = screen or console()
    for line in lines:
        text = Text(line) if isinstance(line, str) else line
        if not _encodable(text.plain, screen.encoding):
            text = Text(text.plain.encode(screen.encoding, "replace").decode(screen.encoding))
        text.no_wrap, text.overflow = None, "fold"
        screen.print(text, soft_wrap=not screen.is_terminal)


def group(lines: Sequence[Text | str]) -> Group:
    """Lines as one thing that a live screen draws anew."""
    return Group(*lines)


def _encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def structured(data: Any, output: Output) -> str:
    """Data as JSON or YAML."""
    if output is Output.JSON:
        return json.dumps(data, indent=2, ensure_ascii=False)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120).rstrip("\n")


def names(resource: Resource, objects: Iterable[Mapping[str, Any]]) -> list[str]:
    """Objects as `kubectl -o name` spells them."""
    return [f"{resource.kind.lower()}.{resource.group}/{found['metadata']['name']}" for found in objects]


def clean(found: Mapping[str, Any]) -> Object:
    """An object without the API server's bookkeeping."""
    metadata = {key: value for key, value in found["metadata"].items() if key != "managedFields"}
    return {**found, "metadata": metadata}


def listed(objects: Iterable[Mapping[str, Any]]) -> Object:
    """Objects as the list that kubectl prints."""
    return {"apiVersion": "v1", "kind": "List", "items": [clean(found) for found in objects]}


def say(text: str) -> None:
    """One line of a result."""
    print(text, flush=True)


def note(text: str) -> None:
    """One line beside the result: it never mixes with what a program reads."""
    print(text, file=sys.stderr, flush=True)
