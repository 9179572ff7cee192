# SPDX-License-Identifier: Apache-2.0
"""The command `tools/dashboards`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kinema_dashboards import files
from kinema_dashboards.live import Span

PICTURES = files.ROOT / "docs" / "dashboards"


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.what == "check":
        return _check()
    if options.what == "silent":
        return _silent(options)
    if options.what == "sheets":
        return _sheets(options)
    for path in files.write():
        print(f"wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/dashboards", description="Dashboards, alerts, and the pages on them.")
    what = parser.add_subparsers(dest="what", metavar="what")
    what.add_parser("write", help="write dashboards, rules and pages (what it does when nothing is said)")
    what.add_parser("check", help="only say what is stale")
    silent = what.add_parser("silent", help="the queries to which a Prometheus has no data")
    sheets = what.add_parser("sheets", help="draw what a Prometheus answers to each panel")
    for command in (silent, sheets):
        command.add_argument("--namespace", default="team", help="of the job")
        command.add_argument("--job", default="wan", help="the VideoTrainingJob")
        command.add_argument("--range", type=float, default=10.0, metavar="MINUTES", help="time that is looked at")
    silent.add_argument("--prometheus", required=True, metavar="URL")
    sheets.add_argument("--prometheus", metavar="URL", help="without it a rehearsal of made-up jobs is scraped")
    sheets.add_argument("--out", type=Path, default=PICTURES, metavar="FOLDER")
    return parser


def _values(options: argparse.Namespace) -> dict[str, str]:
    window = f"{max(1, round(options.range * 60))}s"
    return {"namespace": options.namespace, "vtj": options.job, "job": ".+", "instance": ".+",
            "__rate_interval": "1m", "__range": window}  # fmt: skip


def _span(options: argparse.Namespace) -> Span:
    end = time.time()
    return Span(end - 60 * options.range, end)


def _check() -> int:
    stale = files.stale()
    for path in stale:
        print(f"stale: {path}; run tools/dashboards")
    return 1 if stale else 0


def _silent(options: argparse.Namespace) -> int:
    from kinema_dashboards.live import Prometheus, silent

    found = silent(Prometheus(options.prometheus), _values(options), span=_span(options))
    for item in found:
        print(f"{'excused' if item.excused else 'silent '}  {item.where}: {item.expr}")
    missing = [item for item in found if not item.excused]
    print(f"{len(missing)} queries without data, and {len(found) - len(missing)} that need not have any")
    return 1 if missing else 0


def _sheets(options: argparse.Namespace) -> int:
    from kinema_dashboards import sheet
    from kinema_dashboards.build import BOARDS
    from kinema_dashboards.live import Prometheus

    if options.prometheus is None:
        return _rehearsed(options)
    span, prometheus = _span(options), Prometheus(options.prometheus)
    caption = time.strftime("%Y-%m-%d, from a running Prometheus", time.gmtime(span.end))
    boards = [(board, span) for board in BOARDS]
    for path in sheet.write(boards, prometheus, _values(options), options.out, caption=caption):
        print(f"wrote {path}")
    return 0


def _rehearsed(options: argparse.Namespace) -> int:
    """Let the made-up jobs move for the time that is asked for, and draw what a Prometheus saw of it."""
    from kinema_dashboards import live, programs, scene, sheet
    from kinema_dashboards.build import BOARDS

    begun = time.time()
    with (
        _ended_in_order(),
        tempfile.TemporaryDirectory(prefix="kinema-dashboards-") as name,
        scene.served() as (moving, targets),
        live.running(programs.ensure(), Path(name), live.static(targets)) as prometheus,
    ):
        while time.time() < begun + 60 * options.range:
            moving.tick()
            time.sleep(1.0)
        caption = "a rehearsal: made-up jobs, scraped by a real Prometheus"
        span = live.Span(begun, time.time())
        boards = [(board, span) for board in BOARDS]
        for path in sheet.write(boards, prometheus, scene.VALUES, options.out, caption=caption):
            print(f"wrote {path}")
    return 0


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM end this process through every `finally`, so that a Prometheus of ours does not stay behind."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
