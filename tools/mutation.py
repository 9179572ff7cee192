# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of `plan` and `decide`: changes their code in small ways, and counts the changes that no test sees.

`python tools/mutation.py` does it for all modules that `[tool.coverage.run]` in pyproject.toml names, `python
tools/mutation.py walk usage` for these. Prints every survivor, and fails when tests see less than 90 % of the changes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("KINEMA_CACHE", Path.home() / ".cache" / "kinema")) / "mutation"
ENOUGH = 0.9
SOURCES = {"crds/kinema_api": "src/kinema_api", "operator/kinema_operator": "src/kinema_operator"}
"""mutmut takes the folder below src/ for the name that a module is imported by."""
COPIES = ("docs/conditions.md", "pyproject.toml", "tests/unit/api", "tests/unit/decide")
KILLED = frozenset({1, 3})
TIMEOUTS = frozenset({24, 36, 152, 255, -24})
"""pytest's exit codes of a failed test, and mutmut's of a change that makes tests run forever."""
REFUSED = 37
"""mutmut's code of a change that mypy refuses; it counts neither as seen nor as made."""


def lay_out(chosen: list[str]) -> None:
    """A fresh copy of the code and its tests; mutmut would take verdicts of an earlier one for true."""
    shutil.rmtree(WORK, ignore_errors=True)
    for source, target in (*SOURCES.items(), *((name, name) for name in COPIES)):
        WORK.joinpath(target).parent.mkdir(parents=True, exist_ok=True)
        if ROOT.joinpath(source).is_dir():
            shutil.copytree(ROOT / source, WORK / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, WORK / target)
    settings = WORK / "pyproject.toml"
    only = f"only_mutate = {json.dumps([path_of(module) for module in chosen])}"
    settings.write_text(settings.read_text().replace("[tool.mutmut]\n", f"[tool.mutmut]\n{only}\n"))


def path_of(module: str) -> str:
    """A module's file in the copy."""
    return f"src/{module.replace('.', '/')}.py"


def modules() -> list[str]:
    """Dotted names of the modules that are changed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["run"]
    return [".".join(Path(path).with_suffix("").parts[1:]) for path in settings["include"]]


def verdicts(module: str) -> dict[str, int | None]:
    """The exit code of the tests for each change of a module."""
    meta = WORK / "mutants" / f"{path_of(module)}.meta"
    found: dict[str, int | None] = json.loads(meta.read_text())["exit_code_by_key"] if meta.exists() else {}
    return found


def show(name: str) -> str:
    """A change as a diff."""
    shown = subprocess.run(["mutmut", "show", name], cwd=WORK, capture_output=True, text=True, check=True)
    return "\n".join(line for line in shown.stdout.splitlines() if not line.startswith(("---", "+++", "@@")))


def report(chosen: list[str]) -> bool:
    """Print the survivors and a line a module; whether enough changes were seen."""
    rows, all_killed, all_made, refused = [], 0, 0, 0
    for module in chosen:
        every = verdicts(module)
        found = {name: code for name, code in every.items() if code != REFUSED}
        refused += len(every) - len(found)
        survivors = [name for name, code in found.items() if code not in KILLED | TIMEOUTS]
        for name in survivors:
            print(show(name), flush=True)
        killed = len(found) - len(survivors)
        rows.append(f"{module:32} {killed:5} of {len(found):5} {100 * killed / (len(found) or 1):6.1f} %")
        all_killed, all_made = all_killed + killed, all_made + len(found)
    print("\n".join(rows))
    enough = bool(all_made) and all_killed >= ENOUGH * all_made
    ratio = 100 * all_killed / (all_made or 1)
    print(f"mutation: {refused} more changes never got to a test: mypy refuses them")
    print(f"mutation: {all_killed} of {all_made} changes seen, {ratio:.1f} %; wanted {100 * ENOUGH:.0f} %")
    return enough


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", nargs="*", help="last part of a module's name; default: all")
    wanted = parser.parse_args().module
    every = modules()
    chosen = [module for module in every if not wanted or module.rpartition(".")[2] in wanted]
    if len(chosen) < len(wanted):
        names = ", ".join(module.rpartition(".")[2] for module in every)
        print(f"mutation: no such module among {' '.join(wanted)}; there are {names}", file=sys.stderr)
        return 2
    lay_out(chosen)
    done = subprocess.run(["mutmut", "run"], cwd=WORK, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
        return done.returncode
    return 0 if report(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
