# SPDX-License-Identifier: Apache-2.0
"""The operator and the API server: do they work, and how fast."""

from __future__ import annotations

from kinema_dashboards.boards import Board, Panel, Query, Row, Shape, Threshold, Variable

_OF = 'job=~"$job", instance=~"$instance"'


def _rate(name: str, *by: str, more: str = "") -> str:
    chosen = f"{_OF}, {more}" if more else _OF
    return f"sum by ({', '.join(by)}) (rate({name}{{{chosen}}}[$__rate_interval]))"


def _quantiles(name: str, *by: str) -> tuple[Query, ...]:
    labels = " ".join(f"{{{{{label}}}}}" for label in by)
    return tuple(
        Query(f"histogram_quantile({share}, {_rate(f'{name}_bucket', 'le', *by)})", f"p{share * 100:.0f} {labels}")
        for share in (0.5, 0.99)
    )


LIFE = Row(
    "Life",
    (
        Panel("Leaders", "Replicas of the operator that lead; one is right.", "none",
              (Query(f"sum(kinema_leader{{{_OF}}})", "leaders"),), Shape.NUMBER, 4, 4,
              thresholds=(Threshold(0, "red"), Threshold(1, "green"), Threshold(2, "red"))),
        Panel("CRDs are its own", "Whether the leader found the installed CRDs to be those it was made with.", "none",
              (Query(f"max(kinema_definitions_confirmed{{{_OF}}})", "confirmed"),), Shape.NUMBER, 4, 4,
              names={0: ("no", "red"), 1: ("yes", "green")}),
        Panel("Refused namespaces", "Namespaces that are to be watched and that the API server refuses.", "none",
              (Query(f"max(kinema_namespaces_refused{{{_OF}}})", "namespaces"),), Shape.NUMBER, 4, 4,
              thresholds=(Threshold(0, "green"), Threshold(1, "red"))),
        Panel("Certificate ends in", "Time until the certificate that the API server shows ends.", "s",
              (Query(f"min(kinema_server_certificate_not_after_seconds{{{_OF}}}) - time()", "left"),),
              Shape.NUMBER, 4, 4, thresholds=(Threshold(0, "red"), Threshold(604800, "green"))),
        Panel("Version", "What runs.", "none",
              (Query(f"count by (version) (kinema_build_info{{{_OF}}})", "{{version}}"),), Shape.NUMBER, 4, 4),
        Panel("Targets", "Replicas of operator and server that answer Prometheus.", "none",
              (Query(f"sum by (job) (up{{{_OF}}})", "{{job}}"),), Shape.NUMBER, 4, 4),
    ),
)  # fmt: skip
LOOKS = Row(
    "Reconcile",
    (
        Panel("Looks at jobs", "Looks at jobs a second by how they went; `bug` is a fault in the operator.", "ops",
              (Query(_rate("kinema_reconciles_total", "result"), "{{result}}"),), Shape.STACK),
        Panel("Duration of a look", "Half of the looks, and 99 of 100, are done within this time.", "s",
              _quantiles("kinema_reconcile_seconds")),
        Panel("Wait in the queue", "Half of the jobs, and 99 of 100, wait this long for a worker.", "s",
              _quantiles("kinema_queue_latency_seconds")),
        Panel("Queue", "Jobs that wait for a worker, and those that wait for their time.", "none",
              (Query(f"max(kinema_queue_depth{{{_OF}}})", "for a worker"),
               Query(f"max(kinema_queue_delayed{{{_OF}}})", "for their time"))),
        Panel("Attempts that ended", "Attempts an hour by stage and result.", "none",
              (Query(f"sum by (stage, result) (increase(kinema_attempts_total{{{_OF}}}[1h]))",
                     "{{stage}} {{result}}"),)),
        Panel("Full comparisons", "Comparisons of all that the operator knows with the API server, an hour.", "none",
              (Query(f"sum by (result) (increase(kinema_resyncs_total{{{_OF}}}[1h]))", "{{result}}"),)),
    ),
)  # fmt: skip
API = Row(
    "Kubernetes API",
    (
        Panel("Requests", "Requests to the Kubernetes API a second, by verb.", "reqps",
              (Query(_rate("kinema_api_requests_total", "verb"), "{{verb}}"),), Shape.STACK),
        Panel("Errors", "Requests a second that were refused, failed, or had no answer (0). 409 is a race that is"
              " looked at again.", "reqps",
              (Query(_rate("kinema_api_requests_total", "code", more='code!~"2.."'), "{{code}}"),), Shape.STACK),
        Panel("Age of watches", "Time since a watch last showed life; after twelve minutes it is dead.", "s",
              (Query(f"max by (resource) (kinema_watch_age_seconds{{{_OF}}})", "{{resource}}"),),
              thresholds=(Threshold(720, "red"),)),
    ),
)  # fmt: skip
SERVER = Row(
    "API server",
    (
        Panel("Requests", "Requests answered a second, by route.", "reqps",
              (Query(_rate("kinema_server_requests_total", "method", "route"), "{{method}} {{route}}"),), Shape.STACK),
        Panel("Answers", "Requests answered a second, by code.", "reqps",
              (Query(_rate("kinema_server_requests_total", "code"), "{{code}}"),), Shape.STACK),
        Panel("Time to answer", "99 of 100 requests of a route are answered within this time.", "s",
              (Query("histogram_quantile(0.99, "
                     f"{_rate('kinema_server_request_seconds_bucket', 'le', 'method', 'route')})",
                     "{{method}} {{route}}"),)),
        Panel("Progress written", "Writes of progress into jobs a second.", "wps",
              (Query(_rate("kinema_server_progress_writes_total", "result"), "{{result}}"),), Shape.STACK),
        Panel("Tokens of posts", "Tokens of posts a second: known, asked for and granted, or refused.", "ops",
              (Query(_rate("kinema_server_token_verdicts_total", "result"), "{{result}}"),), Shape.STACK),
        Panel("Streams and readers", "Streams that are open, and pods that read a workspace, started within an hour.",
              "none",
              (Query(f"sum(kinema_server_streams{{{_OF}}})", "open streams"),
               Query(f"sum by (result) (increase(kinema_server_readers_total{{{_OF}}}[1h]))", "readers {{result}}"))),
    ),
)  # fmt: skip
PROCESSES = Row(
    "Processes",
    (
        Panel("Memory", "Memory of each process.", "bytes",
              (Query(f"max by (job, instance) (process_resident_memory_bytes{{{_OF}}})", "{{job}} {{instance}}"),)),
        Panel("Processor", "Processor cores that each process uses.", "none",
              (Query(_rate("process_cpu_seconds_total", "job", "instance"), "{{job}} {{instance}}"),)),
        Panel("Open files and connections", "Of each process.", "none",
              (Query(f"max by (job, instance) (process_open_fds{{{_OF}}})", "{{job}} {{instance}}"),)),
    ),
)  # fmt: skip

_TARGETS = '{__name__=~"kinema_leader|kinema_server_certificate_not_after_seconds|kinema_server_requests_total"}'
BOARD = Board(
    uid="kinema-operator",
    title="Kinema / Operator",
    text="The operator and the API server: whether they work, and how fast.",
    variables=(
        Variable("job", "Scrape job", "Scrape jobs of operator and server", f"label_values({_TARGETS}, job)"),
        Variable("instance", "Instance", "Replicas",
                 f'label_values({_TARGETS[:-1]}, job=~"$job"}}, instance)'),
    ),
    rows=(LIFE, LOOKS, API, SERVER, PROCESSES),
    links={"Fleet": "kinema-fleet", "Job": "kinema-job"},
)  # fmt: skip
