# SPDX-License-Identifier: Apache-2.0
"""What people read of a post."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema_api.names import Stage
from kinema_api.progress import Metric, TrainerStatus
from kinema_server.figures import METRICS_KEPT, duration, progress_of, significant

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 21, 10, 0, 0, 999, tzinfo=UTC)


def post(**fields: object) -> dict[str, object]:
    status = TrainerStatus.model_validate(fields)
    return progress_of(status, stage=Stage.TRAIN, attempt=2, received=NOW).wire()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (45, "45s"),
        (60, "1m0s"),
        (200, "3m20s"),
        (3599, "59m59s"),
        (3600, "1h0m"),
        (11520, "3h12m"),
        (187200, "2d4h"),
    ],
)
def test_durations_have_two_units(seconds: int, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0.123456", "0.1235"),
        ("0.1", "0.1000"),
        ("12.345678", "12.35"),
        ("1234.4", "1234"),
        ("123456", "1.235e+05"),
        ("0.0000123456", "1.235e-05"),
        ("0", "0.000"),
        ("nan", "nan"),
        ("-inf", "-inf"),
        ("about three", "about three"),
    ],
)
def test_numbers_keep_four_significant_digits(value: str, text: str) -> None:
    assert significant(value) == text


def test_an_empty_post_is_a_beginning() -> None:
    assert post() == {
        "stage": "train",
        "attempt": 2,
        "percent": "",
        "percentage": 0,
        "metrics": {},
        "updatedAt": "2026-11-21T10:00:00Z",
    }


def test_a_percentage_that_was_not_sent_follows_from_the_steps() -> None:
    metrics = [{"name": "step", "value": "50"}, {"name": "total_steps", "value": "200"}]
    assert post(metrics=metrics)["percent"] == "25%"
    assert post(metrics=[*metrics[:1], {"name": "total_steps", "value": "50"}])["percentage"] == 99
    assert post(metrics=metrics, progress_percentage=3)["percent"] == "3%"


def test_the_words_of_transformers_are_understood() -> None:
    metrics = [{"name": "current_step", "value": "50"}, {"name": "total_steps", "value": "200"}]
    shown = post(metrics=metrics)
    assert (shown["step"], shown["totalSteps"], shown["percent"]) == (50, 200, "25%")


def test_numbers_that_no_status_can_hold_are_left_out() -> None:
    shown = post(
        estimated_remaining_seconds=10**12,
        metrics=[{"name": "step", "value": "inf"}, {"name": "total_steps", "value": "9" * 30}],
    )
    assert shown["etaSeconds"] == 2**31 - 1
    assert "step" not in shown
    assert "totalSteps" not in shown


def test_the_columns_survive_too_many_metrics() -> None:
    metrics = [Metric(name=f"m{number}", value="1") for number in range(200)]
    status = TrainerStatus(metrics=[*metrics, Metric(name="loss", value="0.5")])
    kept = progress_of(status, stage=Stage.TRAIN, attempt=1, received=NOW).metrics
    assert len(kept) == METRICS_KEPT
    assert kept["loss"] == "0.5"


@given(st.builds(TrainerStatus))
def test_every_post_fits_the_status(status: TrainerStatus) -> None:
    assert progress_of(status, stage=Stage.TRAIN, attempt=1, received=NOW).stage is Stage.TRAIN
