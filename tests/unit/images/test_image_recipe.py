# SPDX-License-Identifier: Apache-2.0
"""What an image is made of, and when it is another image."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema_images import recipe
from kinema_images.errors import ImageError
from kinema_images.recipe import Recipe

DOCKERFILE = """\
ARG BASE_IMAGE=python:3.13-slim-trixie
FROM ${BASE_IMAGE} AS tools
COPY images/with-ca requirements/build.txt /build/
# COPY nothing /at/all
FROM tools AS wheels
COPY --chown=1:1 \\
    crds /build/crds
FROM ${BASE_IMAGE}
COPY --from=wheels /build/wheels /opt
"""
BASE = "localhost/base:1"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("images/with-ca", "requirements/build.txt", "crds/pyproject.toml", "crds/api/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "images/one").mkdir()
    (tmp_path / "images/one/Dockerfile").write_text(DOCKERFILE)
    return tmp_path


def read(repository: Path) -> Recipe:
    return recipe.read(repository / "images/one")


def key(repository: Path, base: str = BASE) -> str:
    return recipe.key(read(repository), repository=repository, base=base)


def test_a_recipe_is_what_its_dockerfile_says(repository: Path) -> None:
    found = read(repository)
    assert found.name == "one"
    assert found.base == "python:3.13-slim-trixie"
    assert found.sources == ("crds", "images/with-ca", "requirements/build.txt")


def test_a_base_that_cannot_be_chosen_is_refused(repository: Path) -> None:
    (repository / "images/one/Dockerfile").write_text("FROM python:3.13\n")
    with pytest.raises(ImageError, match=r"ARG BASE_IMAGE"):
        read(repository)


def test_the_same_files_make_the_same_image(repository: Path) -> None:
    assert key(repository) == key(repository)


@pytest.mark.parametrize("name", ["images/with-ca", "crds/api/__init__.py", "images/one/Dockerfile"])
def test_another_content_makes_another_image(repository: Path, name: str) -> None:
    before = key(repository)
    with (repository / name).open("a") as file:
        file.write("\n# more\n")
    assert key(repository) != before


def test_another_name_mode_or_base_makes_another_image(repository: Path) -> None:
    keys = {key(repository), key(repository, base="localhost/base:2")}
    (repository / "images/with-ca").chmod(0o755)
    keys.add(key(repository))
    (repository / "crds/api/__init__.py").rename(repository / "crds/api/other.py")
    keys.add(key(repository))
    assert len(keys) == 4


def test_what_tools_leave_is_no_part_of_an_image(repository: Path) -> None:
    before = key(repository)
    for name in ("crds/api/__pycache__/x.pyc", "crds/.mypy_cache/y", "crds/kinema_api.egg-info/z"):
        path = repository / name
        path.parent.mkdir()
        path.write_text("left")
    assert key(repository) == before


def test_a_missing_source_is_named(repository: Path) -> None:
    (repository / "requirements/build.txt").unlink()
    with pytest.raises(ImageError, match=r"requirements/build\.txt"):
        key(repository)


def test_a_snapshot_is_the_same_image_and_stays_it(repository: Path, tmp_path: Path) -> None:
    target = tmp_path / "snapshot"
    before = key(repository)
    frozen = recipe.snapshot(read(repository), repository=repository, target=target)
    (repository / "crds/api/__init__.py").write_text("changed during the build")
    assert recipe.key(frozen, repository=target, base=BASE) == before
    assert frozen.dockerfile == target / "images/one/Dockerfile"
