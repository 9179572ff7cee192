# SPDX-License-Identifier: Apache-2.0
"""The values as values.yaml, as a closed JSON schema, and as the README's table. Pure: models in, text out."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from kinema_chart.values import Values

WIDTH = 112
BEGIN, END = "<!-- values: written from tools/kinema_chart -->", "<!-- end of values -->"
HEAD = """\
# yaml-language-server: $schema=values.schema.json
# SPDX-License-Identifier: Apache-2.0
# Written from tools/kinema_chart by `make crds`. A misspelt name is refused: values.schema.json is closed.
"""


def values_yaml() -> str:
    """values.yaml: every value with its default and what it is for."""
    return HEAD + "".join(f"\n{text}" for text in _blocks(Values()))


def schema() -> str:
    """values.schema.json: closed, without what only the API server understands."""
    found = _plain(Values.model_json_schema(by_alias=True))
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=2) + "\n"


def readme(before: str) -> str:
    """The README with its table as it must be.

    Raises:
        ValueError: the two lines between which the table stands are missing.
    """
    head, found_begin, rest = before.partition(BEGIN)
    _, found_end, tail = rest.partition(END)
    if not found_begin or not found_end:
        raise ValueError(f"the README needs the lines {BEGIN!r} and {END!r}: the table is put between them")
    rows = "".join(f"| `{key}` | {_code(value)} | {_cell(text)} |\n" for key, value, text in _rows(Values()))
    return f"{head}{BEGIN}\n| value | default | meaning |\n|---|---|---|\n{rows}{END}{tail}"


def _fields(model: BaseModel) -> Iterator[tuple[str, Any, str]]:
    """(name in values, value, description) of each field."""
    for name, field in type(model).model_fields.items():
        yield field.alias or name, getattr(model, name), " ".join((field.description or "").split())


def _blocks(model: BaseModel) -> Iterator[str]:
    """One piece of YAML a field, with its comment."""
    for name, value, text in _fields(model):
        comment = "".join(f"# {line}\n" for line in textwrap.wrap(text, WIDTH, break_on_hyphens=False))
        if isinstance(value, BaseModel):
            yield f"{comment}{name}:\n" + textwrap.indent("".join(_blocks(value)), "  ")
        else:
            yield comment + _dumped(name, _wire(value))


def _dumped(name: str, value: Any) -> str:
    """A leaf: on one line where it fits."""
    flow = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).splitlines()[0]
    if isinstance(value, dict) and any(isinstance(item, dict) for item in value.values()):
        return yaml.safe_dump({name: value}, sort_keys=False)
    return f"{name}: {_quoted(value, flow)}\n"


def _quoted(value: Any, flow: str) -> str:
    return json.dumps(value) if isinstance(value, str) and (not value or flow != value) else flow


def _rows(model: BaseModel, path: str = "") -> Iterator[tuple[str, Any, str]]:
    for name, value, text in _fields(model):
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", _wire(value), text


def _wire(value: Any) -> Any:
    """A value as people write it: models as mappings of what they say."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if isinstance(value, dict):
        return {key: _wire(item) for key, item in value.items()}
    return [_wire(item) for item in value] if isinstance(value, list) else value


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(node: Any) -> Any:
    """The schema without what only the API server understands, without generated titles, and with keys that count."""
    if isinstance(node, dict):
        found = {
            key: _plain(value)
            for key, value in node.items()
            if not key.startswith("x-kubernetes") and not (key == "title" and isinstance(value, str))
        }
        if "patternProperties" in found:
            # pydantic's way of bounding keys lets in, unchecked, the values of all others.
            ((pattern, value),) = found.pop("patternProperties").items()
            found |= {"propertyNames": {"pattern": pattern}, "additionalProperties": value}
        return found
    return [_plain(item) for item in node] if isinstance(node, list) else node
