# SPDX-License-Identifier: Apache-2.0
"""Weights on Hugging Face's hub, or a mirror of it: pinned to a commit, read by parts, fetched into scratch."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path

from httpx2 import Client, HTTPError
from huggingface_hub import HfApi, hf_hub_url, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff, tqdm  # type: ignore[attr-defined]

from kinema_api.exits import Exit
from kinema_api.inputs import Weights
from kinema_api.locations import repository_of
from kinema_stage import pulse, scratch, secrets
from kinema_stage.bucket import cache
from kinema_stage.faults import StoreError
from kinema_stage.source import ListedSource

_TOKEN = "HF_TOKEN"
_TIMEOUT_SECONDS = 60.0
"""Without a byte."""


def _client(certificates: str | None) -> Client:
    """What the hub's library sends by, in the whole process."""
    context = ssl.create_default_context(cafile=certificates) if certificates else True
    return Client(verify=context, follow_redirects=True, timeout=_TIMEOUT_SECONDS)


class _Heard(tqdm):
    """The library's bar of all bytes that come down, whose every move is a sign of life."""

    def update(self, n: float | None = 1) -> bool | None:
        pulse.beat()
        shown: bool | None = super().update(n)
        return shown


class HubSource(ListedSource):
    """A repository at one commit.

    Args:
        weights: its address; a branch or tag is resolved once.

    Raises:
        ValueError: the address names no repository.
        StageError: it is not there, may not be read, or the hub cannot be reached.
    """

    def __init__(self, weights: Weights) -> None:
        repository = repository_of(weights.uri)
        if repository is None:
            raise ValueError(f"{weights.uri}: write hf://ORGANISATION/REPOSITORY")
        self.where = weights.uri.rstrip("/")
        self._weights = weights
        self._repository = repository
        certificates = secrets.certificates(weights)
        # A Secret that brings the certificates of a mirror need not bring a token.
        self._token = secrets.read(weights, *(() if certificates else (_TOKEN,))).get(_TOKEN, False)
        set_client_factory(partial(_client, certificates))
        self._api = HfApi(endpoint=weights.endpoint, token=self._token)
        with self._explained():
            info = self._api.model_info(repository, revision=weights.revision, files_metadata=True)
        self.revision: str = str(info.sha)
        self._listed = info.siblings or []

    @cached_property
    def _files(self) -> Mapping[str, tuple[int, str]]:
        return {
            file.rfilename: (file.size or 0, file.lfs.sha256 if file.lfs else str(file.blob_id))
            for file in sorted(self._listed, key=lambda file: file.rfilename)
            if not any(part.startswith(".") for part in file.rfilename.split("/"))
        }

    def size(self, name: str) -> int:
        if name not in self._files:
            raise FileNotFoundError(self.place(name))
        return self._files[name][0]

    def read(self, name: str, *, end: int | None = None) -> bytes:
        url = hf_hub_url(self._repository, name, revision=self.revision, endpoint=self._weights.endpoint)
        headers = build_hf_headers(token=self._token)
        if end is not None:
            headers["Range"] = f"bytes=0-{end - 1}"
        with self._explained(name):
            answer = http_backoff("GET", url, headers=headers, follow_redirects=True)
            hf_raise_for_status(answer)
            return bytes(answer.content[:end])

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        yield self.fetch_folders(name) / name

    def fetch_folders(self, *folders: str) -> Path:
        wanted = [name for name in self._files if not folders or any(_within(name, folder) for folder in folders)]
        for folder in folders:
            if not any(_within(name, folder) for name in wanted):
                raise FileNotFoundError(2, "No such file", self.place(folder))
        target = cache(self._weights, f"{self.where}@{self.revision}")
        with scratch.locked(target.parent), scratch.named_when_full(), self._explained():
            self._api.snapshot_download(
                self._repository, revision=self.revision, local_dir=target, allow_patterns=wanted, tqdm_class=_Heard
            )
        for name in wanted:
            if (target / name).stat().st_size != self.size(name):
                raise StoreError(Exit.STORAGE, f"model.weights.uri: {self.place(name)} came down cut off; run it again")
        return target

    @contextlib.contextmanager
    def _explained(self, name: str = "") -> Iterator[None]:
        field, repository = "model.weights", self._repository
        page = f"{self._weights.endpoint or 'https://huggingface.co'}/{repository}"
        try:
            yield
        except GatedRepoError:
            message = (
                f"{field}.uri: {repository} is given only to who accepted its licence; accept it at {page}, and name a"
                f" Secret with that account's {_TOKEN} in {field}.secretRef"
            )
            raise StoreError(Exit.USER, message) from None
        except RevisionNotFoundError:
            message = f"{field}.revision: {repository} has no {self._weights.revision}; correct it"
            raise StoreError(Exit.USER, message) from None
        except RepositoryNotFoundError:
            message = (
                f"{field}.uri: there is no repository {repository}, or the {_TOKEN} of {field}.secretRef may not see"
                " it; correct the address or the token"
            )
            raise StoreError(Exit.USER, message) from None
        except EntryNotFoundError:
            raise FileNotFoundError(2, "No such file", self.place(name)) from None
        except (HfHubHTTPError, HTTPError) as error:
            text = " ".join(str(error).split())[:300]
            message = f"{field}.endpoint: {page} cannot be read ({text}); correct the address, or try again later"
            raise StoreError(Exit.STORAGE, message) from error


def _within(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder.rstrip('/')}/")
