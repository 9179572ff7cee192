# SPDX-License-Identifier: Apache-2.0
"""What mkdocs needs to be told of pages that are written for a code host; a hook of mkdocs.yml."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>(?![a-z]+:|#)[^)\s]+)\)")
_FENCE = re.compile(r"^(?P<indent> {1,7})```[\w-]*\n(?P<inside>.*?)^(?P=indent)```$\n?", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page before it is rendered."""
    return unfenced(inside(markdown, folder=posixpath.dirname(page.file.src_uri)))


def inside(markdown: str, *, folder: str) -> str:
    """The page with links that leave docs/ turned into their text: the site has no page of the chart or of examples."""

    def link(found: re.Match[str]) -> str:
        leaves = posixpath.normpath(posixpath.join(folder, found["target"])).startswith("../")
        return found["text"] if leaves else found[0]

    return _LINK.sub(link, markdown)


def unfenced(markdown: str) -> str:
    """The page with fenced blocks of lists as indented ones: Python's Markdown knows fences at the margin alone."""

    def block(found: re.Match[str]) -> str:
        lines = [line.removeprefix(found["indent"]) for line in found["inside"].splitlines()]
        return "".join(f"        {line}".rstrip() + "\n" for line in lines)

    return _FENCE.sub(block, markdown)
