# SPDX-License-Identifier: Apache-2.0
"""The command line as a researcher uses it: an account of the namespace, a token, and 80 columns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import av
import pytest
import yaml
from kinema_demo.kubectl import Kubectl, Object
from kinema_demo.main import JOB
from kinema_demo.workspace import Shell

from kinema_api.exits import Exit
from kinema_api.names import Stage
from kinema_api.pipeline import merge
from kinema_cluster.full import WORKSPACE

from tests.cluster.jobs import NO_RESULT, Job
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NOWHERE = f"pvc://{WORKSPACE}/nowhere"
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True, slots=True)
class Terminal:
    """Somebody's shell, without a terminal: a kubeconfig and a folder."""

    kubeconfig: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KINEMA_SERVER", "KINEMA_T"))}
        # UTF-8 whatever this machine's language is.
        chosen = {"KUBECONFIG": str(self.kubeconfig), "COLUMNS": "80", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
        return {**kept, **chosen, "PATH": f"{self.folder}:{os.environ['PATH']}"}

    def run(self, *command: str) -> Done:
        """Run any command."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            encoding="utf-8",
            timeout=180,
        )

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What `kinema` prints; fails when it does not end as it must."""
        done = self.run(*kinema(*arguments))
        assert done.returncode == code, done.stdout + done.stderr
        assert "\x1b" not in done.stdout + done.stderr, "no colours in a pipe"
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `kinema`; its output and errors come together."""
        return subprocess.Popen(
            kinema(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )


def kinema(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kinema_cli", *arguments]


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and lines of a command that was started."""
    said, _ = process.communicate(timeout=300)
    return process.returncode, said.splitlines()


@pytest.fixture(scope="module")
def researcher(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A user with the role `edit` in the test's namespace."""
    name, namespace = "researcher", kubectl.namespace
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}
    account: Object = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    binding: Object = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name},
        "roleRef": role,
        "subjects": [subject],
    }
    kubectl.apply(account, binding)
    config: Object = json.loads(kubectl.run("config", "view", "--raw", "--minify", "-o", "json"))
    context = config["contexts"][0]["context"]
    context["namespace"] = namespace
    token = kubectl.run("create", "token", name, "--duration=2h").strip()
    config["users"] = [{"name": context["user"], "user": {"token": token}}]
    folder = tmp_path_factory.mktemp("researcher")
    (folder / "kubeconfig").write_text(json.dumps(config), encoding="utf-8")
    plugin = folder / "kubectl-kinema"
    plugin.write_text(f"#!{sys.executable}\nimport sys\nfrom kinema_cli.__main__ import main\nsys.exit(main())\n")
    plugin.chmod(0o755)
    terminal = Terminal(folder / "kubeconfig", folder)
    asked = (kubectl.binary, "auth", "can-i", "create", "videotrainingjobs.kinema.dev")
    until("the rights have come through", lambda: terminal.run(*asked).returncode == 0, seconds=30)
    yield terminal
    kubectl.run("delete", "rolebinding,serviceaccount", name)


@pytest.fixture(scope="module")
def administrator(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """Who installed Kinema."""
    return Terminal(kubectl.kubeconfig, tmp_path_factory.mktemp("administrator"))


@pytest.fixture(scope="module")
def write(researcher: Terminal, shared: str) -> Callable[..., str]:
    """Writes the file of a short job, changed in places; its name."""

    def written(name: str, **spec: object) -> str:
        base: Object = yaml.safe_load(JOB.read_text(encoding="utf-8"))
        short = {"storage": {"uri": shared}, "stages": {**NO_RESULT, "train": {"steps": 3}}}
        body = {**base, "metadata": {"name": name}, "spec": merge(merge(base["spec"], short), spec)}
        path = researcher.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(body), encoding="utf-8")
        return path.name

    return written


