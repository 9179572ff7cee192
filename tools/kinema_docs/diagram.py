# SPDX-License-Identifier: Apache-2.0
"""The picture of docs/architecture.md: who talks to whom. Plain SVG, with nothing in it that is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1000, 690
_LINE = 17
_STYLE = """
text { font: 13px sans-serif; fill: #1f2933; }
.title { font-weight: bold; font-size: 14px; }
.said { font-size: 12px; fill: #334e68; }
.said tspan { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round; }
.box { stroke-width: 1.5; rx: 6px; }
.ours { fill: #e3f0fb; stroke: #2470a8; }
.theirs { fill: #f1f3f5; stroke: #7b8794; }
.data { fill: #fdf3dd; stroke: #b7791f; }
.way { stroke: #486581; stroke-width: 1.5; fill: none; marker-end: url(#tip); }
.both { marker-start: url(#tip); }
"""
_TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
    '<path d="M0 0 8 4 0 8z" fill="#486581"/></marker>'
)


@dataclass(frozen=True, slots=True)
class Box:
    """A part, in pixels."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...] = ()
    kind: str = "ours"


@dataclass(frozen=True, slots=True)
class Way:
    """An arrow, from whoever asks to whom it asks, and what is said."""

    points: tuple[tuple[int, int], ...]
    said: tuple[str, ...]
    at: tuple[int, int]
    """Where the words begin."""
    both: bool = False


BOXES = (
    Box(30, 20, 250, 62, "People and programs", ("kubectl, kinema, curl, GitOps",), "theirs"),
    Box(720, 20, 250, 62, "Prometheus, Grafana", ("scrape operator, server, training pods",), "theirs"),
    Box(30, 165, 940, 50, "Kubernetes API server", ("jobs, pools, Jobs, PyTorchJobs, pods, Leases",), "theirs"),
    Box(
        30, 320, 270, 84, "operator", ("two replicas, one leads by its Lease", "watch, observe, decide, write"), "ours"
    ),
    Box(365, 320, 270, 84, "server", ("any number, nothing of its own", "REST, progress"), "ours"),
    Box(
        700,
        320,
        270,
        84,
        "training-operator, kubelet",
        ("the one makes the pods of a gang,", "the other runs all pods"),
        "theirs",
    ),
    Box(30, 490, 190, 66, "reader pod", ("while somebody asks", "for history or samples"), "ours"),
    Box(
        365,
        490,
        605,
        66,
        "pods of a job: kinema-stage STAGE --config stage.json",
        ("check, prepare, features, convert, train (a gang), export, sample",),
        "ours",
    ),
    Box(30, 620, 940, 50, "workspace, dataset, weights", ("a ReadWriteMany volume, or a bucket",), "data"),
)
WAYS = (
    Way(((155, 82), (155, 165)), ("jobs, with the user's own rights;", "to the server by its proxy"), (165, 115)),
    Way(
        ((130, 320), (130, 215)),
        ("watches jobs, pools and children;", "makes and deletes children,", "writes status"),
        (140, 255),
        both=True,
    ),
    Way(((430, 320), (430, 215)), ("whose token, may they?", "status.progress"), (440, 255)),
    Way(((590, 215), (590, 320)), ("requests", "of people"), (600, 262)),
    Way(((845, 320), (845, 215)), ("gangs and their pods", ""), (700, 262), both=True),
    Way(
        ((500, 490), (500, 404)),
        ("rank 0 posts progress, with a token", "of its pod; every 15 s into the status"),
        (510, 442),
    ),
    Way(((845, 404), (845, 490)), ("starts, ends", ""), (855, 450)),
    Way(((400, 404), (400, 450), (125, 450), (125, 490)), ("asks, with a secret of its own", ""), (160, 442)),
    Way(((125, 556), (125, 620)), ("reads", ""), (135, 593)),
    Way(((667, 556), (667, 620)), ("reads, writes; jobs share what they make", ""), (677, 593), both=True),
)


def picture() -> str:
    """The SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' role="img" aria-label="Who talks to whom in Kinema">',
        "<!-- Made by tools/docs of tools/kinema_docs/diagram.py. -->",
        f"<style>{_STYLE}</style>",
        f"<defs>{_TIP}</defs>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *(_way(way) for way in WAYS),
        *(_box(box) for box in BOXES),
        *(_said(way) for way in WAYS),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(box: Box) -> str:
    middle, top = box.x + box.width // 2, box.y + (box.height - _LINE * len(box.lines)) // 2 + 5
    texts = [f'<text class="title" x="{middle}" y="{top}" text-anchor="middle">{escape(box.title)}</text>']
    texts += [
        f'<text x="{middle}" y="{top + _LINE * number}" text-anchor="middle">{escape(line)}</text>'
        for number, line in enumerate(box.lines, start=1)
    ]
    shape = f'<rect class="box {box.kind}" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}"/>'
    return "\n".join([shape, *texts])


def _way(way: Way) -> str:
    points = " ".join(f"{x},{y}" for x, y in way.points)
    return f'<polyline class="way{" both" if way.both else ""}" points="{points}"/>'


def _said(way: Way) -> str:
    x, y = way.at
    spans = "".join(
        f'<tspan x="{x}" y="{y + 15 * number}">{escape(line)}</tspan>' for number, line in enumerate(way.said) if line
    )
    return f'<text class="said">{spans}</text>'
