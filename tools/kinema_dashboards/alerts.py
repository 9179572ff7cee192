# SPDX-License-Identifier: Apache-2.0
"""Alerts: what is asked, for how long, what it says, and what somebody who is woken by it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kinema_chart.values import RUNBOOKS

_JOB = "{{ $labels.namespace }}/{{ $labels.vtj }}"


@dataclass(frozen=True, slots=True)
class Step:
    """A thing to do: why, and the exact commands."""

    why: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert and its runbook."""

    name: str
    expr: str
    hold: str
    """How long it must be so."""
    severity: str
    summary: str
    description: str
    meaning: str
    """For people: what is going on."""
    harm: str
    """What follows if nobody does anything."""
    steps: tuple[Step, ...]
    of_job: bool = True

    @property
    def page(self) -> str:
        """Name of the runbook's file."""
        return f"{self.name}.md"

    def wire(self) -> dict[str, Any]:
        """As Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.hold,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.page}",
            },
        }


_WHY = Step("Ask Kinema what it knows: one sentence with the cause and the fix.", ("kinema why NAME -n NAMESPACE",))
_LOGS = Step("Read the end of the log of the first process.", ("kinema logs NAME -n NAMESPACE --tail 200",))

ALERTS = (
    Alert(
        name="KinemaJobStalled",
        expr="kinema_job_progressing == 0",
        hold="1m",
        severity="critical",
        summary=f"{_JOB} stalls",
        description="Neither progress nor the pods' log has moved for twice the limit that the stage set itself.",
        meaning="The pod's own watchdog ends a hang first and leaves the stacks of all threads; here it hangs too, or"
        " the node does. The operator has seen it and is about to end the attempt.",
        harm="The accelerators are held and do nothing.",
        steps=(
            _WHY,
            Step(
                "See whether the pods' nodes are well: a node that does not answer is the usual cause.",
                (
                    "kubectl get pods -n NAMESPACE -l kinema.dev/job=NAME -o wide",
                    "kubectl describe node NODE",
                ),
            ),
            _LOGS,
            Step(
                "If the operator does not end the attempt within ten minutes, end its pods: the next attempt goes on"
                " from the last checkpoint.",
                ("kubectl delete pod -n NAMESPACE -l kinema.dev/job=NAME,kinema.dev/stage=STAGE",),
            ),
        ),
    ),
    Alert(
        name="KinemaJobRestarting",
        expr="increase(kinema_job_restarts_total[1h]) > 2.5",
        hold="0s",
        severity="warning",
        summary=f"{_JOB} restarts again and again",
        description="{{ $value | humanize }} attempts failed within an hour.",
        meaning="Attempts of a stage fail one after the other. Each restart costs the start of the stage and what was"
        " done since the last checkpoint.",
        harm="The job fails when `spec.policy.restarts.limit` is reached; until then it makes little headway.",
        steps=(
            _WHY,
            Step(
                "Look at the failed attempts: the class of their failures, and whether it is always the same node.",
                (
                    "kinema get NAME -n NAMESPACE",
                    "kubectl get vtj NAME -n NAMESPACE -o jsonpath='{range .status.stages[*].attempts[*]}{.child}"
                    '{"\\t"}{.failure}{"\\t"}{.node}{"\\n"}{end}\'',
                ),
            ),
            Step("A node that fails again and again is best taken out.", ("kubectl cordon NODE",)),
            Step(
                "Stop the waste while the cause is sought; resuming goes on from the last checkpoint.",
                ("kinema suspend NAME -n NAMESPACE", "kinema resume NAME -n NAMESPACE"),
            ),
        ),
    ),
    Alert(
        name="KinemaSlowRank",
        expr="max by (namespace, vtj) (kinema_train_straggler_rank) >= 0",
        hold="10m",
        severity="warning",
        summary=f"{_JOB}: rank {{{{ $value }}}} holds up the others",
        description="In every step all processes wait for this one.",
        meaning="A process that does alone what the others do too takes longer: its device is slow (heat, a clock that"
        " was lowered, a faulty link), or its data comes late.",
        harm="The whole gang runs at the pace of the slowest.",
        steps=(
            Step(
                "The job says which node it is, and whether data or the device is slow.",
                (
                    "kinema why NAME -n NAMESPACE",
                    "kubectl get vtj NAME -n NAMESPACE -o jsonpath='{.status.progress.metrics.straggler}'",
                ),
            ),
            Step(
                "Look at that node's accelerators.",
                (
                    "kubectl exec -n NAMESPACE POD -- nvidia-smi -q -d CLOCK,PERFORMANCE,TEMPERATURE",
                    "kubectl exec -n NAMESPACE POD -- npu-smi info",
                ),
            ),
            Step(
                "Take the node out and let the job move on: it resumes from its last checkpoint elsewhere.",
                ("kubectl cordon NODE", "kubectl delete pod -n NAMESPACE POD"),
            ),
        ),
    ),
    Alert(
        name="KinemaLossNotFinite",
        expr="kinema_train_loss != kinema_train_loss or abs(kinema_train_loss) == Inf\n"
        'or kinema_job_last_failure{failure="Numerics"} == 1',
        hold="0s",
        severity="critical",
        summary=f"{_JOB}: the loss is not finite",
        description="The loss became NaN or infinite; the training ends and is not tried again.",
        meaning="The numbers of the training overflowed. Running the same again gives the same, so that Kinema does not"
        " retry.",
        harm="The job ends as Failed.",
        steps=(
            _WHY,
            Step("See when loss and gradient norm began to rise.", ("kinema loss NAME -n NAMESPACE",)),
            Step(
                "Train again from the last good checkpoint with a lower learning rate, a longer warm-up or a tighter"
                " `stages.train.optimizer.clipNorm`: change the spec, then ask for a retry.",
                ("kubectl edit vtj NAME -n NAMESPACE", "kinema retry NAME -n NAMESPACE"),
            ),
        ),
    ),
    Alert(
        name="KinemaCheckpointTooOld",
        expr="vtj:unsaved:seconds > 3600",
        hold="5m",
        severity="warning",
        summary=f"{_JOB}: {{{{ $value | humanizeDuration }}}} of training are in no checkpoint",
        description="A failure now would lose that work.",
        meaning="Checkpoints are written too rarely, or fail: the workspace may be full or slow.",
        harm="What was done since the last checkpoint is done again after the next failure.",
        steps=(
            Step(
                "See whether checkpoints fail.",
                ("kinema logs NAME -n NAMESPACE --grep checkpoint --tail 50",),
            ),
            Step(
                "See whether the workspace is full.",
                (
                    "kubectl get vtj NAME -n NAMESPACE -o jsonpath='{.status.workspace}'",
                    "kinema gc --help",
                ),
            ),
            Step(
                "If they are only rare, set `spec.stages.train.checkpoint.everySteps` so that one follows at least each"
                " half hour.",
                ("kubectl edit vtj NAME -n NAMESPACE",),
            ),
        ),
    ),
    Alert(
        name="KinemaQueueTooLong",
        expr="vtj:queue_wait:seconds > 3600",
        hold="5m",
        severity="warning",
        summary=f"{_JOB} has waited {{{{ $value | humanizeDuration }}}} for its pods",
        description="The attempt of stage {{ $labels.stage }} was created, but its pods do not run.",
        meaning="The pool has no room, a queue holds the job back, or a pod cannot start.",
        harm="The job waits; nothing is lost.",
        steps=(
            _WHY,
            Step(
                "See why the pods do not run.",
                (
                    "kubectl get pods -n NAMESPACE -l kinema.dev/job=NAME",
                    "kubectl describe pods -n NAMESPACE -l kinema.dev/job=NAME",
                ),
            ),
            Step("See what the pools have and who holds it.", ("kinema pools", "kinema list --all-namespaces")),
            Step(
                "With Kueue: where the job stands in its queue.",
                ("kubectl get workloads.kueue.x-k8s.io -n NAMESPACE",),
            ),
        ),
    ),
    Alert(
        name="KinemaOperatorDown",
        expr="absent(kinema_leader == 1)",
        hold="5m",
        severity="critical",
        summary="No Kinema operator leads",
        description="No replica of the operator holds the lease, or Prometheus cannot reach it.",
        meaning="Nobody acts on jobs. What runs goes on running.",
        harm="No stage follows, no failure is answered, suspend and cancel have no effect.",
        of_job=False,
        steps=(
            Step(
                "See whether the operator runs, and what it says.",
                (
                    "kinema doctor",
                    "kubectl get pods -n kinema-system -l app.kubernetes.io/component=operator",
                    "kubectl logs -n kinema-system -l app.kubernetes.io/component=operator --tail 100",
                ),
            ),
            Step("See who holds the lease.", ("kubectl get lease -n kinema-system -o wide",)),
            Step(
                "Pods run and there is a leader: Prometheus does not scrape it. See whether it knows the target.",
                ("kubectl get podmonitors,servicemonitors -n kinema-system",),
            ),
        ),
    ),
    Alert(
        name="KinemaOperatorErrors",
        expr='sum(rate(kinema_reconciles_total{result=~"error|refused|bug"}[10m]))\n'
        "/ sum(rate(kinema_reconciles_total[10m])) > 0.1",
        hold="15m",
        severity="warning",
        summary="{{ $value | humanizePercentage }} of the operator's looks at jobs fail",
        description="`bug` is a fault in the operator, `refused` and `error` come from the API server.",
        meaning="The operator cannot do for some jobs what it decided: a right is missing, a webhook or quota refuses,"
        " or the API server fails.",
        harm="Those jobs do not go on; the others do.",
        of_job=False,
        steps=(
            Step(
                "The log names the job and what was refused.",
                ("kubectl logs -n kinema-system -l app.kubernetes.io/component=operator --tail 500 | grep -i warn",),
            ),
            Step("See whether a right is missing.", ("kinema doctor",)),
            Step("A `bug`: keep what is needed to report it.", ("kinema report --file kinema-report.zip",)),
        ),
    ),
    Alert(
        name="KinemaWatchSilent",
        expr="kinema_watch_age_seconds > 720",
        hold="5m",
        severity="warning",
        summary="The operator's watch of {{ $labels.resource }} shows no life",
        description="For {{ $value | humanizeDuration }} neither an event nor a reconnection came.",
        meaning="The operator does not hear of changes; its full comparison, each few minutes, still finds them.",
        harm="Jobs react minutes late.",
        of_job=False,
        steps=(
            Step(
                "See whether the API server is reachable from the operator.",
                ("kubectl logs -n kinema-system -l app.kubernetes.io/component=operator --tail 200", "kinema doctor"),
            ),
            Step(
                "Start the operator anew: another replica takes over at once.",
                ("kubectl rollout restart deployment -n kinema-system -l app.kubernetes.io/component=operator",),
            ),
        ),
    ),
    Alert(
        name="KinemaServerErrors",
        expr='sum(rate(kinema_server_requests_total{code=~"5.."}[10m]))\n'
        "/ sum(rate(kinema_server_requests_total[10m])) > 0.05",
        hold="10m",
        severity="warning",
        summary="{{ $value | humanizePercentage }} of the API server's answers are errors",
        description="Progress of running jobs and what people ask for may be missing.",
        meaning="The server cannot do what it is asked for: mostly the Kubernetes API does not answer it.",
        harm="Progress in `status` is old; training goes on.",
        of_job=False,
        steps=(
            Step(
                "The log says which request failed.",
                ("kubectl logs -n kinema-system -l app.kubernetes.io/component=server --tail 200",),
            ),
            Step("Check the installation.", ("kinema doctor",)),
        ),
    ),
    Alert(
        name="KinemaServerCertificateEnds",
        expr="kinema_server_certificate_not_after_seconds - time() < 3 * 86400",
        hold="1h",
        severity="critical",
        summary="The API server's certificate ends in {{ $value | humanizeDuration }}",
        description="It should have been renewed long ago.",
        meaning="The operator (or cert-manager) renews the certificate well before its end; here it did not.",
        harm="When it ends no pod can post progress and no one can ask the server.",
        of_job=False,
        steps=(
            Step(
                "See what the operator says of the certificate.",
                (
                    "kubectl logs -n kinema-system -l app.kubernetes.io/component=operator --tail 1000"
                    " | grep -i certificate",
                ),
            ),
            Step(
                "With cert-manager: see why it does not renew.",
                ("kubectl get certificates,certificaterequests -n kinema-system",),
            ),
            Step("See which Secret the server reads.", ("kubectl get secrets -n kinema-system", "kinema doctor")),
        ),
    ),
)
