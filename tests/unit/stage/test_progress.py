# SPDX-License-Identifier: Apache-2.0
"""Progress: posts in Kubeflow's protocol to a real server, log lines, metrics; a failing server hurts nobody."""

from __future__ import annotations

import datetime
import ipaddress
import json
import logging
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kinema_api.names import HEADER_PROFILE, Stage
from kinema_api.progress import ENV_CA, ENV_TOKEN, ENV_URL, ProgressPost, TrainerStatus
from kinema_stage import logs
from kinema_stage.poster import Poster, Target
from kinema_stage.progress import ENV_METRICS_PORT, Progress

from tests.unit.stage.support import deadline


class Server(ThreadingHTTPServer):
    """Keeps what was posted, and answers as it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posts: list[tuple[str, ProgressPost]] = []
        self.answer = 200
        self.location = ""
        self.wish = ""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}/progress"

    @property
    def percentages(self) -> list[int | None]:
        return [post.trainer_status.progress_percentage for _, post in self.posts]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.headers["Authorization"], ProgressPost.model_validate_json(body)))
        self.send_response(self.server.answer)
        if self.server.location:
            self.send_header("Location", self.server.location)
        if self.server.wish:
            self.send_header(HEADER_PROFILE, self.server.wish)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    yield from _serve(None)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "progress")])
    now = datetime.datetime.now().astimezone()
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "tls.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[Server]:
    yield from _serve(certificate)


def _serve(certificate: Path | None) -> Iterator[Server]:
    with Server() as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def status(percentage: int) -> TrainerStatus:
    return TrainerStatus(progress_percentage=percentage)


def test_a_run_is_posted_in_kubeflows_protocol(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinema_stage.progress.Poster", partial(Poster, interval=0))
    token = tmp_path / "token"
    token.write_text("first\n")
    environment = {ENV_URL: f"http://{server.address}", ENV_TOKEN: str(token), ENV_METRICS_PORT: "0"}
    progress = Progress(Stage.TRAIN, environment=environment)
    progress.report(done=0, total=200)
    deadline(lambda: len(server.posts) == 1, what="the first report is posted at once")
    token.write_text("second\n")
    progress.report(done=200, total=200, eta_seconds=12.4, metrics={"loss": 0.123456789, "phase": "last"})
    deadline(lambda: len(server.posts) == 2, what="the second report is posted when it is due")
    progress.close(success=True)

    assert [header for header, _ in server.posts] == ["Bearer first", "Bearer second", "Bearer second"]
    assert server.percentages == [0, 99, 100], "100 is for the end alone"
    second = server.posts[1][1].trainer_status
    assert second.estimated_remaining_seconds == 12
    assert second.last_updated_time is not None and second.last_updated_time.tzinfo is not None
    told = {metric.name: metric.value for metric in second.metrics}
    account = {name for name in told if name.startswith("seconds_")}
    assert account == {f"seconds_{name}" for name in ("starting", "productive", "data", "checkpoint", "saved")}
    assert {name: value for name, value in told.items() if name not in account} == {
        "stage": "train",
        "step": "200",
        "total_steps": "200",
        "loss": "0.123457",
        "phase": "last",
    }
    assert server.posts[2][1].trainer_status.metric("loss") == "0.123457"


def test_after_failure_nobody_hears_of_100(server: Server) -> None:
    environment = {ENV_URL: f"http://{server.address}", ENV_METRICS_PORT: "0"}
    progress = Progress(Stage.TRAIN, environment=environment)
    progress.report(done=5, total=10)
    progress.close(success=False)
    assert server.percentages == [50]
    assert server.posts[0][0] is None, "there was no token to send"


def test_many_reports_make_few_posts_and_the_newest_counts(server: Server) -> None:
    environment = {ENV_URL: f"http://{server.address}", ENV_METRICS_PORT: "0"}
    progress = Progress(Stage.TRAIN, environment=environment)
    progress.report(done=0, total=1000)
    deadline(lambda: server.posts, what="the first post")
    for step in range(1, 901):
        progress.report(done=step, total=1000)
    progress.close(success=False)
    assert server.percentages == [0, 90]


def test_only_the_primary_process_posts(server: Server) -> None:
    environment = {ENV_URL: f"http://{server.address}"}
    progress = Progress(Stage.FEATURES, primary=False, environment=environment)
    progress.report(done=1, total=2)
    progress.close(success=True)
    assert server.posts == []


def test_tls_is_checked_against_the_given_ca(tls_server: Server, certificate: Path) -> None:
    url = f"https://{tls_server.address}"
    Target(url=url, ca=certificate, token=None).post(status(7))
    assert tls_server.percentages == [7]
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        Target(url=url, ca=None, token=None).post(status(8))
    assert tls_server.percentages == [7]


def test_a_redirect_is_not_followed_with_the_token(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    with Server() as other:
        server.answer, server.location = 302, f"http://{other.address}"
        with pytest.raises(OSError, match="302"):
            Target(url=f"http://{server.address}", ca=None, token=token).post(status(1))
        assert other.posts == []


def test_a_failing_server_costs_one_warning_and_comes_back(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server.answer = 503
    poster = Poster(Target(url=f"http://{server.address}", ca=None, token=None), interval=0.01)
    poster.put(status(1))
    deadline(lambda: len(server.posts) >= 3, what="it tries again by itself")
    poster.put(status(2))
    server.answer = 200
    deadline(lambda: "progress is shown again" in caplog.messages, what="recovery")
    poster.close()
    assert server.percentages[-1] == 2
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "503" in warnings[0] and "the stage goes on" in warnings[0]


def test_a_wish_to_profile_comes_with_the_answer(server: Server) -> None:
    heard: list[str] = []
    progress = Progress(Stage.TRAIN, environment={ENV_URL: f"http://{server.address}", ENV_METRICS_PORT: "0"})
    progress.wished = heard.append
    server.wish = "steps=3"
    progress.report(done=1, total=2)
    deadline(lambda: heard == ["steps=3"], what="the wish")
    progress.close(success=True)


@pytest.mark.parametrize("missing", ["server", "token", "ca", "address"])
def test_nothing_that_is_missing_stops_the_stage(
    missing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{unused.getsockname()[1]}/progress"
    gone = str(tmp_path / "gone")
    environment = {
        ENV_URL: "not an address" if missing == "address" else url,
        ENV_METRICS_PORT: "0",
        **({ENV_TOKEN: gone} if missing == "token" else {}),
        **({ENV_CA: gone} if missing == "ca" else {}),
    }
    progress = Progress(Stage.CONVERT, environment=environment)
    progress.report(done=1, total=2)
    progress.close(success=True)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_a_report_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    try:
        logs.set_up("train")
        progress = Progress(Stage.TRAIN, environment={ENV_METRICS_PORT: "0"})
        progress.report(done=0, total=4)
        progress.report(done=1, total=4, metrics={"loss": 1.5})
        progress.close(success=True)
        logging.getLogger("x").warning("mind the %s", "gap", extra={logs.FIELDS: {"loss": float("nan")}})
    finally:
        logging.getLogger().handlers[:] = before
    first, second, third = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first.items() >= {"level": "info", "stage": "train", "step": 0, "totalSteps": 4}.items()
    assert "etaSeconds" not in first, "no pace is known before the first unit"
    assert second.items() >= {"step": 1, "loss": 1.5, "etaSeconds": 0}.items()
    assert third.items() >= {"level": "warning", "message": "mind the gap", "loss": "nan"}.items()
    assert datetime.datetime.fromisoformat(first["time"].replace("Z", "+00:00")).tzinfo is not None


def test_metrics_are_served_and_a_taken_port_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    first = Progress(Stage.TRAIN, environment={ENV_METRICS_PORT: port})
    numbers: dict[str, float | int | str] = {
        "loss": 0.5,
        "step": 3,
        "forward_seconds": 2,
        "tflops_per_second": 1.5,
        "reward": 7,
        "text": "x",
        "validation_loss": 0.3,
        "validation_loss_at_0625": 0.2,
        "memory_planned_bytes": 4e9,
    }
    first.report(done=3, total=8, eta_seconds=60, metrics=numbers, ranks={"memory_peak_bytes": (1e9, 2e9)})
    second = Progress(Stage.TRAIN, environment={ENV_METRICS_PORT: port})
    second.report(done=1, total=8)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        lines = response.read().decode().splitlines()
    first.close(success=True)
    second.close(success=True)
    for line in (
        'kinema_stage_done{stage="train"} 3.0',
        'kinema_stage_total{stage="train"} 8.0',
        'kinema_stage_eta_seconds{stage="train"} 60.0',
        'kinema_train_loss{stage="train"} 0.5',
        'kinema_train_phase_seconds{phase="forward",stage="train"} 2.0',
        'kinema_train_model_flops_per_second{stage="train"} 1.5e+12',
        'kinema_train_memory_peak_bytes{rank="1",stage="train"} 2e+09',
        'kinema_train_memory_planned_bytes{stage="train"} 4e+09',
        'kinema_train_validation_loss{stage="train"} 0.3',
        'kinema_train_validation_level_loss{sigma="0.0625",stage="train"} 0.2',
        'kinema_stage_metric{name="reward",stage="train"} 7.0',
        'kinema_stage_text{name="text",stage="train",text="x"} 1.0',
    ):
        assert line in lines
    assert any(line.startswith('kinema_stage_seconds_total{activity="productive",stage="train"}') for line in lines)
    assert not [line for line in lines if 'name="step"' in line], "it is kinema_stage_done"
    assert f"no metrics: port {port}" in caplog.text


@pytest.mark.parametrize("eta", [float("nan"), float("inf")])
def test_odd_numbers_are_sent_as_they_can_be(server: Server, eta: float) -> None:
    environment = {ENV_URL: f"http://{server.address}", ENV_METRICS_PORT: "0"}
    progress = Progress(Stage.TRAIN, environment=environment)
    progress.report(done=0, total=0, eta_seconds=eta, metrics={"loss": float("nan"), "long": "x" * 100, "none": ""})
    progress.close(success=False)
    sent = server.posts[0][1].trainer_status
    assert sent.estimated_remaining_seconds is None
    assert (sent.progress_percentage, sent.metric("loss"), sent.metric("none")) == (0, "nan", "-")
    assert len(sent.metric("long") or "") == 64