@pytest.fixture(scope="module")
def followed(
    researcher: Terminal, kubectl: Kubectl, wan: Job, write: Callable[..., str]
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """`submit --follow` of a good and of a broken job; they run beside the other tests."""
    wan.succeeded()
    files = {"cli-good": write("cli-good"), "cli-broken": write("cli-broken", dataset={"uri": NOWHERE})}
    with ExitStack() as stack:
        stack.callback(kubectl.run, "delete", "vtj", *files, "--ignore-not-found", "--wait=false")
        started = {}
        for name, file in files.items():
            started[name] = stack.enter_context(researcher.start("submit", file, "--follow"))
            stack.callback(started[name].kill)
        yield started


def test_list_get_and_why(researcher: Terminal, followed: object, kubectl: Kubectl, wan: Job) -> None:
    head, *rows = researcher("list").splitlines()
    assert head.split()[:2] == ["NAME", "PHASE"] and len(head) <= 80
    assert ["wan", "Succeeded"] in [row.split()[:2] for row in rows]
    assert "videotrainingjob.kinema.dev/wan" in researcher("list", "-o", "name").splitlines()
    done = researcher.run(kubectl.binary, "kinema", "list", "-o", "name")
    assert "videotrainingjob.kinema.dev/wan" in done.stdout.splitlines(), done.stderr

    lines = researcher("get", "wan").splitlines()
    assert lines[0].startswith(f"{kubectl.namespace}/wan  Succeeded after "), lines
    for stage in Stage:
        assert any(line.split()[:3] == ["✓", stage.value, "Succeeded"] for line in lines), lines
    assert max(map(len, lines)) <= 80
    assert json.loads(researcher("get", "wan", "-o", "json"))["metadata"]["uid"] == wan.uid
    assert researcher("get", "wan", "--watch").splitlines()[-1].startswith("succeeded: ")
    assert "there is no job nobody in namespace" in researcher("get", "nobody", code=1)

    lines = researcher("why", "wan").splitlines()
    assert lines[0].startswith(f"job    {kubectl.namespace}/wan: Succeeded"), lines
    assert "  kinema samples wan" in lines


def test_logs(researcher: Terminal, wan: Job) -> None:
    raw = researcher("logs", "wan", "--stage", "train", "--raw", "--grep", '"loss"')
    steps = [found["step"] for line in raw.splitlines() if "step" in (found := json.loads(line))]
    assert steps and steps == sorted(steps) and steps[-1] == 30
    assert any("loss=" in line for line in researcher("logs", "wan", "--stage", "train").splitlines())
    lines = researcher("logs", "wan", "--stage", "train", "--all").splitlines()
    assert any(line.startswith("wan-train-1-master-0: ") for line in lines)
    refused = researcher("logs", "wan", "--stage", "train", "--attempt", "7", code=1)
    assert "has no attempt 7; it has 1" in refused


def test_loss_comes_from_the_workspace(researcher: Terminal, wan: Job) -> None:
    done = researcher.run(*kinema("loss", "wan", "-o", "json"))
    assert done.returncode == 0, done.stderr
    assert "drawn from the log" not in done.stderr, "the server was asked"
    points = {point["step"]: point["loss"] for point in json.loads(done.stdout)}
    written = {record["step"]: record["loss"] for record in wan.lines("metrics.jsonl") if "loss" in record}
    assert points == pytest.approx(written)

    lines = researcher("loss", "wan").splitlines()
    assert f"loss of {wan.kubectl.namespace}/wan" in lines[0]
    assert any("⠁" <= letter <= "⣿" for line in lines for letter in line), "there is a line to see"
    assert lines[-1].startswith("loss ") and lines[-1].endswith(" at step 30")
    assert max(map(len, lines)) <= 80


def test_samples_arrive(researcher: Terminal, wan: Job, workspace: Shell, tmp_path: Path) -> None:
    listed = json.loads(researcher("samples", "wan", "-o", "json"))
    assert {item["round"] for item in listed} == {"final"}
    assert researcher("samples", "wan").splitlines()[0].split()[:3] == ["STEP", "SEED", "SIZE"]
    paths = [Path(line) for line in researcher("samples", "wan", "--download", str(tmp_path / "here")).splitlines()]
    assert [path.stat().st_size for path in paths] == [item["size"] for item in listed]
    there = workspace.fetch(f"{wan.folder}/samples", tmp_path / "there", "*.mp4")
    assert sorted(path.read_bytes() for path in paths) == sorted(path.read_bytes() for path in there)
    with av.open(str(paths[0])) as video:
        assert len(list(video.decode(video=0))) == 17
    assert researcher("samples", "wan", "--step", "final", "-o", "name").splitlines() == [
        f"final/{item['file']}" for item in listed
    ]


def test_report_holds_no_secret(researcher: Terminal, administrator: Terminal, kubectl: Kubectl, wan: Job) -> None:
    token = json.loads(researcher.kubeconfig.read_text())["users"][0]["user"]["token"]
    theirs = report(researcher, "wan")
    assert {"job.yaml", "events.yaml", "get.txt", "why.txt", "pods.yaml", "doctor.txt", "left-out.txt"} <= set(theirs)
    assert any("step=" in text or '"step"' in text for name, text in theirs.items() if name.startswith("logs/"))
    assert yaml.safe_load(theirs["job.yaml"])["metadata"]["uid"] == wan.uid

    whole = report(administrator, "wan", "-n", kubectl.namespace)
    logs = [name for name in whole if name.startswith("installation/logs/kinema-")]
    assert any("operator" in name for name in logs) and any("server" in name for name in logs)
    for text in (*theirs.values(), *whole.values()):
        assert token not in text
        assert "PRIVATE KEY" not in text
        assert "\nkind: Secret\n" not in f"\n{text}"


def report(terminal: Terminal, *arguments: str) -> dict[str, str]:
    """The files of a report, by name."""
    path = terminal.folder / terminal("report", *arguments).strip()
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name).decode() for name in archive.namelist()}


