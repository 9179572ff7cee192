# SPDX-License-Identifier: Apache-2.0
"""One job: is it alive, does it learn, how fast, what holds it up, what would be lost, what does it cost."""

from __future__ import annotations

from kinema_dashboards.boards import Board, Panel, Query, Row, Shape, Threshold, Variable

_OF = 'namespace="$namespace", vtj="$vtj"'
_BY = "max by (namespace, vtj)"


def _latest(name: str, *more: str) -> str:
    """A number of the running attempt: pods of an attempt that is over say no more."""
    chosen = ", ".join((_OF, *more))
    return f"{_BY} ({name}{{{chosen}}})"


STANDING = Row(
    "Where it stands",
    (
        Panel("Progress", "How much of the running stage is done.", "percentunit",
              (Query(f"max by (stage) (kinema_job_progress_ratio{{{_OF}}})", "{{stage}}"),), Shape.NUMBER, 4, 4,
              at_least=0, at_most=1),
        Panel("Left", "Estimated time that is left of the running stage.", "s",
              (Query(f"max by (stage) (kinema_job_eta_seconds{{{_OF}}})", "{{stage}}"),), Shape.NUMBER, 4, 4),
        Panel("Moves", "Whether the running attempt moves, as the operator sees it.", "none",
              (Query(_latest("kinema_job_progressing"), "moves"),), Shape.NUMBER, 4, 4,
              names={0: ("stalls", "red"), 1: ("moves", "green")}),
        Panel("Restarts", "Failed attempts over all stages.", "none",
              (Query(_latest("kinema_job_restarts_total"), "restarts"),), Shape.NUMBER, 4, 4,
              thresholds=(Threshold(1, "orange"), Threshold(5, "red"))),
        Panel("Goodput", "Share of the time on its nodes that went into the stages' own work.", "percentunit",
              (Query(_latest("vtj:goodput:ratio"), "goodput"),), Shape.NUMBER, 4, 4, at_least=0, at_most=1,
              thresholds=(Threshold(0, "red"), Threshold(0.7, "orange"), Threshold(0.9, "green"))),
        Panel("Cost", "Price of the accelerators that the job has held so far, where its pools have prices.",
              "none",
              (Query(f"sum by (currency) (kinema_job_cost{{{_OF}}})", "{{currency}}"),), Shape.NUMBER, 4, 4),
        Panel("Stages", "The stages of the job over time.", "none",
              (Query(f"max by (stage) (kinema_job_stage_state{{{_OF}}})", "{{stage}}"),), Shape.STATES, 24, 7,
              names={0: ("pending", "text"), 1: ("running", "blue"), 2: ("succeeded", "green"),
                     3: ("skipped", "super-light-green"), 4: ("failed", "red")}),
    ),
)  # fmt: skip
LEARNING = Row(
    "Learning",
    (
        Panel("Loss", "Training loss of each step, and the mean of the last validation.", "none",
              (Query(_latest("kinema_train_loss"), "training"),
               Query(_latest("kinema_train_validation_loss"), "validation")), width=6, logarithmic=True),
        Panel("Validation by noise level", "Mean loss of the last validation, over the held-out clips, for each level.",
              "none", (Query(f"max by (sigma) (kinema_train_validation_level_loss{{{_OF}}})", "sigma {{sigma}}"),),
              width=6, logarithmic=True),
        Panel("Learning rate", "As the schedule gives it.", "sci",
              (Query(_latest("kinema_train_learning_rate"), "learning rate"),), width=6),
        Panel("Gradient norm", "Before clipping. A rise by orders of magnitude comes before a loss that is not finite.",
              "none", (Query(_latest("kinema_train_gradient_norm"), "norm"),), width=6, logarithmic=True),
    ),
)  # fmt: skip
PACE = Row(
    "Pace",
    (
        Panel("Samples a second", "Clips trained on, over all processes.", "none",
              (Query(_latest("kinema_train_samples_per_second"), "samples"),), width=6),
        Panel("Tokens a second", "Tokens trained on, over all processes.", "short",
              (Query(_latest("kinema_train_tokens_per_second"), "tokens"),), width=6),
        Panel("MFU", "Operations of the model, of what the devices can do at most (MFU), and with what is computed"
              " again (HFU). None where the device's peak is not known.", "percentunit",
              (Query(_latest("kinema_train_mfu_ratio"), "MFU"), Query(_latest("kinema_train_hfu_ratio"), "HFU")),
              width=6, at_least=0),
        Panel("Operations a second of a device", "Operations of the model, of one device.", "flops",
              (Query(_latest("kinema_train_model_flops_per_second"), "model"),), width=6),
        Panel("What a step goes to", "Time of a step of the first process by what it went to.", "s",
              (Query(f"max by (phase) (kinema_train_phase_seconds{{{_OF}}})", "{{phase}}"),), Shape.STACK, 8),
        Panel("Wait for data", "Share of a step in which the first process waits for its batch.", "percentunit",
              (Query(f'{_latest("kinema_train_phase_seconds", "phase=" + chr(34) + "data" + chr(34))}'
                     f' / {_latest("kinema_train_step_seconds")}', "data"),), width=8, at_least=0,
              thresholds=(Threshold(0.1, "orange"), Threshold(0.3, "red"))),
        Panel("Packing", "Share of the tokens that are padding, and share of the step that processes wait for those"
              " with dearer packs.", "percentunit",
              (Query(_latest("kinema_train_padding_ratio"), "padding"),
               Query(_latest("kinema_train_imbalance_ratio"), "wait for dearer packs")), width=8, at_least=0),
    ),
)  # fmt: skip
RANKS = Row(
    "Processes",
    (
        Panel("Straggler", "The process that holds up the others; -1 when none does.", "none",
              (Query(_latest("kinema_train_straggler_rank"), "rank"),), width=8, at_least=-1),
        Panel("Slowest and middle process", "What processes do alone, a step. Far apart: one holds up all.", "s",
              (Query(f"max by (phase, statistic) (kinema_train_rank_seconds{{{_OF}}})", "{{phase}} {{statistic}}"),),
              width=8),
        Panel("Memory of each rank", "The most that each process has had on its device, and what its tensors should"
              " take by the plan; a CPU's process counts whole.", "bytes",
              (Query(f"max by (rank) (kinema_train_memory_peak_bytes{{{_OF}}})", "rank {{rank}}"),
               Query(_latest("kinema_train_memory_planned_bytes"), "planned")), width=8, at_least=0),
        Panel("Utilisation of each accelerator", "As the vendor's exporter measures it; 100 % may be one busy kernel.",
              "percentunit",
              (Query(f"max by (pod, device) (vtj:accelerator_util:ratio{{{_OF}}})", "{{pod}} {{device}}"),), width=8,
              at_least=0, at_most=1),
        Panel("Memory of each accelerator", "As the vendor's exporter measures it.", "bytes",
              (Query(f"max by (pod, device) (vtj:accelerator_memory_used:bytes{{{_OF}}})", "{{pod}} {{device}}"),),
              width=8, at_least=0),
        Panel("Power and temperature", "As the vendor's exporter measures them: the sum of the power, the hottest"
              " accelerator.", "none",
              (Query(f"sum(vtj:accelerator_power:watts{{{_OF}}})", "watts"),
               Query(f"max(vtj:accelerator_temperature:celsius{{{_OF}}})", "hottest, °C")), width=8, at_least=0),
    ),
)  # fmt: skip
LEDGER = Row(
    "Checkpoints, restarts and the ledger",
    (
        Panel("Work in no checkpoint", "Training that would be lost if the attempt failed now; it drops to nothing with"
              " each checkpoint.", "s", (Query(_latest("vtj:unsaved:seconds"), "unsaved"),), width=6, at_least=0,
              thresholds=(Threshold(3600, "red"),)),
        Panel("Held up by checkpoints", "Share of the time in which training waits for a checkpoint.", "percentunit",
              (Query(f'{_BY} (rate(kinema_stage_seconds_total{{{_OF}, activity="checkpoint"}}[$__rate_interval]))',
                     "held up"),), width=6, at_least=0, thresholds=(Threshold(0.05, "orange"),)),
        Panel("Restarts", "Failed attempts over all stages.", "none",
              (Query(_latest("kinema_job_restarts_total"), "restarts"),), width=6, at_least=0),
        Panel("Age of the last word", "How long ago the stage said how far it is, and the limit after which it would be"
              " taken for a hang.", "s",
              (Query(_latest("vtj:progress_age:seconds"), "age"),
               Query(_latest("kinema_stage_stall_limit_seconds"), "limit")), width=6, at_least=0),
        Panel("Where the time went", "Wall time of all attempts; lost is work that no checkpoint held.", "s",
              (Query(f"sum by (activity) (vtj:seconds:total{{{_OF}}})", "{{activity}}"),), Shape.BARS, 8),
        Panel("Accelerators by what they do", "Over two minutes; a job on a cpu pool counts as one.", "none",
              (Query(f"sum by (activity) (vtj:accelerators:by_activity{{{_OF}}})", "{{activity}}"),), Shape.STACK, 8),
        Panel("Accelerator-hours", "Of the attempts that are over, by what they went to.", "h",
              (Query(f"sum by (activity) (kinema_job_accelerator_seconds_total{{{_OF}}}) / 3600", "{{activity}}"),),
              Shape.BARS, 8),
    ),
)  # fmt: skip

BOARD = Board(
    uid="kinema-job",
    title="Kinema / Job",
    text="One training job: where it stands, whether it learns, how fast, what holds it up, what it costs.",
    variables=(
        Variable("namespace", "Namespace", "Namespace of the job", "label_values(kinema_job_info, namespace)",
                 many=False),
        Variable("vtj", "Job", "The job", 'label_values(kinema_job_info{namespace="$namespace"}, vtj)', many=False),
    ),
    rows=(STANDING, LEARNING, PACE, RANKS, LEDGER),
    links={"Fleet": "kinema-fleet", "Operator": "kinema-operator"},
)  # fmt: skip
