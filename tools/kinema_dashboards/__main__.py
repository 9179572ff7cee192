# SPDX-License-Identifier: Apache-2.0
"""`python -m kinema_dashboards`: write dashboards, rules and their pages; with `check`, only say what is stale."""

from __future__ import annotations

import sys

from kinema_dashboards import files


def main(arguments: list[str]) -> int:
    if arguments == ["check"]:
        stale = files.stale()
        for path in stale:
            print(f"stale: {path}; run tools/dashboards")
        return 1 if stale else 0
    if arguments:
        print("usage: tools/dashboards [check]", file=sys.stderr)
        return 2
    for path in files.write():
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
