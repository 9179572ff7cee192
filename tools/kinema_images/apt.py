# SPDX-License-Identifier: Apache-2.0
"""This machine's apt sources, told of another Debian release: its mirrors serve that one as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ETC = Path("/etc")


@dataclass(frozen=True, slots=True)
class Source:
    """One archive that apt reads."""

    uri: str
    suite: str
    components: tuple[str, ...]

    @property
    def line(self) -> str:
        return f"deb {self.uri} {self.suite} {' '.join(self.components)}"


def one_line(text: str) -> Iterator[Source]:
    """The binary archives of a sources.list: `deb [options] uri suite component...`."""
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if not line.startswith("deb "):
            continue
        rest = line.removeprefix("deb ").strip()
        if rest.startswith("["):
            rest = rest.partition("]")[2]
        uri, suite, *components = rest.split()
        yield Source(uri=uri, suite=suite, components=tuple(components))


def deb822(text: str) -> Iterator[Source]:
    """The binary archives of a *.sources file: paragraphs of `Field: value`, values may go on indented."""
    for paragraph in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        components = tuple(fields.get("components", "").split())
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri=uri, suite=suite, components=components)


def retold(sources: Iterable[Source], *, release: str, wanted: str) -> tuple[str, ...]:
    """Lines for `wanted` from the archives that serve `release`, its updates and security suites included."""
    lines: dict[str, None] = {}
    for source in sources:
        base, dash, rest = source.suite.partition("-")
        if base == release and rest in {"", "updates", "security"} and "main" in source.components:
            lines[Source(uri=source.uri, suite=wanted + dash + rest, components=("main",)).line] = None
    return tuple(lines)


def os_release(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value.strip('"') for name, _, value in pairs}


def sources_for(wanted: str, *, etc: Path = ETC) -> tuple[str, ...]:
    """Archives of the Debian release `wanted`; none if this machine is not Debian or has no source of its own."""
    host = os_release((etc / "os-release").read_text())
    if host.get("ID") != "debian" or "VERSION_CODENAME" not in host:
        return ()
    apt = etc / "apt"
    found: list[Source] = []
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]:
        if path.is_file():
            found += one_line(path.read_text())
    for path in sorted((apt / "sources.list.d").glob("*.sources")):
        found += deb822(path.read_text())
    return retold(found, release=host["VERSION_CODENAME"], wanted=wanted)
