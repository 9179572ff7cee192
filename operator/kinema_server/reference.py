# SPDX-License-Identifier: Apache-2.0
"""The reference page of the REST API, docs/rest.md, from the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_INTRODUCTION = """\
# REST API

<!-- Made by `kinema_server.reference` from the server's own description; a test compares. -->

The server answers under its Service, `https://kinema-server.NAMESPACE.svc/v1alpha1`, and through the chart's Ingress or
HTTPRoute. `GET /openapi.json` has this page for programs.

    TOKEN=$(kubectl create token ACCOUNT)
    curl --cacert ca.crt -H "Authorization: Bearer $TOKEN" \\
      https://kinema-server.kinema-system.svc/v1alpha1/namespaces/team/videotrainingjobs

"""


def page(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document."""
    return "".join(_parts(document)).rstrip("\n") + "\n"


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    yield _INTRODUCTION
    yield document["info"]["description"] + "\n"
    for tag in document["tags"]:
        yield f"## {tag['name'].capitalize()}\n\n{tag['description']}\n\n"
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation.get("tags", []):
                    yield from _operation(method.upper(), path, operation)
    yield "## Problems\n\nEvery error is `application/problem+json` with these fields.\n\n"
    yield from _fields(document["components"]["schemas"]["Problem"])


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {method} {path.replace('/v1alpha1', '', 1)}\n\n{operation.get('description', '').strip()}\n\n"
    parameters = [parameter for parameter in operation.get("parameters", []) if parameter["in"] != "path"]
    if parameters:
        yield "| parameter | where | what |\n|---|---|---|\n"
        for parameter in parameters:
            yield f"| `{parameter['name']}` | {parameter['in']} | {_about(parameter)} |\n"
        yield "\n"
    for body in operation.get("requestBody", {}).get("content", {}).values():
        example = body.get("example") or next((one["value"] for one in body.get("examples", {}).values()), None)
        if example is not None:
            yield f"Body:\n\n{_block(json.dumps(example, indent=2))}"
    yield from _answers(operation["responses"])


def _answers(responses: Mapping[str, Any]) -> Iterator[str]:
    yield "| answer | when |\n|---|---|\n"
    for code, response in sorted(responses.items()):
        yield f"| {code} | {_line(response['description'])} |\n"
    yield "\n"
    for media_type, content in responses.get("200", {}).get("content", {}).items():
        example = content.get("example")
        if example is not None:
            text = example if isinstance(example, str) else json.dumps(example, indent=2)
            yield f"`{media_type}`:\n\n{_block(text)}"


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    yield "| field | what |\n|---|---|\n"
    for name, field in schema["properties"].items():
        yield f"| `{name}` | {_line(field.get('description', ''))} |\n"


def _about(parameter: Mapping[str, Any]) -> str:
    schema = parameter["schema"]
    text = _line(parameter.get("description") or schema.get("description") or "")
    default = schema.get("default")
    return f"{text} Default `{default}`." if default not in (None, "", False) else text


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _block(text: str) -> str:
    return "".join(f"    {line}".rstrip() + "\n" for line in text.strip().splitlines()) + "\n"
