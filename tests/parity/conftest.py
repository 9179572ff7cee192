# SPDX-License-Identifier: Apache-2.0
"""The processes of all parity tests, and the table of what they noticed."""

from __future__ import annotations

import os

import pytest

from tests.parity.cases import CONFIGS
from tests.parity.mutations import CAUGHT
from tests.parity.processes import Processes, write_weights
from tests.parity.test_layouts import FOUND

LARGEST = 12
"""Lines of differences that are printed."""


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    """The processes, and the weights that all models start from."""
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = tmp_path_factory.mktemp("parity")
    for task in CONFIGS:
        write_weights(folder, task)
    return Processes(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the largest differences from one process, and the table of broken exchanges."""
    if FOUND:
        terminalreporter.section("largest differences from one process, as a share of what is allowed")
        for case, (ratio, name) in sorted(FOUND.items(), key=lambda found: -found[1][0])[:LARGEST]:
            terminalreporter.write_line(f"{ratio:.3f} | {name} | {case}")
    if CAUGHT:
        terminalreporter.section("broken exchanges, and what noticed them")
        for mutation, what in CAUGHT.items():
            axes = ", ".join(f"{axis} {size}" for axis, size in mutation.layout.items())
            terminalreporter.write_line(f"{mutation.exchange} | {mutation.kind} | {axes} | {what}")
