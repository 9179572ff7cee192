# SPDX-License-Identifier: Apache-2.0
"""Writes the CustomResourceDefinitions from the models: `python -m kinema_api.crd DIRECTORY`.

The API server takes structural schemas only: every reference inlined, no unions, no nulls, numbers bounded the way
of OpenAPI 3.0. Defaults stay out of the schema, since what is in it is written into stored objects; they are told
in the description instead, where `kubectl explain` shows them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from kinema_api.base import rules
from kinema_api.job import JobSpec
from kinema_api.names import GROUP, JOB_KIND, JOB_NAME_MAX, JOB_PLURAL, POOL_KIND, POOL_PLURAL, VERSION
from kinema_api.pool import PoolSpec
from kinema_api.status import JobStatus

Schema = dict[str, Any]

ANNOTATION_DIGEST = f"{GROUP}/definition-digest"
"""What the definition says, as a digest: the operator finds out by it whether the installed one is its own."""
ANNOTATION_VERSION = f"{GROUP}/definition-version"
"""The release that the definition belongs to."""

_DROPPED = ("title", "default", "propertyNames", "examples")


class _StructuralSchema(GenerateJsonSchema):
    """pydantic's schema without the two things that OpenAPI 3.0 lacks: null as a type, and `const`."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def structural(model: type[BaseModel], *, with_defaults: bool = True) -> Schema:
    """The structural schema of a model.

    Args:
        model: a model whose fields all have a description.
        with_defaults: whether descriptions end in the default of plain fields.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation", schema_generator=_StructuralSchema)
    definitions = schema.pop("$defs", {})
    return _inline(schema, definitions, with_defaults=with_defaults)


def _inline(schema: Mapping[str, Any], definitions: Mapping[str, Schema], *, with_defaults: bool) -> Schema:
    """`schema` with references resolved and everything that is not structural removed."""
    merged: Schema = dict(schema)
    if "$ref" in merged:
        target = definitions[merged.pop("$ref").rsplit("/", 1)[1]]
        merged = {**target, **merged}
    default = merged.get("default")
    for word in _DROPPED:
        if not isinstance(merged.get(word), Mapping) or word != "title":
            merged.pop(word, None)
    if "description" in merged:
        merged["description"] = _describe(merged["description"], default if with_defaults else None)
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if strict in merged:
            merged[bound] = merged.pop(strict)
            merged[strict] = True

    def inner(part: Mapping[str, Any]) -> Schema:
        return _inline(part, definitions, with_defaults=with_defaults)

    if "properties" in merged:
        merged["properties"] = {name: inner(part) for name, part in merged["properties"].items()}
        merged.pop("additionalProperties", None)
    elif isinstance(merged.get("additionalProperties"), Mapping):
        merged["additionalProperties"] = inner(merged["additionalProperties"])
    if merged.get("x-kubernetes-preserve-unknown-fields"):
        merged.pop("additionalProperties", None)
    if "items" in merged:
        merged["items"] = inner(merged["items"])
    return merged


def _describe(text: str, default: Any) -> str:
    """One line of description, with the default of a plain field at its end."""
    line = " ".join(text.split())
    if isinstance(default, bool):
        return f"{line} Default: {str(default).lower()}."
    if isinstance(default, int | float | str) and default != "":
        return f"{line} Default: {default}."
    return line


def _definition(
    *, kind: str, plural: str, short: str, scope: str, schema: Schema, version: Schema, categories: list[str]
) -> Schema:
    spec = {
        "group": GROUP,
        "scope": scope,
        "names": {
            "kind": kind,
            "listKind": f"{kind}List",
            "plural": plural,
            "singular": kind.lower(),
            "shortNames": [short],
            "categories": categories,
        },
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                **version,
                "schema": {"openAPIV3Schema": schema},
            }
        ],
    }
    annotations = {ANNOTATION_DIGEST: _digest(spec), ANNOTATION_VERSION: version_of("kinema-api")}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}", "annotations": annotations},
        "spec": spec,
    }


def _digest(spec: Schema) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]


def _root(*, description: str, spec: Schema, status: Schema | None = None, extra: Schema | None = None) -> Schema:
    properties: Schema = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": spec,
    }
    if status is not None:
        properties["status"] = status
    return {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": properties,
        **(extra or {}),
    }


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False, text: str = "") -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    if text:
        column["description"] = text
    return {**column, "priority": 1} if wide else column


_JOB_COLUMNS = [
    _column("Phase", ".status.phase", text="Pending, Running, Succeeded or Failed."),
    _column("Stage", ".status.stage", text="The stage that runs."),
    _column("Progress", ".status.progress.percent", text="Of the stage that runs."),
    _column("ETA", ".status.progress.eta", text="Time left of the stage that runs."),
    _column("Loss", ".status.progress.loss", text="Training loss of the last step."),
    _column("Restarts", ".status.restarts", "integer", text="Failed attempts over all stages."),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Model", ".spec.model.name", wide=True),
    _column("Pool", ".spec.defaults.pool", wide=True),
    _column("Step", ".status.progress.step", "integer", wide=True),
    _column("Steps", ".status.progress.totalSteps", "integer", wide=True),
    _column("Throughput", ".status.progress.metrics.samples_per_second", wide=True, text="Clips a second."),
    _column("Message", ".status.message", wide=True),
]

_POOL_COLUMNS = [
    _column("Accelerator", ".spec.accelerator"),
    _column("Devices", ".spec.devicesPerNode", "integer", text="Accelerators of one node."),
    _column("Nodes", ".spec.nodes", "integer"),
    _column("Security", ".spec.podSecurity"),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Description", ".spec.description", wide=True),
]

_NAME_RULES = rules(
    (
        f"self.metadata.name.size() <= {JOB_NAME_MAX}",
        f"metadata.name: at most {JOB_NAME_MAX} characters, since names of pods are made of it",
    ),
    (
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name: lower-case letters, digits and '-', beginning with a letter, not ending with '-'",
    ),
)


def job_definition() -> Schema:
    """The CustomResourceDefinition of VideoTrainingJob."""
    schema = _root(
        description="Trains a video-generation model: from a folder of videos to sampled clips.",
        spec=structural(JobSpec),
        status=structural(JobStatus, with_defaults=False),
        extra=_NAME_RULES,
    )
    version: Schema = {
        "subresources": {"status": {}},
        "additionalPrinterColumns": _JOB_COLUMNS,
        "selectableFields": [{"jsonPath": ".status.phase"}, {"jsonPath": ".spec.model.name"}],
    }
    return _definition(
        kind=JOB_KIND,
        plural=JOB_PLURAL,
        short="vtj",
        scope="Namespaced",
        schema=schema,
        version=version,
        categories=["all", "kinema"],
    )


def pool_definition() -> Schema:
    """The CustomResourceDefinition of TrainingPool."""
    return _definition(
        kind=POOL_KIND,
        plural=POOL_PLURAL,
        short="tpool",
        scope="Cluster",
        schema=_root(description="A kind of node that jobs may train on.", spec=structural(PoolSpec)),
        version={"additionalPrinterColumns": _POOL_COLUMNS},
        categories=["kinema"],
    )


def render() -> dict[str, str]:
    """Every definition as YAML, by file name."""
    return {
        f"{GROUP}_{definition['spec']['names']['plural']}.yaml": _HEADER + _yaml(definition)
        for definition in (job_definition(), pool_definition())
    }


_HEADER = "# Generated by python -m kinema_api.crd; do not edit.\n"


def _yaml(definition: Schema) -> str:
    return yaml.dump(definition, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """YAML without anchors: shared parts are written out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def main(arguments: list[str] | None = None) -> int:
    """Write the definitions into a directory."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 1:
        print("usage: python -m kinema_api.crd DIRECTORY", file=sys.stderr)
        return 2
    for name, text in render().items():
        (Path(words[0]) / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
