# SPDX-License-Identifier: Apache-2.0
"""What is built, and how a build fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kinema_images import build
from kinema_images.buildah import CACHE_ID, Buildah, ca_bundle, step_of
from kinema_images.errors import ImageError
from kinema_images.recipe import Recipe

HERE = "python:3.13-slim-trixie"
RECIPES = {
    name: Recipe(name=name, dockerfile=Path(f"images/{name}/Dockerfile"), base=base, sources=())
    for name, base in (("npu", "quay.io/ascend/cann:9.1.0"), ("stage", HERE), ("wan", HERE))
}


def names(order: build.Order) -> list[str]:
    return [item.name for item in build.selected(RECIPES, order)]


def test_all_that_can_be_built_here() -> None:
    assert names(build.Order()) == ["stage", "wan"]
    assert [item.name for item in build.left_out(RECIPES, build.Order())] == ["npu"]
    assert build.left_out(RECIPES, build.Order(names=("wan",))) == []


def test_only_what_is_named() -> None:
    assert names(build.Order(names=("wan", "wan"))) == ["wan"]


def test_a_base_of_ones_own_makes_any_image_possible() -> None:
    assert names(build.Order(names=("npu",), base_image="registry.example/cann:1")) == ["npu"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("npu", r"quay\.io/ascend/cann:9\.1\.0.*docker build"), ("none", r"images/none.*npu, stage, wan")],
)
def test_what_cannot_be_built_is_refused_with_the_reason(name: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        names(build.Order(names=(name,)))


def test_the_version_is_the_packages() -> None:
    repository = Path(__file__).resolve().parents[3]
    assert f'version = "{build.version(repository)}"' in (repository / "trainer/pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("STEP 3/9: RUN  one   two\n", "STEP 3/9: RUN one two"),
        ("[1/2] STEP 3/9: COPY a b\n", "[1/2] STEP 3/9: COPY a b"),
        (" + torch==2.15.0\n", None),
        ("a long line that speaks of a STEP later\n", None),
    ],
)
def test_steps_are_told_from_other_output(line: str, step: str | None) -> None:
    assert step_of(line) == step


def test_a_long_step_is_cut() -> None:
    step = step_of("STEP 1/1: RUN " + "x" * 500, width=40)
    assert step is not None
    assert len(step) == 40
    assert step.endswith("...")


def test_the_ca_bundle_is_the_one_that_the_environment_names(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.crt"
    bundle.write_text("certificate")
    assert ca_bundle({"SSL_CERT_FILE": str(tmp_path / "none"), "CURL_CA_BUNDLE": str(bundle)}) == str(bundle)


def test_builds_read_this_machines_download_cache(tmp_path: Path) -> None:
    buildah = Buildah(root=tmp_path / "buildah", say=print)
    for cache in (tmp_path / "first", tmp_path / "second", tmp_path / "second"):
        buildah.share_cache(cache)
        (mount,) = tmp_path.glob(f"buildah/tmp/buildah-cache/{CACHE_ID}")
        assert mount.resolve() == cache


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Buildah:
    """A buildah whose builds fail half-way, with something left in its scratch folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "buildah"
    program.write_text(
        "#!/bin/sh\n"
        'echo "$@" >>"$0.calls"\n'
        'case "$*" in *" bud "*) mkdir "$TMPDIR/left"; echo "STEP 1/1: RUN x"; echo no space left; exit 2 ;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return Buildah(root=tmp_path / "buildah", say=lambda _: None)


def test_a_failed_build_says_why_and_leaves_nothing(failing: Buildah, tmp_path: Path) -> None:
    failing.share_cache(tmp_path / "cache")
    with pytest.raises(ImageError, match=r"(?s)one\.log ends with:.*no space left"):
        failing.build(tmp_path / "Dockerfile", context=tmp_path, tag="one:1", log=tmp_path / "one.log")
    assert [path.name for path in (tmp_path / "buildah/tmp").iterdir()] == ["buildah-cache"]
    assert (tmp_path / "bin/buildah.calls").read_text().splitlines()[-1].endswith("rm --all")
