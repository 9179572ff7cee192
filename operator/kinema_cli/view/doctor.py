# SPDX-License-Identifier: Apache-2.0
"""What the checks of an installation found, a line each. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from kinema_cli.checks import Finding, Verdict
from kinema_cli.view.table import hanging
from kinema_cli.view.text import plural

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red", Verdict.UNKNOWN: "dim"}


def doctor(found: Sequence[Finding], *, width: int | None = None) -> list[Text]:
    """A line a check, then the sum."""
    wide = max(len(finding.check) for finding in found)
    lines = [line for finding in found for line in _lines(finding, wide, width)]
    failed = sum(finding.verdict is Verdict.FAIL for finding in found)
    warned = sum(finding.verdict is Verdict.WARN for finding in found)
    told = f"{plural(failed, 'check')} failed" if failed else "the installation is sound"
    return [*lines, Text(told + (f", {plural(warned, 'warning')}" if warned else ""))]


def _lines(finding: Finding, wide: int, width: int | None) -> list[Text]:
    head = Text()
    head.append(f"{finding.verdict:<5}", style=_STYLES[finding.verdict])
    head.append(f"{finding.check:<{wide}}  ")
    return hanging(head, "; ".join(filter(None, (finding.said, finding.fix))), width=width)
