# SPDX-License-Identifier: Apache-2.0
"""The reference of both resources, docs/reference/resource.md, from their models and the schema made of these."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kinema_api.base import DNS_LABEL, DNS_SUBDOMAIN
from kinema_api.crd import structural
from kinema_api.job import JobSpec
from kinema_api.names import API_VERSION, JOB_KIND, POOL_KIND
from kinema_api.pool import PoolSpec
from kinema_api.settings import Stages, StageSettings
from kinema_api.status import JobStatus

Schema = Mapping[str, Any]
Model = type[BaseModel]

COMMON = "of every stage"
_WORDS = {DNS_LABEL: "of a-z, 0-9 and -", DNS_SUBDOMAIN: "of a-z, 0-9, - and ."}
_INTRODUCTION = f"""\
# The resources

<!-- Made by tools/docs from the models; a test compares. `kubectl explain` shows the same. -->

Both are of `apiVersion: {API_VERSION}`. A field in bold has to be written; an object that is left out has the
defaults of its fields; other fields than these are refused.

"""
_JOB = f"""\
## {JOB_KIND}

A job: from a folder of videos to sampled clips. It belongs to a namespace, its short name is `vtj`. Of its spec only
`policy` may change once it exists. [`examples`](../../examples) has whole ones.

"""
_POOL = f"""\
## {POOL_KIND}

A kind of node, described once by the administrator, for the whole cluster; its short name is `tpool`. A job takes a
copy when it starts. [`examples/pools`](../../examples/pools) has whole ones.

"""
_STATUS = """\
What the operator answers, and nobody else writes; `progress` is the server's. [Conditions](../conditions.md) has their
reasons.
"""


@dataclass(slots=True)
class _Page:
    """Sections that were written and those that are still to be; each kind of object is described once."""

    prefix: str = ""
    places: dict[Model, str] = field(default_factory=dict)

    def heading(self, path: str) -> str:
        return f"{self.prefix}{path}"

    def link(self, model: Model, path: str) -> str:
        """A link to where a kind of object is described."""
        return f"[object](#{anchor(self.places.setdefault(model, self.heading(path)))})"


def page() -> str:
    """The page."""
    parts = [_INTRODUCTION, _JOB]
    parts += _sections(_Page(), JobSpec, structural(JobSpec, with_defaults=False), "spec")
    parts += _sections(_Page(), JobStatus, structural(JobStatus, with_defaults=False), "status", about=_STATUS)
    parts += [_POOL]
    parts += _sections(_Page(prefix=f"{POOL_KIND} "), PoolSpec, structural(PoolSpec, with_defaults=False), "spec")
    return "".join(parts).rstrip("\n") + "\n"


def anchor(heading: str) -> str:
    """How links spell a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _sections(written: _Page, model: Model, schema: Schema, path: str, *, about: str = "") -> Iterator[str]:
    """The section of an object, and those of the objects in it."""
    written.places.setdefault(model, written.heading(path))
    described = about or f"{schema.get('description', '')}\n"
    yield f"### {written.heading(path)}\n\n{described.strip()}\n\n"
    fields = dict(_fields(model))
    if issubclass(model, StageSettings) and model is not StageSettings:
        fields = {name: info for name, info in fields.items() if name not in dict(_fields(StageSettings))}
        yield f"It has what [every stage has](#{anchor(written.heading(COMMON))})"
        yield ", and\n\n" if fields else ".\n\n"
    within = [(name, inner) for name, info in fields.items() if (inner := model_of(info.annotation))]
    new = [(name, inner) for name, inner in within if written.places.get(inner) is None]
    for name, inner in new:
        written.places.setdefault(inner, written.heading(f"{path}.{name}"))
    if fields:
        yield "| field | type | default | |\n|---|---|---|---|\n"
        for name, info in fields.items():
            yield _row(written, name, info, schema, f"{path}.{name}", spec=path != "status" and not about)
        yield "\n"
    rules = [str(rule["message"]) for rule in schema.get("x-kubernetes-validations", ())]
    if rules:
        yield "The API server checks:\n\n" + "".join(f"- {rule}\n" for rule in dict.fromkeys(rules)) + "\n"
    if model is Stages:
        part = schema["properties"]["check"]
        yield from _sections(written, StageSettings, {**part, "description": "What every stage has."}, COMMON)
    for name, inner in new:
        if written.places[inner] == written.heading(f"{path}.{name}"):
            yield from _sections(written, inner, _object(schema["properties"][name]), f"{path}.{name}")


def _fields(model: Model) -> Iterator[tuple[str, FieldInfo]]:
    """Fields as they are written."""
    for name, info in model.model_fields.items():
        yield info.alias or name, info


def model_of(annotation: Any) -> Model | None:
    """The kind of object in an annotation: of the value itself, of a list's items or of a map's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_of(part))), None)


def _object(schema: Schema) -> Schema:
    """The schema of the objects in a list or a map; an object's own."""
    inner = schema.get("items") or schema.get("additionalProperties")
    return inner if isinstance(inner, Mapping) else schema


def _row(written: _Page, name: str, info: FieldInfo, schema: Schema, path: str, *, spec: bool) -> str:
    part = schema["properties"][name]
    inner = model_of(info.annotation)
    kind = _type(part, written.link(inner, path) if inner else None)
    shown = f"**`{name}`**" if info.is_required() and spec else f"`{name}`"
    cells = (shown, kind, _default(info) if spec else "", part.get("description", ""))
    return f"| {' | '.join(_cell(cell) for cell in cells)} |\n"


def _type(part: Schema, link: str | None) -> str:
    """What may be written, and within which bounds."""
    if part.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in part:
        return ", ".join(f"`{word}`" for word in part["enum"])
    kind = part.get("type")
    if kind == "array":
        return f"list of {_type(part['items'], link)}" + _bound(part, "maxItems", "at most {}")
    if isinstance(part.get("additionalProperties"), Mapping):
        return f"map of {_type(part['additionalProperties'], link)}" + _bound(part, "maxProperties", "at most {}")
    if kind == "object" or kind is None:
        return link or "object"
    return f"{kind}{_numbers(part)}{_bound(part, 'maxLength', 'up to {} characters')}{_pattern(part)}"


def _numbers(part: Schema) -> str:
    low, high = (_limit(part, word, sign) for word, sign in (("minimum", ">"), ("maximum", "<")))
    return "".join(f", {limit}" for limit in (low, high) if limit)


def _limit(part: Schema, word: str, sign: str) -> str:
    if word not in part:
        return ""
    strict = part.get(f"exclusive{word.capitalize()}")
    return f"{sign}{'' if strict else '='} {part[word]:g}" if abs(part[word]) < 1e6 else f"{sign}= {part[word]}"


def _bound(part: Schema, word: str, text: str) -> str:
    return f", {text.format(part[word])}" if word in part else ""


def _pattern(part: Schema) -> str:
    found = part.get("pattern", "")
    if found in _WORDS:
        return f", {_WORDS[found]}"
    # What a table or a reader would stumble over is left out: the description says it, and so does the API server.
    return f", `{found}`" if found and len(found) <= 48 and not any(word in found for word in ("|", "`", "](")) else ""


def _default(info: FieldInfo) -> str:
    """What counts when the field is left out; of objects, that is in their own section."""
    if info.is_required():
        return ""
    value = info.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ("", [], {}):
        return ""
    plain = value.value if hasattr(value, "value") else value
    return f"`{plain if isinstance(plain, str) else json.dumps(plain)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
