# SPDX-License-Identifier: Apache-2.0
"""The command as a whole: how fast it starts, what it says of itself, and how it is found."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from kinema_api.exits import Exit
from kinema_api.names import Stage
from kinema_api.pool import Accelerator
from kinema_cli import errors
from kinema_cli.__main__ import PLUGIN, main
from kinema_cli.commands import options
from kinema_cli.commands.local import ACCELERATORS
from kinema_cli.ends import DETACHED
from kinema_kube.resources import VIDEO_TRAINING_JOBS

from tests.unit.cli import jobs
from tests.unit.cli.conftest import Kinema
from tests.unit.cli.fake import FakeApi

pytestmark = pytest.mark.unit

OPERATOR = Path(__file__).resolve().parents[3] / "operator"
SLOW = ("kubernetes", "aiohttp", "kinema_api", "kinema_kube", "rich", "yaml", "plotext", "asyncio")


def test_help_waits_for_nothing_slow() -> None:
    code = (
        "import sys; from kinema_cli.__main__ import main; main(['--help']); main(['get', '--help']);"
        f"import json; print(json.dumps([name for name in {SLOW!r} if name in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stderr) == []


def test_help_comes_within_three_tenths_of_a_second() -> None:
    """Of processor time, which a busy machine does not stretch."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "kinema_cli", "--help"], check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.3


def test_every_command_of_the_family(kinema: Kinema) -> None:
    listed = kinema("--help").out
    commands = [line.split()[0] for line in listed.partition("Commands:\n")[2].splitlines()]
    assert commands == [
        "submit", "list", "get", "logs", "why", "plan", "suspend", "resume", "cancel", "retry", "loss", "samples",
        "models", "pools", "doctor", "report", "run", "gc", "completion",
    ]  # fmt: skip
    for command in commands:
        done = kinema(command, "--help")
        assert done.code == 0
        assert max(map(len, done.out.splitlines())) <= 80


def test_it_tells_its_release(kinema: Kinema) -> None:
    project = tomllib.loads((OPERATOR / "pyproject.toml").read_text())["project"]
    assert kinema("--version").out == f"kinema {project['version']}\n"


def test_kubectl_finds_it_as_a_plugin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((OPERATOR / "pyproject.toml").read_text())["project"]
    assert project["scripts"][PLUGIN] == project["scripts"]["kinema"] == "kinema_cli.__main__:main"
    monkeypatch.setattr(sys, "argv", [f"/usr/local/bin/{PLUGIN}"])
    main(["get", "--help"])
    assert capsys.readouterr().out.startswith("Usage: kubectl kinema get")


def test_words_that_help_spells_out_are_those_of_the_models() -> None:
    assert tuple(stage.value for stage in Stage) == options.STAGES
    assert sorted(ACCELERATORS) == sorted(accelerator.value for accelerator in Accelerator)
    assert errors.USER == Exit.USER


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(kinema: Kinema, shell: str) -> None:
    done = kinema("completion", shell)
    assert done.code == 0
    assert "_KINEMA_COMPLETE" in done.out
    assert kinema("completion", "csh").code == 64


def test_the_shell_is_told_the_names_of_jobs(api: FakeApi) -> None:
    api.job("wan")
    api.job("wan-again")
    api.job("other")
    found = complete("kinema get wan", 2)
    assert found == ["wan", "wan-again"]
    assert complete("kinema logs wan --stage t", 4) == ["train"]
    assert complete("kinema mod", 1) == ["models"]
    assert complete("kinema get --context nowhere wan", 4) == [], "and no traceback amid the prompt"


def complete(words: str, place: int) -> list[str]:
    """What bash is offered."""
    variables = {"_KINEMA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'kinema'; from kinema_cli.__main__ import main; main()"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done.stdout.split()


def test_a_terminal_is_shown_a_tree_in_colour(api: FakeApi) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.succeeded())
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kinema_cli", "get", "wan", "--watch"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"},
    )
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 65_536):
            said += chunk
    except OSError:
        pass  # The other end is closed.
    assert process.wait(timeout=60) == 0
    text = said.decode()
    assert "\x1b[" in text
    assert "✓" in text and "sample" in text


def test_a_real_ctrl_c_detaches(api: FakeApi) -> None:
    api.put(VIDEO_TRAINING_JOBS, jobs.running())
    watched = threading.Event()
    api.on_watch.append(watched.set)
    process = subprocess.Popen(
        [sys.executable, "-m", "kinema_cli", "get", "wan", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever starts tests in the background has them ignore SIGINT; a terminal never does.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert watched.wait(timeout=60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == DETACHED
    assert "train: attempt 1 started" in out
    assert err == "detached; the job goes on. To come back: kinema get wan --watch\n"