def test_pools_models_and_doctor(researcher: Terminal, administrator: Terminal) -> None:
    assert ["cpu", "cpu", "1"] in [line.split()[:3] for line in researcher("pools").splitlines()]
    assert "wan2.1-tiny" in [line.split()[0] for line in researcher("models").splitlines()]

    found = {item["check"]: item for item in json.loads(researcher("doctor", "-o", "json"))}
    assert found["rights"]["verdict"] == found["server"]["verdict"] == found["crd/trainingpools"]["verdict"] == "ok"
    assert found["operator"]["verdict"] == "skip", "Leases are not for everybody"

    lines = administrator("doctor").splitlines()
    assert ["ok", "server"] in [line.split()[:2] for line in lines]
    assert ["ok", "operator"] in [line.split()[:2] for line in lines]
    assert lines[-1].startswith("the installation is sound")
    lines = administrator("doctor", "--system-namespace", "kinema-nowhere", code=1).splitlines()
    assert ["FAIL", "operator"] in [line.split()[:2] for line in lines]
    assert ["FAIL", "server"] in [line.split()[:2] for line in lines]


def test_plan(researcher: Terminal, write: Callable[..., str]) -> None:
    lines = researcher("plan", write("cli-plan")).splitlines()
    assert lines[0] == "cli-plan: wan2.1-tiny on pool cpu"
    assert any(line.split()[:3] == ["train", "cpu", "2"] for line in lines)
    refused = researcher("plan", write("cli-nowhere", defaults={"pool": "h100"}), code=Exit.USER)
    assert "there is no TrainingPool h100" in refused and "(UnknownPool)" in refused


def test_submit_and_follow_to_the_end(
    researcher: Terminal, followed: dict[str, subprocess.Popen[str]], kubectl: Kubectl
) -> None:
    code, lines = ended(followed["cli-good"])
    assert code == 0, lines
    assert lines[0] == f"job {kubectl.namespace}/cli-good created"
    assert "train: attempt 1 started" in lines
    assert any(line.startswith("features: skipped: ") for line in lines), "it shares what wan made"
    assert lines[-1].startswith("succeeded: ")


def test_follow_and_why_of_a_broken_job(
    researcher: Terminal, followed: dict[str, subprocess.Popen[str]], write: Callable[..., str]
) -> None:
    sentence = f"dataset.uri: {NOWHERE} does not exist"
    code, lines = ended(followed["cli-broken"])
    assert code == Exit.USER, lines
    assert any(line.startswith("failed: ") and sentence in line for line in lines), lines
    told = json.loads(researcher("why", "cli-broken", "-o", "json"))
    assert sentence in told["cause"] and "put the videos there or correct the address" in told["cause"] + told["fix"]
    assert "kinema retry cli-broken" in told["next"]

    refused = researcher("submit", write("cli-mistyped", storage={"uri": "file:///data"}), code=1)
    assert "storage.uri: write pvc://CLAIM/PATH or s3://BUCKET/PREFIX" in refused
    assert "there is a job cli-broken in namespace" in researcher("submit", "cli-broken.yaml", code=1)
