# SPDX-License-Identifier: Apache-2.0
"""The question that tells whether the cluster's names resolve."""

from __future__ import annotations

import struct

import pytest

from kinema_cluster.dns import has_answer, query

QUESTION = b"\x02ab\x01c\0\0\x01\0\x01"


def test_the_question() -> None:
    assert query("ab.c", 7) == struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + QUESTION


@pytest.mark.parametrize(
    ("identifier", "flags", "answers", "good"),
    [
        (7, 0x8180, 1, True),
        (8, 0x8180, 1, False),  # somebody else's answer
        (7, 0x0100, 1, False),  # a question
        (7, 0x8183, 0, False),  # NXDOMAIN
        (7, 0x8180, 0, False),
    ],
)
def test_the_answer(identifier: int, flags: int, answers: int, good: bool) -> None:
    packet = struct.pack(">HHHHHH", identifier, flags, 1, answers, 0, 0) + QUESTION
    assert has_answer(packet, 7) is good


def test_rubbish_is_no_answer() -> None:
    assert not has_answer(b"\0\x07", 7)
