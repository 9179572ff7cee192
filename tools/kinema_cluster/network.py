# SPDX-License-Identifier: Apache-2.0
"""What the cluster changes in the host's network and kernel settings, and how it is put back."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from kinema_cluster.errors import ClusterError

ADDRESS = "10.97.0.1"
"""Of the node and the API server: added to lo, so that it stays when the machine changes networks."""
OURS = re.compile(r"\b(?:KUBE|CNI)-[A-Z0-9a-z-]+")
# What kubelet, kube-proxy, the CNI plugins and we write.
SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "net/bridge/bridge-nf-call-iptables",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
FAMILIES = ("iptables", "ip6tables")


def read_sysctls() -> dict[str, str]:
    paths = {name: Path("/proc/sys") / name for name in SYSCTLS}
    return {name: path.read_text().strip() for name, path in paths.items() if path.exists()}


def write_sysctls(values: dict[str, str]) -> None:
    """Set those that differ; some are read-only on some machines, and those nobody could have changed."""
    for name, value in values.items():
        path = Path("/proc/sys") / name
        if path.exists() and path.read_text().strip() != value:
            path.write_text(value)


def addresses_of_loopback() -> list[str]:
    links: list[dict[str, Any]] = json.loads(run("ip", "-json", "address", "show", "dev", "lo"))
    return [entry["local"] for link in links for entry in link["addr_info"]]


def add_address() -> None:
    if ADDRESS not in addresses_of_loopback():
        run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")


def remove_address() -> None:
    if ADDRESS in addresses_of_loopback():
        run("ip", "address", "del", f"{ADDRESS}/32", "dev", "lo")


def without_ours(rules: str) -> str:
    """The text of iptables-save without the chains of kube-proxy, kubelet and the CNI plugins, nor jumps to them."""
    return "\n".join(line for line in rules.splitlines() if not OURS.search(line)) + "\n"


def has_rules() -> bool:
    return any(OURS.search(run(f"{family}-save")) for family in FAMILIES)


def clean_rules() -> None:
    """Remove our rules and chains from every table."""
    for family in FAMILIES:
        rules = run(f"{family}-save")
        if OURS.search(rules):
            run(f"{family}-restore", text=without_ours(rules))


def run(*command: str, text: str | None = None) -> str:
    """Run a command of the host and return what it prints."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} is not installed: `tools/cluster up` installs what is missing") from error
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
