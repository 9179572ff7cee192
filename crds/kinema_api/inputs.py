# SPDX-License-Identifier: Apache-2.0
"""Where a job's weights, videos and workspace lie, and how to reach them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kinema_api.base import HttpUrl, Model, ObjectName, ShortText, Uri, Word

NOWHERE = "mock://"
"""The address of a dataset that lies nowhere."""


class SecretRef(Model):
    """A Secret of the job's namespace."""

    name: ObjectName
    """Its name."""


class Location(Model):
    """An address, and how to reach it."""

    uri: Uri
    """The address."""
    endpoint: HttpUrl | None = None
    """The service's own address where it is not AWS's or Hugging Face's, for instance https://minio.storage.svc:9000."""
    region: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9-]+$")] | None = None
    """s3:// only: the bucket's region; us-east-1 when nothing else says so."""
    path_style: bool | None = None
    """s3:// only: name the bucket in the path, as MinIO wants it, and not in the host name. When left out: true where
    there is an endpoint."""
    secret_ref: SecretRef | None = None
    """The Secret with the credentials. s3://: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where there is one,
    AWS_SESSION_TOKEN. hf://: HF_TOKEN. Either: ca.crt, PEM certificates to trust in place of the system's. When left
    out, the identity of the pod's service account counts."""


class Weights(Location):
    """Where the pretrained weights lie."""

    uri: Uri
    """A folder in diffusers' layout (model_index.json, transformer, vae, text_encoder, tokenizer), for instance
    pvc://models/Wan2.1-T2V-1.3B-Diffusers or s3://models/Wan2.1-T2V-1.3B-Diffusers; or a repository of Hugging Face's
    hub, for instance hf://Wan-AI/Wan2.1-T2V-1.3B-Diffusers."""
    revision: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\w.][\w./-]*$")] | None = None
    """hf:// only: the commit, tag or branch. A branch is pinned to its commit when the job starts."""


class DatasetFormat(Word):
    """How videos and captions are listed."""

    FOLDER = "folder"
    CSV = "csv"
    JSONL = "jsonl"
    MOCK = "mock"


class Captions(Model):
    """Where a csv or jsonl dataset keeps its columns."""

    video_column: ShortText = "video"
    """Column with the video's path, relative to the listing file."""
    caption_column: ShortText = "caption"
    """Column with the caption."""


class Mock(Model):
    """A dataset without videos."""

    clips: int = Field(default=64, ge=1, le=10_000_000)
    """Clips that there are."""


class Dataset(Location):
    """The videos to learn from."""

    uri: Uri = NOWHERE
    """folder: a folder of videos, each with a caption beside it (NAME.txt, or NAME.json with the key caption).
    csv, jsonl: the listing file. For instance pvc://data/clips or s3://data/clips/captions.csv. mock: left out."""
    format: DatasetFormat = DatasetFormat.FOLDER
    """folder, csv or jsonl; mock for a trial run without videos: random features of the right shapes, nothing is
    decoded or encoded."""
    captions: Captions = Field(default_factory=Captions)
    """Column names of csv and jsonl."""
    mock: Mock = Field(default_factory=Mock)
    """What a mock has."""


class Storage(Location):
    """The workspace: all that stages read and write."""

    uri: Uri
    """A root on a volume that every node can mount (ReadWriteMany), for instance pvc://training/kinema, or in a bucket,
    for instance s3://training/kinema. Jobs that share a workspace share prepared data."""
