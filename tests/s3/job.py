# SPDX-License-Identifier: Apache-2.0
"""The example's job with everything in a bucket, for a store on this machine; and what it must leave there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from kinema_api.pipeline import merge

from tests.s3.bucket import ObjectStore

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "wan-job-s3.yaml"
ENDPOINT = "http://minio.storage.svc:9000"
BUCKET, SECRET = "kinema", "s3-keys"
WEIGHTS, VIDEOS, WORKSPACE = "demo/wan2.1-tiny", "demo/videos", "training"
FOLDERS = re.compile(
    rf"{WORKSPACE}/(artifacts/\w+/\w+|jobs/[\w-]+/[\w-]+/(checkpoints/step-\d+|export|samples))/(?P<file>.+)"
)
"""Objects of folders that are published as a whole."""
SCAFFOLD = "audit/"
"""Records beside the shards of features, which nobody reads to train."""


def job(url: str, *, name: str, **spec: Any) -> dict[str, Any]:
    """The example's job at another endpoint, under another name, and with other settings laid over its own."""
    text = EXAMPLE.read_text(encoding="utf-8")
    assert text.count(f"endpoint: {ENDPOINT}") == 3
    found: dict[str, Any] = yaml.safe_load(text.replace(ENDPOINT, url))
    return {**found, "metadata": {**found["metadata"], "name": name}, "spec": merge(found["spec"], spec)}


def published(store: ObjectStore) -> dict[str, dict[str, int]]:
    """The files of every folder that is published as a whole; fails where one of them is not whole."""
    folders: dict[str, dict[str, int]] = {}
    for key, size in store.sizes().items():
        if found := FOLDERS.match(key):
            folders.setdefault(found[1], {})[found["file"]] = size
    for folder, files in folders.items():
        manifest = json.loads(store.read(f"{WORKSPACE}/{folder}/_SUCCESS.json") or b"{}")
        assert manifest, f"{folder} has no manifest"
        content = {name: size for name, size in files.items() if name != "_SUCCESS.json"}
        listed = {name: size for name, size in manifest["files"].items() if not name.startswith(SCAFFOLD)}
        assert {name: size for name, size in content.items() if not name.startswith(SCAFFOLD)} == listed, folder
        assert listed, folder
    return folders


def lines(store: ObjectStore, folder: str, name: str) -> list[dict[str, Any]]:
    """The records of a JSON-lines file of a job's folder."""
    text = store.read(f"{WORKSPACE}/{folder}/{name}")
    assert text is not None, f"{folder} has no {name}"
    return [json.loads(line) for line in text.splitlines()]
