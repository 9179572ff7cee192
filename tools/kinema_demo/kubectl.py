# SPDX-License-Identifier: Apache-2.0
"""kubectl as functions: what a user would type, and its answer as data."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinema_demo.errors import DemoError

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kubectl:
    """One cluster, one namespace."""

    binary: str
    kubeconfig: Path
    namespace: str = "default"

    @property
    def environment(self) -> dict[str, str]:
        """For programs that read KUBECONFIG."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def within(self, namespace: str) -> Kubectl:
        """The same cluster, another namespace."""
        return replace(self, namespace=namespace)

    def command(self, *arguments: str) -> list[str]:
        """The full command line."""
        return [self.binary, "--namespace", self.namespace, *arguments]

    def run(self, *arguments: str, text: str | None = None, timeout: float | None = 120) -> str:
        """What kubectl prints.

        Raises:
            DemoError: it failed; the message holds what it said.
        """
        done = self.attempt(*arguments, text=text, timeout=timeout)
        if done.returncode:
            raise DemoError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def attempt(
        self, *arguments: str, text: str | None = None, timeout: float | None = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run it, however it ends."""
        return subprocess.run(
            self.command(*arguments), input=text, capture_output=True, text=True, env=self.environment, timeout=timeout
        )

    def get(self, kind: str, name: str) -> Object | None:
        """One object; None when there is none."""
        printed = self.run("get", kind, name, "-o", "json", "--ignore-not-found")
        found: Object | None = json.loads(printed) if printed.strip() else None
        return found

    def list(self, kind: str, *, labels: Mapping[str, str] | None = None) -> list[Object]:
        """Objects of a kind in the namespace."""
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        items: list[Object] = json.loads(self.run("get", kind, "-o", "json", "-l", selector))["items"]
        return items

    def apply(self, *objects: Object) -> None:
        """Apply objects."""
        self.run("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start it in the background, its standard output a pipe of text."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, **options}
        return subprocess.Popen(self.command(*arguments), env=self.environment, **options)
