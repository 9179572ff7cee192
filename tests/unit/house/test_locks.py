# SPDX-License-Identifier: Apache-2.0
"""Every requirement is pinned and hashed, and comes from wherever the machine is set up to look."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
LOCKS = sorted([*REPOSITORY.glob("requirements/*.txt"), *REPOSITORY.glob("images/*/requirements.txt")])
SHARED = {"stage.in", "torch.in", "trainer.in", "trainer-common.in", "control-plane.in", "dev-overrides.in"}
PIN = re.compile(r"^([a-z0-9._-]+)==(\S+)( ; [^\\]+)? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


def pins(lock: Path) -> dict[str, str]:
    return {found[1]: found[2] for line in lock.read_text().splitlines() if (found := PIN.match(line))}


def unhashed(text: str) -> list[str]:
    """The lines of a lock that are neither a pin that a hash follows, nor a hash, nor a comment."""
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    following = [*lines[1:], ""]
    return [
        line
        for line, after in zip(lines, following, strict=True)
        if not HASH.match(line) and not (PIN.match(line) and HASH.match(after))
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_line_is_pinned_and_hashed(lock: Path) -> None:
    text = lock.read_text()
    assert unhashed(text) == []
    assert pins(lock)
    assert "://" not in text
    assert "make lock" in text.splitlines()[1]


def test_a_pin_without_a_hash_is_seen() -> None:
    good = "a==1 \\\n    --hash=sha256:" + "0" * 64 + "\n    # via b\n"
    assert unhashed(good) == []
    assert unhashed("a==1\n" + good) == ["a==1"]
    assert unhashed("--index-url x\n" + good) == ["--index-url x"]


def test_every_input_has_its_lock() -> None:
    inputs = [*REPOSITORY.glob("requirements/*.in"), *REPOSITORY.glob("images/*/requirements.in")]
    without = [path.name for path in inputs if not path.with_suffix(".txt").exists()]
    assert set(without) == SHARED


def test_definitions_are_written_and_compared_by_one_pydantic() -> None:
    """The operator makes the digest of its definitions anew; another release may spell a schema differently."""
    locks = ("requirements/dev.txt", "images/control-plane/requirements.txt")
    assert len({pins(REPOSITORY / lock)["pydantic"] for lock in locks}) == 1


def test_native_images_share_one_torch() -> None:
    torch = pins(REPOSITORY / "images/torch/requirements.txt")
    wan = pins(REPOSITORY / "images/wan2.1/requirements.txt")
    assert torch["torch"] == "2.15.0"
    assert {name: wan.get(name) for name in torch} == torch


def test_development_and_images_have_the_same_libraries() -> None:
    development = pins(REPOSITORY / "requirements/dev.txt")
    for name in ("torch", "diffusers", "transformers", "safetensors", "tokenizers", "webdataset", "pydantic"):
        assert pins(REPOSITORY / "images/wan2.1/requirements.txt")[name] == development[name]
    for name in ("kopf", "kubernetes", "fastapi", "pydantic"):
        assert pins(REPOSITORY / "images/control-plane/requirements.txt")[name] == development[name]


def test_the_ascend_lock_has_a_torch_that_torch_npu_takes() -> None:
    lock = REPOSITORY / "images/wan2.1-ascend/requirements.txt"
    found = pins(lock)
    assert found["torch-npu"] == "2.14.0"
    assert found["torch"].startswith("2.14.")
