# SPDX-License-Identifier: Apache-2.0
"""Writes into the chart what the models say: the CRDs, values.yaml, its schema, and the table of the README.

`python tools/chart_sync.py` writes; with `--check` it only says what is out of date, and fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kinema_chart import pages

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "kinema"


def wanted() -> dict[Path, str]:
    """Every file of the chart that follows from something else, with the text it must have."""
    crds = {CHART / "files" / "crds" / path.name: path.read_text() for path in sorted((ROOT / "crds").glob("*.yaml"))}
    readme = CHART / "README.md"
    return {
        **crds,
        CHART / "values.yaml": pages.values_yaml(),
        CHART / "values.schema.json": pages.schema(),
        readme: pages.readme(readme.read_text()),
    }


def stale() -> dict[Path, str]:
    """The files that are not as they must be. Files that no CRD stands for count as stale, with no text."""
    files = wanted()
    left_over = {path: "" for path in (CHART / "files" / "crds").glob("*") if path not in files}
    return {
        path: text for path, text in {**files, **left_over}.items() if not path.is_file() or path.read_text() != text
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something is out of date")
    check = parser.parse_args().check
    out_of_date = stale()
    for path, text in out_of_date.items():
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(ROOT)}")
        if not check and text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not check:
            path.unlink()
    return 1 if check and out_of_date else 0


if __name__ == "__main__":
    sys.exit(main())
