# SPDX-License-Identifier: Apache-2.0
"""The fleet: what all jobs do, what they hold, what is wasted, what it costs."""

from __future__ import annotations

from kinema_dashboards.boards import Board, Panel, Query, Row, Shape, Threshold, Variable

_OF = 'namespace=~"$namespace"'

JOBS = Row(
    "Jobs",
    (
        Panel("Running", "Jobs of which an attempt runs, waits to run, or follows soon.", "none",
              (Query('sum(kinema_jobs{phase="Running"})', "running"),), Shape.NUMBER, 4, 4),
        Panel("Pending", "Jobs that cannot start yet: pool, image or right is missing, or they just came.", "none",
              (Query('sum(kinema_jobs{phase="Pending"})', "pending"),), Shape.NUMBER, 4, 4),
        Panel("Stalled", "Jobs that run but do not move.", "none",
              (Query(f"count(kinema_job_progressing{{{_OF}}} == 0) or vector(0)", "stalled"),), Shape.NUMBER, 4, 4,
              thresholds=(Threshold(1, "red"),)),
        Panel("Failed in 24 hours", "Jobs that ended as Failed within a day.", "none",
              (Query('round(sum(increase(kinema_jobs_ended_total{phase="Failed"}[1d]))) or vector(0)', "failed"),),
              Shape.NUMBER, 4, 4, thresholds=(Threshold(1, "orange"),)),
        Panel("Goodput now", "Share of the accelerators in use that are at productive work, over two minutes; the rest"
              " starts, waits for data or waits for checkpoints.", "percentunit",
              (Query("kinema:goodput:ratio", "goodput"),), Shape.NUMBER, 4, 4, at_least=0, at_most=1,
              thresholds=(Threshold(0, "red"), Threshold(0.7, "orange"), Threshold(0.9, "green"))),
        Panel("Cost now", "Price of an hour of all accelerators that jobs hold, where their pools have prices.",
              "none",
              (Query(f"sum by (currency) (vtj:cost_rate:per_hour{{{_OF}}})", "{{currency}} an hour"),),
              Shape.NUMBER, 4, 4),
        Panel("Jobs by phase", "Every job that the operator knows.", "none",
              (Query("sum by (phase) (kinema_jobs)", "{{phase}}"),), Shape.STACK, 12),
        Panel("Longest wait", "How long the attempt that waits longest has waited for its pods to run, by stage.", "s",
              (Query(f"max by (stage) (vtj:queue_wait:seconds{{{_OF}}})", "{{stage}}"),), width=6),
        Panel("Waiting", "Attempts whose pods do not all run: no room, a queue, or a pod that cannot start.", "none",
              (Query(f"count by (stage) (kinema_job_queued_timestamp_seconds{{{_OF}}})", "{{stage}}"),),
              Shape.STACK, 6),
    ),
)  # fmt: skip
ACCELERATORS = Row(
    "Accelerators",
    (
        Panel("Held by pool", "Accelerators that running attempts hold, and what the pools have by their description.",
              "none",
              (Query(f"sum by (pool) (kinema_job_accelerators{{{_OF}}})", "{{pool}} held"),
               Query("sum by (pool) (kinema_pool_accelerators)", "{{pool}} there are")), width=8),
        Panel("What they do", "Accelerators by what they do, over two minutes; a job on a cpu pool counts as one. All"
              " but productive is wasted.", "none",
              (Query(f"sum by (activity) (vtj:accelerators:by_activity{{{_OF}}})", "{{activity}}"),), Shape.STACK, 8),
        Panel("Utilisation", "How busy the accelerators of jobs are, by vendor, as their exporters measure it.",
              "percentunit",
              (Query(f"avg by (vendor) (vtj:accelerator_util:ratio{{{_OF}}})", "{{vendor}}"),), width=8,
              at_least=0, at_most=1),
        Panel("Accelerator-hours by what they went to", "Of attempts that ended within the time shown; lost is work"
              " that no checkpoint held.", "h",
              (Query("sum by (activity) (increase(kinema_accelerator_seconds_total[$__range])) / 3600", "{{activity}}"),
               ), Shape.BARS, 8),
        Panel("Failures by class", "Failed attempts within the time shown.", "none",
              (Query("round(sum by (failure) (increase(kinema_attempt_failures_total[$__range])))", "{{failure}}"),),
              Shape.BARS, 8),
        Panel("Money by what it went to", "Price of the accelerator-hours of attempts that ended within the time shown,"
              " in the currency of their pool.", "none",
              (Query("sum by (currency, activity) (increase(kinema_cost_total[$__range]))",
                     "{{activity}} ({{currency}})"),), Shape.BARS, 8),
    ),
)  # fmt: skip
TABLE = Row(
    "Every job under way",
    (
        Panel("Jobs", "Jobs that have not ended, and those that did within the hour.", "none",
              (Query(f"max by (namespace, vtj, model, phase, stage) (kinema_job_info{{{_OF}}})"),
               Query(f"max by (namespace, vtj) (kinema_job_progress_ratio{{{_OF}}})"),
               Query(f"max by (namespace, vtj) (kinema_job_eta_seconds{{{_OF}}})"),
               Query(f"max by (namespace, vtj) (kinema_job_loss{{{_OF}}})"),
               Query(f"max by (namespace, vtj) (kinema_job_accelerators{{{_OF}}})"),
               Query(f"max by (namespace, vtj) (vtj:goodput:ratio{{{_OF}}})"),
               Query(f"max by (namespace, vtj) (kinema_job_restarts_total{{{_OF}}})"),
               Query(f"sum by (namespace, vtj, currency) (kinema_job_cost{{{_OF}}})")), Shape.TABLE, 24, 10,
              columns={"": "none", "progress": "percentunit", "left": "s", "loss": "none", "accelerators": "none",
                       "goodput": "percentunit", "restarts": "none", "cost": "none"}),
    ),
)  # fmt: skip

BOARD = Board(
    uid="kinema-fleet",
    title="Kinema / Fleet",
    text="What all training jobs do, what they hold, what of it is wasted and what it costs.",
    variables=(Variable("namespace", "Namespace", "Namespaces of jobs", "label_values(kinema_job_info, namespace)"),),
    rows=(JOBS, ACCELERATORS, TABLE),
    period="24h",
    links={"Job": "kinema-job", "Operator": "kinema-operator"},
)
