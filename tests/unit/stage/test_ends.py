# SPDX-License-Identifier: Apache-2.0
"""What a failure becomes: its exit code, and a sentence with the cause and what to do."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kinema_api.exits import Exit, StageError
from kinema_api.names import Stage
from kinema_stage import logs, termination
from kinema_stage.memory import Memory
from kinema_stage.termination import WorkerError, failure

WORKSPACE = Path("/kinema/volumes/runs")


class OutOfMemoryError(RuntimeError):
    """Stands for torch's, which is known by its name."""


class DistError(RuntimeError):
    """Stands for torch.distributed's."""


CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.21 GiB is free."
    " Of the allocated memory 70.00 GiB is allocated by PyTorch, and 5.00 GiB is reserved by PyTorch but unallocated."
    " If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF. See documentation for Memory"
    " Management"
)
NPU = "NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.97 GiB total capacity; 58.20 GiB already allocated)"


def full(path: str | None, number: int = errno.ENOSPC) -> OSError:
    return OSError(number, "No space left on device", path) if path else OSError(number, "No space left on device")


@pytest.mark.parametrize("stage", [None, *Stage])
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (StageError(Exit.DATA, "no clips"), Exit.DATA, ["no clips"]),
        (MemoryError(), Exit.HOST_OUT_OF_MEMORY, ["host's memory", "raise the stage's resources.memory"]),
        (
            OSError(errno.ENOMEM, "Cannot allocate memory"),
            Exit.HOST_OUT_OF_MEMORY,
            ["raise the stage's resources.memory"],
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            Exit.HOST_OUT_OF_MEMORY,
            ["you tried to allocate 9 bytes"],
        ),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."),
            Exit.HOST_OUT_OF_MEMORY,
            ["pid 12", "raise the stage's resources.memory"],
        ),
        (OutOfMemoryError(CUDA), Exit.OUT_OF_MEMORY, ["79.10 GiB", "70.00 GiB is allocated", "5.00 GiB is reserved"]),
        (RuntimeError(NPU), Exit.OUT_OF_MEMORY, ["60.97 GiB total capacity", "58.20 GiB already allocated"]),
        (full(f"{WORKSPACE}/jobs/x"), Exit.STORAGE, [f"the workspace {WORKSPACE} is full", "enlarge the volume"]),
        (full("/tmp/kinema-x"), Exit.STORAGE, ["the local disk at /tmp/kinema-x is full", "GiB free", "scratch"]),
        (full(None), Exit.STORAGE, [f"the workspace {WORKSPACE} is full"]),
        (full(f"{WORKSPACE}/x", errno.EDQUOT), Exit.STORAGE, [f"the workspace {WORKSPACE} is full"]),
        (full(f"{WORKSPACE}/x", errno.EIO), Exit.STORAGE, [f"the workspace {WORKSPACE} fails"]),
        (DistError("Connection closed by peer"), Exit.COMMUNICATION, ["closed by peer"]),
        (KeyboardInterrupt(), Exit.INTERRUPTED, []),
        (ZeroDivisionError("division by zero"), Exit.INTERNAL, ["ZeroDivisionError"]),
    ],
)
def test_every_failure_of_every_stage_has_a_code_and_a_sentence(
    error: BaseException, code: Exit, words: list[str], stage: Stage | None
) -> None:
    end = failure(error, workspace=WORKSPACE, stage=stage)
    assert end.code == code
    assert end.reason == "".join(word.capitalize() for word in code.name.split("_"))
    assert [word for word in words if word not in end.message] == [], end.message


def test_the_devices_memory_comes_with_advice_that_fits_the_stage() -> None:
    train = failure(OutOfMemoryError(CUDA), workspace=None, stage=Stage.TRAIN).message
    assert [word for word in ("recompute", "batchPerDevice", "more devices") if word not in train] == []
    assert "PYTORCH_CUDA_ALLOC_CONF" not in train
    assert "stages.features.dtype" in failure(OutOfMemoryError(CUDA), workspace=None, stage=Stage.FEATURES).message


def test_the_cause_behind_an_error_counts() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError as cause:
            raise RuntimeError("a clip failed") from cause
    except RuntimeError as error:
        assert failure(error, workspace=None).code == Exit.HOST_OUT_OF_MEMORY


def test_what_a_process_left_reaches_the_message() -> None:
    end = failure(WorkerError(Exit.STALLED, "rank 1 hung", stacks="s3://b/s.txt", tail="step=3"), workspace=None)
    assert (end.code, end.reason, end.stacks, end.log_tail) == (Exit.STALLED, "Stalled", "s3://b/s.txt", "step=3")


def test_the_hosts_memory_comes_with_figures() -> None:
    memory = Memory(current=1 << 30, peak=2 << 30, limit=2 << 30, kills=1)
    text = termination.host_memory("it was killed", memory=memory)
    assert "in use 1.00 GiB, peak 2.00 GiB, limit 2.00 GiB" in text
    assert "raise the stage's resources.memory" in text


def test_the_tail_is_the_last_lines_that_are_not_empty() -> None:
    tail = logs.Tail(3)
    tail.add("one\n\ntwo\nthree\n")
    tail.add("four")
    assert tail.text == "two\nthree\nfour"
