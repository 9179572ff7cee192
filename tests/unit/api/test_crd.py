# SPDX-License-Identifier: Apache-2.0
"""The generated definitions: up to date, structural, described."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from kinema_api.crd import job_definition, main, pool_definition, render

pytestmark = pytest.mark.unit

CRDS = Path(__file__).parents[3] / "crds"
FORBIDDEN = {"$ref", "$defs", "allOf", "const", "title", "default", "uniqueItems", "propertyNames", "prefixItems"}


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with its path."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from walk(part, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            yield from walk(schema[word], f"{path}[]")


def schemas() -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for definition in (job_definition(), pool_definition()):
        root = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for part in ("spec", "status"):
            if part in root["properties"]:
                found += walk(root["properties"][part], f"{definition['spec']['names']['kind']}.{part}")
    return found


@pytest.mark.parametrize("name", render())
def test_committed_definitions_are_the_generated_ones(name: str) -> None:
    assert (CRDS / name).read_text() == render()[name], "run make crds"


def test_a_definition_carries_a_digest_of_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pool_definition()["metadata"]["annotations"]
    assert before["kinema.dev/definition-version"] == version("kinema-api")
    assert pool_definition()["metadata"]["annotations"] == before
    monkeypatch.setattr("kinema_api.crd._POOL_COLUMNS", [])
    after = pool_definition()["metadata"]["annotations"]
    assert after["kinema.dev/definition-digest"] != before["kinema.dev/definition-digest"]


def test_definitions_are_written_by_the_command(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(render())


def test_the_command_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m kinema_api.crd DIRECTORY" in capsys.readouterr().err


def test_schemas_are_structural() -> None:
    for path, schema in schemas():
        named = set(schema) - ({"title", "default"} & set(schema.get("properties", {})))
        assert not named & FORBIDDEN, path
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
        if "anyOf" in schema:
            assert schema["x-kubernetes-int-or-string"], path
        if "properties" in schema:
            assert "additionalProperties" not in schema, path


def test_every_field_is_described() -> None:
    silent = [path for path, schema in schemas() if not path.endswith("[]") and not schema.get("description")]
    assert silent == []


def test_all_strings_lists_and_maps_are_bounded() -> None:
    for path, schema in schemas():
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            continue
        if schema.get("type") == "string":
            assert "maxLength" in schema or "enum" in schema or schema.get("format") == "date-time", path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        if isinstance(schema.get("additionalProperties"), dict):
            assert "maxProperties" in schema, path


def test_defaults_are_told_but_not_stored() -> None:
    steps = dict(schemas())["VideoTrainingJob.spec.stages.train.steps"]
    assert steps["description"].endswith("Default: 10000.")
