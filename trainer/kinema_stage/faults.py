# SPDX-License-Identifier: Apache-2.0
"""What object storage answers when it fails, as a sentence that says what to do."""

from __future__ import annotations

import errno
from typing import Any

from boto3.exceptions import S3UploadFailedError
from botocore import exceptions as boto
from botocore.exceptions import ClientError

from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Location
from kinema_stage.secrets import CA, field_of

_DENIED = frozenset({"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"})
_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "401"})
_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_FULL = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "507"})
_BUSY = frozenset({"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "NoSuchUpload"})
_BROKEN = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
)


class StoreError(StageError, OSError):
    """Object storage failed. It is an OSError as that of a volume is, and a sentence for the user."""

    def __init__(self, code: Exit, message: str, number: int = errno.EIO) -> None:
        StageError.__init__(self, code, message)
        self.errno = number

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreError, (self.code, self.message, self.errno)

    def __str__(self) -> str:
        return self.message


def transient(error: BaseException) -> bool:
    """Whether the same call may well succeed soon."""
    if isinstance(error, S3UploadFailedError):
        cause = error.__cause__ or error.__context__
        return cause is not None and transient(cause)
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code_of(error) in _BUSY or (status >= 500 and status not in (501, 507))
    return isinstance(error, _BROKEN) and not isinstance(error, (boto.EndpointConnectionError, boto.SSLError))


def code_of(error: ClientError) -> str:
    """The store's own word for what failed."""
    return str(error.response.get("Error", {}).get("Code", ""))


def sentence(error: Exception, *, location: Location, bucket: str, address: str) -> StoreError:
    """What a call of boto3 raised, for the user.

    Args:
        error: the exception.
        location: where the call went.
        bucket: its bucket.
        address: the object or folder that was asked for.
    """
    if isinstance(error, S3UploadFailedError):
        cause = error.__cause__ or error.__context__
        if isinstance(cause, (ClientError, boto.BotoCoreError)):
            error = cause
    field = field_of(location)
    if isinstance(error, ClientError):
        return _refused(error, field=field, location=location, bucket=bucket, address=address)
    return _unreached(error, field=field, location=location, address=address)


def _refused(error: ClientError, *, field: str, location: Location, bucket: str, address: str) -> StoreError:
    code, text = code_of(error), str(error.response.get("Error", {}).get("Message", ""))
    secret = f"the Secret {location.secret_ref.name}" if location.secret_ref else "the pod's own identity"
    if code == "NoSuchBucket":
        return StoreError(
            Exit.USER,
            f"{field}.uri: there is no bucket {bucket} at {_service(location)}; create it or correct the address",
        )
    if code in _CREDENTIALS:
        return StoreError(
            Exit.USER,
            f"{field}.secretRef: {_service(location)} refuses the credentials of {secret} ({code}); write the right"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into it, and AWS_SESSION_TOKEN where they are temporary ones",
            errno.EACCES,
        )
    if code in _DENIED:
        return StoreError(
            Exit.USER,
            f"{field}.uri: {secret} may not use {address} ({error.operation_name}: {code}); allow s3:ListBucket,"
            f" s3:GetObject{', s3:PutObject and s3:DeleteObject' if field == 'storage' else ''} there",
            errno.EACCES,
        )
    if code in _CLOCK:
        return StoreError(
            Exit.STORAGE,
            f"{field}.endpoint: the clock of this node and that of {_service(location)} differ too much ({code});"
            " set the node's clock, for instance by NTP",
        )
    if code in _FULL:
        return StoreError(
            Exit.STORAGE,
            f"{field}.uri: the bucket {bucket} is full ({code}); free space or raise its quota",
            errno.ENOSPC,
        )
    if code in ("NotImplemented", "501"):
        return StoreError(
            Exit.USER,
            f"{field}.endpoint: {_service(location)} does not know conditional writes (If-None-Match), by which jobs"
            " agree on who is first; use a store that does, for instance AWS S3, or MinIO of 2024-11 or later",
            errno.ENOTSUP,
        )
    answer = f"{code}: {text}".rstrip(": ")
    hint = "; the store is overloaded or ill: see to it" if transient(error) else ""
    return StoreError(
        Exit.STORAGE, f"{field}.uri: {_service(location)} failed for {address}: {answer or 'no reason'}{hint}"
    )


def _unreached(error: Exception, *, field: str, location: Location, address: str) -> StoreError:
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return StoreError(
            Exit.USER,
            f"{field}.secretRef: there are no credentials for {address}; name a Secret with AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, or give the service account an identity",
            errno.EACCES,
        )
    if isinstance(error, boto.SSLError):
        return StoreError(
            Exit.USER,
            f"{field}.endpoint: the certificate of {_service(location)} is not trusted; put the authority's certificate"
            f" into the key {CA} of the Secret that {field}.secretRef names ({_short(error)})",
        )
    if isinstance(error, (boto.EndpointConnectionError, boto.ConnectTimeoutError)):
        return StoreError(
            Exit.STORAGE,
            f"{field}.endpoint: {_service(location)} cannot be reached ({_short(error)}); correct the address, or let"
            " the cluster's network policies allow it",
        )
    return StoreError(
        Exit.STORAGE,
        f"{field}.endpoint: {_service(location)} gives no answer for {address} ({_short(error)}); see whether the"
        " store, and the network before it, are well",
    )


def _service(location: Location) -> str:
    return location.endpoint or f"AWS S3 ({location.region or 'us-east-1'})"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 300 else f"{text[:297]}..."
