# SPDX-License-Identifier: Apache-2.0
"""The guides name every setting of training and of its data, and nothing that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinema_api.crd import job_definition
from kinema_api.job import JobSpec
from kinema_api.settings import Stages, StageSettings, TrainSettings

REPOSITORY = Path(__file__).resolve().parents[3]
GUIDES = [REPOSITORY / "docs" / f"{name}.md" for name in ("data", "objectives", "plan", "training")]
README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").rglob("*.md"))]
PRINTED = "kubectl.md"
"""Shows what kubectl prints; tests/cluster/test_docs.py compares it."""
EXAMPLES = sorted((REPOSITORY / "examples").rglob("*.yaml"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)")
PLACE = re.compile(r"\b(?:bench|charts|crds|docs|examples|images|operator|tests|tools|trainer)/[\w./-]*\w")
MODULE = re.compile(r"\bkinema_(?:api|cli|operator|server|stage|trainer)(?:\.[a-z_]\w*)+")
DOTTED = re.compile(r"[a-z]\w*(?:\.[a-z]\w*)+")
FILES = (".json", ".jsonl", ".yaml", ".md", ".py", ".csv", ".txt", ".pickle", ".gz")

Names = tuple[str, ...]


def paths(schema: dict[str, Any], above: Names = ()) -> Iterator[Names]:
    """Every field inside a schema."""
    for name, part in schema.get("properties", {}).items():
        yield (*above, name)
        yield from paths(part.get("items", part), (*above, name))


def spec() -> list[Names]:
    """Every field of a job's spec."""
    schema = job_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return list(paths(schema["properties"]["spec"]))


def own_settings() -> list[Names]:
    """The settings of training and of its data, without those that every stage has."""
    common = {field.alias or name for name, field in StageSettings.model_fields.items()}
    stages = [path[1:] for path in spec() if path[0] == "stages" and len(path) > 2]
    return [path[1:] for path in stages if path[0] in ("prepare", "train") and path[1] not in common]


def code(text: str) -> str:
    """All that a page sets as code."""
    fenced = [found[2] for found in FENCED.finditer(text)]
    rest = FENCED.sub("", text)
    return "\n".join([*fenced, *INDENTED.findall(rest), *INLINE.findall(rest)])


def told(path: Names, words: set[str]) -> bool:
    """Whether a page names a setting: by its name, on a page that names what it belongs to."""
    return path[-1] in words and (len(path) == 1 or path[-2] in words)


def test_every_setting_has_its_place_in_a_guide() -> None:
    pages = [set(re.findall(r"\w+", code(page.read_text(encoding="utf-8")))) for page in GUIDES]
    missing = [".".join(path) for path in own_settings() if not any(told(path, words) for words in pages)]
    assert missing == [], "write what they do into docs/data.md, objectives.md, plan.md or training.md"


def test_settings_that_guides_name_are_there() -> None:
    fields = spec()
    known = {path[-1] for path in fields}
    ends = {path[start:] for path in fields for start in range(len(path))}
    wrong = []
    for page in GUIDES:
        for word in DOTTED.findall(" ".join(INLINE.findall(FENCED.sub("", page.read_text(encoding="utf-8"))))):
            parts = tuple(word.removeprefix("spec.").split("."))
            if parts[0] in known and not word.endswith(FILES) and parts not in ends:
                wrong.append(f"{page.name}: {word}")
    assert wrong == []


def blocks() -> list[tuple[str, dict[str, Any]]]:
    """The pieces of jobs that the guides show."""
    found = []
    for page in GUIDES:
        text = page.read_text(encoding="utf-8")
        pieces = [piece[2] for piece in FENCED.finditer(text) if piece[1] == "yaml"]
        pieces += [piece for piece in INDENTED.findall(FENCED.sub("", text)) if re.match(r" +\w+: \{", piece)]
        found += [(page.stem, yaml.safe_load(piece)) for piece in pieces]
    return found


def test_pieces_of_jobs_are_found() -> None:
    assert {page for page, _ in blocks()} >= {"data", "objectives", "training"}


@pytest.mark.parametrize("piece", [piece for _, piece in blocks()], ids=[page for page, _ in blocks()])
def test_pieces_of_jobs_are_what_a_job_may_say(piece: dict[str, Any]) -> None:
    for model, inner in ((JobSpec, piece.get("spec")), (Stages, piece.get("stages"))):
        if inner is not None:
            model.model_validate(inner)
            return
    (Stages if piece.keys() <= set(Stages.model_fields) else TrainSettings).model_validate(piece)


def place(page: Path) -> str:
    """What a page is called in the name of a test."""
    return page.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("page", [page for page in (*PAGES, *EXAMPLES) if page.name != PRINTED], ids=place)
def test_files_and_modules_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = code(text) if page.suffix == ".md" else text
    missing = [name for name in PLACE.findall(shown) if not (REPOSITORY / name).exists()]
    assert missing + [name for name in MODULE.findall(shown) if not module(name)] == []


def module(name: str) -> bool:
    """Whether there is such a module, or a module that may have such a thing in it."""
    parts = name.split(".")
    tried = [Path(*parts)] if len(parts) == 2 else [Path(*parts), Path(*parts[:-1])]
    places = [REPOSITORY / root / path for root in ("crds", "operator", "trainer") for path in tried]
    return any(place.is_dir() or place.with_suffix(".py").is_file() for place in places)


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        place = (page.parent / target).resolve() if target else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            dead.append(f"{target}#{anchor}")
    assert dead == []


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as links spell them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_readme_leads_to_every_page() -> None:
    reached, new = {README}, [README]
    while new:
        page = new.pop()
        targets = {(page.parent / target).resolve() for target, _ in LINK.findall(page.read_text(encoding="utf-8"))}
        found = {target for target in targets if target.suffix == ".md" and target.is_file()} - reached
        reached |= found
        new += found
    assert [place(page) for page in PAGES if page not in reached] == []
