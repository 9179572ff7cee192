# SPDX-License-Identifier: Apache-2.0
"""A question to a name server, to see whether the cluster's names resolve."""

from __future__ import annotations

import secrets
import socket
import struct


def query(name: str, identifier: int) -> bytes:
    """A packet that asks for the A record of `name`."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    return struct.pack(">HHHHHH", identifier, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)


def has_answer(packet: bytes, identifier: int) -> bool:
    """Whether a packet answers our question with at least one record."""
    if len(packet) < 12:
        return False
    found, flags, _, answers = struct.unpack(">HHHH", packet[:8])
    return found == identifier and bool(flags & 0x8000) and flags & 0xF == 0 and answers > 0


def resolves(name: str, *, server: str, seconds: float = 1) -> bool:
    """Whether `server` knows an address of `name`."""
    identifier = secrets.randbelow(1 << 16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(seconds)
        try:
            channel.connect((server, 53))
            channel.send(query(name, identifier))
            return has_answer(channel.recv(4096), identifier)
        except OSError:
            return False
