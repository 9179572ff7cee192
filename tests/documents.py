# SPDX-License-Identifier: Apache-2.0
"""Documents whose commands are run as they stand there.

A fenced block `console` holds commands, each behind a prompt `$ `; a command goes on while its lines end in a
backslash, and to the end of a heredoc. Lines between commands are what they print: each must be in the output, in that
order; `...` stands for anything, and `# exit code N` for how the command ends where that is not 0.

A comment right above a block says more:

    <!-- not run: WHY -->     it is not run
    <!-- file: NAME -->       it is a file, written where the commands run
    <!-- your file: NAME -->  likewise, but readers have to put in something of theirs, and so have the tests

A page is run from its beginning, in one folder that looks like a checkout; variables stay from command to command.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

QUICK_START = "quick-start.md"
ON_THE_CLUSTER = (QUICK_START, "how-to/troubleshooting.md", "how-to/upgrade.md")
"""Run by tests/cluster/test_quick_start.py."""
ON_THE_CONTROL_PLANE = (
    "how-to/air-gapped.md",
    "how-to/ascend-pool.md",
    "how-to/gpu-pool.md",
    "how-to/kueue.md",
    "how-to/s3.md",
)
"""Run by tests/controlplane/test_how_to.py."""
ON_THIS_MACHINE = ("how-to/own-dataset.md",)
"""Run by tests/local/test_own_dataset.py."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)$")
_MARK = re.compile(r"^ *<!-- (?P<kind>not run|file|your file)(?:: *(?P<word>.*?))? *-->$")
_COMMAND = re.compile(r"^(?: {4,}|\t)(?:\$ |(?:kubectl|helm|kinema|make|curl|python3?) )")
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_EXIT = re.compile(r"^# exit code (\d+)$")
LANGUAGES = frozenset({"console", "yaml", "json", "python", "text", ""})


class DocumentError(AssertionError):
    """A page is not as it must be, or does not work as it says; the message begins with page and line."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and what the page shows of its output."""

    line: int
    text: str
    shown: tuple[str, ...] = ()
    code: int = 0


@dataclass(frozen=True, slots=True)
class File:
    """A file that the page tells to write."""

    line: int
    name: str
    text: str
    yours: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A block that is not run, and why."""

    line: int
    reason: str
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A block without a name: a part of something, to look at."""

    line: int
    language: str
    text: str


Step = Command | File | Skipped | Piece


@dataclass(frozen=True, slots=True)
class Page:
    """A page as a list of steps."""

    name: str
    steps: tuple[Step, ...]

    def of(self, *kinds: type[Step]) -> list[Step]:
        """Steps of some kinds."""
        return [step for step in self.steps if isinstance(step, kinds)]

    def file(self, name: str) -> str:
        """The text of a file that the page tells to write."""
        return next(step.text for step in self.steps if isinstance(step, File) and step.name == name)

    @property
    def commands(self) -> list[Command]:
        """The commands that are run."""
        return [step for step in self.steps if isinstance(step, Command)]


def pages() -> list[str]:
    """The pages whose commands are run, as they lie there."""
    return sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / QUICK_START, *(DOCS / "how-to").glob("*.md")))


def read(name: str) -> Page:
    """A page of docs/."""
    return parse((DOCS / name).read_text(encoding="utf-8"), name=f"docs/{name}")


def parse(text: str, *, name: str) -> Page:
    """The steps of a page.

    Raises:
        DocumentError: something would be passed over in silence.
    """
    return Page(name, tuple(step for block in _blocks(text, name) for step in _steps(block, name)))


@dataclass(frozen=True, slots=True)
class _Block:
    line: int
    language: str
    lines: tuple[str, ...]
    kind: str = ""
    word: str = ""


def _blocks(text: str, name: str) -> Iterator[_Block]:
    mark: tuple[int, str, str] | None = None
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        fence = _FENCE.match(line)
        found = _MARK.match(line)
        if mark and line.strip() and not fence:
            raise DocumentError(f"{name}:{mark[0]}: no block follows this comment")
        if found:
            mark = (number, found["kind"], found["word"] or "")
        elif fence:
            inside = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                inside.append(inner.removeprefix(fence["indent"]))
            else:
                raise DocumentError(f"{name}:{number}: the block has no end")
            yield _Block(number, fence["language"], tuple(inside), *(mark[1:] if mark else ()))
            mark = None
        elif _COMMAND.match(line):
            raise DocumentError(f"{name}:{number}: a command outside a ```console block is run by nobody")
    if mark:
        raise DocumentError(f"{name}:{mark[0]}: no block follows this comment")


def _steps(block: _Block, name: str) -> Iterator[Step]:
    where = f"{name}:{block.line}"
    if block.language not in LANGUAGES:
        raise DocumentError(f"{where}: ```{block.language} is run by nobody; write ```console, with prompts")
    if block.kind and not block.word:
        raise DocumentError(f"{where}: `{block.kind}` must say {'why' if block.kind == 'not run' else 'its name'}")
    text = "".join(f"{line}\n" for line in block.lines)
    if block.language == "console" and block.kind in ("", "not run"):
        commands = tuple(_commands(block, name))
        if block.kind:
            yield Skipped(block.line, block.word, commands)
        else:
            yield from commands
    elif block.kind in ("file", "your file"):
        yield File(block.line, block.word, text, yours=block.kind == "your file")
    elif block.kind:
        raise DocumentError(f"{where}: only ```console blocks are run at all")
    elif any(line.startswith("$ ") for line in block.lines):
        raise DocumentError(f"{where}: commands are in a block that is not ```console")
    else:
        yield Piece(block.line, block.language, text)


