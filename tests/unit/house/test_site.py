# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/ as a site, and the files there that follow from something else."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from kinema_docs import diagram, files, resource, site

from kinema_api.job import JobSpec
from kinema_api.pool import PoolSpec

REPOSITORY = Path(__file__).resolve().parents[3]
DOCS = REPOSITORY / "docs"
SETTINGS = REPOSITORY / "mkdocs.yml"


def listed(nav: Any) -> Iterator[str]:
    """Every page of a navigation."""
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from listed(entry)


def test_what_is_made_is_up_to_date() -> None:
    stale = [str(path.relative_to(REPOSITORY)) for path in files.stale()]
    assert stale == [], "tools/docs writes it"


@pytest.mark.parametrize("model", [JobSpec, PoolSpec])
def test_the_reference_has_every_field(model: Any) -> None:
    text = (DOCS / "reference" / "resource.md").read_text(encoding="utf-8")

    def names(part: Any) -> Iterator[str]:
        for name, info in part.model_fields.items():
            yield info.alias or name
            inner = resource.model_of(info.annotation)
            if inner is not None:
                yield from names(inner)

    assert [name for name in names(model) if f"`{name}`" not in text] == []


def test_the_reference_says_defaults_and_bounds() -> None:
    text = (DOCS / "reference" / "resource.md").read_text(encoding="utf-8")
    assert "| `steps` | integer, >= 1, <= 100000000 | `10000` |" in text
    assert "| `seeds` | list of integer, >= 0, <= 2147483647, at most 64 | `[0]` |" in text
    assert "| **`accelerator`** | `nvidia`, `ascend`, `cpu` |  |" in text
    assert "- fabric.hostNetwork needs podSecurity: privileged" in text


def test_the_picture_is_an_svg_that_loads_nothing() -> None:
    root = ElementTree.fromstring(diagram.picture())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "href" not in diagram.picture() and "@import" not in diagram.picture()
    for box in diagram.BOXES:
        assert box.x >= 0 and box.x + box.width <= diagram.WIDTH
        assert box.y >= 0 and box.y + box.height <= diagram.HEIGHT


def test_the_navigation_has_every_page_once() -> None:
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    there = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(listed(settings["nav"])) == there


def test_links_out_of_docs_become_their_text() -> None:
    text = "[a](../examples/a.yaml) [b](s3.md#x) [c](../data.md) [d](https://kinema.dev) ![e](e.png)"
    assert site.inside(text, folder="how-to") == text
    assert site.inside(text, folder="") == "a [b](s3.md#x) c [d](https://kinema.dev) ![e](e.png)"


def test_blocks_of_lists_are_indented() -> None:
    text = "1. Do\n\n   ```bash\n   ls\n\n     -l\n   ```\n\n2. Then\n\n```text\nas it is\n```\n"
    assert site.unfenced(text) == "1. Do\n\n        ls\n\n          -l\n\n2. Then\n\n```text\nas it is\n```\n"


class Loaded(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) != ("a", "href") and name in ("href", "src") and value:
                self.addresses.append(value)


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        [*command, "--config-file", str(SETTINGS)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert [address for address in loaded.addresses if re.match(r"(?:[a-z]+:)?//", address)] == [], page.name
