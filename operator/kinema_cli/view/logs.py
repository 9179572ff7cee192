# SPDX-License-Identifier: Apache-2.0
"""Lines of a stage's log as people read them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.text import Text

_STYLES = {"warning": "yellow", "error": "red", "critical": "red"}
_KNOWN = ("time", "level", "stage", "message", "traceback")


def readable(line: str) -> Text:
    """A line of JSON as time, level where it matters, message and fields; any other line as it is."""
    try:
        found: Any = json.loads(line)
    except ValueError:
        return Text(line)
    if not isinstance(found, dict) or "level" not in found:
        return Text(line)
    level = str(found["level"])
    text = Text(f"{str(found.get('time') or '')[11:19]} ".lstrip(), style="")
    if level != "info":
        text.append(f"{level}: ", style=_STYLES.get(level, ""))
    parts = [str(found.get("message") or ""), *_fields(found)]
    text.append(" ".join(part for part in parts if part), style=_STYLES.get(level, ""))
    if found.get("traceback"):
        text.append(f"\n{found['traceback']}")
    return text


def _fields(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in found.items()
        if name not in _KNOWN
    ]