def _commands(block: _Block, name: str) -> Iterator[Command]:
    lines = list(enumerate(block.lines, start=block.line + 1))
    while lines:
        number, line = lines.pop(0)
        if not line.startswith("$ "):
            raise DocumentError(f"{name}:{number}: a ```console block begins with a prompt, `$ `")
        parts = [line[2:]]
        while parts[-1].endswith("\\") and lines:
            parts.append(lines.pop(0)[1])
        heredoc = _HEREDOC.search("\n".join(parts))
        while heredoc and lines and parts[-1] != heredoc[2]:
            parts.append(lines.pop(0)[1])
        if parts[-1].endswith("\\") or (heredoc and parts[-1] != heredoc[2]):
            raise DocumentError(f"{name}:{number}: the command has no end")
        shown = []
        while lines and not lines[0][1].startswith("$ "):
            shown.append(lines.pop(0)[1])
        ends = [int(found[1]) for line in shown if (found := _EXIT.match(line))]
        printed = tuple(line for line in shown if line.strip() and not _EXIT.match(line))
        yield Command(number, "\n".join(parts), printed, ends[-1] if ends else 0)


def missing(shown: Sequence[str], output: str) -> str | None:
    """The first line that a page shows and a command did not print, in that order."""
    printed = iter([" ".join(line.split()) for line in output.splitlines()])
    for line in shown:
        words = " ".join(line.split())
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in words.split("...")))
        if words != "..." and not any(pattern.fullmatch(found) for found in printed):
            return line
    return None


@dataclass(slots=True)
class Reader:
    """Somebody who does what a page says, in a folder of his own.

    Args:
        folder: where; made to look like a checkout.
        environment: variables beside those of this process, for instance KUBECONFIG.
        own: texts of the files that each reader has to write for himself, by name.
        programs: more programs to find, by name.
    """

    folder: Path
    environment: Mapping[str, str]
    own: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, Path] = field(default_factory=dict)
    timeout: float = 300

    def __post_init__(self) -> None:
        self._place.mkdir(parents=True, exist_ok=True)
        for entry in ROOT.iterdir():
            if not entry.name.startswith(".") and not (self._place / entry.name).exists():
                (self._place / entry.name).symlink_to(entry)
        tools = self.folder / "bin"
        tools.mkdir(exist_ok=True)
        for name, program in self.programs.items():
            (tools / name).unlink(missing_ok=True)
            (tools / name).symlink_to(program)

    @property
    def _place(self) -> Path:
        return self.folder / "kinema"

    def run(self, page: Page) -> list[str]:
        """Do all of it; what each command printed.

        Raises:
            DocumentError: a command ended otherwise than the page says, or printed something else.
        """
        printed = []
        for step in page.steps:
            if isinstance(step, File):
                self._write(step, page.name)
            elif isinstance(step, Command):
                printed.append(self._do(step, page.name))
        return printed

    def _write(self, file: File, name: str) -> None:
        if file.yours and file.name not in self.own:
            raise DocumentError(f"{name}:{file.line}: {file.name} is the reader's own, and this one has none")
        target = self._place / file.name
        target.write_text(self.own[file.name] if file.yours else file.text, encoding="utf-8")

    def _do(self, command: Command, name: str) -> str:
        variables, place = self.folder / "variables", self.folder / "place"
        script = (
            f"trap 'export -p > {variables}; pwd > {place}' EXIT\n"
            f"[ ! -f {variables} ] || . {variables}\n"
            f'[ ! -f {place} ] || cd "$(cat {place})"\n'
            f"set -aeo pipefail\n{command.text}\n"
        )
        where = f"{name}:{command.line}: `{command.text.splitlines()[0]}`"
        bash = shutil.which("bash")
        assert bash is not None
        try:
            done = subprocess.run(
                [bash, "--noprofile", "--norc", "-c", script],
                cwd=self._place,
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=self.timeout,
            )
        except subprocess.TimeoutExpired as error:
            said = error.output.decode(errors="replace") if isinstance(error.output, bytes) else error.output or ""
            raise DocumentError(f"{where} did not end within {self.timeout:.0f} s:\n{said[-4000:]}") from None
        if done.returncode != command.code:
            raise DocumentError(
                f"{where} ended with code {done.returncode}, not {command.code}:\n{done.stdout[-4000:]}"
            )
        absent = missing(command.shown, done.stdout)
        if absent is not None:
            raise DocumentError(f"{where} did not print `{absent.strip()}` (in this order):\n{done.stdout[-4000:]}")
        return done.stdout

    def _variables(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, **self.environment, "COLUMNS": "80", "LC_ALL": "C.UTF-8", "NO_COLOR": "1", "PATH": path}
