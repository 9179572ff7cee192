# SPDX-License-Identifier: Apache-2.0
"""Secrets that a job's spec names, as files: a folder a Secret, a file a key."""

from __future__ import annotations

import os
from pathlib import Path

from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Dataset, Location, Storage
from kinema_api.names import ENV_SECRETS, SECRETS_DIR

CA = "ca.crt"


def field_of(location: Location) -> str:
    """The field of a job's spec that a location stands in."""
    return (
        "storage" if isinstance(location, Storage) else "dataset" if isinstance(location, Dataset) else "model.weights"
    )


def read(location: Location, *required: str) -> dict[str, str]:
    """Every key of the Secret that a location names; nothing when it names none.

    Raises:
        StageError: the Secret, or a key that is required, is not there.
    """
    folder = _folder(location)
    if folder is None or location.secret_ref is None:
        return {}
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        keys = {path.name: path.read_text().strip() for path in files}
    except FileNotFoundError:
        keys = {}
    except (OSError, UnicodeDecodeError) as error:
        raise _fault(location, f"cannot read the Secret {location.secret_ref.name}: {error}") from error
    lacking = [key for key in required if not keys.get(key)]
    if lacking:
        name = location.secret_ref.name
        literals = " ".join(f"--from-literal={key}=..." for key in required)
        raise _fault(
            location,
            f"there is no Secret {name} in the namespace, or it has no {' and no '.join(lacking)}; create it with"
            f" kubectl create secret generic {name} {literals}",
        )
    return keys


def certificates(location: Location) -> str | None:
    """Path of the certificates to trust in place of the system's, where the Secret has some."""
    folder = _folder(location)
    return str(folder / CA) if folder is not None and (folder / CA).is_file() else None


def _folder(location: Location) -> Path | None:
    if location.secret_ref is None:
        return None
    return Path(os.environ.get(ENV_SECRETS) or SECRETS_DIR) / location.secret_ref.name


def _fault(location: Location, message: str) -> StageError:
    return StageError(Exit.USER, f"{field_of(location)}.secretRef: {message}")
