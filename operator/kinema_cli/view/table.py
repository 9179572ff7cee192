# SPDX-License-Identifier: Apache-2.0
"""Tables without lines, as kubectl prints them, that fit the terminal. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.text import Text

from kinema_cli.view.text import STYLES, cut

GAP = 2
_LEAST = 16
"""Characters that a column of prose keeps at least."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    head: str
    need: int = 0
    """Columns of a higher number go first where the terminal is narrow; 0 stays."""
    prose: bool = False
    """Its text may be cut; the last column."""
    right: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, width: int | None) -> list[Text]:
    """The lines of a table.

    Args:
        columns: what the table has.
        rows: a value for each column.
        width: characters of a line; as wide as it gets when None.
    """
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    shown = _fitting(columns, cells, width)
    wide = {index: _width(columns, cells, index) for index in shown}
    lines = [_line(columns, [column.head for column in columns], shown, wide, width, head=True)]
    return [*lines, *(_line(columns, row, shown, wide, width) for row in cells)]


def _width(columns: Sequence[Column], cells: list[list[str]], index: int) -> int:
    return max(len(columns[index].head), *(len(row[index]) for row in cells), 0)


def _fitting(columns: Sequence[Column], cells: list[list[str]], width: int | None) -> list[int]:
    """The columns that are shown."""
    shown = list(range(len(columns)))
    while width is not None and len(shown) > 1:
        taken = GAP * (len(shown) - 1)
        for index in shown:
            found = _width(columns, cells, index)
            taken += min(_LEAST, found) if columns[index].prose else found
        droppable = [index for index in shown if columns[index].need]
        if taken <= width or not droppable:
            break
        shown.remove(max(droppable, key=lambda index: (columns[index].need, index)))
    return shown


def _line(
    columns: Sequence[Column],
    row: Sequence[str],
    shown: list[int],
    wide: dict[int, int],
    width: int | None,
    *,
    head: bool = False,
) -> Text:
    line = Text(no_wrap=True)
    for index in shown:
        last, value = index == shown[-1], row[index]
        if columns[index].prose and width is not None:
            value = cut(value, max(_LEAST, width - len(line)))
        padded = value if last and not columns[index].right else value.ljust(wide[index])
        if columns[index].right:
            padded = value.rjust(wide[index])
        line.append(padded, style="bold" if head else STYLES.get(value, ""))
        if not last:
            line.append(" " * GAP)
    line.rstrip()
    return line


def pairs(items: Iterable[tuple[str, str]], *, indent: int = 0, width: int | None = None) -> list[Text]:
    """Lines of a word and what it stands for, one below the other; what is too long goes on below itself."""
    found = [(name, value) for name, value in items if value]
    wide = max((len(name) for name, _ in found), default=0)
    lines = []
    for name, value in found:
        line = Text(" " * indent)
        line.append(name.ljust(wide + GAP), style="bold")
        lines += hanging(line, value, width=width)
    return lines


def hanging(head: Text, said: str, *, width: int | None = None, style: str = "") -> list[Text]:
    """A head and a sentence, which goes on in further lines below its beginning where it is too long."""
    indent = head.cell_len
    room = None if width is None else max(_LEAST, width - indent)
    wrapped = [said] if room is None else textwrap.wrap(said, room, break_on_hyphens=False) or [""]
    lines = [head.copy().append(wrapped[0], style=style)]
    return [*lines, *(Text(" " * indent).append(part, style=style) for part in wrapped[1:])]
