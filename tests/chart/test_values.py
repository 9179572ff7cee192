# SPDX-License-Identifier: Apache-2.0
"""The values, their schema and the README's table follow from one model, which shares the programs' settings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kinema_chart import pages
from kinema_chart.values import Values as Model
from kinema_demo.install import CHART, ROOT
from pydantic import BaseModel

from kinema_images import build, recipe
from kinema_operator.settings import Settings
from kinema_server.settings import ServerSettings

from tests.chart.conftest import VALUES, Values

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
README = (CHART / "README.md").read_text()


def test_what_is_written_from_the_models_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "chart_sync.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}run `make crds`"


def test_values_yaml_holds_every_default() -> None:
    assert Model.model_validate(yaml.safe_load((CHART / "values.yaml").read_text())) == Model()


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_examples_fit_the_model(values: Values) -> None:
    Model.model_validate(values)


def test_every_object_of_the_schema_is_closed() -> None:
    definitions = {"Values": SCHEMA, **SCHEMA["$defs"]}
    objects = {name: part for name, part in definitions.items() if "properties" in part}
    assert len(objects) > 20
    assert not [name for name, part in objects.items() if part.get("additionalProperties") is not False]
    assert "patternProperties" not in json.dumps(SCHEMA)


def test_settings_that_may_be_chosen_are_those_of_the_programs() -> None:
    chosen = Model(operator={"settings": {"workers": 3}}, server={"settings": {"verdictSeconds": 7}})
    assert Settings.model_validate(chosen.operator.settings.wire()).workers == 3
    assert ServerSettings.model_validate(chosen.server.settings.wire()).verdict_seconds == 7


def leaves(model: BaseModel) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if name == "settings" or name == "global_":
            continue  # passed on as a whole; Helm's own
        if isinstance(value, BaseModel):
            yield from leaves(value)
        else:
            yield field.alias or name


def test_every_value_is_used_by_a_template() -> None:
    text = "".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    unused = {leaf for leaf in leaves(Model()) if not re.search(rf"\.{leaf}\b", text)}
    # `resources` is passed on whole.
    assert unused == {"requests", "limits"}


def test_every_value_is_chosen_in_an_example() -> None:
    def chosen(values: Any, path: str = "") -> Iterator[str]:
        yield path
        if isinstance(values, dict):
            for name, value in values.items():
                yield from chosen(value, f"{path}.{name}")

    def wanted(model: BaseModel, path: str = "") -> Iterator[str]:
        for name, field in type(model).model_fields.items():
            value, place = getattr(model, name), f"{path}.{field.alias or name}"
            yield from wanted(value, place) if isinstance(value, BaseModel) else [place]

    found = {place for values in VALUES.values() for place in chosen(values)}
    assert set(wanted(Model())) - found == {".global"}, "that one is Helm's own"


def test_the_default_images_are_those_that_are_built() -> None:
    images = Model().images
    families = [found for family in images.families.values() for found in family.wire().values()]
    names = {item.name for item in build.selected(recipe.read_all(ROOT), build.Order())}
    version = build.version(ROOT)
    defaults = {images.control_plane, images.stage, *filter(None, families)}
    assert defaults == {f"kinema/{name}:{version}" for name in names}


def test_every_value_is_in_the_readme_with_its_meaning() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `.*` \| (.+) \|$", README, flags=re.MULTILINE)
    assert len(rows) > 80
    assert {name.split(".")[0] for name, _ in rows} == {"global", *Model().wire()} - {"global_"}


def test_every_example_that_the_readme_names_is_there_and_says_what_it_is_for() -> None:
    linked = set(re.findall(r"\(ci/([\w-]+)\.yaml\)", README))
    assert linked
    assert linked <= set(VALUES)
    for path in (CHART / "ci").glob("*.yaml"):
        assert path.read_text().startswith("# "), path.name


def test_a_readme_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="the README needs the lines"):
        pages.readme("# kinema\n")
