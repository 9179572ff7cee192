# SPDX-License-Identifier: Apache-2.0
"""Log lines are for machines in a pod and for people on a terminal."""

from __future__ import annotations

import io
import json
import logging

import pytest

from kinema_kube import logs


def test_log_lines_are_json_and_name_the_job() -> None:
    formatter = logs.JsonFormatter()
    mark = logs.job.set("team/wan")
    try:
        record = logging.LogRecord("kinema_operator.x", logging.WARNING, "", 0, "created %s", ("a\nb",), None)
        line = formatter.format(record)
    finally:
        logs.job.reset(mark)
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["level"], parsed["job"], parsed["message"]) == ("warning", "team/wan", "created a\nb")


def test_lines_on_a_terminal_are_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        logs.configure(level="info", stream=stream)
        logging.getLogger("kinema_operator").info("hello")
        assert stream.getvalue().endswith("I kinema_operator: hello\n")
    finally:
        logging.getLogger().handlers[:], _ = before
        logging.getLogger().setLevel(before[1])


def test_what_a_call_adds_and_a_traceback_are_fields() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        found = (type(error), error, error.__traceback__)
    record = logging.LogRecord("kinema_server.x", logging.ERROR, "", 0, "refused", (), found)
    record.status = 403
    parsed = json.loads(logs.JsonFormatter().format(record))
    assert (parsed["status"], parsed["message"], parsed["traceback"].splitlines()[-1]) == (
        403,
        "refused",
        "ValueError: no",
    )
