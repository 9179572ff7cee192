# SPDX-License-Identifier: Apache-2.0
"""The command line of the local cluster."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kinema_cluster import build, control_plane
from kinema_cluster.errors import ClusterError
from kinema_cluster.full import FullCluster
from kinema_cluster.paths import FULL_STATE, Layout, cache
from kinema_cluster.processes import environment
from kinema_cluster.record import load, locked


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit status is 1 for what the user can mend."""
    options = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has seen enough (`| head`); Python must not try to flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    root = argparse.ArgumentParser(prog="tools/cluster", description="A local Kubernetes for Kinema.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    up = _command(commands, "up", _up, "start the cluster, or bring it back to health")
    up.add_argument("--workspace", type=Path, help="folder behind the volume kinema-workspace; `down` keeps it")
    up.add_argument("--control-plane", action="store_true", help="no real node: only kwok pretends to run pods")
    up.add_argument("--nodes", type=int, default=2, help="fake nodes of a control plane (default 2)")

    _command(commands, "down", _down, "remove the cluster; built programs and loaded images stay in the cache")
    _command(commands, "status", _status, "show components, addresses and health; exit status 1 unless all is well")
    _command(commands, "kubeconfig", _kubeconfig, "print the path of the kubeconfig")

    logs = _command(commands, "logs", _logs, "print the log of a component")
    logs.add_argument("component", help="as `status` names it")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it grows")

    for name, function, text in (
        ("stop", _stop, "end one component of the full cluster, to see what the others do without it"),
        ("start", _start, "start a component again"),
    ):
        one = _command(commands, name, function, text)
        one.add_argument("component", help="as `status` names it")

    loading = _command(commands, "load", _load, "bring images into the full cluster")
    loading.add_argument("source", nargs="+", help="OCI archive (uncompressed tar), OCI folder, or image of buildah")
    loading.add_argument("--name", help="what to call the image, where the archive does not say")

    volume = _command(commands, "volume", _volume, "make a ReadWriteMany claim on a new folder of this machine")
    volume.add_argument("claim")
    volume.add_argument("-n", "--namespace", default="default")

    resources = _command(commands, "resources", _resources, "advertise extended resources on the full cluster's node")
    resources.add_argument("resource", nargs="+", help="such as nvidia.com/gpu=8")

    kubectl = _command(commands, "kubectl", _kubectl, "run kubectl on the cluster")
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)

    building = _command(commands, "build", _build, "build programs into the cache, and print where they are")
    building.add_argument("tool", nargs="*", help=f"default all: {', '.join(build.TOOLS)}")
    return root


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    made.set_defaults(command=function)
    if function not in (_build, _load, _volume, _resources, _stop, _start):
        made.add_argument("--name", help="a control plane instead of the full cluster")
    if function is not _build:
        made.add_argument("--state-dir", type=Path, default=FULL_STATE, help=f"of the full cluster ({FULL_STATE})")
    return made


def _say(line: str) -> None:
    print(line, flush=True)


def _full(options: argparse.Namespace) -> FullCluster:
    return FullCluster(options.state_dir, progress=_say)


def _layout(options: argparse.Namespace) -> Layout:
    return control_plane.layout_of(options.name) if options.name else _full(options).layout


def _up(options: argparse.Namespace) -> int:
    if options.control_plane or options.name:
        plane = control_plane.start(options.name or "default", nodes=options.nodes, progress=_say)
        kubeconfig, ended_by = plane.kubeconfig, f"tools/cluster down --name {plane.name}"
    else:
        cluster = _full(options)
        cluster.up(workspace=options.workspace)
        kubeconfig, ended_by = cluster.kubeconfig, "tools/cluster down"
    _say(f"\nready. Use it:\n  export KUBECONFIG={kubeconfig} PATH={cache() / 'bin'}:$PATH\n  kubectl get pods -A")
    _say(f"End it:\n  {ended_by}")
    return 0


