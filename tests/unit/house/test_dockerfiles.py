# SPDX-License-Identifier: Apache-2.0
"""What holds for every Dockerfile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kinema_images import recipe
from kinema_images.base import STAND_INS

REPOSITORY = Path(__file__).resolve().parents[3]
RECIPES = recipe.read_all(REPOSITORY)
TORCH_STAGE = re.compile(r"^FROM \$\{BASE_IMAGE\} AS torch\n.*?(?=^FROM )", re.MULTILINE | re.DOTALL)


def text(name: str) -> str:
    return RECIPES[name].dockerfile.read_text()


def test_the_images_are_there() -> None:
    assert {"control-plane", "stage", "wan2.1", "wan2.1-ascend"} <= RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_an_image_runs_as_nobody_and_checks_itself(name: str) -> None:
    content = text(name)
    user, check = content.index("\nUSER 65532:65532\n"), content.index("\nRUN python /opt/kinema/check/check.py\n")
    assert user < check
    assert (RECIPES[name].dockerfile.parent / "check.py").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_an_image_keeps_nothing_of_the_machine(name: str) -> None:
    content = text(name)
    assert not re.search(r"^(?:ARG|ENV)\b.*(?:SSL|CERT|PROXY|INDEX)", content, re.MULTILINE | re.IGNORECASE)
    for line in content.replace("\\\n", " ").splitlines():
        if "pip install" in line and "--no-deps" not in line:
            assert "--require-hashes" in line
            assert "type=secret,id=ca" in line


@pytest.mark.parametrize("name", RECIPES)
def test_our_packages_come_last_and_alone(name: str) -> None:
    steps = [line for line in text(name).splitlines() if line.startswith(("FROM", "COPY"))]
    final = steps[max(index for index, step in enumerate(steps) if step.startswith("FROM")) :]
    assert final.index("COPY --from=wheels /build/wheels /opt/kinema/wheels") == len(final) - 2


def test_native_images_share_torchs_layer() -> None:
    stages = {name: found[0] for name in RECIPES if (found := TORCH_STAGE.search(text(name)))}
    assert "wan2.1" in stages
    assert len(set(stages.values())) == 1


def test_what_can_be_built_here_is_what_has_a_stand_in() -> None:
    assert {name for name, item in RECIPES.items() if item.base in STAND_INS} >= {"control-plane", "stage", "wan2.1"}
    assert RECIPES["wan2.1-ascend"].base.startswith("quay.io/ascend/cann:")
