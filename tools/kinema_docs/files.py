# SPDX-License-Identifier: Apache-2.0
"""Every file that is made here, with the text it must have."""

from __future__ import annotations

from pathlib import Path

from kinema_docs import diagram, resource

ROOT = Path(__file__).resolve().parents[2]


def wanted() -> dict[Path, str]:
    """The files."""
    docs = ROOT / "docs"
    return {docs / "reference" / "resource.md": resource.page(), docs / "architecture.svg": diagram.picture()}


def stale() -> dict[Path, str]:
    """Those that are not as they must be."""
    return {path: text for path, text in wanted().items() if not path.is_file() or path.read_text("utf-8") != text}