def _down(options: argparse.Namespace) -> int:
    if options.name:
        layout = _layout(options)
        with locked(layout.root):
            control_plane.clear(layout)
    else:
        _full(options).down()
    return 0


def _status(options: argparse.Namespace) -> int:
    layout = _layout(options)
    record = load(layout.record)
    others = [name for name in control_plane.names() if name != options.name]
    if others and not options.name:
        _say(f"control planes without nodes: {', '.join(others)} (status --name NAME)\n")
    if not record:
        _say("down: no cluster is up")
        return 1
    living = record.living()
    rows = [("COMPONENT", "STATE", "PID", "LOG")]
    for name, process in record.processes.items():
        rows.append((name, "running" if name in living else "DEAD", str(process.pid), str(layout.log(name))))
    _table(rows)
    well = len(living) == len(record.processes)
    if record.kind == "full":
        health = _full(options).health()
        _say("")
        _table([("WHAT", "HEALTH"), *health.items()])
        well = well and all(state == "ok" for state in health.values())
        _say(f"\nAPI server   {_full(options).plane.server}\nworkspace    {record.details['workspace']}")
        for tool in (build.KUBERNETES, build.TRAINING_OPERATOR, build.COREDNS):
            _say(f"{tool.name:<12} {tool.version}".rstrip())
    _say(f"kubeconfig   {layout.kubeconfig}")
    return 0 if well else 1


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _kubeconfig(options: argparse.Namespace) -> int:
    layout = _layout(options)
    if not layout.kubeconfig.exists():
        raise ClusterError("no cluster is up: run `tools/cluster up`")
    _say(str(layout.kubeconfig))
    return 0


def _logs(options: argparse.Namespace) -> int:
    layout = _layout(options)
    log = layout.log(options.component)
    if not log.exists():
        known = ", ".join(sorted(path.stem for path in layout.logs.glob("*.log"))) or "none: no cluster is up"
        hint = "" if options.name else "; pods' logs are read with kubectl"
        raise ClusterError(f"no component {options.component!r}. There are: {known}{hint}")
    if options.follow:
        os.execvp("tail", ["tail", "--lines=50", "--follow", str(log)])
    with log.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    return 0


def _stop(options: argparse.Namespace) -> int:
    _full(options).stop(options.component)
    return 0


def _start(options: argparse.Namespace) -> int:
    _full(options).start(options.component)
    return 0


def _load(options: argparse.Namespace) -> int:
    for source in options.source:
        for name in _full(options).load_image(source, name=options.name):
            _say(f"loaded {name}")
    return 0


def _volume(options: argparse.Namespace) -> int:
    _say(str(_full(options).add_volume(options.claim, namespace=options.namespace)))
    return 0


def _resources(options: argparse.Namespace) -> int:
    pairs = dict(entry.partition("=")[::2] for entry in options.resource)
    for name, quantity in pairs.items():
        if not name or not quantity.isdigit():
            raise ClusterError(f"{name}={quantity} is no resource: write it like nvidia.com/gpu=8")
    _full(options).set_resources(pairs)
    return 0


def _kubectl(options: argparse.Namespace) -> int:
    kubectl = str(build.KUBERNETES.binary("kubectl"))
    env = environment(os.environ) | {"KUBECONFIG": str(_layout(options).kubeconfig)}
    os.execve(kubectl, [kubectl, *options.arguments], env)


def _build(options: argparse.Namespace) -> int:
    unknown = [name for name in options.tool if name not in build.TOOLS]
    if unknown:
        raise ClusterError(f"no tool {unknown[0]!r}. There are: {', '.join(build.TOOLS)}")
    for name in options.tool or build.TOOLS:
        tool = build.TOOLS[name]
        # What is built is said on standard error, so that a script can read the paths.
        build.ensure(tool, progress=lambda line: print(line, file=sys.stderr, flush=True))
        for program in tool.programs:
            _say(f"{program:<24} {tool.binary(program)}")
    return 0
