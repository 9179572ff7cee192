# SPDX-License-Identifier: Apache-2.0
"""What the server counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("kinema_server_requests", "Requests answered.", ["method", "route", "code"])
SECONDS = Histogram(
    "kinema_server_request_seconds",
    "Time to answer a request.",
    ["method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
WRITES = Counter(
    "kinema_server_progress_writes",
    "Writes of a job's progress: written, refused (the job or the attempt is gone), failed (tried again).",
    ["result"],
)
VERDICTS = Counter("kinema_server_token_verdicts", "Tokens of posts: remembered, granted or refused.", ["result"])
CERTIFICATE_END = Gauge("kinema_server_certificate_not_after_seconds", "When the served certificate ends (Unix time).")
STREAMS = Gauge("kinema_server_streams", "Streams that are open: watches, and logs that are followed.")
READERS = Counter(
    "kinema_server_readers",
    "Pods that read a workspace: created, or refused by the cluster.",
    ["result"],
)
